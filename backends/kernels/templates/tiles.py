"""Products by tiles in local memory: for GPUs.

A work group computes *rows* × *columns* outputs. Step by step along k its items copy a slice of both operands into
local memory, meet at a barrier, and each adds to its *item_rows* × *item_columns* registers. Where an element of an
operand lies is asked of a locator, so that a convolution reads its input in place (implicit GEMM: Chetlur et al.,
"cuDNN: Efficient Primitives for Deep Learning", 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.driver import Caps
from mnnpy.backends.kernels.ir import Array, Buffer, Expr, const, select
from mnnpy.backends.kernels.lowering import Lowering
from mnnpy.backends.kernels.templates.product import Product, batch_starts
from mnnpy.graph.dtypes import DType

__all__ = ["TILES", "Located", "Locator", "Tile", "choose_tile", "tiled_product", "tiled_sums"]

#: (index in the buffer, condition under which it counts; elsewhere the operand is 0)
Located = tuple[Expr, Expr]
#: From a row (column) of an operand to the place of its element k; called before the loop, its result inside.
Locator = Callable[[Expr], Callable[[Expr], Located]]

#: A locator of columns, given the builder, the operand's start, the column and whether it is one.
Place = Callable[[KernelBuilder, Expr, Expr, Expr], Callable[[Expr], Located]]
Scalars = dict[str, int | float]


@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of a work group's outputs, of a step along k, and of an item's registers."""

    rows: int
    columns: int
    depth: int
    item_rows: int
    item_columns: int

    @property
    def items(self) -> tuple[int, int]:
        """Work items along columns and rows."""
        return self.columns // self.item_columns, self.rows // self.item_rows

    @property
    def local(self) -> int:
        """Items of a group."""
        return self.items[0] * self.items[1]

    @property
    def memory(self) -> int:
        """Bytes of local memory; one column of padding spreads the left tile over the banks."""
        return 4 * self.depth * (self.rows + 1 + self.columns)


TILES = (
    Tile(128, 128, 8, 8, 8), Tile(128, 64, 8, 8, 4), Tile(64, 128, 8, 4, 8), Tile(64, 64, 16, 4, 4),
    Tile(32, 64, 16, 4, 4), Tile(64, 32, 16, 4, 4), Tile(32, 32, 16, 2, 2), Tile(16, 16, 16, 2, 2),
)  # fmt: skip


