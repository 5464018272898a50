"""Several sessions of one process at once: ``python benchmarks/sessions_at_once.py [--models …] [--threads N]``.

*together*: N sessions, each in a thread of its own, against the same number of runs one after the other (throughput
above 1: running together is faster). *beside*: latency of a small model while another thread runs a big one without
pause. Rounds of both kinds are interleaved. onnxruntime is timed the same way; its sessions have a thread pool each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.engines import ENGINES  # noqa: E402
from benchmarks.peers import machine  # noqa: E402
from benchmarks.zoo import ZOO  # noqa: E402

Call = Callable[[], Any]


def open_call(engine: str, model: str, threads: int) -> Call:
    """A call that runs *model* once, in a session of its own."""
    feeds = ZOO[model].inputs(0, 0)
    run = ENGINES[engine](ZOO[model].build(), feeds, threads)
    run(feeds)
    return lambda: run(feeds)


def at_once(calls: Sequence[Call], runs: int) -> float:
    """Seconds until every call has run *runs* times, each in its own thread."""
    barrier = threading.Barrier(len(calls) + 1)

    def work(call: Call) -> None:
        barrier.wait()
        for _ in range(runs):
            call()

    workers = [threading.Thread(target=work, args=(c,)) for c in calls]
    for w in workers:
        w.start()
    barrier.wait()
    begin = time.perf_counter()
    for w in workers:
        w.join()
    return time.perf_counter() - begin


def in_turn(calls: Sequence[Call], runs: int) -> float:
    """Seconds for the same runs one after the other."""
    begin = time.perf_counter()
    for _ in range(runs):
        for call in calls:
            call()
    return time.perf_counter() - begin


def latencies(small: Call, big: Call | None, seconds: float) -> list[float]:
    """Seconds of each run of *small*, beside *big* in another thread where it is given."""
    stop = threading.Event()

    def load(call: Call) -> None:
        while not stop.is_set():
            call()

    other = threading.Thread(target=load, args=(big,)) if big is not None else None
    if other is not None:
        other.start()
    found: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(found) < 3:
        begin = time.perf_counter()
        small()
        found.append(time.perf_counter() - begin)
    stop.set()
    if other is not None:
        other.join()
    return found


def together(engine: str, model: str, sessions: int, threads: int, rounds: int) -> str:
    """A table row: throughput of sessions at once over that of the same sessions in turn."""
    calls = [open_call(engine, model, threads) for _ in range(sessions)]
    runs = max(2, min(200, round(0.2 / max(in_turn(calls, 1), 1e-6))))
    pairs = [(in_turn(calls, runs), at_once(calls, runs)) for _ in range(rounds)]
    turn, once = (1e3 * statistics.median(t) / runs / sessions for t in zip(*pairs, strict=True))
    gain = statistics.median(a / b for a, b in pairs)
    return f"| {sessions} × {model} | {engine} | {turn:.3g} | {once:.3g} | {gain:.2f} |"


def beside(engine: str, small: str, big: str, threads: int, rounds: int) -> str:
    """A table row: median and 95th percentile of the small model's latency, alone and beside the big one."""
    one, other = open_call(engine, small, threads), open_call(engine, big, threads)
    alone: list[float] = []
    shared: list[float] = []
    for _ in range(rounds):
        alone += latencies(one, None, 0.3)
        shared += latencies(one, other, 0.3)
    cells = []
    for times in (alone, shared):
        cells += [1e3 * statistics.median(times), 1e3 * statistics.quantiles(times, n=20)[-1]]
    return f"| {small} beside {big} | {engine} | " + " | ".join(f"{c:.3g}" for c in cells) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["squeezenet", "resnet18"], choices=sorted(ZOO), metavar="NAME")
    parser.add_argument("--engines", nargs="+", default=["mnnpy", "onnxruntime"], choices=sorted(ENGINES))
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="threads of each session (default 2)")
    parser.add_argument("--rounds", type=int, default=5)
    o = parser.parse_args(argv)
    print(f"{machine()}. {o.threads} threads a session, {o.rounds} rounds, milliseconds.\n")
    print("| sessions | engine | per run in turn | at once | throughput gain |\n|---|---|---|---|---|")
    for model in o.models:
        for engine in o.engines:
            print(together(engine, model, o.sessions, o.threads, o.rounds))
    print("\n| model | engine | alone median | p95 | beside median | p95 |\n|---|---|---|---|---|---|")
    for small in ("mlp_64_64_10", "squeezenet"):
        for engine in o.engines:
            print(beside(engine, small, "resnet18", o.threads, o.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
