"""``mnnpy tune``: search for the fastest algorithms and devices, and report what was found."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mnnpy.cli.common import add_inputs, add_session, feeds_for, options_of
from mnnpy.cli.output import emit_json, note, table
from mnnpy.errors import InputError
from mnnpy.search.observe import Event, Task

_HEAD = ("OP", "ALGORITHM", "BACKEND", "PREDICTED µs", "MEASURED µs", "WHY", "SHAPE", "NODE")
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0}


def configure(parser: argparse.ArgumentParser) -> None:
    add_session(parser)
    add_inputs(parser)
    parser.add_argument("--budget", default="10s", metavar="TIME", help="for measuring: 10s (default), 500ms, 2min")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PLAN.json",
        help="write what was measured, for Session(tuning=…) here or on machines of the same kind",
    )
    parser.add_argument("--html", type=Path, metavar="REPORT.html", help="write a report as one page without links")
    parser.epilog = (
        "What is measured is kept in the cache folder (MNNPY_CACHE_DIR) for later sessions of this machine; what is "
        "known already is not measured again. Predicted is the cost model's time of a layer with the light ops behind "
        "it, measured the profiled time in the chosen plan."
    )


def run(args: argparse.Namespace) -> int:
    from mnnpy.backends.registry import open_device
    from mnnpy.tuning import Watch, html_page, tune

    options = replace(options_of(args), tune=seconds_of(args.budget), cache=False)
    wanted: dict[str, Any] = {"threads": options.thread_count}
    if options.isa is not None:
        wanted["isa"] = options.isa
    devices = [open_device(name, **wanted) for name in args.backend or ["cpu"]]
    live = Live(args)
    found = tune(args.model, devices, options, lambda inputs: feeds_for(args, inputs), Watch(live))
    live.close()
    found["model"]["file"] = Path(args.model).name
    if args.output:
        args.output.write_text(json.dumps(found["tuning"], indent=1) + "\n")
        note(args, f"wrote {args.output}: {len(found['tuning']['records'])} records")
    if args.html:
        args.html.write_text(html_page(found))
        note(args, f"wrote {args.html}")
    if args.json:
        emit_json(found)
    else:
        _print(args, found)
    return 1 if found["search"]["banned"] else 0


def seconds_of(text: str) -> float:
    """``10s``, ``500ms``, ``2min`` or a number of seconds."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", text)
    if match is None or match[2] not in _UNITS:
        raise InputError(f"--budget {text}: write a time as in 10s, 500ms or 2min")
    return float(match[1]) * _UNITS[match[2]]


class Live:
    """A line per decision: on a terminal while it is being made, otherwise with ``-v`` when it was."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._terminal = sys.stderr.isatty() and not args.quiet
        self._plain = args.verbose and not self._terminal
        self._begin = time.perf_counter()
        self._best: dict[tuple[str, str], dict[str, float]] = {}
        self._runs: dict[tuple[str, str], int] = {}
        self._open = False

    def __call__(self, event: Event, /) -> None:
        key = (event.task.device, event.task.key)
        best = self._best.setdefault(key, {})
        if event.kind == "measured" and event.seconds is not None:
            best[event.candidate] = min(event.seconds, best.get(event.candidate, event.seconds))
            self._runs[key] = self._runs.get(key, 0) + 1
        if event.kind in ("decided", "recalled"):
            self._final(event, best, self._runs.get(key, 0))
        elif event.kind == "banned":
            self._line(f"'{event.candidate}' computes something else than the others; banned: {_title(event.task)}")
        elif self._terminal:
            now = f"preparing {event.candidate}" if event.kind == "begun" else ""
            self._show(f"{'  '.join(filter(None, (_times(best), now)))}: {_title(event.task)}")

    def close(self) -> None:
        """Leave no half line behind."""
        if self._open:
            self._show("")

    def _final(self, event: Event, best: dict[str, float], runs: int) -> None:
        how = f"of {len(best)} in {runs} runs" if event.kind == "decided" else "measured earlier"
        took = "" if event.seconds is None else f" {_time(event.seconds)}"
        self._line(f"{event.candidate}{took}, {how}: {_title(event.task)}")

    def _line(self, text: str) -> None:
        """A line that stays."""
        at = f"{time.perf_counter() - self._begin:6.2f} s  "
        if self._terminal:
            self._show(at + text)
            print(file=sys.stderr, flush=True)
            self._open = False
        elif self._plain:
            print(at + text, file=sys.stderr, flush=True)

    def _show(self, text: str) -> None:
        """The line that is overwritten; what does not fit into it is cut."""
        import shutil

        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]}\033[K", end="", file=sys.stderr, flush=True)
        self._open = True


def _title(task: Task) -> str:
    return f"{task.label} on {task.device}" if task.device else task.label


def _times(best: dict[str, float]) -> str:
    return "  ".join(f"{name} {_time(s)}" for name, s in sorted(best.items(), key=lambda item: item[1]))


def _time(seconds: float) -> str:
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{factor * seconds:.3g} {unit}"
    return f"{seconds:.3g} s"


def _print(args: argparse.Namespace, found: dict[str, Any]) -> None:
    layers = found["layers"]
    print(table([_row(la) for la in layers], _HEAD))
    print()
    shown = [[("→ " if w["chosen"] else "  ") + w["way"], *_way(w)] for w in found["ways"]]
    print(table(shown, ("  WAY", "PREDICTED", "MEASURED", "NOW", "WHY")))
    search = found["search"]
    print(
        f"\nsearch: {search['seconds']:.2f} s, {search['decided']} decided in {search['measured']} runs, "
        f"{search['recalled']} known from earlier, {search['dropped']} candidates dropped, {search['banned']} banned"
    )
    errors = sorted(abs(p["predicted_us"] / p["measured_us"] - 1) for p in found["points"])
    if errors:
        print(
            f"predicted against measured: median error {100 * errors[len(errors) // 2]:.0f} % of {len(errors)} layers"
        )


def _row(layer: dict[str, Any]) -> list[Any]:
    """Cells of a layer; where it was weighed among devices also what the others were predicted at."""
    more = len(layer["ops"]) - 1
    predicted = layer["predicted_us"].get(layer["backend"], "")
    others = [f"{n} {us:.4g} µs" for n, us in layer["predicted_us"].items() if n != layer["backend"]]
    alone = f"{layer['why']}: {layer['alone_us']:.4g} µs alone" if layer["alone_us"] else layer["why"]
    why = "; ".join(filter(None, (alone, f"{', '.join(others)} predicted" if others else "")))
    measured = layer["measured_us"] if layer["steps"] else "merged"
    return [layer["op"] + (f" +{more}" if more else ""), layer["algorithm"], layer["backend"], predicted,
            "" if measured is None else measured, why, layer["shape"], layer["node"]]  # fmt: skip


def _way(way: dict[str, Any]) -> list[str]:
    times = ["" if way[k] is None else _time(way[k]) for k in ("predicted", "measured", "now")]
    return [*times, way["reason"]]
