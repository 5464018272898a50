"""``mnnpy compare``: do two engines agree, and if not, from which op on?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mnnpy.cli.common import add_inputs, add_session, feeds_for, options_of
from mnnpy.cli.engines import ORT, Engine, MnnpyEngine, difference, has_onnxruntime, open_engine
from mnnpy.cli.output import emit_json, note, table
from mnnpy.errors import InputError
from mnnpy.session import NodeArg


def configure(parser: argparse.ArgumentParser) -> None:
    add_session(parser, several=True)
    add_inputs(parser)
    parser.add_argument(
        "-w", "--with", dest="other", metavar="ENGINE", default=None,
        help="what is right: a backend or 'onnxruntime' (default: onnxruntime if installed, else reference)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="allowed difference over the largest wanted value (default 1e-4)"
    )
    parser.add_argument("--ops", action="store_true", help="compare every intermediate value, not only outputs")


def run(args: argparse.Namespace) -> int:
    options = options_of(args)
    other = args.other or (ORT if has_onnxruntime() and not args.model.endswith(".mnnpy") else "reference")
    names = args.backend or ["cpu"]
    if other in names:
        raise InputError(f"'{other}' would be compared with itself; name another engine by --with")
    subject = MnnpyEngine(args.model, names[0], options)
    feeds = feeds_for(args, subject.session.get_inputs())
    wanted = open_engine(other, args, options)
    reports = [
        compare(subject if n == names[0] else open_engine(n, args, options), wanted, subject, feeds, args)
        for n in names
    ]
    if args.json:
        emit_json(reports)
    else:
        for report in reports:
            _print(args, report)
    return 0 if all(r["agree"] for r in reports) else 1


def compare(
    engine: Engine, wanted: Engine, naming: MnnpyEngine, feeds: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Compare outputs; where they differ (or with ``--ops``) also every intermediate value in order."""
    rows = compare_outputs(naming.session.get_outputs(), engine.run(feeds), wanted.run(feeds), args.tolerance)
    agree = all(r["agrees"] for r in rows)
    report = {"engine": engine.name, "with": wanted.name, "tolerance": args.tolerance, "agree": agree, "outputs": rows}
    if args.ops or not agree:
        steps = _by_op(engine, wanted, naming, feeds, args.tolerance)
        report["ops"] = steps
        report["first divergence"] = next((s for s in steps if not s["agrees"]), None)
    return report


def compare_outputs(
    outputs: Sequence[NodeArg], got: Sequence[Any], wanted: Sequence[Any], tolerance: float
) -> list[dict[str, Any]]:
    """A row per output: name, largest absolute and relative difference, verdict."""
    rows = []
    for arg, g, w in zip(outputs, got, wanted, strict=True):
        d = difference(g, w)
        rows.append(
            {
                "output": arg.name,
                "absolute": d.absolute,
                "relative": d.relative,
                "problem": d.problem,
                "agrees": d.fits(tolerance),
            }
        )
    return rows


def output_table(rows: Sequence[dict[str, Any]]) -> str:
    """`compare_outputs` for people."""
    lines = [[r["output"], r["absolute"], r["relative"], _verdict(r)] for r in rows]
    return table(lines, ("OUTPUT", "ABSOLUTE", "RELATIVE", "VERDICT"))


def _by_op(
    engine: Engine, wanted: Engine, naming: MnnpyEngine, feeds: dict[str, Any], tolerance: float
) -> list[dict[str, Any]]:
    nodes = naming.graph.nodes
    names = [o for n in nodes for o in n.outputs if o]
    right = wanted.values(feeds, names)
    got = engine.values(feeds, [n for n in names if n in right])
    steps = []
    for node in nodes:
        for name in node.outputs:
            if name in got and name in right:
                d = difference(got[name], right[name])
                steps.append({"op": node.op, "node": node.label, "value": name, "absolute": d.absolute,
                              "relative": d.relative, "problem": d.problem, "agrees": d.fits(tolerance)})  # fmt: skip
    return steps


def _print(args: argparse.Namespace, report: dict[str, Any]) -> None:
    print(f"{report['engine']} compared with {report['with']} (tolerance {args.tolerance:g} of the largest value)")
    print(output_table(report["outputs"]))
    steps = report.get("ops")
    if steps is None:
        return
    bad = [s for s in steps if not s["agrees"]]
    shown = steps if args.ops else bad[:10]
    print()
    print(table([[s["op"], s["value"], s["absolute"], s["relative"], _verdict(s)] for s in shown],
                ("OP", "VALUE", "ABSOLUTE", "RELATIVE", "VERDICT")))  # fmt: skip
    if bad:
        first = bad[0]
        print(
            f"\nfirst divergence: {first['op']} (node '{first['node']}', value '{first['value']}'); "
            f"{len(bad)} of {len(steps)} values differ"
        )
    elif not report["agree"]:
        note(args, "every intermediate value agrees on its own: the difference arises where ops are fused")


def _verdict(row: dict[str, Any]) -> str:
    return "agrees" if row["agrees"] else f"DIFFERS {row['problem']}".rstrip()
