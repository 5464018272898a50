"""Reduce, ArgReduce and PrefixScan."""

from __future__ import annotations

import math
from math import prod

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.functions import wrap
from mnnpy.backends.kernels.ir import Expr, Number, const, eq, register_type, select
from mnnpy.backends.kernels.lowering import Declined, Lowering, template
from mnnpy.backends.kernels.templates.rows import Rows
from mnnpy.decompose.raster import row_major
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__ = ["identity"]

_FLOATS = frozenset({DType.F16, DType.F32, DType.F64, DType.BF16})


def identity(fn: str, dtype: DType) -> Number:
    """The value of a reduction over nothing."""
    if fn in ("Sum", "Mean", "SumSquare", "L1", "L2"):
        return 0
    if fn == "Prod":
        return 1
    if dtype is DType.BOOL:
        return fn == "Min"
    if dtype in _FLOATS:
        return -math.inf if fn == "Max" else math.inf
    bits, signed = int(dtype.value[1:]), dtype.value[0] == "i"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return low if fn == "Max" else high


def combine(b: KernelBuilder, fn: str, total: Expr, x: Expr) -> Expr:
    """One step of a reduction; Max and Min propagate NaN."""
    if fn in ("Sum", "Mean"):
        return total + x
    if fn == "Prod":
        return total * x
    if fn in ("SumSquare", "L2"):
        x = b.let(x)
        return total + x * x
    if fn == "L1":
        x = b.let(x)
        zero = const(0, x.type) if x.dtype not in _FLOATS else const(0.0, x.type)
        return total + select(x < zero, zero - x, x)
    if x.dtype is DType.BOOL:
        return total | x if fn == "Max" else total & x
    if x.dtype in _FLOATS:
        x = b.let(x)
        better = (x > total) if fn == "Max" else (x < total)
        return select(x.call("isnan") | better, x, total)
    return total.max(x) if fn == "Max" else total.min(x)


_SUMS = frozenset({"Sum", "SumSquare", "L2", "L1", "Mean"})


def finish(fn: str, total: Expr, count: Expr, dtype: DType) -> Expr:
    """What follows the sum of *count* elements (integer means of nothing are 0)."""
    if fn == "Mean":
        return total / (count if total.dtype in _FLOATS else count.max(1)).cast(total.dtype)
    if fn == "L2":
        if total.dtype not in _FLOATS:
            return total.cast(DType.F32).call("sqrt").cast(total.dtype)
        return total.call("sqrt")
    return wrap(total, dtype)


@template("Reduce")
def reduce(work: Lowering, node: Node) -> None:
    """Kept dims and reduced dims are collapsed; one item per output, or one group where outputs are few and long."""
    name, out = node.inputs[0], node.outputs[0]
    fn = node.attrs["fn"]
    shape = tuple(node.attrs.get("view_shape", work.shape(name)))
    axes = {a % len(shape) for a in node.attrs["axes"]} if shape else set()
    dtype = work.dtype(name)
    if fn in ("Mean", "L2") and dtype is DType.BOOL:
        raise Declined(f"{fn} of bool has no kernel")
    offset, strides = dict(node.attrs.get("views", ())).get(0, (0, row_major(shape)))
    kept = _runs([(shape[k], strides[k]) for k in range(len(shape)) if k not in axes])
    gone = _runs([(shape[k], strides[k]) for k in sorted(axes)])
    count, length = prod(n for n, _ in kept), prod(n for n, _ in gone)
    vectors = fn in _SUMS and dtype is DType.F32 and len(gone) == 1 and gone[0][1] == 1
    rows = Rows(work, "reduce", count, length, dense=not gone or gone[-1][1] == 1, vectors=vectors)
    b = rows.builder
    x, y = b.buffer("x", dtype), b.buffer("y", work.dtype(out), "w")
    scalars: dict[str, int | float] = {"count": count, "length": length, "offset": offset}
    many, size = b.scalar("count"), b.scalar("length")
    with rows.each(many) as row:
        base = _expr(_offset(b, row, kept, "k", scalars))
        base = b.let(base + b.scalar("offset") if offset else base)
        kind = register_type(dtype)

        def step(so_far: Expr, r: Expr) -> Expr:
            at = base + _offset(b, r, gone, "g", scalars)
            return combine(b, fn, so_far, b.let(b.load(x, at, so_far.type.lanes)))

        if fn in _SUMS:
            total = rows.sum(size, kind, step)
        else:
            partial = b.mutable(_as(identity(fn, dtype), kind))
            with rows.loop(size) as r:
                b.assign(partial, step(partial, r))
            total = rows.total(partial, lambda one, other: combine(b, fn, one, other))
        with rows.once():
            b.store(y, row, finish(fn, total, size, dtype))
    work.launch(node, b.build(), {"x": name, "y": out}, rows.groups if count else 0, scalars | rows.scalars)