def choose_tile(caps: Caps, m: int, n: int, count: int) -> Tile:
    """Least rounds of groups over the device's units, each as long as its multiplications and local loads."""

    def cost(t: Tile) -> float:
        groups = -(-m // t.rows) * -(-n // t.columns) * count
        rounds = -(-groups // max(1, caps.units))
        products = t.item_rows * t.item_columns
        return rounds * t.local * (products + t.item_rows + t.item_columns + 2)

    fitting = [t for t in TILES if t.local <= caps.max_group and t.memory <= caps.local_memory]
    return min(fitting or TILES[-1:], key=cost)


def tiled_sums(
    b: KernelBuilder, tile: Tile, left: Buffer, right: Buffer, rows: Locator, columns: Locator, k: Expr
) -> list[tuple[Expr, Expr, Expr]]:
    """The loop; returns (row, column, sum) of every register, some of them outside the matrix.

    The group ids 0 and 1 count tiles of columns and of rows; every item of the group must get here.
    """
    wide, _ = tile.items
    x, y = b.let(b.local_id(0)), b.let(b.local_id(1))
    item = b.let(y * wide + x)
    pitch = tile.rows + 1
    kept_left = b.array(DType.F32, tile.depth * pitch, "local")
    kept_right = b.array(DType.F32, tile.depth * tile.columns, "local")
    first_row, first_column = b.let(b.group_id(1) * tile.rows), b.let(b.group_id(0) * tile.columns)

    # neighbours read along k on the left, along columns on the right: consecutive memory in the usual layouts
    line, step = b.let(item % tile.depth), tile.local // tile.depth
    row = b.let(item // tile.depth)
    left_at = [(b.let(row + e), rows(b.let(first_row + row + e))) for e in range(0, tile.rows, step)]
    column, lines = b.let(item % tile.columns), tile.local // tile.columns
    depth = b.let(item // tile.columns)
    right_at = columns(b.let(first_column + column))

    zero = const(0.0, DType.F32)
    sums = [b.mutable(zero) for _ in range(tile.item_rows * tile.item_columns)]
    with b.loop(0, k, tile.depth) as base:
        q = b.let(base + line)
        for place, locate in left_at:
            b.write(kept_left, line * pitch + place, _fetched(b, left, locate(q), q < k))
        for e in range(0, tile.depth, lines):
            q = b.let(base + depth + e)
            b.write(kept_right, (depth + e) * tile.columns + column, _fetched(b, right, right_at(q), q < k))
        b.barrier()
        _multiply(b, tile, kept_left, kept_right, (x, y), sums)
        b.barrier()
    return [
        (first_row + y + i * tile.items[1], first_column + x + j * wide, sums[i * tile.item_columns + j])
        for i in range(tile.item_rows)
        for j in range(tile.item_columns)
    ]


def _fetched(b: KernelBuilder, buffer: Buffer, located: Located, within: Expr) -> Expr:
    index, counts = located
    inside = b.let(counts & within)
    return select(inside, b.load(buffer, b.let(select(inside, index, const(0)))), const(0.0, DType.F32))


def _multiply(
    b: KernelBuilder, tile: Tile, left: Array, right: Array, item: tuple[Expr, Expr], sums: Sequence[Expr]
) -> None:
    """One step: registers of an item are spread over the tile, so that neighbours read neighbouring banks."""
    (x, y), (wide, high) = item, tile.items
    with b.loop(0, tile.depth, unroll=True) as q:
        a = [b.let(b.read(left, q * (tile.rows + 1) + y + i * high)) for i in range(tile.item_rows)]
        c = [b.let(b.read(right, q * tile.columns + x + j * wide)) for j in range(tile.item_columns)]
        for i in range(tile.item_rows):
            for j in range(tile.item_columns):
                s = sums[i * tile.item_columns + j]
                b.assign(s, a[i].call("fma", c[j], s))


def tiled_product(
    work: Lowering, p: Product, tile: Tile, name: str, place: Place | None = None, extra: Scalars | None = None
) -> None:
    """Launch a product of row-major operands; *place* says where else the columns of ``b`` lie."""
    b = KernelBuilder(name, (*tile.items, 1))
    x, w, y = (b.buffer(n, work.dtype(v), "w" * (n == "y") or "r") for n, v in (("a", p.a), ("b", p.b), ("y", p.y)))
    tail = p.epilogue.attach(b)
    m, n, k = (b.scalar(s) for s in "mnk")
    scalars: dict[str, int | float] = {"m": p.m, "n": p.n, "k": p.k, **(extra or {}), **tail.scalars()}
    z = b.let(b.group_id(2))
    at_a, at_b, at_bias = batch_starts(b, p, z, scalars)

    def rows(row: Expr) -> Callable[[Expr], Located]:
        start, inside = b.let(at_a + row * k), b.let(row < m)
        return lambda q: (start + q, inside)

    def columns(column: Expr) -> Callable[[Expr], Located]:
        inside = b.let(column < n)
        if place is not None:
            return place(b, at_b, column, inside)
        start = b.let(at_b + column)
        return lambda q: (start + q * n, inside)

    for row, column, total in tiled_sums(b, tile, x, w, rows, columns, k):
        row, column = b.let(row), b.let(column)
        with b.when((row < m) & (column < n)):
            at = b.let((z * m + row) * n + column)
            b.store(y, at, tail.finish(total, at, tail.load_bias(at_bias + (row if p.bias_rows else column))))
    groups = (-(-p.n // tile.columns), -(-p.m // tile.rows), p.count)
    work.launch(p.node, b.build(), {"a": p.a, "b": p.b, "y": p.y, **tail.buffers()}, groups, scalars)
