"""Time and memory of creating a session, beside onnxruntime: ``python benchmarks/load.py [--all | --models …]``.

Every measurement is a process of its own, and the engines take turns; numbers are medians. *create* is the constructor
alone (imports are listed apart), *first* the first inference, *ready* both together (models of symbolic shapes are
planned at the first inference), *peak* the largest resident set after creation and after
the first inference. Prints a table; ``--json FILE`` keeps every measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.zoo import ZOO  # noqa: E402

__all__ = ["measure"]

ENGINES = ("mnnpy", "onnxruntime")
FACTS = ("import", "create", "first", "peak_created", "peak")
Row = dict[str, float]


def _resident(key: str) -> float:
    """MiB of the process: ``VmHWM`` is the largest resident set since its program started."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {key}; this benchmark needs Linux")


def worker(engine: str, name: str, threads: int) -> Row:
    """One measurement in this process."""
    model = ZOO[name]
    path, feeds = str(model.build()), model.inputs(0, 0)
    start = time.perf_counter()
    if engine == "mnnpy":
        import mnnpy

        create: Any = lambda: mnnpy.Session(path, threads=threads)  # noqa: E731
        mnnpy.Session  # noqa: B018 (the package is lazy)
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        create = lambda: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])  # noqa: E731
    imported = time.perf_counter()
    baseline = _resident("VmHWM")
    begin = time.perf_counter()
    session = create()
    created = time.perf_counter()
    peak_created = _resident("VmHWM")
    ran = time.perf_counter()
    session.run(None, feeds)
    first = time.perf_counter() - ran
    return {
        "import": 1e3 * (imported - start),
        "baseline": baseline,
        "create": 1e3 * (created - begin),
        "first": 1e3 * first,
        "ready": 1e3 * (created - begin + first),
        "peak_created": peak_created,
        "peak": _resident("VmHWM"),
    }


def _environment() -> dict[str, str]:
    """Compiled modules are cached, as they are where packages are installed."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(ROOT / "benchmarks" / "out" / "pycache")}


def measure(name: str, rounds: int, threads: int) -> dict[str, list[Row]]:
    """All rounds of all engines for one model; an engine that fails has no rows."""
    rows: dict[str, list[Row]] = {e: [] for e in ENGINES}
    for k in range(-1, rounds):  # round -1 fills the caches and is not counted
        for engine in ENGINES[:: 1 if k % 2 else -1]:
            command = [sys.executable, "-W", "ignore", __file__, "--worker", engine, name, str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=_environment(), check=False)
            if done.returncode == 0 and k >= 0:
                rows[engine].append(json.loads(done.stdout))
            elif done.returncode and k < 0:
                reason = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
                print(f"{name}: {engine} fails: {reason[0][:160]}", file=sys.stderr)
    return rows


def _median(rows: list[Row], fact: str) -> float:
    return statistics.median(r[fact] for r in rows) if rows else float("nan")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50"], metavar="NAME", help="zoo models (resnet50)")
    parser.add_argument("--all", action="store_true", help="all zoo models that are installed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--worker", nargs=3, metavar=("ENGINE", "MODEL", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        engine, name, threads = options.worker
        print(json.dumps(worker(engine, name, int(threads))))
        return 0
    names = [n for n, m in ZOO.items() if not m.available()] if options.all else options.models
    unknown = sorted(set(names) - set(ZOO))
    if unknown:
        parser.error(f"unknown models: {', '.join(unknown)}; benchmarks/zoo.py --list names the known ones")
    kept: dict[str, dict[str, list[Row]]] = {}
    heads = "import ms | create ms | first ms | created MiB | peak MiB | create ratio | ready ratio | peak ratio"
    print(f"| model | engine | {heads} |")
    print("|---|---|" + "--:|" * (len(FACTS) + 3))
    for name in names:
        ZOO[name].build()
        kept[name] = measure(name, options.rounds, options.threads)
        other = kept[name]["onnxruntime"]
        for engine, rows in kept[name].items():
            facts = [_median(rows, f) for f in FACTS]
            ratios = [_median(rows, f) / _median(other, f) for f in ("create", "ready", "peak")]
            cells = [name, engine, *(f"{v:.1f}" for v in facts), *(f"{v:.2f}" for v in ratios)]
            print("| " + " | ".join(cells) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "models": kept}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
