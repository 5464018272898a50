"""``mnnpy conformance``: ONNX's node tests."""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from dataclasses import asdict
from typing import Any

from mnnpy.cli.output import emit_json, note, progress, table


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-b", "--backend", default="cpu", help="default: cpu")
    parser.add_argument("-k", dest="pattern", default="", metavar="REGEX", help="only cases whose name matches")
    parser.add_argument("-t", "--threads", type=int, default=1, help="worker threads (default 1)")
    parser.add_argument("--coverage", action="store_true", help="also a table of ops as Markdown")
    parser.add_argument("--failures", type=int, default=20, metavar="N", help="print up to N failures (default 20)")


def run(args: argparse.Namespace) -> int:
    from mnnpy.conformance import load_cases, run_suite
    from mnnpy.errors import InputError

    note(args, "making ONNX's node cases in memory …")
    with warnings.catch_warnings():  # the cases' own arithmetic overflows and divides by zero on purpose
        warnings.simplefilter("ignore")
        load_cases()
    report = run_suite(
        args.backend, pattern=args.pattern, progress=lambda k, n: progress(args, k, n, "cases"), threads=args.threads
    )
    if not report.results:
        raise InputError(f"-k {args.pattern}: no case has a matching name")
    failed = [r for r in report.results if r.status == "failed"]
    skipped = Counter(r.reason for r in report.results if r.status == "skipped")
    if args.json:
        emit_json(
            {"backend": report.backend, "label": report.label, "passed": report.count("passed"), "failed": len(failed),
             "skipped": dict(skipped), "wholly on the backend": report.on_device,
             "with host ops": report.host_cases, "results": [asdict(r) for r in report.results]}
        )  # fmt: skip
        return 1 if failed else 0
    if args.coverage:
        print(_coverage(report))
    for result in failed[: args.failures]:
        print(f"FAILED {result.name}: {result.reason}")
    if len(failed) > args.failures:
        print(f"… and {len(failed) - args.failures} more (--failures {len(failed)} prints all)")
    if skipped:
        print(table([[n, reason] for reason, n in skipped.most_common()], ("SKIPPED", "REASON")))
    print(report.summary())
    return 1 if failed else 0


def _coverage(report: Any) -> str:
    """Op × outcome as a Markdown table."""
    lines = ["| op | on device | with host ops | failed | skipped |", "|---|---|---|---|---|"]
    for op, counts in report.coverage().items():
        cells = (str(counts[k] or "") for k in ("device", "host", "failed", "skipped"))
        lines.append(f"| {op} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
