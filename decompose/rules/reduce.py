"""Rules of reductions, Softmax and Det."""

from __future__ import annotations

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.infer import normalize_axis
from mnnpy.decompose.ops.reduce import REDUCTIONS, reduction_axes
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.elementwise import arithmetic
from mnnpy.decompose.rules.movement import as_shape
from mnnpy.graph.dtypes import DType

_HALF = frozenset({DType.F16, DType.BF16})

#: What is left of a reduction over no axes.
_OVER_NOTHING = {"SumSquare": "Square", "L1": "Abs", "L2": "Abs"}

#: Elimination is written out step by step; larger matrices run on the host.
DET_LIMIT = 8


def _axes(x: Var, axes: Var | None, noop: int) -> tuple[int, ...]:
    return reduction_axes(None if axes is None else axes.require_ints(), x.rank, bool(noop))


def _full_precision(g: Builder, x: Var) -> Var:
    """Half types are reduced in f32: one rounding at the end, as the oracle does."""
    return g.cast(x, DType.F32) if x.dtype in _HALF else x


def _reduction_rule(name: str, fn: str) -> None:
    @rule(name)
    def apply(g: Builder, x: Var, axes: Var | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Var:
        at = _axes(x, axes, noop_with_empty_axes)
        if not at:
            return g.unary(_OVER_NOTHING[fn], x) if fn in _OVER_NOTHING else x
        through = arithmetic(x)
        if through is None:
            return g.reduce(fn, x, at, bool(keepdims))
        return g.cast(g.reduce(fn, g.cast(x, through), at, bool(keepdims)), x.dtype)


for _name, (_fn, _) in REDUCTIONS.items():
    _reduction_rule(_name, _fn)


def _floating(g: Builder, x: Var) -> Var:
    return g.cast(x, DType.F64) if x.dtype.is_int else _full_precision(g, x)


@rule("ReduceLogSum")
def reduce_log_sum(
    g: Builder, x: Var, axes: Var | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Var:
    at = _axes(x, axes, noop_with_empty_axes)
    v = _floating(g, x)
    total = g.reduce("Sum", v, at, bool(keepdims)) if at else v
    return g.cast(g.unary("Log", total), x.dtype)


@rule("ReduceLogSumExp")
def reduce_log_sum_exp(
    g: Builder, x: Var, axes: Var | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Var:
    at = _axes(x, axes, noop_with_empty_axes)
    if not at:
        return x
    v = _floating(g, x)
    top = g.reduce("Max", v, at)
    # An infinite maximum would give inf − inf; 0 leaves the infinities as they are.
    top = g.select(g.unary("IsInf", top), g.const(0, v.dtype), top)
    out = g.add(g.unary("Log", g.reduce("Sum", g.unary("Exp", g.sub(v, top)), at)), top)
    if not keepdims:
        out = as_shape(g, out, tuple(d for k, d in enumerate(x.shape) if k not in at))
    return g.cast(out, x.dtype)


@rule("ArgMax")
def argmax(g: Builder, x: Var, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Var:
    return _arg(g, "Max", x, axis, keepdims, select_last_index)


@rule("ArgMin")
def argmin(g: Builder, x: Var, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Var:
    return _arg(g, "Min", x, axis, keepdims, select_last_index)


def _arg(g: Builder, fn: str, x: Var, axis: int, keepdims: int, last: int) -> Var:
    axis = normalize_axis(axis, x.rank)
    out: Var = g.op("ArgReduce", x, fn=fn, axis=axis, keepdims=bool(keepdims), select_last=bool(last))
    return out


def _scan(g: Builder, fn: str, x: Var, axis: Var, exclusive: int, reverse: int) -> Var:
    at = normalize_axis(axis.require_ints()[0], x.rank)
    v = _full_precision(g, x)
    out: Var = g.op("PrefixScan", v, fn=fn, axis=at, exclusive=bool(exclusive), reverse=bool(reverse))
    return g.cast(out, x.dtype)


@rule("CumSum")
def cumsum(g: Builder, x: Var, axis: Var, *, exclusive: int = 0, reverse: int = 0) -> Var:
    return _scan(g, "Sum", x, axis, exclusive, reverse)


@rule("CumProd")
def cumprod(g: Builder, x: Var, axis: Var, *, exclusive: int = 0, reverse: int = 0) -> Var:
    return _scan(g, "Prod", x, axis, exclusive, reverse)


@rule("Softmax")
def softmax(g: Builder, x: Var, *, axis: int = -1) -> Var:
    v = _full_precision(g, x)
    e = g.unary("Exp", g.sub(v, g.reduce("Max", v, (axis,))))
    return g.cast(g.div(e, g.reduce("Sum", e, (axis,))), x.dtype)


@rule("LogSoftmax")
def log_softmax(g: Builder, x: Var, *, axis: int = -1) -> Var:
    v = _full_precision(g, x)
    shifted = g.sub(v, g.reduce("Max", v, (axis,)))
    total = g.reduce("Sum", g.unary("Exp", shifted), (axis,))
    return g.cast(g.sub(shifted, g.unary("Log", total)), x.dtype)


@rule("Det")
def det(g: Builder, x: Var) -> Var | None:
    n = x.shape[-1]
    if n > DET_LIMIT:
        return None
    batch = int(np.prod(x.shape[:-2], dtype=np.int64))
    a = as_shape(g, _full_precision(g, x), (batch, n, n))
    result = g.expand(g.const(1, a.dtype), (batch,))
    for m in range(n, 0, -1):
        # Gaussian elimination with partial pivoting; the pivot row is picked by a one-hot product.
        if m == 1:
            result = g.mul(result, as_shape(g, a, (batch,)))
            break
        column = g.slice(a, 2, 0, 1)
        best = g.op("ArgReduce", g.unary("Abs", column), fn="Max", axis=1, keepdims=True)
        is_pivot = g.binary("Equal", best, g.const(np.arange(m).reshape(1, m, 1), np.int64))
        row = g.reduce("Sum", g.select(is_pivot, a, 0), (1,))
        swapped = g.select(is_pivot, g.slice(a, 1, 0, 1), a)
        pivot = g.slice(row, 2, 0, 1)
        moved = g.binary("NotEqual", best, g.const(0, np.int64))
        signed = g.select(moved, g.unary("Neg", pivot), pivot)
        result = g.mul(result, as_shape(g, signed, (batch,)))
        # A zero pivot makes the product zero; 1 instead keeps the rest free of NaN.
        safe = g.select(g.binary("Equal", pivot, 0), g.const(1, a.dtype), pivot)
        rest = g.slice(swapped, 1, 1, m)
        factor = g.div(g.slice(rest, 2, 0, 1), safe)
        a = g.sub(g.slice(rest, 2, 1, m), g.mul(factor, g.slice(row, 2, 1, m)))
    return g.cast(as_shape(g, result, x.shape[:-2]), x.dtype)
