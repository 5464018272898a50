"""Softmax, LogSoftmax, LayerNormalization and RMSNormalization in one launch each, computed in f32 (f64 stays f64).

Claimed as composites: the rules would make six launches of one Softmax and as many passes over memory.
"""

from __future__ import annotations

from math import prod

from mnnpy.backends.kernels.ir import Expr, const, register_type, select
from mnnpy.backends.kernels.lowering import Declined, Lowering, template
from mnnpy.backends.kernels.templates.rows import Rows
from mnnpy.decompose.ops.element_types import element_type
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__: list[str] = []

_REAL = frozenset({DType.F16, DType.BF16, DType.F32, DType.F64})
_STAGED = frozenset({DType.F16, DType.BF16, DType.F32})


def _largest(one: Expr, other: Expr) -> Expr:
    """The larger one; NaN is found by the sum that follows."""
    return select(other > one, other, one)


def _softmax(work: Lowering, node: Node, *, log: bool) -> None:
    name, out = node.inputs[0], node.outputs[0]
    dtype, shape = work.dtype(name), work.shape(name)
    if dtype not in _REAL:
        raise Declined(f"{node.op} of {dtype} has no kernel")
    axis = node.attrs.get("axis", -1) % max(1, len(shape))
    if not shape:
        raise Declined(f"{node.op} of a scalar has no kernel")
    length, inner = shape[axis], prod(shape[axis + 1 :])
    count = work.count(name) // max(1, length)
    rows = Rows(work, "log_softmax" if log else "softmax", count, length, vectors=dtype is DType.F32 and inner == 1)
    b = rows.builder
    x, y = b.buffer("x", dtype), b.buffer("y", dtype, "w")
    many, size, step = b.scalar("count"), b.scalar("length"), b.scalar("inner")
    kind = register_type(dtype)
    with rows.each(many) as row:
        base = b.let((row / step) * size * step + row % step)

        def shifted(k: Expr, lanes: int) -> Expr:
            return b.let(b.load(x, base + k * step, lanes) - peak.splat(lanes))

        def add(total: Expr, k: Expr) -> Expr:
            power = b.let(shifted(k, total.type.lanes).call("exp"))
            if rows.width > 1 and not log:
                b.store(y, base + k * step, power)
            return total + power

        def put(k: Expr, lanes: int) -> None:
            at, factor = b.let(base + k * step), scale.splat(lanes)
            if log:
                b.store(y, at, shifted(k, lanes) - factor)
            else:  # an item that has a row to itself kept the exponentials there
                power = b.load(y, at, lanes) if rows.width > 1 else shifted(k, lanes).call("exp")
                b.store(y, at, power * factor)

        lowest = const(float("-inf"), kind)

        def larger(top: Expr, k: Expr) -> Expr:
            return _largest(top, b.let(b.load(x, base + k * step, top.type.lanes)))

        peak = b.let(rows.fold(size, lowest, larger, _largest, "max"))
        whole = rows.sum(size, kind, add)
        scale = b.let(whole.call("log") if log else 1.0 / whole)
        rows.every(size, put)
    scalars = {"count": count, "length": length, "inner": inner, **rows.scalars}
    work.launch(node, b.build(), {"x": name, "y": out}, rows.groups if count else 0, scalars)


@template("Softmax")
def softmax(work: Lowering, node: Node) -> None:
    """Three passes over a row: largest, sum of exponentials, quotients."""
    _softmax(work, node, log=False)


@template("LogSoftmax")
def log_softmax(work: Lowering, node: Node) -> None:
    """As Softmax; the logarithm is that of the sum."""
    _softmax(work, node, log=True)


@template("LayerNormalization")
def layer_normalization(work: Lowering, node: Node) -> None:
    """Mean, then the variance about it (two passes: no cancellation), then scale and shift."""
    _normalization(work, node, centred=True)


@template("RMSNormalization")
def rms_normalization(work: Lowering, node: Node) -> None:
    """Division by the root mean square."""
    _normalization(work, node, centred=False)


def _normalization(work: Lowering, node: Node, *, centred: bool) -> None:
    name = node.inputs[0]
    operands = {n: o for n, o in zip(("x", "scale", "shift"), node.inputs, strict=False) if o}
    shape = work.shape(name)
    if any(work.dtype(o) not in _STAGED for o in (*operands.values(), *filter(None, node.outputs))):
        raise Declined(f"{node.op} of {work.dtype(name)} has no kernel")
    if element_type(node.attrs.get("stash_type", DType.F32)) is DType.F64:
        raise Declined(f"{node.op} in f64 has no kernel")
    axis = node.attrs.get("axis", -1) % max(1, len(shape))
    length = prod(shape[axis:])
    count = work.count(name) // max(1, length)
    for parameter in list(operands.values())[1:]:
        dims = work.shape(parameter)
        while dims[:1] == (1,) and len(dims) > len(shape) - axis:
            dims = dims[1:]
        if dims != shape[axis:]:
            raise Declined(f"parameters of shape {work.shape(parameter)} are not one for each of {length} elements")
    vectors = all(work.dtype(o) is DType.F32 for o in (*operands.values(), *filter(None, node.outputs)))
    rows = Rows(work, node.op.lower(), count, length, vectors=vectors)
    b = rows.builder
    readers = {n: b.buffer(n, work.dtype(o)) for n, o in operands.items()}
    results = {n: o for n, o in zip(("y", "mean", "inverse"), node.outputs, strict=False) if o}
    writers = {n: b.buffer(n, work.dtype(o), "w") for n, o in results.items()}
    many, size, epsilon = b.scalar("count"), b.scalar("length"), b.scalar("epsilon", DType.F32)
    per = b.scalar("per", DType.F32)
    with rows.each(many) as row:
        base = b.let(row * size)

        def element(k: Expr, lanes: int) -> Expr:
            found = b.load(readers["x"], base + k, lanes)
            return found - mean.splat(lanes) if centred else found

        def square(k: Expr, lanes: int) -> Expr:
            found = b.let(element(k, lanes))
            return found * found

        def put(k: Expr, lanes: int) -> None:
            value = element(k, lanes) * inverse.splat(lanes) * b.load(readers["scale"], k, lanes)
            if "shift" in readers:
                value = value + b.load(readers["shift"], k, lanes)
            if "y" in writers:
                b.store(writers["y"], base + k, value)

        mean = const(0.0, DType.F32)
        if centred:
            total = rows.sum(size, DType.F32, lambda s, k: s + b.load(readers["x"], base + k, s.type.lanes))
            mean = b.let(total * per)
        spread = rows.sum(size, DType.F32, lambda s, k: s + square(k, s.type.lanes))
        inverse = b.let(1.0 / (spread * per + epsilon).call("sqrt"))
        rows.every(size, put)
        with rows.once():
            for key, value in (("mean", mean), ("inverse", inverse)):
                if key in writers:
                    b.store(writers[key], row, value)
    scalars = {
        "count": count,
        "length": length,
        "epsilon": node.attrs.get("epsilon", 1e-5),
        "per": 1.0 / max(1, length),
        **rows.scalars,
    }
    work.launch(node, b.build(), operands | results, rows.groups if count else 0, scalars)
