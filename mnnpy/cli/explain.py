"""``mnnpy explain``: what runs where, by which algorithm and why."""

from __future__ import annotations

import argparse
from typing import Any

from mnnpy.cli.common import add_inputs, add_session, feeds_for, open_session
from mnnpy.cli.output import emit_json, table

_HEAD = ("PLAN", "OP", "ALGORITHM", "BACKEND", "PREDICTED µs", "MEASURED µs", "DEVICES µs", "WHY", "SHAPE", "NODE")


def configure(parser: argparse.ArgumentParser) -> None:
    add_session(parser)
    add_inputs(parser)
    parser.epilog = (
        "Predicted and measured are of the algorithm alone; devices: what the cost model says of the node with the "
        "light ones behind it on each device. Nothing is measured: `mnnpy tune` does that."
    )


def run(args: argparse.Namespace) -> int:
    session = open_session(args)
    found = session.explain(feeds_for(args, session.get_inputs()))
    if args.json:
        emit_json({"model": args.model, "precision": found.precision, "isa": found.isa,
                   "decisions": found.decisions, "rows": found.rows})  # fmt: skip
        return 0
    reasons = {d["text"] for d in found.decisions}
    print(table([_row(r, reasons) for r in found.rows], _HEAD))
    for decision in found.decisions:
        print(f"plan {decision['plan']} {decision['text']}")
    for row in found.fallbacks:
        print(f"fallback: {row['op']} ({row['node']}): {row['reason']}")
    return 0


def _row(row: dict[str, Any], decisions: set[str]) -> list[Any]:
    """Cells; the reason of a whole plan stands once, below the table."""
    devices = ", ".join(f"{name} {us:.4g}" for name, us in row["devices_us"].items())
    reason = "" if row["reason"] in decisions else row["reason"]
    why = "; ".join(filter(None, (row["why"], reason)))
    return [row["plan"], row["op"], row["algorithm"], row["backend"], row["predicted_us"], row["measured_us"],
            devices, why, row["shape"], row["node"]]  # fmt: skip
