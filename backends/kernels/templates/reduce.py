"""Reduce, ArgReduce and PrefixScan."""

from __future__ import annotations

import math
from math import prod

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.functions import wrap
from mnnpy.backends.kernels.ir import Expr, Number, const, eq, register_type, select
from mnnpy.backends.kernels.lowering import Declined, Lowering, template
from mnnpy.decompose.raster import row_major
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__ = ["identity"]

LOCAL = 64
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


def merge(b: KernelBuilder, fn: str, one: Expr, other: Expr) -> Expr:
    """Two partial results."""
    return combine(b, {"SumSquare": "Sum", "L2": "Sum", "L1": "Sum", "Mean": "Sum"}.get(fn, fn), one, other)


def finish(fn: str, total: Expr, count: int, dtype: DType) -> Expr:
    """What follows the sum."""
    if fn == "Mean":
        if total.dtype in _FLOATS:
            return total / float(count)
        return total / count if count else total
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
    wide = length >= 256 and count * 8 <= length * 64 and not work.caps.cpu_like
    lanes = min(256, work.caps.max_group) if wide else 1
    b = KernelBuilder("reduce_group" if wide else "reduce", (lanes, 1, 1) if wide else (LOCAL, 1, 1))
    x, y = b.buffer("x", dtype), b.buffer("y", work.dtype(out), "w")
    scalars: dict[str, int | float] = {"count": count, "length": length}
    total_count, total_length = b.scalar("count"), b.scalar("length")
    i = b.let(b.group_id() if wide else b.global_id())
    with b.when(i < total_count):
        start = _offset(b, i, kept, "k", scalars)
        base = b.let(start) if isinstance(start, Expr) else const(start)
        if offset:
            scalars["offset"] = offset
            base = b.let(base + b.scalar("offset"))
        kind = register_type(dtype)
        total = b.mutable(const(identity(fn, dtype), kind) if kind in (DType.BOOL,) else _as(identity(fn, dtype), kind))
        first: Expr | int = b.local_id() if wide else 0
        with b.loop(first, total_length, lanes) as r:
            value = b.let(b.load(x, base + _offset(b, r, gone, "g", scalars)))
            b.assign(total, combine(b, fn, total, value))
        if not wide:
            b.store(y, i, finish(fn, total, length, dtype))
    if wide:
        shared = b.array(kind, lanes, "local")
        lane = b.local_id()
        b.write(shared, lane, total)
        b.barrier()
        half = lanes // 2
        while half:
            with b.when(lane < half):
                b.write(shared, lane, merge(b, fn, b.let(b.read(shared, lane)), b.let(b.read(shared, lane + half))))
            b.barrier()
            half //= 2
        with b.when(eq(lane, 0)):
            b.store(y, i, finish(fn, b.read(shared, 0), length, dtype))
    groups = count if wide else work.grid(count, LOCAL)
    work.launch(node, b.build(), {"x": name, "y": out}, groups, scalars)


def _as(value: Number, kind: DType) -> Expr:
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
    """One item per line; NaN counts as the extreme."""
    name, out = node.inputs[0], node.outputs[0]
    outer, length, inner = _lines(work, name, node.attrs["axis"])
    dtype, last = work.dtype(name), node.attrs.get("select_last", False)
    b = KernelBuilder("arg_reduce", (LOCAL, 1, 1))
    x, y = b.buffer("x", dtype), b.buffer("y", DType.I64, "w")
    count, size, step = b.scalar("count"), b.scalar("length"), b.scalar("inner")
    i = b.let(b.global_id())
    with b.when(i < count):
        base = b.let((i / step) * size * step + i % step)
        best = b.mutable(b.load(x, base))
        at = b.mutable(const(0))
        with b.loop(1, size) as k:
            v = b.let(b.load(x, base + k * step))
            larger = node.attrs["fn"] == "Max"
            if v.dtype is DType.BOOL:
                ahead = (v & ~best) if larger else (best & ~v)
                ahead = ahead | eq(v, best) if last else ahead
            else:
                strict = (v > best) if larger else (v < best)
                ahead = strict | eq(v, best) if last else strict
            if v.dtype in _FLOATS:
                first_nan = v.call("isnan") if last else v.call("isnan") & ~best.call("isnan")
                ahead = (ahead & ~best.call("isnan")) | first_nan
            with b.when(ahead):
                b.assign(best, v)
                b.assign(at, k)
        b.store(y, i, at.cast(DType.I64))
    scalars = {"count": outer * inner, "length": length, "inner": inner}
    work.launch(node, b.build(), {"x": name, "y": out}, work.grid(outer * inner, LOCAL), scalars)


@template("PrefixScan")
def prefix_scan(work: Lowering, node: Node) -> None:
    """One item per line, in order: sums are bit-equal to a sequential one."""
    name, out = node.inputs[0], node.outputs[0]
    outer, length, inner = _lines(work, name, node.attrs["axis"])
    dtype, fn = work.dtype(name), node.attrs["fn"]
    exclusive, reverse = node.attrs.get("exclusive", False), node.attrs.get("reverse", False)
    b = KernelBuilder("prefix_scan", (LOCAL, 1, 1))
    x, y = b.buffer("x", dtype), b.buffer("y", dtype, "w")
    count, size, step = b.scalar("count"), b.scalar("length"), b.scalar("inner")
    i = b.let(b.global_id())
    with b.when(i < count):
        base = b.let((i / step) * size * step + i % step)
        total = b.mutable(_as(identity(fn, dtype), register_type(dtype)))
        with b.loop(0, size) as k:
            at = b.let(base + ((size - 1 - k) if reverse else k) * step)
            v = b.let(b.load(x, at))
            if exclusive:
                b.store(y, at, wrap(total, dtype))
            b.assign(total, combine(b, fn, total, v))
            if not exclusive:
                b.store(y, at, wrap(total, dtype))
    scalars = {"count": outer * inner, "length": length, "inner": inner}
    work.launch(node, b.build(), {"x": name, "y": out}, work.grid(outer * inner, LOCAL), scalars)
