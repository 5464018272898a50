"""What the table covers and what it does not (mode coverage)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mnnpy.conformance.cases import Case, all_cases
from mnnpy.decompose.ops import atomic
from mnnpy.decompose.registry import OpClass, ops

__all__ = ["Covered", "covered", "missing"]

#: Values of ``fn`` by op.
_FUNCTIONS = {
    "Unary": atomic.UNARY, "Binary": atomic.BINARY, "Reduce": atomic.REDUCE, "ArgReduce": atomic.ARG_REDUCE,
    "PrefixScan": atomic.PREFIX_SCAN, "Pool": atomic.POOL, "Scatter": atomic.SCATTER, "Random": atomic.RANDOM,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Covered:
    """What cases of one atomic op try."""

    op: str
    cases: int
    sample: int
    dtypes: tuple[str, ...]
    layouts: tuple[str, ...]
    missing: tuple[str, ...]  #: functions and attributes that no case has


def covered(cases: Sequence[Case] | None = None) -> list[Covered]:
    """A row for every atomic op of the live registry."""
    found = all_cases() if cases is None else cases
    rows = []
    for op in (o for o in ops().values() if o.op_class is OpClass.ATOMIC):
        mine = [c for c in found if c.op == op.name]
        tried = {c.attrs.get("fn") for c in mine}
        gaps = [f"fn={fn}" for fn in _FUNCTIONS.get(op.name, ()) if fn not in tried]
        given = {a for c in mine for a in c.attrs}
        gaps += [a for a in op.signature.attrs if a not in given]
        dtypes = tuple(dict.fromkeys(str(c.dtype) for c in mine))
        layouts = tuple(dict.fromkeys(c.layout for c in mine))
        rows.append(Covered(op.name, len(mine), sum(c.sample for c in mine), dtypes, layouts, tuple(gaps)))
    return rows


def missing() -> tuple[list[str], list[str]]:
    """(atomic ops without a case, source ops that no node case of ONNX has)."""
    from mnnpy.conformance.onnx_nodes import load_cases

    seen = {_source_name(n.domain, n.op_type) for c in load_cases() for n in c.model.graph.node}
    others = [o.name for o in ops().values() if o.op_class is not OpClass.ATOMIC and o.name not in seen]
    return [r.op for r in covered() if not r.cases], others


def _source_name(domain: str, op: str) -> str:
    prefix = {"ai.onnx.ml": "ml.", "ai.onnx.preview": "preview.", "ai.onnx.preview.training": "training."}
    return prefix.get(domain, "") + op
