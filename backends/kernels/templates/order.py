"""Sort and Random."""

from __future__ import annotations

import math
import os
from math import prod

import numpy as np

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Expr, const, eq, register_type, select
from mnnpy.backends.kernels.lowering import Lowering, template
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__: list[str] = []

LOCAL = 64
_FLOATS = frozenset({DType.F16, DType.F32, DType.F64})


def _before(a: Expr, c: Expr, *, descending: bool) -> Expr:
    """Whether *a* sorts strictly before *c*; NaN is the largest."""
    if a.dtype is DType.BOOL:
        return (a & ~c) if descending else (c & ~a)
    strict = (a > c) if descending else (a < c)
    if a.dtype in _FLOATS:
        na, nc = a.call("isnan"), c.call("isnan")
        return (na & ~nc) | (strict & ~nc) if descending else (nc & ~na) | (strict & ~na)
    return strict


@template("Sort")
def sort(work: Lowering, node: Node) -> None:
    """Short lines by a bitonic network in local memory; on CPU-like devices by merging; others by rank."""
    line = _Line(work, node)
    if not work.caps.cpu_like and 2 <= line.length <= 1024:
        _bitonic(work, line)
    elif work.caps.cpu_like and line.length > 32:
        _merging(work, line)
    else:
        _ranked(work, line)


class _Line:
    """Geometry and results of one Sort."""

    def __init__(self, work: Lowering, node: Node) -> None:
        self.node, self.name = node, node.inputs[0]
        shape, axis = work.shape(self.name), node.attrs["axis"]
        axis %= len(shape)
        self.inner, self.length, self.top = prod(shape[axis + 1 :]), shape[axis], node.attrs["k"]
        self.total = work.count(self.name)
        self.lines = self.total // max(1, self.length)
        self.descending = bool(node.attrs.get("descending", True))
        self.dtype = work.dtype(self.name)
        self.buffers = {"x": self.name}
        self.scalars = {"count": self.total, "length": self.length, "inner": self.inner, "k": self.top}

    def declare(self, b: KernelBuilder) -> None:
        """Operand, results that somebody reads, and sizes."""
        self.x = b.buffer("x", self.dtype)
        values, places = (*self.node.outputs, "")[:2]
        self.values = b.buffer("y", self.dtype, "w") if values else None
        self.places = b.buffer("at", DType.I64, "w") if places else None
        self.buffers |= ({"y": values} if values else {}) | ({"at": places} if places else {})
        self.count, self.size, self.step, self.most = (b.scalar(n) for n in ("count", "length", "inner", "k"))

    def store(self, b: KernelBuilder, line: Expr, rank: Expr, value: Expr, place: Expr) -> None:
        """Write the element of *rank*; *line* counts lines."""
        to = b.let(((line / self.step) * self.most + rank) * self.step + line % self.step)
        if self.values is not None:
            b.store(self.values, to, value)
        if self.places is not None:
            b.store(self.places, to, place.cast(DType.I64))

    def base(self, b: KernelBuilder, line: Expr) -> Expr:
        """Index of the first element of a line."""
        return b.let((line / self.step) * self.step * self.size + line % self.step)

    def before(self, a: Expr, c: Expr) -> Expr:
        return _before(a, c, descending=self.descending)


def _ranked(work: Lowering, line: _Line) -> None:
    """An element's place is the number of those before it: quadratic in the axis, parallel in elements."""
    b = KernelBuilder("sort_rank", (LOCAL, 1, 1))
    line.declare(b)
    i = b.let(b.global_id())
    with b.when(i < line.count):
        own, of = b.let(i % line.size), b.let(i / line.size)
        base = line.base(b, of)
        mine = b.let(b.load(line.x, base + own * line.step))
        rank = b.mutable(const(0))
        with b.loop(0, line.size) as k:
            other = b.let(b.load(line.x, base + k * line.step))
            ahead = line.before(other, mine)
            tie = ~ahead & ~line.before(mine, other) & (k < own)
            with b.when(ahead | tie):
                b.assign(rank, rank + 1)
        with b.when(rank < line.most):
            line.store(b, of, rank, mine, own)
    work.launch(line.node, b.build(), line.buffers, work.grid(line.total, LOCAL), line.scalars)


