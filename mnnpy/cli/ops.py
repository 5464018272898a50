"""``mnnpy ops``: the vocabulary, and the workload formula over it."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from mnnpy.cli.output import emit_json, table


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="", help="only ops whose name contains this (ignoring case)")
    parser.add_argument("-c", "--class", dest="op_class", metavar="CLASS", help="only this class, e.g. atomic")
    parser.add_argument("-f", "--family", help="only this family")
    parser.add_argument("-n", "--backends", type=int, default=0, help="number of backends in the workload formula")


def workload(backends: int) -> dict[str, Any]:
    """Kernels and rules to write for *backends* backends, with and without decomposition (Walle, OSDI 2022, §4.2).

    Raster is the "+1" of the formula. An alias is a spelling of an atomic op and counts for nothing; host ops
    are written once, on the reference backend, either way.
    """
    from mnnpy.decompose.registry import OpClass, ops

    counts = Counter(d.op_class for d in ops().values())
    atomic = counts[OpClass.ATOMIC] - 1
    transform, composite, control = (counts[c] for c in (OpClass.TRANSFORM, OpClass.COMPOSITE, OpClass.CONTROL))
    return {
        "backends": backends,
        "atomic": atomic,
        "transform": transform,
        "composite": composite,
        "control flow": control,
        "alias": counts[OpClass.ALIAS],
        "host": counts[OpClass.HOST],
        "with decomposition": (atomic + 1) * backends + transform + composite + control,
        "without decomposition": (atomic + transform + composite) * backends + control,
    }


def _declared_backends() -> int:
    """Backends that execute through decomposition: all but the planner's null and the oracle."""
    from importlib.metadata import entry_points

    return max(1, len({e.name for e in entry_points(group="mnnpy.backends")} - {"null", "reference"}))


def run(args: argparse.Namespace) -> int:
    from mnnpy.decompose.registry import OpClass, ops
    from mnnpy.errors import InputError

    classes = [c.value for c in OpClass]
    if args.op_class and args.op_class not in classes:
        raise InputError(f"--class {args.op_class}: the classes are {', '.join(classes)}")
    chosen = [
        d
        for d in ops().values()
        if args.pattern.lower() in d.name.lower()
        and args.op_class in (None, d.op_class.value)
        and args.family in (None, d.family)
    ]
    formula = workload(args.backends or _declared_backends())
    if args.json:
        listed = [
            {"name": d.name, "class": d.op_class.value, "family": d.family, "summary": d.summary,
             "inputs": list(d.signature.inputs), "attributes": list(d.signature.attrs),
             "rules": sorted(str(r) for r in d.rules), "reference": d.reference is not None}
            for d in chosen
        ]  # fmt: skip
        emit_json({"ops": listed, "workload": formula})
        return 0
    chosen.sort(key=lambda d: (classes.index(d.op_class.value), d.family, d.name))
    print(
        table([[d.name, d.op_class.value, d.family, d.summary] for d in chosen], ("OP", "CLASS", "FAMILY", "SUMMARY"))
    )
    print(_sentence(formula, len(chosen)))
    return 0


def _sentence(f: dict[str, Any], shown: int) -> str:
    b, a, t, c, k = f["backends"], f["atomic"], f["transform"], f["composite"], f["control flow"]
    return (
        f"\n{shown} ops shown. Known: {a} atomic + raster, {t} transform, {c} composite, {k} control flow, "
        f"{f['alias']} alias, {f['host']} host.\n"
        f"Work for {b} backend{'s' * (b != 1)}: with decomposition ({a}+1)·{b} + {t} + {c} + {k} = "
        f"{f['with decomposition']}; without ({a}+{t}+{c})·{b} + {k} = {f['without decomposition']}; "
        f"each further backend costs {a + 1} instead of {a + t + c}."
    )
