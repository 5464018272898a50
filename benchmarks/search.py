"""How far predictions are from measurements: ``python benchmarks/search.py [--models …]``.

Every model is tuned on the cpu into an empty folder of records, all candidates of all layers, then run. Printed are
median relative errors of the cost model: by the roofline alone, corrected by the records, and corrected by the records
of the other layers only (what a layer that was never seen is predicted with); and the same for whole models, whose time
is measured by interleaved runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.zoo import ZOO  # noqa: E402


def measure(models: Sequence[str], threads: int, rounds: int = 20) -> dict[str, Any]:
    """Errors over layers and models; the seconds of tuning and planning, and predicted and measured ones of runs."""
    import mnnpy
    from mnnpy.backends.cpu import select
    from mnnpy.search.correct import errors

    select.SHORTLIST, select.MATTERS = 1e9, 0.0  # everything is measured, not only what may win
    found: dict[str, dict[str, float]] = {}
    sessions: dict[str, tuple[Any, Any]] = {}
    for name in models:
        path, feeds = ZOO[name].build(), ZOO[name].inputs()
        begin = time.perf_counter()
        session = mnnpy.Session(path, "cpu", threads=threads, tune=10.0, cache=False)
        session.run(None, feeds)
        found[name] = {"tuning": time.perf_counter() - begin, "measured": float("inf")}
        sessions[name] = session, feeds
    for _ in range(rounds):
        for name, (session, feeds) in sessions.items():
            begin = time.perf_counter()
            session.run(None, feeds)
            found[name]["measured"] = min(found[name]["measured"], time.perf_counter() - begin)
    for name, (session, feeds) in sessions.items():
        for key, learnt in (("before", False), ("after", True)):
            found[name][key] = predicted(session, feeds, learnt)
    return {"layers": errors(select.records().all()), "models": found, "threads": threads}


def predicted(session: Any, feeds: Any, learnt: bool) -> float:
    """Seconds of a run as the search over devices sees it."""
    from mnnpy.decompose.lower import view_of
    from mnnpy.search.place import Machine, estimate

    machine = Machine(session._context.devices, learnt=learnt)
    total = 0.0
    for _, graph in session.parts(feeds):
        chunks = estimate(graph, machine, lambda n, g=graph: view_of(n, g.types, g.constants), "normal")  # type: ignore[misc]
        total += sum(e.seconds.get(0, 0.0) for e in chunks)
    return total


def lines(report: dict[str, Any]) -> list[str]:
    """Text."""
    layers = report["layers"]
    shown = ", ".join(f"{100 * layers[k]:.1f} % {k}" for k in ("before", "after", "unseen"))
    text = [f"layers: median relative error {shown} ({layers['count']:.0f} candidates)", ""]
    text += ["| model | tuning s | predicted ms | corrected ms | measured ms | error | corrected |"]
    text += ["|---|" + "--:|" * 6]
    errors: dict[str, list[float]] = {"before": [], "after": []}
    for name, row in report["models"].items():
        off = {k: row[k] / row["measured"] - 1 for k in errors}
        for k, value in off.items():
            errors[k].append(abs(value))
        times = " | ".join(f"{1e3 * row[k]:.3g}" for k in ("before", "after", "measured"))
        shown = f"{100 * off['before']:+.0f} % | {100 * off['after']:+.0f} %"
        text.append(f"| {name} | {row['tuning']:.1f} | {times} | {shown} |")
    middle = {k: sorted(v)[len(v) // 2] for k, v in errors.items()}
    shown = f"{100 * middle['before']:.1f} % before, {100 * middle['after']:.1f} % after"
    return [*text, "", f"models: median relative error {shown}"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[n for n, m in ZOO.items() if not m.available()])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.models) - set(ZOO))
    if unknown:
        parser.error(f"unknown models: {', '.join(unknown)}; benchmarks/zoo.py --list names the known ones")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MNNPY_CACHE_DIR"] = folder  # before the records are first asked for
        report = measure(options.models, options.threads, options.rounds)
    print("\n".join(lines(report)))
    if options.json:
        options.json.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
