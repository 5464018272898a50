"""What measured selection costs: ``python benchmarks/tuning.py [--models …]``.

Three fresh processes per model create a session and run it once: without tuning, with it and an empty cache, and with
the cache that the second one filled. The differences to the first are what selection adds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.peers import environment  # noqa: E402
from benchmarks.zoo import ZOO  # noqa: E402

STATES = ("off", "cold", "cached")


def worker(name: str, threads: int, *, tune: bool) -> float:
    """Seconds of session and first run in this process."""
    import mnnpy

    model = ZOO[name]
    path, feeds = model.build(), model.inputs()
    begin = time.perf_counter()
    options = mnnpy.Options(threads=threads, tune=0.5 if tune else "off")
    session = mnnpy.Session(path, "cpu", options)
    session.run(None, feeds)
    return time.perf_counter() - begin


def measure(models: Sequence[str], threads: int, rounds: int = 3) -> dict[str, Any]:
    """Model → state → least seconds over rounds."""
    found: dict[str, dict[str, float]] = {}
    for name in models:
        ZOO[name].build()
        samples: dict[str, list[float]] = {s: [] for s in STATES}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                for state in STATES:
                    command = [sys.executable, __file__, "--worker", name, str(threads), state]
                    surroundings = {**environment(), "MNNPY_CACHE_DIR": folder}
                    done = subprocess.run(
                        command, capture_output=True, text=True, cwd=ROOT, env=surroundings, check=True
                    )
                    samples[state].append(float(done.stdout))
        found[name] = {s: min(v) for s, v in samples.items()}
        print(name, {s: f"{v:.3f}" for s, v in found[name].items()}, file=sys.stderr, flush=True)
    return {"threads": threads, "models": found}


def table(report: dict[str, Any]) -> list[str]:
    """Markdown rows."""
    lines = ["Milliseconds of session and first run, least of three processes each.", ""]
    lines += ["| model | no tuning | first time | cached | first time adds | cached adds |", "|---|" + "--:|" * 5]
    for name, one in report["models"].items():
        off, cold, cached = (1e3 * one[s] for s in STATES)
        lines.append(f"| {name} | {off:.0f} | {cold:.0f} | {cached:.0f} | {cold - off:.0f} | {cached - off:.0f} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[n for n, m in ZOO.items() if not m.available()])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--worker", nargs=3, metavar=("MODEL", "THREADS", "STATE"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        name, threads, state = options.worker
        print(worker(name, int(threads), tune=state != "off"))
        return 0
    unknown = sorted(set(options.models) - set(ZOO))
    if unknown:
        parser.error(f"unknown models: {', '.join(unknown)}; benchmarks/zoo.py --list names the known ones")
    report = measure(options.models, options.threads, options.rounds)
    print("\n".join(table(report)))
    if options.json:
        options.json.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
