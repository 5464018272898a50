"""A process that tunes a model for the tests of the search: ``search_worker.py SECONDS [limit]``.

Prints a line per decision. With *limit* no file may grow beyond that many bytes, as on a full disk.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import numpy as np

import mnnpy
from mnnpy.backends.cpu import select
from mnnpy.search.observe import Event
from tests.models import Net

LAYERS = 6


def network() -> tuple[Any, dict[str, np.ndarray]]:
    """Convolutions that all differ."""
    n = Net()
    y = n.input(1, 16, 20, 18)
    for k in range(LAYERS):
        y = n.op("Relu", n.op("Conv", y, n.w(24 + 8 * k, 16 + 8 * k, 3, 3), n.w(24 + 8 * k), pads=[1, 1, 1, 1]))
    return n.finish(y)


def everything_is_measured() -> None:
    """Small layers and slow candidates too."""
    select.SHORTLIST, select.MATTERS = 1e9, 0.0


def main(seconds: float, limit: int = 0) -> None:
    """Tune and run."""
    if limit:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def hear(event: Event) -> None:
        if event.kind in ("decided", "recalled"):
            print(event.kind, event.candidate, flush=True)

    everything_is_measured()
    model, feeds = network()
    session = mnnpy.Session(model, "cpu", threads=1, tune=seconds, observer=hear)
    (y,) = session.run(None, feeds)
    print("sum", float(np.abs(y).sum()), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), *map(int, sys.argv[2:]))
