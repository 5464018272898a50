"""Input elements of a convolution laid out as column panels, the right operand of packed products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Expr, Type, const, eq, ne, select
from mnnpy.backends.kernels.lowering import Lowering
from mnnpy.backends.kernels.templates.geometry import Geometry, column_starts
from mnnpy.backends.kernels.templates.lines import Taps, Window, applies
from mnnpy.backends.kernels.templates.packed import Block
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__ = ["gather_panels"]

#: Of windows that are gathered by vectors.
TAPS = 64


def gather_panels(work: Lowering, node: Node, s: Geometry, block: Block) -> str:
    """Input elements by output position: ``[batch·group, panel, channel·taps, columns]``, zeros in the padding."""
    width = block.columns
    window = Window(s.size, s.result, s.kernel, s.strides, s.pads, s.dilations)
    if block.lanes >= 8 and applies(work, s.x, window, TAPS) and s.result[1] >= 2 * block.lanes:
        return _by_lines(work, node, s, block, window)
    panels = -(-s.positions // width)
    made = work.temporary(DType.F32, (s.batch * s.group, panels, s.depth, width), "columns")
    table = work.constant(column_starts(s, panels * width), "starts")
    b = KernelBuilder(f"gather{width}", (width, 1, 1))
    x, starts, y = b.buffer("x", s.dtype), b.buffer("starts", DType.I32), b.buffer("y", DType.F32, "w")
    channels, all_panels = b.scalar("channels"), b.scalar("panels")
    taps = s.taps  # in the source: loops over them unroll
    panel, channel, z = b.let(b.group_id(0)), b.let(b.group_id(1)), b.let(b.group_id(2))
    own = b.let(b.local_id(0))
    column = b.let(panel * width + own)
    at = [b.let(b.load(starts, column + d * (all_panels * width))) for d in range(s.rank)]
    base = b.let((z * channels + channel) * b.scalar("volume"))
    target = b.let(((z * all_panels + panel) * channels + channel) * (taps * width) + own)

    def put(index: Expr, inside: Expr, tap: Expr) -> None:
        value = b.let(b.load(x, b.let(select(inside, base + index, const(0)))))  # always: neighbours stay one vector
        b.store(y, target + tap * width, select(inside, value, const(0.0, DType.F32)))

    _gather(b, s, at, put)
    scalars = {"channels": s.channels, "panels": panels, **s.scalars("i", "d"), "volume": prod(s.size)}
    work.launch(
        node, b.build(), {"x": s.x, "starts": table, "y": made}, (panels, s.channels, s.batch * s.group), scalars
    )  # fmt: skip
    return made


@dataclass(frozen=True, slots=True)
class _Tap:
    """A position in the window: offset so far, whether it is inside, flat index."""

    index: Expr
    inside: Expr
    number: Expr


def _gather(b: KernelBuilder, s: Geometry, start: list[Expr], each: Callable[[Expr, Expr, Expr], None]) -> None:
    """Calls *each* with (index in the channel, inside?, flat tap) for every tap; the last dim is unrolled."""

    def visit(d: int, so_far: _Tap) -> None:
        if d == s.rank:
            each(so_far.index, b.let(so_far.inside), so_far.number)
            return
        size, dilation = b.scalar(f"i{d}"), b.scalar(f"d{d}")

        def step(tap: Expr) -> None:
            place = b.let(start[d] + tap * dilation)
            inside = (place >= 0) & (place < size)
            visit(d + 1, _Tap(so_far.index * size + place, so_far.inside & inside,
                              so_far.number * s.kernel[d] + tap))  # fmt: skip

        if prod(s.kernel[d:]) <= 16:
            for number in range(s.kernel[d]):
                step(const(number))
        else:
            with b.loop(0, s.kernel[d]) as tap:
                step(tap)

    visit(0, _Tap(const(0), const(True, DType.BOOL), const(0)))


def _by_lines(work: Lowering, node: Node, s: Geometry, block: Block, window: Window) -> str:
    """The same by vectors of neighbouring columns; those that turn a corner, lane by lane."""
    width, lanes = block.columns, block.lanes
    panels = -(-s.positions // width)
    made = work.temporary(DType.F32, (s.batch * s.group, panels, s.depth, width), "columns")
    starts_table = work.constant(column_starts(s, panels * width), "starts")
    inside_table = work.constant(window.inside(s.result[1] + lanes), "inside")
    b = KernelBuilder(f"gather_lines{width}", (1, 1, 1))
    x, starts, inside = b.buffer("x", s.dtype), b.buffer("starts", DType.I32), b.buffer("inside", DType.I32)
    y = b.buffer("y", DType.F32, "w")
    channels, all_panels, high, wide = b.scalar("channels"), b.scalar("panels"), b.scalar("i0"), b.scalar("i1")
    panel, channel, z = b.let(b.group_id(0)), b.let(b.group_id(1)), b.let(b.group_id(2))
    base = b.let((z * channels + channel) * b.scalar("volume"))
    target = b.let(((z * all_panels + panel) * channels + channel) * (s.taps * width))
    every, span = b.let(all_panels * width), (lanes - 1) * s.strides[1]

    def start(column: Expr) -> tuple[Expr, Expr]:
        return b.let(b.load(starts, column)), b.let(b.load(starts, column + every))

    with b.loop(0, width, lanes) as own:
        column = b.let(panel * width + own)
        (top, left), (last_top, last_left) = start(column), start(column + (lanes - 1))
        low = b.let(base + top.max(0) * wide + left)
        last = (top + (s.kernel[0] - 1) * s.dilations[0]).min(high - 1)
        far = b.let(base + last * wide + left + window.span(lanes))
        one_line = eq(last_top, top) & eq(last_left - left, span)
        with b.when(one_line & (low >= 0) & (far <= b.scalar("size"))):
            bits = b.let(b.load(inside, (left + b.scalar("p1")) / s.strides[1], lanes))
            for i in range(s.kernel[0]):
                line = b.let(top + i * s.dilations[0])
                to = b.let(target + own + i * (s.kernel[1] * width))
                with b.when((line >= 0) & (line < high)):
                    taps = Taps(b, x, window, b.let(base + line * wide + left), lanes)
                    for j in range(s.kernel[1]):
                        here = ne(bits & (1 << j), 0)
                        b.store(y, to + j * width, select(here, taps.load(j, here), const(0.0, Type(DType.F32, lanes))))
                with b.otherwise():
                    for j in range(s.kernel[1]):
                        b.store(y, to + j * width, const(0.0, Type(DType.F32, lanes)))
        with b.otherwise(), b.loop(own, own + lanes) as one:
            at = list(start(b.let(panel * width + one)))

            def put(index: Expr, good: Expr, tap: Expr) -> None:
                value = b.load(x, b.let(select(good, base + index, const(0))))
                b.store(y, target + tap * width + one, select(good, value, const(0.0, DType.F32)))

            _gather(b, s, at, put)
    scalars = {
        "channels": s.channels, "panels": panels, **s.scalars("i", "d"), "p1": s.pads[1], "volume": prod(s.size),
        "size": work.count(s.x),
    }  # fmt: skip
    buffers = {"x": s.x, "starts": starts_table, "inside": inside_table, "y": made}
    work.launch(node, b.build(), buffers, (panels, s.channels, s.batch * s.group), scalars)
    return made
