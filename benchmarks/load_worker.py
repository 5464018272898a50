"""One measurement of benchmarks/load.py, in a process that has imported nothing but numpy.

usage: python benchmarks/load_worker.py ENGINE MODEL FEEDS.npz THREADS; prints ``fact=value`` pairs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def resident(key: str) -> float:
    """MiB of the process: ``VmHWM`` is the largest resident set since its program started."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {key}; this benchmark needs Linux")


def main(engine: str, path: str, feeds_file: str, threads: int) -> None:
    """Import the engine, create a session, run it once."""
    with np.load(feeds_file) as kept:
        feeds = dict(kept)
    start = time.perf_counter()
    session: Any
    if engine.startswith("mnnpy"):
        import mnnpy

        make = mnnpy.Session  # the package is lazy: this imports it
        imported = time.perf_counter()
        session = make(path, threads=threads)
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        imported = time.perf_counter()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    created = time.perf_counter()
    peak_created = resident("VmHWM")
    ran = time.perf_counter()
    session.run(None, feeds)
    end = time.perf_counter()
    facts = {
        "import": 1e3 * (imported - start),
        "create": 1e3 * (created - imported),
        "first": 1e3 * (end - ran),
        "total": 1e3 * (created - start + end - ran),
        "peak_created": peak_created,
        "peak": resident("VmHWM"),
    }
    print(*(f"{key}={value}" for key, value in facts.items()))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
