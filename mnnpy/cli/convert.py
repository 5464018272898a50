"""``mnnpy convert``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import mnnpy
from mnnpy.cli.common import add_inputs, feeds_for
from mnnpy.cli.compare import compare_outputs, output_table
from mnnpy.cli.engines import Engine, MnnpyEngine, OrtEngine, has_onnxruntime
from mnnpy.cli.output import emit_json, note
from mnnpy.options import Options


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="an .onnx or .mnnpy file")
    parser.add_argument("target", metavar="OUT", help="the .mnnpy file to write")
    parser.add_argument(
        "--check", action="store_true", help="run both files and compare (with onnxruntime where installed)"
    )
    parser.add_argument("--tolerance", type=float, default=1e-4, help="for --check (default 1e-4)")
    add_inputs(parser)


def run(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    mnnpy.convert(args.source, args.target)
    seconds = time.perf_counter() - start
    size = Path(args.target).stat().st_size
    report: dict[str, Any] = {"source": args.source, "target": args.target, "bytes": size, "seconds": seconds}
    if not args.json:
        print(f"{args.source} -> {args.target}: {size / 1e6:.2f} MB in {seconds:.2f} s")
    if args.check:
        report |= _check(args)
        if not args.json:
            print(output_table(report["outputs"]))
            note(args, f"compared with {report['with']} on the source file")
    if args.json:
        emit_json(report)
    return 0 if report.get("agree", True) else 1


def _check(args: argparse.Namespace) -> dict[str, Any]:
    subject = MnnpyEngine(args.target, "cpu", Options())
    right: Engine
    if has_onnxruntime() and args.source.endswith(".onnx"):
        right = OrtEngine(args.source, 0)
    else:
        right = MnnpyEngine(args.source, "reference", Options())
    feeds = feeds_for(args, subject.session.get_inputs())
    rows = compare_outputs(subject.session.get_outputs(), subject.run(feeds), right.run(feeds), args.tolerance)
    return {"with": right.name, "outputs": rows, "agree": all(r["agrees"] for r in rows)}
