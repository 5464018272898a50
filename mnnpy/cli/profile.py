"""``mnnpy profile``: time per op, and a Chrome trace."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from mnnpy.cli.common import add_inputs, add_session, feeds_for, open_session
from mnnpy.cli.output import emit_json, note, table
from mnnpy.errors import InputError


def configure(parser: argparse.ArgumentParser) -> None:
    add_session(parser)
    add_inputs(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="TRACE.json", help="write a Chrome trace (open it in Perfetto)"
    )
    parser.add_argument("-n", "--repeat", type=int, default=5, help="profiled runs, after one warm-up (default 5)")
    parser.add_argument("--top", type=int, default=15, help="rows of the table of nodes (default 15)")


def run(args: argparse.Namespace) -> int:
    if args.repeat < 1:
        raise InputError("--repeat must be at least 1")
    session = open_session(args)
    feeds = feeds_for(args, session.get_inputs())
    session.run(None, feeds)
    trace = session.profile(feeds, repeat=args.repeat)
    if args.output:
        args.output.write_text(json.dumps(trace))
        note(args, f"wrote {args.output}")
    events = [e for e in trace["traceEvents"] if e.get("ph") == "X"]
    total = sum(e["dur"] for e in events) or 1.0
    ops = _grouped(events, lambda e: (e["name"], e["args"]["algorithm"], e["tid"]), total, args.repeat)
    nodes = _grouped(events, lambda e: (e["name"], e["args"]["algorithm"], e["args"]["node"]), total, args.repeat)
    if args.json:
        emit_json({"total us": total / args.repeat, "ops": ops, "nodes": nodes})
        return 0
    print(f"{total / args.repeat / 1e3:.3f} ms per run in ops, mean of {args.repeat} runs")
    print(table([_row(r) for r in ops], ("OP", "ALGORITHM", "BACKEND", "CALLS", "US", "%")))
    print()
    print(table([_row(r) for r in nodes[: args.top]], ("OP", "ALGORITHM", "NODE", "CALLS", "US", "%")))
    return 0


def _grouped(events: list[dict[str, Any]], key: Any, total: float, repeat: int) -> list[dict[str, Any]]:
    """Events summed by *key*, the most expensive first; times are per run."""
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for event in events:
        groups[key(event)].append(event["dur"])
    rows = [
        {"key": list(k), "calls": len(v) / repeat, "us": sum(v) / repeat, "percent": 100 * sum(v) / total}
        for k, v in groups.items()
    ]
    return sorted(rows, key=lambda r: -r["us"])


def _row(group: dict[str, Any]) -> list[Any]:
    return [*group["key"], group["calls"], float(group["us"]), float(group["percent"])]