def _merging(work: Lowering, line: _Line) -> None:
    """One item per line merges runs of 1, 2, 4 … indices between two stretches of a temporary; stable."""
    b = KernelBuilder("sort_merge", (LOCAL, 1, 1))
    line.declare(b)
    order = b.buffer("order", DType.I32, "rw")
    of = b.let(b.global_id())
    with b.when(of * line.size < line.count):
        base, room = line.base(b, of), b.let(of * line.size * 2)
        with b.loop(0, line.size) as k:
            b.store(order, room + k, k)
        source, target, width = b.mutable(room), b.mutable(room + line.size), b.mutable(const(1))
        with b.repeat(width < line.size):
            low = b.mutable(const(0))
            with b.repeat(low < line.size):
                middle, high = b.let((low + width).min(line.size)), b.let((low + width + width).min(line.size))
                left, right = b.mutable(low), b.mutable(middle)
                with b.loop(low, high) as k:
                    p = b.let(b.load(order, source + left.min(line.size - 1)))
                    q = b.let(b.load(order, source + right.min(line.size - 1)))
                    first, second = (b.let(b.load(line.x, base + e * line.step)) for e in (p, q))
                    swap = b.let((right < high) & ((left >= middle) | line.before(second, first)))
                    b.store(order, target + k, select(swap, q, p))
                    with b.when(swap):
                        b.assign(right, right + 1)
                    with b.otherwise():
                        b.assign(left, left + 1)
                b.assign(low, high)
            was = b.mutable(source)
            b.assign(source, target)
            b.assign(target, was)
            b.assign(width, width * 2)
        with b.loop(0, line.most) as k:
            p = b.let(b.load(order, source + k))
            line.store(b, of, k, b.let(b.load(line.x, base + p * line.step)), p)
    room_for = work.temporary(DType.I32, (2 * line.total,), "order")
    buffers = {**line.buffers, "order": room_for}
    work.launch(line.node, b.build(), buffers, work.grid(line.lines, LOCAL), line.scalars)


