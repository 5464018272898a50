"""``mnnpy backends``."""

from __future__ import annotations

import argparse

import mnnpy
from mnnpy.cli.output import emit_json, table


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--require", metavar="NAME", action="append", default=[], help="exit 1 unless NAME is usable")


def run(args: argparse.Namespace) -> int:
    devices = mnnpy.backends()
    usable = {d.backend for d in devices if d.available}
    if args.json:
        emit_json(
            [
                {"backend": d.backend, "device": d.name, "index": d.index, "available": d.available,
                 "reason": d.unavailable, "facts": dict(d.facts)}
                for d in devices
            ]
        )  # fmt: skip
    else:
        rows = []
        for d in devices:
            facts = ", ".join(f"{k}={v}" for k, v in d.facts.items() if isinstance(v, (str, int, float)))
            rows.append([d.backend, d.index, d.name, "usable" if d.available else "no: " + d.unavailable, facts])
        print(table(rows, ("BACKEND", "INDEX", "DEVICE", "STATUS", "FACTS")))
    return 0 if usable >= set(args.require) else 1
