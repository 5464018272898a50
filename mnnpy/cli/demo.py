"""``mnnpy demo``: read text in a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from mnnpy.cli.output import emit_json, note, table


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", nargs="?", type=Path, help="a picture (default: one is drawn)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo.png"), help="annotated picture (default demo.png)"
    )
    parser.add_argument(
        "-b", "--backend", action="append", default=[], help="backends to compare (default: all usable)"
    )
    parser.add_argument("-t", "--threads", type=int, default=0, help="worker threads (0: one per core)")
    parser.add_argument("-n", "--repeat", type=int, default=3, help="timed runs per engine (default 3)")


def run(args: argparse.Namespace) -> int:
    from mnnpy.demo import run_demo

    report = run_demo(
        args.picture, args.output, args.backend, threads=args.threads, repeat=args.repeat, log=lambda s: note(args, s)
    )
    if args.json:
        emit_json(report.as_dict())
    else:
        print(table([[line.text, line.score, *map(round, line.corners[0])] for line in report.lines],
                    ("TEXT", "SCORE", "X", "Y")))  # fmt: skip
        print()
        rows = [[r.engine, r.milliseconds, r.difference, r.verdict] for r in report.engines]
        print(table(rows, ("ENGINE", "MS", "DIFFERENCE", "AGREEMENT")))
        print(f"\nwrote {args.output}")
    return 0 if report.agree else 1
