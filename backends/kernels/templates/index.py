"""Gather and Scatter."""

from __future__ import annotations

from math import prod

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.functions import wrap
from mnnpy.backends.kernels.ir import Expr, select
from mnnpy.backends.kernels.lowering import Declined, Lowering, template
from mnnpy.backends.kernels.templates.reduce import combine
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__: list[str] = []

LOCAL = 64


def _carried(dtype: DType) -> DType:
    """Moves keep bits: halves travel as integers."""
    return {DType.F16: DType.U16, DType.BF16: DType.U16}.get(dtype, dtype)


@template("Gather")
def gather(work: Lowering, node: Node) -> None:
    """One item per element. An index outside the axis reads the nearest element: a kernel cannot raise."""
    data, indices = node.inputs
    out = node.outputs[0]
    shape = work.shape(data)
    axis = node.attrs.get("axis", 0) % len(shape)
    size, inner, many = shape[axis], prod(shape[axis + 1 :]), work.count(indices)
    if size == 0:
        raise Declined("the axis is empty")
    b = KernelBuilder("gather", (LOCAL, 1, 1))
    dtype = _carried(work.dtype(data))
    x, at, y = b.buffer("x", dtype), b.buffer("at", work.dtype(indices)), b.buffer("y", dtype, "w")
    count, length, step, rows = b.scalar("count"), b.scalar("length"), b.scalar("inner"), b.scalar("rows")
    i = b.let(b.global_id())
    with b.when(i < count):
        low = b.let(i % step)
        rest = b.let(i / step)
        k = b.let(b.load(at, rest % rows).cast(DType.I32))
        wrapped = b.let(select(k < 0, k + length, k))
        inside = b.let(wrapped.max(0).min(length - 1))
        b.store(y, i, b.load(x, ((rest / rows) * length + inside) * step + low))
    scalars = {"count": work.count(out), "length": size, "inner": inner, "rows": many}
    work.launch(node, b.build(), {"x": data, "at": indices, "y": out}, work.grid(work.count(out), LOCAL), scalars)


@template("Scatter")
def scatter(work: Lowering, node: Node) -> None:
    """One item per column of a row walks all updates in order: repeated indices combine as the contract says."""
    data, indices, updates = node.inputs
    out = node.outputs[0]
    fn = node.attrs.get("fn", "none")
    rows, columns = work.shape(data)
    many = work.shape(indices)[0]
    dtype = work.dtype(data) if fn != "none" else _carried(work.dtype(data))
    if fn in ("add", "mul") and dtype is DType.BOOL:
        raise Declined(f"{fn} of bool has no kernel")
    _copy(work, node, data, out, dtype)
    b = KernelBuilder(f"scatter_{fn}", (LOCAL, 1, 1))
    at, u, y = b.buffer("at", DType.I64), b.buffer("u", dtype), b.buffer("y", dtype, "rw")
    height, width, updates_count = b.scalar("rows"), b.scalar("columns"), b.scalar("many")
    i = b.let(b.global_id())
    with b.when(i < width), b.loop(0, updates_count) as k:
        raw = b.let(b.load(at, k).cast(DType.I32))
        row = b.let(select(raw < 0, raw + height, raw))
        with b.when((row >= 0) & (row < height)):
            place = b.let(row * width + i)
            b.store(y, place, _combined(b, fn, b.let(b.load(y, place)), b.let(b.load(u, k * width + i)), dtype))
    scalars = {"rows": rows, "columns": columns, "many": many}
    if rows and many:
        work.launch(node, b.build(), {"at": indices, "u": updates, "y": out}, work.grid(columns, LOCAL), scalars)


def _combined(b: KernelBuilder, fn: str, old: Expr, new: Expr, dtype: DType) -> Expr:
    if fn == "none":
        return new
    name = {"add": "Sum", "mul": "Prod", "max": "Max", "min": "Min"}[fn]
    found = combine(b, name, old, new)
    return wrap(found, dtype)


def _copy(work: Lowering, node: Node, source: str, target: str, dtype: DType) -> None:
    b = KernelBuilder("copy", (LOCAL, 1, 1))
    x, y = b.buffer("x", dtype), b.buffer("y", dtype, "w")
    count = b.scalar("count")
    i = b.let(b.global_id())
    with b.when(i < count):
        b.store(y, i, b.load(x, i))
    many = work.count(target)
    work.launch(node, b.build(), {"x": source, "y": target}, work.grid(many, LOCAL), {"count": many})