def _bitonic(work: Lowering, line: _Line) -> None:
    """One group per line: Batcher's bitonic network over values and indices; indices make the order total."""
    room = 2 ** (line.length - 1).bit_length()
    lanes = min(256, work.caps.max_group, room // 2)
    b = KernelBuilder("sort_bitonic", (lanes, 1, 1))
    line.declare(b)
    of, lane = b.let(b.group_id()), b.local_id()
    base = line.base(b, of)
    values = b.array(register_type(line.dtype), room, "local")
    places = b.array(DType.I32, room, "local")
    with b.loop(lane, room, lanes) as t:
        b.write(values, t, b.load(line.x, base + t.min(line.size - 1) * line.step))
        b.write(places, t, t)
    b.barrier()
    span = b.mutable(const(2))
    with b.repeat(span <= room):
        gap = b.mutable(span / 2)
        with b.repeat(gap > 0):
            with b.loop(lane, room // 2, lanes) as t:
                low = b.let((t / gap) * gap * 2 + t % gap)
                high = b.let(low + gap)
                one, other = b.let(b.read(values, low)), b.let(b.read(values, high))
                k, m = b.let(b.read(places, low)), b.let(b.read(places, high))
                padded = (k >= line.size) | (m >= line.size)  # what is beyond the line comes last
                sorted_ = line.before(other, one) | (~line.before(one, other) & (m < k))
                ahead = b.let((padded & (m < k)) | (~padded & sorted_))
                with b.when(eq(eq(low & span, 0), ahead)):
                    b.write(values, low, other)
                    b.write(values, high, one)
                    b.write(places, low, m)
                    b.write(places, high, k)
            b.barrier()
            b.assign(gap, gap / 2)
        b.assign(span, span * 2)
    with b.loop(lane, line.most, lanes) as t:
        line.store(b, of, t, b.let(b.read(values, t)), b.let(b.read(places, t)))
    work.launch(line.node, b.build(), line.buffers, line.lines, line.scalars)


def _philox(b: KernelBuilder, counter: Expr, key: tuple[Expr, Expr]) -> list[Expr]:
    """Philox-4x32-10 (Salmon et al. 2011) of (counter, 0, 0, 0)."""
    zero = const(0, DType.U32)
    words = [counter, zero, zero, zero]
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _wide(b, words[0], 0xD2511F53)
        high1, low1 = _wide(b, words[2], 0xCD9E8D57)
        words = [b.let(high1 ^ words[1] ^ k0), low1, b.let(high0 ^ words[3] ^ k1), low0]
        k0, k1 = b.let(k0 + 0x9E3779B9), b.let(k1 + 0xBB67AE85)
    return words


def _wide(b: KernelBuilder, x: Expr, factor: int) -> tuple[Expr, Expr]:
    """(high, low) words of a 32×32-bit product, from 16-bit halves: no 64-bit integers needed."""
    low, high = factor & 0xFFFF, factor >> 16
    xl, xh = b.let(x & 0xFFFF), b.let(x >> 16)
    ll, lh, hl = b.let(xl * low), b.let(xl * high), b.let(xh * low)
    middle = b.let((ll >> 16) + (lh & 0xFFFF) + (hl & 0xFFFF))
    return b.let(xh * high + (lh >> 16) + (hl >> 16) + (middle >> 16)), b.let(x * factor)


@template("Random")
def random(work: Lowering, node: Node) -> None:
    """One item per block of four words. Without a seed the key is device memory that each run moves on."""
    out, fn = node.outputs[0], node.attrs["fn"]
    seed = node.attrs.get("seed")
    dtype = work.dtype(out)
    real = DType.F64 if dtype is DType.F64 else DType.F32
    total = work.count(out)
    b = KernelBuilder(f"random_{fn.lower()}", (LOCAL, 1, 1))
    y = b.buffer("y", dtype, "w")
    buffers = {"y": out}
    scalars = {"count": total, "a": node.attrs.get("a", 0.0), "b": node.attrs.get("b", 1.0)}
    count = b.scalar("count")
    # Scalars of a launch have four bytes.
    low, high = (const(float(scalars[s]), real) if real is DType.F64 else b.scalar(s, real) for s in ("a", "b"))
    if seed is None:
        buffers["state"] = work.constant(np.frombuffer(os.urandom(8), np.uint32).copy(), "random")
        state = b.buffer("state", DType.U32)
        key = (b.let(b.load(state, 0)), b.let(b.load(state, 1)))
    else:
        key = (b.scalar("k0", DType.U32), b.scalar("k1", DType.U32))
        scalars |= {"k0": int(seed) & 0xFFFFFFFF, "k1": (int(seed) >> 32) & 0xFFFFFFFF}
    i = b.let(b.global_id())
    with b.when(i * 4 < count):
        words = _philox(b, b.let(i.cast(DType.U32)), key)
        unit = [b.let((w >> 8).cast(real) * 2.0**-24) for w in words]
        if fn == "Uniform":
            values = [low + (high - low) * u for u in unit]
        else:
            values = []
            for k in (0, 2):
                shifted = b.let(((words[k] >> 8) + 1).cast(real) * 2.0**-24)
                radius = b.let((-2.0 * shifted.call("log")).max(0.0).call("sqrt"))  # log(1) may round above 0
                angle = b.let(2.0 * math.pi * unit[k + 1])
                values += [low + high * radius * angle.call(f) for f in ("cos", "sin")]
        for k, v in enumerate(values):
            with b.when(i * 4 + k < count):
                b.store(y, i * 4 + k, v)
    work.launch(node, b.build(), buffers, work.grid(-(-total // 4), LOCAL), scalars)
    if seed is None and total:
        _advance(work, node, buffers["state"])


def _advance(work: Lowering, node: Node, state: str) -> None:
    """Another key for the next run of the recording."""
    b = KernelBuilder("random_next", (1, 1, 1))
    words = b.buffer("state", DType.U32, "rw")
    low = b.let(b.load(words, 0) + 1)
    b.store(words, 0, low)
    with b.when(eq(low, 0)):
        b.store(words, 1, b.load(words, 1) + 1)
    work.launch(node, b.build(), {"state": state}, 1)
