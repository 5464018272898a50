"""Time and memory from nothing to the first result, beside onnxruntime: ``python benchmarks/load.py [--all | …]``.

Every measurement is a process of its own that has imported numpy only, with compiled modules cached as they are for
installed packages; the engines take turns, numbers are medians. *import* the engine, *create* a session, *first*
inference, *total* all three, *peak* the largest resident set. ``mnnpy`` finds the plan of an earlier session and its
tuning records, ``mnnpy cold`` an empty cache (the first session on a machine, which plans and measures its candidates).
The last rows are geometric means over the models of the ratios to onnxruntime. ``--json FILE`` keeps every measurement.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.zoo import ZOO  # noqa: E402

__all__ = ["measure"]

PEER = "onnxruntime"
ENGINES = ("mnnpy", "mnnpy cold", PEER)
FACTS = ("import", "create", "first", "total", "peak_created", "peak")
Row = dict[str, float]


def _environment(records: str) -> dict[str, str]:
    """Compiled modules are cached, as they are where packages are installed; *records* is where tuning is kept."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    cache = str(ROOT / "benchmarks" / "out" / "pycache")
    return {**kept, "PYTHONPYCACHEPREFIX": cache, "PYTHONPATH": path, "MNNPY_CACHE_DIR": records}


def _one(engine: str, command: list[str], records: str) -> tuple[Row | None, str]:
    """One process; None and the reason where it fails."""
    with tempfile.TemporaryDirectory() as fresh:
        where = fresh if engine.endswith("cold") else records
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(where), check=False)
    if done.returncode:
        return None, (done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"])[0]
    pairs = (entry.partition("=") for entry in done.stdout.split())
    return {key: float(value) for key, _, value in pairs}, ""


def measure(name: str, rounds: int, threads: int, records: str) -> dict[str, list[Row]]:
    """All rounds of all engines for one model; an engine that fails has no rows."""
    rows: dict[str, list[Row]] = {e: [] for e in ENGINES}
    worker = str(Path(__file__).with_name("load_worker.py"))
    with tempfile.TemporaryDirectory() as folder:
        feeds = str(Path(folder) / "feeds.npz")
        np.savez(feeds, **ZOO[name].inputs(0, 0))  # type: ignore[arg-type]
        for k in range(-1, rounds):  # round -1 fills the caches and is not counted
            for engine in ENGINES[:: 1 if k % 2 else -1]:
                path = str(ZOO[name].build())
                row, reason = _one(
                    engine, [sys.executable, "-W", "ignore", worker, engine, path, feeds, str(threads)], records
                )
                if row is not None and k >= 0:
                    rows[engine].append(row)
                elif row is None and k < 0:
                    print(f"{name}: {engine} fails: {reason[:160]}", file=sys.stderr)
    return rows


def _median(rows: list[Row], fact: str) -> float:
    return statistics.median(r[fact] for r in rows) if rows else float("nan")


def _ratios(kept: dict[str, dict[str, list[Row]]], engine: str, fact: str) -> list[float]:
    found = (_median(rows[engine], fact) / _median(rows[PEER], fact) for rows in kept.values())
    return [r for r in found if not math.isnan(r)]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50"], metavar="NAME", help="zoo models (resnet50)")
    parser.add_argument("--all", action="store_true", help="all zoo models that are installed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    names = [n for n, m in ZOO.items() if not m.available()] if options.all else options.models
    unknown = sorted(set(names) - set(ZOO))
    if unknown:
        parser.error(f"unknown models: {', '.join(unknown)}; benchmarks/zoo.py --list names the known ones")
    kept: dict[str, dict[str, list[Row]]] = {}
    heads = "import ms | create ms | first ms | total ms | created MiB | peak MiB | total ratio | peak ratio"
    print(f"| model | engine | {heads} |")
    print("|---|---|" + "--:|" * (len(FACTS) + 2))
    with tempfile.TemporaryDirectory() as records:
        for name in names:
            kept[name] = measure(name, options.rounds, options.threads, records)
            for engine, rows in kept[name].items():
                facts = [_median(rows, f) for f in FACTS]
                ratios = [_median(rows, f) / _median(kept[name][PEER], f) for f in ("total", "peak")]
                cells = [name, engine, *(f"{v:.1f}" for v in facts), *(f"{v:.2f}" for v in ratios)]
                print("| " + " | ".join(cells) + " |", flush=True)
    for engine in ENGINES[:-1]:
        cells = []
        for fact in ("total", "peak"):
            ratios = _ratios(kept, engine, fact)
            cells.append(f"{statistics.geometric_mean(ratios):.2f}" if ratios else "nan")
        print(f"| geometric mean of {len(kept)} | {engine} |" + " |" * len(FACTS) + f" {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "models": kept}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
