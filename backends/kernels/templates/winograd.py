"""Winograd convolution: F(2×2, 3×3) and F(4×4, 3×3) for 3×3 kernels of stride 1.

Three launches: input tiles are transformed, one product per element of the transformed tile sums over channels, and
its results are transformed back (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015). Weights
are transformed when the program is compiled. Errors of f32 stay below 3e-5 of the largest output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.driver import Caps
from mnnpy.backends.kernels.ir import Expr, const, select
from mnnpy.backends.kernels.lowering import Lowering
from mnnpy.backends.kernels.templates.epilogue import Epilogue
from mnnpy.backends.kernels.templates.geometry import Geometry
from mnnpy.backends.kernels.templates.packed import choose_block, packed_product, row_panels
from mnnpy.backends.kernels.templates.product import Product
from mnnpy.backends.kernels.templates.tiles import choose_tile, tiled_product
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node

__all__ = ["convolution", "cost", "refusal"]

Matrix = Sequence[Sequence[float]]
LOCAL = 32
#: By output size: transform of the input, of the weights, and back.
_INPUT: dict[int, Matrix] = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}  # fmt: skip
_WEIGHTS: dict[int, Matrix] = {
    2: ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
    ),
}  # fmt: skip
_OUTPUT: dict[int, Matrix] = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}  # fmt: skip


#: The error of a sum in the transformed domain grows with its length; up to here it keeps the bar of ``normal``.
CHANNELS = 1024


def refusal(s: Geometry, constant: bool) -> str:
    """Why Winograd does not apply; empty where it does."""
    if s.kernel != (3, 3) or set(s.strides) | set(s.dilations) != {1}:
        return "Winograd wants 3×3 kernels of stride and dilation 1"
    if s.group != 1:
        return "Winograd wants one group"
    if s.channels > CHANNELS:
        return f"sums over more than {CHANNELS} channels would round too much in Winograd's domain"
    return "" if constant else "Winograd wants constant weights"


def cost(caps: Caps, s: Geometry, algorithm: str, transformed: float) -> float:
    """Multiplications and additions of the products, and *transformed* for every element before and after."""
    t = _Tiling.of(s, int(algorithm[-1]))
    columns, rows = t.count, s.rows
    if caps.cpu_like:
        block = choose_block(caps, rows, columns)
        columns, rows = -(-columns // block.columns) * block.columns, -(-rows // block.rows) * block.rows
    else:
        tile = choose_tile(caps, rows, columns, t.elements)
        columns, rows = -(-columns // tile.columns) * tile.columns, -(-rows // tile.rows) * tile.rows
    moved = t.elements * t.count * (s.channels + s.rows)
    return 2.0 * t.elements * rows * s.channels * columns + transformed * moved


@dataclass(frozen=True, slots=True)
class _Tiling:
    """Tiles of *size* × *size* outputs; *reach* inputs in each direction."""

    size: int
    lines: int
    per_line: int
    count: int

    @classmethod
    def of(cls, s: Geometry, size: int) -> _Tiling:
        lines, per_line = -(-s.result[0] // size), -(-s.result[1] // size)
        return cls(size, lines, per_line, s.batch * lines * per_line)

    @property
    def reach(self) -> int:
        return self.size + 2

    @property
    def elements(self) -> int:
        return self.reach**2

    def table(self, plane: int, step: int, edge: tuple[int, int], outside: int, columns: int) -> Array:
        """``[3, columns]``: start of the image, first line and first column of each tile, *step* apart from -*edge*.

        Tiles behind the last one lie at *outside*.
        """
        found = np.full((3, columns), outside, np.int32)
        image, line, place = np.indices((self.count // self.lines // self.per_line, self.lines, self.per_line)).reshape(
            3, -1
        )
        found[0] = 0
        found[0, : self.count] = image * plane
        found[1, : self.count] = line * step - edge[0]
        found[2, : self.count] = place * step - edge[1]
        return found


def convolution(work: Lowering, node: Node, s: Geometry, size: int) -> None:
    """Transform, multiply, transform back."""
    t = _Tiling.of(s, size)
    packed = work.caps.cpu_like
    block = choose_block(work.caps, s.rows, t.count)
    width = block.columns if packed else -(-t.count // LOCAL) * LOCAL
    panels = -(-t.count // width)  # products are computed for whole panels: nothing has edges then
    matrix = work.constants[s.weights]

    def transformed() -> Array:
        g = np.array(_WEIGHTS[size])
        u = np.einsum("ij,mcjk,lk->ilmc", g, matrix.astype(np.float64), g)
        u = u.reshape(t.elements, s.rows, s.channels).astype(np.float32)
        return row_panels(u, block.rows) if packed else u

    blocks = -(-s.rows // block.rows)
    shape = (t.elements, blocks, s.channels, block.rows) if packed else (t.elements, s.rows, s.channels)
    weights = work.deferred(DType.F32, shape, transformed)
    tiles = _transform_input(work, node, s, t, width)
    product = work.temporary(DType.F32, (t.elements, s.rows, panels * width), "products")
    p = Product(
        node, s.rows, panels * width, s.channels, weights, tiles, product, Epilogue(DType.F32), (t.elements,),
        (int(np.prod(shape[1:])),), (panels * s.channels * width,), packed_a=packed, packed_b=packed,
    )  # fmt: skip
    if packed:
        packed_product(work, p, block, "winograd_packed")
    else:
        tiled_product(work, p, choose_tile(work.caps, s.rows, width, t.elements), "winograd_tiles")
    _transform_output(work, node, s, t, product, panels * width)


def _transform_input(work: Lowering, node: Node, s: Geometry, t: _Tiling, width: int) -> str:
    """``[element, panel, channel, width]``; items side by side take tiles side by side."""
    panels = -(-t.count // width)
    local = width if width <= 64 else LOCAL
    made = work.temporary(DType.F32, (t.elements, panels, s.channels, width), "tiles")
    image = s.channels * s.size[0] * s.size[1]
    table = work.constant(t.table(image, t.size, (s.pads[0], s.pads[1]), -t.reach, panels * width), "starts")
    b = KernelBuilder(f"winograd{t.size}_input", (local, 1, 1))
    x, starts, y = b.buffer("x", s.dtype), b.buffer("starts", DType.I32), b.buffer("y", DType.F32, "w")
    high, wide, channels = b.scalar("i0"), b.scalar("i1"), b.scalar("channels")
    every, pitch = b.scalar("panels"), b.scalar("width")
    piece, channel, panel = b.let(b.group_id(0)), b.let(b.group_id(1)), b.let(b.group_id(2))
    own = b.let(piece * local + b.local_id(0))
    tile = b.let(panel * pitch + own)
    base = b.let(b.load(starts, tile) + channel * (high * wide))
    total = b.let(every * pitch)
    top, left = b.let(b.load(starts, tile + total)), b.let(b.load(starts, tile + total * 2))
    reach = range(t.reach)
    lines = [(b.let((top + i >= 0) & (top + i < high)), b.let(base + (top + i) * wide)) for i in reach]
    places = [(b.let((left + j >= 0) & (left + j < wide)), b.let(left + j)) for j in reach]
    values = []
    for inside_line, line in lines:
        for inside_place, place in places:
            inside = b.let(inside_line & inside_place)
            index = b.let(select(inside, line + place, const(0)))
            value = b.let(b.load(x, index))  # unconditional: neighbours stay one vector
            values.append(b.let(select(inside, value, const(0.0, DType.F32))))
    first = b.let((panel * channels + channel) * pitch + own)
    for e, value in enumerate(_both_sides(b, _INPUT[t.size], values, t.reach)):
        b.store(y, first + total * channels * e, value)
    scalars = {"i0": s.size[0], "i1": s.size[1], "channels": s.channels, "panels": panels, "width": width}
    groups = (width // local, s.channels, panels)
    work.launch(node, b.build(), {"x": s.x, "starts": table, "y": made}, groups, scalars)
    return made


def _transform_output(work: Lowering, node: Node, s: Geometry, t: _Tiling, product: str, columns: int) -> None:
    """Outputs of one tile and channel by each item, with the epilogue; *columns*: tiles with those that fill up."""
    local = next(n for n in (LOCAL, 16, 8, 4, 2, 1) if columns % n == 0)
    image = s.rows * s.result[0] * s.result[1]
    table = work.constant(t.table(image, t.size, (0, 0), s.result[0], columns), "starts")
    b = KernelBuilder(f"winograd{t.size}_output", (local, 1, 1))
    x, starts, y = b.buffer("x", DType.F32), b.buffer("starts", DType.I32), b.buffer("y", s.dtype, "w")
    tail = s.epilogue.attach(b)
    count, rows, high, wide = (b.scalar(n) for n in ("count", "m", "o0", "o1"))
    tile, channel = b.let(b.global_id()), b.let(b.group_id(1))
    top, left = b.let(b.load(starts, tile + count)), b.let(b.load(starts, tile + count * 2))
    base = b.let(channel * count + tile)
    values = [b.let(b.load(x, base + rows * count * e)) for e in range(t.elements)]
    found = _both_sides(b, _OUTPUT[t.size], values, t.reach)
    bias = tail.load_bias(channel)
    bias = b.let(bias) if bias is not None else None
    first = b.let(b.load(starts, tile) + (channel * high + top) * wide + left)
    for i in range(t.size):
        for j in range(t.size):
            with b.when((top + i < high) & (left + j < wide)):
                at = b.let(first + wide * i + j)
                b.store(y, at, tail.finish(found[i * t.size + j], at, bias))
    scalars = {"count": columns, "m": s.rows, **s.scalars("o"), **tail.scalars()}
    buffers = {"x": product, "starts": table, "y": s.out, **tail.buffers()}
    work.launch(node, b.build(), buffers, (columns // local, s.rows, 1), scalars)


def _both_sides(b: KernelBuilder, matrix: Matrix, values: Sequence[Expr], size: int) -> list[Expr]:
    """``M·X·Mᵀ`` of a *size* × *size* matrix in registers."""
    left = [[b.let(_combined(row, values[j::size])) for j in range(size)] for row in matrix]
    return [b.let(_combined(row, line)) for line in left for row in matrix]


def _combined(weights: Sequence[float], values: Sequence[Expr]) -> Expr:
    total: Expr | None = None
    for w, v in zip(weights, values, strict=True):
        if w == 0:
            continue
        term = v if abs(w) == 1 else v * float(abs(w))
        if total is None:
            total = term if w > 0 else -term
        else:
            total = total + term if w > 0 else total - term
    assert total is not None
    return total
