"""Depthwise convolution in two spatial dims, taps unrolled.

Items side by side compute outputs side by side; on CPU-like devices an item goes through a whole plane by vectors, or
through its lines where those of input and output differ in length.
"""

from __future__ import annotations

import numpy as np

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Expr, Type, const, ne, select
from mnnpy.backends.kernels.lowering import Lowering
from mnnpy.backends.kernels.templates.geometry import Geometry
from mnnpy.backends.kernels.templates.lines import UNROLLED, Lines, Window, applies
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node

__all__ = ["convolution"]

LOCAL = 64  # of windows with more taps than UNROLLED only the last dim is written out


def convolution(work: Lowering, node: Node, s: Geometry) -> None:
    """By planes or lines where vectors pay, else by items."""
    lanes = work.caps.lanes if work.caps.cpu_like else 1
    equal = set(s.strides) == {1} and s.result[1] == s.size[1] and s.taps <= UNROLLED
    if lanes >= 8 and equal and s.dtype is DType.F32 and work.count(s.x) >= lanes:
        _planes(work, node, s, lanes)
    elif applies(work, s.x, window := Window(s.size, s.result, s.kernel, s.strides, s.pads, s.dilations)):
        _lines(work, node, s, window)
    else:
        _items(work, node, s)


def _planes(work: Lowering, node: Node, s: Geometry, lanes: int) -> None:
    """Outputs in flat order: each tap is the input at a constant distance, where a bit of a table says so.

    Vectors may begin before a plane or end behind it, in memory of its neighbours; at the ends of the tensor lanes
    are computed one by one.
    """
    padded = -(-s.positions // lanes) * lanes
    table = work.constant(_inside(s, padded), "inside")
    b = KernelBuilder("depthwise_planes", (1, 1, 1))
    x, w, inside = b.buffer("x", s.dtype), b.buffer("w", work.dtype(s.weights)), b.buffer("inside", DType.I32)
    y = b.buffer("y", s.dtype, "w")
    tail = s.epilogue.attach(b)
    z, positions = b.let(b.global_id()), b.scalar("positions")
    channel = b.let(z % b.scalar("channels"))
    line = b.scalar("line")
    start = b.let((z // b.scalar("rows")) * b.scalar("plane"))
    target = b.let(z * positions)
    weights = [b.let(b.load(w, channel * s.taps + t)) for t in range(s.taps)]
    apart = [
        b.let(line * (i * s.dilations[0] - s.pads[0]) + (j * s.dilations[1] - s.pads[1]))
        for i in range(s.kernel[0])
        for j in range(s.kernel[1])
    ]
    bias = tail.load_bias(channel)
    bias = b.let(bias) if bias is not None else None

    def sum_of(at: Expr, wide: int) -> Expr:
        bits = b.let(b.load(inside, at, wide))
        total = b.mutable(const(0.0, Type(DType.F32, wide)))
        for t in range(s.taps):
            here = ne(bits & (1 << t), 0)
            place = b.let(start + at + apart[t])
            if wide == 1:
                place = b.let(select(here, place, const(0)))
            value = select(here, b.load(x, place, wide), const(0.0, Type(DType.F32, wide)))
            b.assign(total, value.call("fma", weights[t].splat(wide), total))
        return total

    last = b.scalar("size") - lanes
    with b.loop(0, positions, lanes) as at:
        low, high = b.let(start + at + apart[0]), b.let(start + at + apart[-1])
        with b.when((low >= 0) & (high <= last) & (at + lanes <= positions)):
            b.store(y, target + at, tail.finish(sum_of(at, lanes), b.let(target + at), bias))
        with b.otherwise(), b.loop(at, (at + lanes).min(positions)) as one:
            b.store(y, target + one, tail.finish(sum_of(one, 1), b.let(target + one), bias))
    scalars = {
        "positions": s.positions, "channels": s.group * s.rows, "rows": s.rows, "line": s.size[1],
        "plane": s.size[0] * s.size[1], "size": work.count(s.x), **tail.scalars(),
    }  # fmt: skip
    buffers = {"x": s.x, "w": s.weights, "inside": table, "y": s.out, **tail.buffers()}
    work.launch(node, b.build(), buffers, s.batch * s.group * s.rows, scalars)


def _inside(s: Geometry, columns: int) -> Array:
    """By output position: bit *t* where tap *t* lies in the input."""
    table = np.zeros(columns, np.int32)
    line, place = np.indices(s.result).reshape(2, -1)
    for t in range(s.taps):
        i = line + t // s.kernel[1] * s.dilations[0] - s.pads[0]
        j = place + t % s.kernel[1] * s.dilations[1] - s.pads[1]
        good = (i >= 0) & (i < s.size[0]) & (j >= 0) & (j < s.size[1])
        table[: s.positions] |= good.astype(np.int32) << t
    return table


def _lines(work: Lowering, node: Node, s: Geometry, window: Window) -> None:
    """Lines of the output by vectors."""
    lines = Lines(work, node, "depthwise_lines", window, s.x, s.out)
    b = lines.b
    w, tail = b.buffer("w", work.dtype(s.weights)), s.epilogue.attach(b)
    channel = b.let(lines.plane % b.scalar("channels"))
    lines.source = b.let(lines.plane / b.scalar("rows"))  # rows: output channels of each input channel
    weights = [b.let(b.load(w, channel * s.taps + t)) for t in range(s.taps)]
    bias = tail.load_bias(channel)
    bias = b.let(bias) if bias is not None else None

    def step(total: Expr, value: Expr, here: Expr, tap: int) -> Expr:
        value = select(here, value, const(0.0, total.type))
        return value.call("fma", weights[tap].splat(total.type.lanes), total)

    lines.values |= {"w": s.weights, **tail.buffers()}
    lines.scalars |= {"channels": s.group * s.rows, "rows": s.rows, **tail.scalars()}
    lines.write(0.0, step, lambda total, at, _: tail.finish(total, at, bias))


def _items(work: Lowering, node: Node, s: Geometry) -> None:
    """No division and no test of channels in any item: the grid counts lines and channels."""
    wide = 8
    while wide < min(s.result[1], LOCAL):
        wide *= 2
    b = KernelBuilder("depthwise", (wide, LOCAL // wide, 1))
    x, w, y = b.buffer("x", s.dtype), b.buffer("w", work.dtype(s.weights)), b.buffer("y", s.dtype, "w")
    tail = s.epilogue.attach(b)
    channels, rows, lines = b.scalar("channels"), b.scalar("rows"), b.scalar("i0")
    places, out_lines, out_places = b.scalar("i1"), b.scalar("o0"), b.scalar("o1")
    place, line, z = b.let(b.global_id(0)), b.let(b.global_id(1)), b.let(b.group_id(2))
    channel = b.let(z % channels)
    base = b.let((z // rows) * (lines * places))  # rows: output channels of each input channel
    first_w = b.let(channel * s.taps)
    top = b.let(line * b.scalar("st0") - b.scalar("p0"))
    left = b.let(place * b.scalar("st1") - b.scalar("p1"))
    columns = []
    for j in range(s.kernel[1]):
        at = b.let(left + b.scalar("d1") * j)
        columns.append((at, b.let((at >= 0) & (at < places))))
    total = b.mutable(const(0.0, DType.F32))

    def add(i: Expr) -> None:
        at_line = b.let(top + i * b.scalar("d0"))
        inside_line = b.let((at_line >= 0) & (at_line < lines))
        start = b.let(base + at_line * places)
        weights = b.let(first_w + i * s.kernel[1])
        for j, (at, inside_place) in enumerate(columns):
            inside = b.let(inside_line & inside_place)
            value = b.let(b.load(x, b.let(select(inside, start + at, const(0)))))
            value = select(inside, value, const(0.0, DType.F32))
            b.assign(total, value.call("fma", b.load(w, weights + j), total))

    if s.taps <= UNROLLED:
        for i in range(s.kernel[0]):
            add(const(i))
    else:
        with b.loop(0, s.kernel[0]) as tap:
            add(tap)
    with b.when((place < out_places) & (line < out_lines)):
        at = b.let((z * out_lines + line) * out_places + place)
        b.store(y, at, tail.finish(total, at, tail.load_bias(channel)))
    groups = (-(-s.result[1] // wide), -(-s.result[0] * wide // LOCAL), s.batch * s.group * s.rows)
    scalars = {
        "channels": s.group * s.rows, "rows": s.rows, **s.scalars("i", "o", "st", "p", "d"), **tail.scalars(),
    }  # fmt: skip
    work.launch(node, b.build(), {"x": s.x, "w": s.weights, "y": s.out, **tail.buffers()}, groups, scalars)