def _expr(value: Expr | int) -> Expr:
    return value if isinstance(value, Expr) else const(value)


def _as(value: Number, kind: DType) -> Expr:
    if kind is DType.BOOL:
        return const(bool(value), kind)
    if kind in _FLOATS:
        return const(float(value), kind)
    return const(int(value), kind)


def _runs(dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(size, stride) of dims, neighbours merged where they are one run."""
    out: list[tuple[int, int]] = []
    for size, stride in dims:
        if size == 1:
            continue
        if out and out[-1][1] == size * stride:
            out[-1] = (out[-1][0] * size, stride)
        else:
            out.append((size, stride))
    return out


def _offset(
    b: KernelBuilder, flat: Expr, dims: list[tuple[int, int]], hint: str, scalars: dict[str, int | float]
) -> Expr | int:
    """Element offset of a flat index over *dims*."""
    at: Expr | int = 0
    for k, (size, stride) in enumerate(dims):
        scalars |= {f"{hint}n{k}": size, f"{hint}s{k}": stride}
    names = [b.scalar(f"{hint}n{k}") for k in range(len(dims))]
    steps = [b.scalar(f"{hint}s{k}") for k in range(len(dims))]
    for c, s in zip(b.unravel(flat, names), steps, strict=True):
        at = c * s + at
    return at


def _lines(work: Lowering, name: str, axis: int) -> tuple[int, int, int]:
    """(outer, length, inner) around an axis."""
    shape = work.shape(name)
    axis %= len(shape)
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


@template("ArgReduce")
def arg_reduce(work: Lowering, node: Node) -> None:
    """NaN counts as the extreme; of equal elements the first or last wins."""
    name, out = node.inputs[0], node.outputs[0]
    outer, length, inner = _lines(work, name, node.attrs["axis"])
    dtype, larger, last = work.dtype(name), node.attrs["fn"] == "Max", bool(node.attrs.get("select_last", False))
    count = outer * inner
    rows = Rows(work, "arg_reduce", count, length, dense=inner == 1)
    b = rows.builder
    x, y = b.buffer("x", dtype), b.buffer("y", DType.I64, "w")
    many, size, step = b.scalar("count"), b.scalar("length"), b.scalar("inner")
    with rows.each(many) as row:
        base = b.let((row / step) * size * step + row % step)
        first = b.let(rows.lane.min(size - 1)) if rows.group else const(0)
        best = b.mutable(b.load(x, base + first * step))
        at = b.mutable(first)
        with b.loop(rows.lane + rows.lanes, size, rows.lanes) as k:
            v = b.let(b.load(x, base + k * step))
            # An item walks forwards: among its own elements the later one wins a tie only if the last is asked for.
            with b.when(_ahead(v, best, const(last, DType.BOOL), larger)):
                b.assign(best, v)
                b.assign(at, k)
        if rows.group:
            _tree(rows, best, at, larger=larger, last=last)
        with rows.once():
            b.store(y, row, at.cast(DType.I64))
    scalars = {"count": count, "length": length, "inner": inner}
    work.launch(node, b.build(), {"x": name, "y": out}, rows.groups if count else 0, scalars)


def _ahead(v: Expr, best: Expr, tie: Expr, larger: bool) -> Expr:
    """Whether *v* replaces *best*; *tie* says what happens to equal ones."""
    if v.dtype is DType.BOOL:
        return ((v & ~best) if larger else (best & ~v)) | (eq(v, best) & tie)
    found = ((v > best) if larger else (v < best)) | (eq(v, best) & tie)
    if v.dtype in _FLOATS:
        return select(best.call("isnan"), v.call("isnan") & tie, found | v.call("isnan"))
    return found


def _tree(rows: Rows, best: Expr, at: Expr, *, larger: bool, last: bool) -> None:
    """The winner of a group in registers *best* and *at* of its first item."""
    b, lane = rows.builder, rows.lane
    values, places = rows.shared(best.dtype), rows.shared(DType.I32, 1)
    b.write(values, lane, best)
    b.write(places, lane, at)
    b.barrier()
    with rows.halves() as half, b.when(lane < half):
        v, k = b.let(b.read(values, lane + half)), b.let(b.read(places, lane + half))
        with b.when(_ahead(v, best, k > at if last else k < at, larger)):
            b.assign(best, v)
            b.assign(at, k)
            b.write(values, lane, v)
            b.write(places, lane, k)


@template("PrefixScan")
def prefix_scan(work: Lowering, node: Node) -> None:
    """One item per line in order; a group per line gives each item a stretch, and scans the totals of stretches."""
    name, out = node.inputs[0], node.outputs[0]
    outer, length, inner = _lines(work, name, node.attrs["axis"])
    dtype, fn = work.dtype(name), node.attrs["fn"]
    exclusive, reverse = node.attrs.get("exclusive", False), node.attrs.get("reverse", False)
    count = outer * inner
    rows = Rows(work, "prefix_scan", count, length, dense=inner == 1)
    b = rows.builder
    x, y = b.buffer("x", dtype), b.buffer("y", dtype, "w")
    many, size, step = b.scalar("count"), b.scalar("length"), b.scalar("inner")
    with rows.each(many) as row:
        base = b.let((row / step) * size * step + row % step)
        total = b.mutable(_as(identity(fn, dtype), register_type(dtype)))

        def place(k: Expr) -> Expr:
            return base + ((size - 1 - k) if reverse else k) * step

        first, end = const(0), size
        if rows.group:
            stretch = b.let((size + (rows.lanes - 1)) / rows.lanes)
            first = b.let((rows.lane * stretch).min(size))
            end = b.let((first + stretch).min(size))
            with b.loop(first, end) as k:
                b.assign(total, combine(b, fn, total, b.let(b.load(x, place(k)))))
            _before(rows, total, fn, dtype)
        with b.loop(first, end) as k:
            at = b.let(place(k))
            v = b.let(b.load(x, at))
            if exclusive:
                b.store(y, at, wrap(total, dtype))
            b.assign(total, combine(b, fn, total, v))
            if not exclusive:
                b.store(y, at, wrap(total, dtype))
    scalars = {"count": count, "length": length, "inner": inner}
    work.launch(node, b.build(), {"x": name, "y": out}, rows.groups if count else 0, scalars)


def _before(rows: Rows, total: Expr, fn: str, dtype: DType) -> None:
    """Replace the total of each item by that of all items before it (Hillis and Steele 1986)."""
    b, lane = rows.builder, rows.lane
    shared = rows.shared(total.dtype)
    b.write(shared, lane, total)
    b.barrier()
    reach = b.mutable(const(1), "reach")
    with b.repeat(reach < rows.lanes):
        with b.when(lane >= reach):
            b.assign(total, combine(b, fn, b.let(b.read(shared, lane - reach)), total))
        b.barrier()
        b.write(shared, lane, total)
        b.barrier()
        b.assign(reach, reach * 2)
    b.assign(total, _as(identity(fn, dtype), total.dtype))
    with b.when(lane > 0):
        b.assign(total, b.read(shared, lane - 1))
