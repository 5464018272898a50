"""``mnnpy conformance``: the table of atomic ops and ONNX's node cases on one or more backends."""

from __future__ import annotations

import argparse
import re
import warnings
from pathlib import Path
from typing import Any

from mnnpy.cli.output import emit_json, note, progress, table

JSON_FILE = True
MODES = {
    "test": "run the cases and judge the results",
    "perf": "time a few large cases",
    "support": "ask whether the backend takes each case, without running it",
    "coverage": "what the cases cover, and which ops have none",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-b", "--backend", metavar="NAME", action="append", default=[],
        help="backend or backend:device; repeat for several (default: cpu)",
    )  # fmt: skip
    parser.add_argument("--mode", choices=MODES, default="test", help="; ".join(f"{k}: {v}" for k, v in MODES.items()))
    parser.add_argument("--suite", choices=("all", "atomic", "onnx"), default="all", help="default: all")
    parser.add_argument("-o", "--op", metavar="OP", action="append", default=[], help="only cases of this op")
    parser.add_argument(
        "-k", "--params", dest="pattern", default="", metavar="REGEX", help="only cases whose id or name has a match"
    )
    parser.add_argument("--sample", action="store_true", help="the short run: about a fifth of the cases")
    parser.add_argument("--no-guards", action="store_true", help="leave out guard bytes and their checks (faster)")
    parser.add_argument(
        "--expect", metavar="FILE", action="append", default=[],
        help="TOML file of [[unsupported]] and [[xfail]] cases with reasons; repeat for several",
    )  # fmt: skip
    parser.add_argument("-t", "--threads", type=int, default=1, help="worker threads (default 1)")
    parser.add_argument("--failures", type=int, default=20, metavar="N", help="print up to N failures (default 20)")
    parser.add_argument("--coverage", action="store_true", help="also print the matrix as Markdown")
    parser.add_argument("--md", metavar="FILE", help="write the matrix as Markdown")
    parser.add_argument(
        "--from", dest="saved", metavar="FILE", action="append", default=[],
        help="put results of an earlier run (--json FILE) beside those of this one; without -b nothing is run",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.mode == "coverage":
        return _coverage(args)
    if args.mode == "perf":
        return _perf(args)
    from mnnpy.conformance.report import load_report, markdown, save_report
    from mnnpy.errors import InputError

    reports = [r for path in args.saved for r in load_report(path)]
    names = args.backend or ([] if args.saved else ["cpu"])
    found = [_run_on(args, name) for name in names]
    reports += found
    if names and not any(r.results for r in found):
        raise InputError(f"no case fits -o {' '.join(args.op) or '(any)'} -k '{args.pattern}'")
    if args.md:
        Path(args.md).write_text(_page(markdown(reports)))
    if isinstance(args.json, str):
        save_report(found, args.json)
    if args.json is True:
        from mnnpy.conformance.report import as_json

        emit_json([as_json(r) for r in reports])
        return 1 if any(r.failed for r in found) else 0
    if args.coverage:
        print(markdown(reports, details=False))
    for report in reports:
        _print(args, report)
    return 1 if any(r.failed for r in found) else 0


def _page(text: str) -> str:
    return "# Conformance\n\nWritten by `mnnpy conformance --md`.\n\n" + text


def _print(args: argparse.Namespace, report: Any) -> None:
    for result in report.failed[: args.failures]:
        print(f"{result.status.upper()} {result.name} [{result.label}]: {result.reason}")
    if len(report.failed) > args.failures:
        print(f"… and {len(report.failed) - args.failures} more (--failures {len(report.failed)} prints all)")
    skips = report.skips()
    if skips:
        print(
            table(
                [[n, status, why.partition("\n")[0][:150]] for n, status, why in skips], ("CASES", "STATUS", "REASON")
            )
        )
    print("\n".join(report.summary()))


def _run_on(args: argparse.Namespace, name: str) -> Any:
    """Both suites, or one, on one backend."""
    from mnnpy.conformance.cases import select
    from mnnpy.conformance.expectations import load_expectations
    from mnnpy.conformance.report import TargetReport, from_onnx
    from mnnpy.conformance.run import Runner, run_table
    from mnnpy.conformance.targets import open_target

    expect = load_expectations(*args.expect)
    target = open_target(name, threads=args.threads)
    results, hosts = [], 0
    if args.suite != "onnx":
        cases = select(args.op, sample=args.sample)
        cases = [c for c in cases if re.search(args.pattern, f"{c.name}-{name}")]
        runner = Runner(target, expect, guards=not args.no_guards)
        support = args.mode == "support"
        results += run_table(runner, cases, support=support, progress=lambda k, n: progress(args, k, n, f"on {name}"))
    if args.suite != "atomic" and args.mode != "support":
        from mnnpy.conformance.onnx_nodes import run_suite

        chosen = _node_cases(args, name)
        report = run_suite(
            name, cases=chosen, target=target, threads=args.threads, fallback=True, expectations=expect,
            skip_unsound=True, progress=lambda k, n: progress(args, k, n, f"node cases on {name}"),
        )  # fmt: skip
        more, hosts = from_onnx(report)
        results += more
    if args.expect and not (args.op or args.pattern or args.sample) and args.suite == "all":
        for stale in expect.stale():
            note(args, f"note: no case matches '{stale}' of {', '.join(args.expect)}; take it off the list")
    return TargetReport({"target": name, **target.facts()}, results, hosts)


def _node_cases(args: argparse.Namespace, name: str) -> list[Any]:
    from mnnpy.conformance.onnx_nodes import case_op, load_cases

    note(args, "making ONNX's node cases in memory …")
    with warnings.catch_warnings():  # the cases' own arithmetic overflows and divides by zero on purpose
        warnings.simplefilter("ignore")
        cases = list(load_cases())
    if args.op:
        cases = [c for c in cases if case_op(c) in args.op]
    pattern = re.compile(args.pattern)
    cases = [c for c in cases if pattern.search(c.name) or pattern.search(f"{case_op(c)}[{c.name}]-{name}")]
    return cases[::5] if args.sample else cases


def _perf(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mnnpy.conformance.perf import perf_cases, time_case
    from mnnpy.conformance.targets import open_target

    timings = []
    for name in args.backend or ["cpu"]:
        target = open_target(name, threads=args.threads)
        chosen = [c for c in perf_cases() if (not args.op or c.op in args.op) and re.search(args.pattern, c.name)]
        for k, case in enumerate(chosen):
            timings.append(time_case(target, case))
            progress(args, k + 1, len(chosen), f"on {name}")
    if args.json:
        rows = [asdict(t) for t in timings]
        if args.json is True:
            emit_json(rows)
        else:
            import json

            Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
        return 0
    rows_ = [
        [t.name, f"{t.backend} [{t.label}]", *_rates(t)]
        for t in timings
    ]  # fmt: skip
    print(table(rows_, ("CASE", "ON", "BEST µs", "GFLOP/s", "GB/s", "")))
    return 0


def _rates(timing: Any) -> tuple[Any, ...]:
    if timing.reason:
        return "", "", "", timing.reason[:60]
    return 1e6 * timing.best, timing.gflops, timing.gbytes, ""


def _coverage(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from mnnpy.conformance.coverage import covered, missing

    rows = covered()
    note(args, "making ONNX's node cases in memory …")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        without, sources = missing()
    if args.json is True:
        emit_json({"atomic": [asdict(r) for r in rows], "atomic without cases": without, "no node case": sources})
    else:
        shown = [[r.op, r.cases, r.sample, " ".join(r.dtypes), " ".join(r.layouts), " ".join(r.missing)] for r in rows]
        print(table(shown, ("OP", "CASES", "SAMPLE", "DTYPES", "LAYOUTS", "NOT TRIED")))
        print(f"atomic ops without cases: {', '.join(without) or 'none'}")
        print(f"source ops without a node case of ONNX: {', '.join(sources) or 'none'}")
    return 1 if without else 0
