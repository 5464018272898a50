"""Gather and Scatter."""

from __future__ import annotations

from math import prod

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.functions import wrap
from mnnpy.backends.kernels.ir import Buffer, Expr, select
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
    """In order by one item per column; where columns are few and updates many, by atomics or the last writer's number.

    A sum of floats by atomics has no fixed order: it is only taken for very many updates.
    """
    data, indices, _ = node.inputs
    out, fn = node.outputs[0], node.attrs.get("fn", "none")
    columns, many = work.shape(data)[1], work.shape(indices)[0]
    dtype = work.dtype(data) if fn != "none" else _carried(work.dtype(data))
    if fn in ("add", "mul") and dtype is DType.BOOL:
        raise Declined(f"{fn} of bool has no kernel")
    crowded = many >= 256 and columns < LOCAL * work.caps.units and "atomics" in work.caps.features
    if crowded and fn == "none":
        _by_last_writer(work, node, dtype)
        return
    _copy(work, node, data, out, dtype)
    if not work.count(data) or not many:
        return
    unordered = dtype in (DType.I32, DType.U32) or (dtype is DType.F32 and fn == "add" and many >= 4096)
    if crowded and unordered:
        _by_atomics(work, node, dtype)
    else:
        _in_order(work, node, dtype)


def _row(b: KernelBuilder, at: Buffer, k: Expr, height: Expr) -> Expr:
    """The row that update *k* goes to; may lie outside."""
    raw = b.let(b.load(at, k).cast(DType.I32))
    return b.let(select(raw < 0, raw + height, raw))


def _in_order(work: Lowering, node: Node, dtype: DType) -> None:
    (data, indices, updates), out = node.inputs, node.outputs[0]
    fn = node.attrs.get("fn", "none")
    (rows, columns), many = work.shape(data), work.shape(indices)[0]
    b = KernelBuilder(f"scatter_{fn}", (LOCAL, 1, 1))
    at, u, y = b.buffer("at", DType.I64), b.buffer("u", dtype), b.buffer("y", dtype, "rw")
    height, width, updates_count = b.scalar("rows"), b.scalar("columns"), b.scalar("many")
    i = b.let(b.global_id())
    with b.when(i < width), b.loop(0, updates_count) as k:
        row = _row(b, at, k, height)
        with b.when((row >= 0) & (row < height)):
            place = b.let(row * width + i)
            b.store(y, place, _combined(b, fn, b.let(b.load(y, place)), b.let(b.load(u, k * width + i)), dtype))
    scalars = {"rows": rows, "columns": columns, "many": many}
    work.launch(node, b.build(), {"at": indices, "u": updates, "y": out}, work.grid(columns, LOCAL), scalars)


def _by_atomics(work: Lowering, node: Node, dtype: DType) -> None:
    """One item per element of the updates."""
    (data, indices, updates), out = node.inputs, node.outputs[0]
    fn = node.attrs["fn"]
    (rows, columns), total = work.shape(data), work.count(updates)
    b = KernelBuilder(f"scatter_atomic_{fn}", (LOCAL, 1, 1))
    at, u, y = b.buffer("at", DType.I64), b.buffer("u", dtype), b.buffer("y", dtype, "rw", atomic=True)
    count, height, width = b.scalar("count"), b.scalar("rows"), b.scalar("columns")
    i = b.let(b.global_id())
    with b.when(i < count):
        row = _row(b, at, i / width, height)
        with b.when((row >= 0) & (row < height)):
            name = {"add": "+", "mul": "*", "max": "max", "min": "min"}[fn]
            b.atomic(y, row * width + i % width, name, b.load(u, i))
    scalars = {"count": total, "rows": rows, "columns": columns}
    work.launch(node, b.build(), {"at": indices, "u": updates, "y": out}, work.grid(total, LOCAL), scalars)


def _by_last_writer(work: Lowering, node: Node, dtype: DType) -> None:
    """The number of the last update of each row by an atomic maximum, then one item per element of the result."""
    (data, indices, updates), out = node.inputs, node.outputs[0]
    (rows, columns), many = work.shape(data), work.shape(indices)[0]
    writers = work.temporary(DType.I32, (rows,), "writer")
    b = KernelBuilder("scatter_clear", (LOCAL, 1, 1))
    w, count = b.buffer("w", DType.I32, "w"), b.scalar("count")
    i = b.let(b.global_id())
    with b.when(i < count):
        b.store(w, i, -1)
    work.launch(node, b.build(), {"w": writers}, work.grid(rows, LOCAL), {"count": rows})
    b = KernelBuilder("scatter_number", (LOCAL, 1, 1))
    at, w = b.buffer("at", DType.I64), b.buffer("w", DType.I32, "rw", atomic=True)
    count, height = b.scalar("count"), b.scalar("rows")
    i = b.let(b.global_id())
    with b.when(i < count):
        row = _row(b, at, i, height)
        with b.when((row >= 0) & (row < height)):
            b.atomic(w, row, "max", i)
    if rows:
        scalars = {"count": many, "rows": rows}
        work.launch(node, b.build(), {"at": indices, "w": writers}, work.grid(many, LOCAL), scalars)
    b = KernelBuilder("scatter_last", (LOCAL, 1, 1))
    x, u, w = b.buffer("x", dtype), b.buffer("u", dtype), b.buffer("w", DType.I32)
    y, count, width = b.buffer("y", dtype, "w"), b.scalar("count"), b.scalar("columns")
    i = b.let(b.global_id())
    with b.when(i < count):
        last = b.let(b.load(w, i / width))
        with b.when(last < 0):
            b.store(y, i, b.load(x, i))
        with b.otherwise():
            b.store(y, i, b.load(u, last * width + i % width))
    total = work.count(out)
    buffers = {"x": data, "u": updates, "w": writers, "y": out}
    work.launch(node, b.build(), buffers, work.grid(total, LOCAL), {"count": total, "columns": columns})


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
