"""``mnnpy report``: what this machine's devices are, whether they compute rightly, and how fast."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mnnpy.cli.output import note

#: Backends that compute on real devices.
_SKIPPED = ("null", "reference")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-b", "--backend", metavar="NAME", action="append", default=[],
        help="backend or backend:device; repeat for several (default: every usable device of our own backends)",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="DIR", default=".", help="where report.json and report.html go (default: here)"
    )
    parser.add_argument(
        "--models", metavar="PATH", action="append", default=[],
        help="ONNX files or folders of them (default: built benchmark models and those of installed wheels)",
    )  # fmt: skip
    parser.add_argument("--no-models", action="store_true", help="leave the models out")
    parser.add_argument("--quick", action="store_true", help="a fifth of the conformance cases, short measurements")
    parser.add_argument("-k", dest="pattern", default="", metavar="REGEX", help="only conformance cases with a match")


def run(args: argparse.Namespace) -> int:
    from mnnpy.backends.registry import BUILT_IN, all_devices
    from mnnpy.conformance.cases import select
    from mnnpy.hardware import collect, find_models, html_page

    names = args.backend
    if not names:
        ours = set(BUILT_IN) - set(_SKIPPED)
        found = [d for d in all_devices() if d.available and d.backend in ours]
        names = [f"{d.backend}:{d.index}" if d.index else d.backend for d in found]
    models = [] if args.no_models else find_models(args.models)
    report = collect(
        names, models, cases=select(pattern=args.pattern, sample=args.quick), seconds=0.1 if args.quick else 1.0,
        note=lambda text: note(args, text),
    )  # fmt: skip
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "report.json", folder / "report.html"
    data.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    page.write_text(html_page(report))
    for d in report["devices"]:
        if "unavailable" in d:
            print(f"{d['target']}: {d['unavailable']}")
            continue
        counts = ", ".join(f"{n} {status}" for status, n in d["conformance"]["statuses"].items())
        print(f"{d['target']} [{d['label']}] {d['facts']['device']}: {counts}")
    print(f"wrote {data} and {page}; please attach both to an issue")
    usable = [d for d in report["devices"] if "conformance" in d]
    return 1 if not usable or any(d["conformance"]["failed"] for d in usable) else 0
