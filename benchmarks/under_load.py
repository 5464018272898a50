"""Latency beside busy processes: ``python benchmarks/under_load.py [--models …] [--engines …] [--busy N]``.

Every engine is a process of its own (``peer_worker.py``). A round times each engine in turn on the quiet machine, then
each in turn beside *N* processes that do nothing but spin; so engines and both states see the same noise. Prints
Markdown: median and 95th percentile of all runs, and how many times slower the load makes them. With as many busy
processes as cores a fair scheduler leaves half of the machine, so that a factor of 2 is what the load itself costs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.engines import ENGINES, version_of  # noqa: E402
from benchmarks.peers import Worker, machine  # noqa: E402
from benchmarks.zoo import ZOO  # noqa: E402

DEFAULT_MODELS = ("squeezenet", "mobilenet_v2", "resnet18", "minilm_l6", "mlp_64_64_10")
DEFAULT_ENGINES = ("mnnpy", "onnxruntime", "openvino")
#: Seconds of runs of one engine in one round: many time slices of the scheduler (about 3 ms each).
ROUND_SECONDS = 0.4
STATES = ("quiet", "busy")


@contextmanager
def spinners(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that spin while they are not stopped; they start stopped and end with the block."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        for p in processes:
            p.send_signal(signal.SIGSTOP)
        yield processes
    finally:
        for p in processes:
            p.kill()
            p.wait()


def measure(model: str, engines: Sequence[str], threads: int, rounds: int, busy: int) -> dict[str, Any]:
    """Engine → state → seconds of all its runs, or ``error``."""
    workers = [Worker(e, model, threads) for e in engines if version_of(e)]
    found: dict[str, Any] = {w.engine: {s: [] for s in STATES} for w in workers}
    for w in workers:
        w.ask("warm", seconds=0.3)
    with spinners(busy) as processes:
        for k in range(rounds):
            for state in STATES:
                for p in processes:
                    p.send_signal(signal.SIGSTOP if state == "quiet" else signal.SIGCONT)
                for w in workers if k % 2 == 0 else workers[::-1]:
                    found[w.engine][state] += w.ask("samples", seconds=ROUND_SECONDS).get("samples", [])
    for w in workers:
        w.close()
        if w.error:
            found[w.engine]["error"] = w.error
    return found


def _cells(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [found["error"], *["–"] * 5]
    middle = [1e3 * statistics.median(found[s]) for s in STATES]
    tail = [1e3 * statistics.quantiles(found[s], n=20)[-1] for s in STATES]
    shown = [f"{middle[0]:.3g}", f"{middle[1]:.3g}", f"{middle[1] / middle[0]:.2f}"]
    return [*shown, f"{tail[0]:.3g}", f"{tail[1]:.3g}", f"{tail[1] / tail[0]:.2f}"]


def markdown(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        f"{report['machine']}.",
        "",
        f"{report['threads']} threads beside {report['busy']} spinning processes, ms, {report['rounds']} rounds.",
        "",
        "| model | engine | median quiet | busy | factor | p95 quiet | busy | factor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, engines in report["results"].items():
        lines += [f"| {model} | {engine} | " + " | ".join(_cells(f)) + " |" for engine, f in engines.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(DEFAULT_MODELS), choices=sorted(ZOO), metavar="NAME")
    parser.add_argument("--engines", nargs="+", default=list(DEFAULT_ENGINES), choices=sorted(ENGINES))
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the engines (default 2)")
    parser.add_argument("--busy", type=int, default=len(os.sched_getaffinity(0)), help="spinning processes (cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run")
    options = parser.parse_args(argv)
    results = {}
    for model in options.models:
        if reason := ZOO[model].available():
            print(f"{model}: {reason}", file=sys.stderr)
            continue
        ZOO[model].build()
        results[model] = measure(model, options.engines, options.threads, options.rounds, options.busy)
    report = {
        "machine": machine(),
        "threads": options.threads,
        "busy": options.busy,
        "rounds": options.rounds,
        "results": results,
    }
    print(markdown(report))
    if options.json:
        options.json.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
