"""Sort and Random."""

from __future__ import annotations

import math
import os
from math import prod

import numpy as np

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Expr, const, eq
from mnnpy.backends.kernels.lowering import Declined, Lowering, template
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
    """By rank: an element's place is the number of those before it. Quadratic in the axis, parallel in elements."""
    name = node.inputs[0]
    shape, axis, top = work.shape(name), node.attrs["axis"], node.attrs["k"]
    axis %= len(shape)
    inner, length = prod(shape[axis + 1 :]), shape[axis]
    descending = node.attrs.get("descending", True)
    dtype = work.dtype(name)
    b = KernelBuilder("sort_rank", (LOCAL, 1, 1))
    x = b.buffer("x", dtype)
    buffers = {"x": name}
    values = b.buffer("y", dtype, "w") if node.outputs[0] else None
    places = b.buffer("at", DType.I64, "w") if len(node.outputs) > 1 and node.outputs[1] else None
    if values is not None:
        buffers["y"] = node.outputs[0]
    if places is not None:
        buffers["at"] = node.outputs[1]
    count, size, step, most = b.scalar("count"), b.scalar("length"), b.scalar("inner"), b.scalar("k")
    i = b.let(b.global_id())
    with b.when(i < count):
        low = b.let(i % step)
        own = b.let((i / step) % size)
        line = b.let(i / (step * size))
        base = b.let(line * size * step + low)
        mine = b.let(b.load(x, base + own * step))
        rank = b.mutable(const(0))
        with b.loop(0, size) as k:
            other = b.let(b.load(x, base + k * step))
            ahead = _before(other, mine, descending=descending)
            tie = ~ahead & ~_before(mine, other, descending=descending) & (k < own)
            with b.when(ahead | tie):
                b.assign(rank, rank + 1)
        with b.when(rank < most):
            to = b.let((line * most + rank) * step + low)
            if values is not None:
                b.store(values, to, mine)
            if places is not None:
                b.store(places, to, own.cast(DType.I64))
    total = work.count(name)
    scalars = {"count": total, "length": length, "inner": inner, "k": top}
    work.launch(node, b.build(), buffers, work.grid(total, LOCAL), scalars)


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
    if dtype is DType.F64:
        raise Declined("Random of f64 has no kernel")
    total = work.count(out)
    b = KernelBuilder(f"random_{fn.lower()}", (LOCAL, 1, 1))
    y = b.buffer("y", dtype, "w")
    buffers = {"y": out}
    count, low, high = b.scalar("count"), b.scalar("a", DType.F32), b.scalar("b", DType.F32)
    scalars = {"count": total, "a": node.attrs.get("a", 0.0), "b": node.attrs.get("b", 1.0)}
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
        unit = [b.let((w >> 8).cast(DType.F32) * 2.0**-24) for w in words]
        if fn == "Uniform":
            values = [low + (high - low) * u for u in unit]
        else:
            values = []
            for k in (0, 2):
                shifted = b.let((((words[k] >> 8) + 1).cast(DType.F32)) * 2.0**-24)
                radius = b.let((-2.0 * shifted.call("log")).call("sqrt"))
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
