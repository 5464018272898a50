"""One engine with one model in a process of its own: commands come as JSON lines on stdin, answers go to stdout.

``python benchmarks/peer_worker.py ENGINE WORKLOAD THREADS``. Between commands the process blocks on the pipe, so that
it takes no processor time from the engine whose turn it is.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.engines import ENGINES
from benchmarks.zoo import Workload

#: One round runs at least this long (seconds) and this often, unless runs are long.
ROUND_SECONDS, LONG_RUN = 0.03, 0.5
#: Pause after a round: some thread pools (onnxruntime's: about 40 ms) go on spinning for a while after a run, and would
#: slow down the engine whose turn is next.
SETTLE_SECONDS = 0.08


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _round(call: Callable[[], Any], estimate: float) -> float:
    """Median seconds of the runs of one round."""
    count = 1 if estimate > LONG_RUN else max(3, min(3000, int(ROUND_SECONDS / max(estimate, 1e-6))))
    return float(np.median([_timed(call) for _ in range(count)]))


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _samples(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each run, for as long as *seconds*, three at least."""
    samples: list[float] = []
    until = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < until:
        samples.append(_timed(call))
    return samples


def main() -> None:
    engine, name, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to stderr

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")

    workload = Workload.parse(name)
    feeds = workload.inputs()
    path = workload.model.build()
    baseline = _peak_megabytes()
    try:
        start = time.perf_counter()
        run = ENGINES[engine](path, feeds, threads)
        loaded = time.perf_counter()
        results = run(feeds)
        first = time.perf_counter()
    except Exception as error:  # reported as this engine's result: the others go on
        answer(error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200])
        return
    answer(load=1e3 * (loaded - start), first=1e3 * (first - loaded), baseline=baseline)
    estimate = first - loaded
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "save":
            np.savez(command["path"], *(np.asarray(r) for r in results))
            answer(done=True)
        elif command["do"] == "warm":
            until = time.perf_counter() + command["seconds"]
            while time.perf_counter() < until:
                estimate = _timed(lambda: run(feeds))
            time.sleep(SETTLE_SECONDS)
            before = time.process_time()
            time.sleep(0.25)
            answer(idle=1e3 * (time.process_time() - before))
        elif command["do"] == "round":
            begin, busy = time.perf_counter(), time.process_time()
            seconds = _round(lambda: run(feeds), estimate)
            cores = (time.process_time() - busy) / (time.perf_counter() - begin)
            time.sleep(SETTLE_SECONDS)
            answer(seconds=seconds, cores=cores)
        elif command["do"] == "samples":
            samples = _samples(lambda: run(feeds), command["seconds"])
            time.sleep(SETTLE_SECONDS)
            answer(samples=samples)
        elif command["do"] == "quit":
            answer(rss=_peak_megabytes())
            return


if __name__ == "__main__":
    main()
