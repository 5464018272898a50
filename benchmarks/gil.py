"""How much Python gets done beside inference: ``python benchmarks/gil.py [--model resnet50] [--threads 1]``.

One thread only counts, another one infers without pause. The ratio of the counting rate to its rate beside a sleeping
thread says how long inference holds the interpreter lock; on a machine with a free core per thread 1.0 is ideal. For
comparison the same is measured beside a loop of NumPy matrix products and beside a thread of pure Python.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.zoo import ZOO  # noqa: E402

__all__ = ["ratio"]


def _rate(seconds: float) -> float:
    """Counts per second of this thread."""
    count, start = 0, time.perf_counter()
    end = start + seconds
    while time.perf_counter() < end:
        count += 1
    return count / (time.perf_counter() - start)


def _beside(work: Callable[[], object], seconds: float) -> tuple[float, int]:
    """The counting rate while another thread repeats *work*, and how often it did."""
    done = threading.Event()
    runs = 0

    def repeat() -> None:
        nonlocal runs
        while not done.is_set():
            work()
            runs += 1

    thread = threading.Thread(target=repeat)
    thread.start()
    rate = _rate(seconds)
    done.set()
    thread.join()
    return rate, runs


def ratio(work: Callable[[], object], seconds: float, rounds: int) -> tuple[float, int]:
    """Median over rounds of busy rate / idle rate, measured in turns; and the number of runs."""
    work()
    ratios, total = [], 0
    for _ in range(rounds):
        idle, _ = _beside(lambda: time.sleep(0.02), seconds)
        busy, runs = _beside(work, seconds)
        ratios.append(busy / idle)
        total += runs
    return statistics.median(ratios), total


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", choices=sorted(ZOO))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    import mnnpy

    model = ZOO[options.model]
    feeds = model.inputs(0, 0)
    session = mnnpy.Session(str(model.build()), threads=options.threads)
    a = np.ones((512, 512), np.float32)

    def python() -> int:
        return sum(range(10000))

    found: dict[str, float] = {}
    for name, work in (
        (f"mnnpy, {options.model}", lambda: session.run(None, feeds)),
        ("numpy matrix products", lambda: a @ a),
        ("pure Python", python),
    ):
        found[name], runs = ratio(work, options.seconds, options.rounds)
        print(f"{name:30} the counting thread keeps {100 * found[name]:5.1f} % of its idle rate ({runs} runs)")
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "ratio": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
