"""Products by explicit vectors, without barriers or local memory: for CPU-like devices.

One work item computes a block of *rows* × *vectors*·*lanes* outputs in registers. The right operand lies in column
panels ``[panel][k][columns]``, padded by zeros, so that a step of the loop over *k* reads whole consecutive vectors;
the left one in rows, or in row panels ``[block][k][rows]``. What is constant is packed when the program is compiled.
(Panels: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.driver import Caps
from mnnpy.backends.kernels.ir import Array as Registers
from mnnpy.backends.kernels.ir import Buffer, Expr, Kernel, const, select
from mnnpy.backends.kernels.lowering import Lowering
from mnnpy.backends.kernels.templates.epilogue import Tail
from mnnpy.backends.kernels.templates.product import Product, batch_starts
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node

__all__ = ["Block", "choose_block", "column_panels", "pack_columns", "packed_product", "row_panels"]


@dataclass(frozen=True, slots=True)
class Block:
    """Outputs of one work item: *rows* × (*vectors* of *lanes*)."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


#: Register blocks by vector registers of the device; the first is preferred where all fill equally.
_BLOCKS = {
    32: ((12, 2), (28, 1), (16, 1), (8, 3), (6, 4), (4, 4), (2, 4), (1, 4)),
    16: ((6, 2), (12, 1), (4, 2), (2, 4), (1, 4)),
}
#: The same without explicit vectors: items are the lanes, so a load is one of memory for every lane.
_SCALAR = ((12, 8), (8, 8), (4, 8), (4, 4), (2, 8), (1, 8), (2, 2), (1, 1))
LOAD = 13  #: such loads take as long as so many multiply-adds (lavapipe)


def choose_block(caps: Caps, m: int, n: int) -> Block:
    """The block that wastes least on *m* × *n* outputs; one with more rows than *m* is never taken."""
    if caps.lanes < 4:
        times = [(-(-m // r) * -(-n // c) * (LOAD * (r + c) + r * c), k) for k, (r, c) in enumerate(_SCALAR) if r <= m]
        return Block(*_SCALAR[min(times)[1]], 1)
    if caps.lanes < 8:
        return Block(min(4, m), 1 if n <= 4 else 2, 4)
    shapes = _BLOCKS[32 if caps.lanes >= 16 else 16]
    # a step along k takes r·v multiply-adds, or the loads where they are more
    rounds = [
        (-(-m // r) * -(-n // (v * caps.lanes)) * (max(r * v, r + v) + 1), k)
        for k, (r, v) in enumerate(shapes)
        if r <= m
    ]
    r, v = shapes[min(rounds)[1]]
    return Block(r, v, caps.lanes)


# -- packing --


def column_panels(b: Array, columns: int) -> Array:
    """``[…, k, n]`` as ``[…, panel, k, columns]``, zeros behind the last column."""
    *batch, k, n = b.shape
    panels = -(-n // columns)
    wide = np.zeros((*batch, k, panels * columns), b.dtype)
    wide[..., :n] = b
    return np.ascontiguousarray(np.moveaxis(wide.reshape(*batch, k, panels, columns), -2, -3))


def row_panels(a: Array, rows: int) -> Array:
    """``[…, m, k]`` as ``[…, block, k, rows]``, zeros below the last row."""
    return column_panels(np.swapaxes(a, -1, -2), rows)


def pack_columns(work: Lowering, node: Node, name: str, count: int, k: int, n: int, block: Block) -> str:
    """Column panels of ``[count, k, n]`` by a kernel; returns the f32 value that holds them."""
    panels, width = -(-n // block.columns), block.columns
    packed = work.temporary(DType.F32, (count, panels, k, width), "panels")
    b = KernelBuilder(f"pack{width}", (16, 1, 1))
    x, y = b.buffer("x", work.dtype(name)), b.buffer("y", DType.F32, "w")
    depth, columns = b.scalar("k"), b.scalar("n")
    line, panel, z = b.let(b.global_id()), b.let(b.group_id(1)), b.let(b.group_id(2))
    with b.when(line < depth):
        first = b.let(panel * width)
        source = b.let((z * depth + line) * columns + first)
        target = b.let(((z * b.scalar("panels") + panel) * depth + line) * width)
        with b.when(first + width <= columns):
            for v in range(block.vectors):
                b.store(y, target + v * block.lanes, b.load(x, source + v * block.lanes, block.lanes))
        with b.otherwise(), b.loop(0, width) as c:
            inside = b.let(first + c < columns)
            value = b.load(x, select(inside, source + c, const(0)))
            b.store(y, target + c, select(inside, value, const(0.0, DType.F32)))
    work.launch(
        node, b.build(), {"x": name, "y": packed}, (work.grid(k, 16), panels, count),
        {"k": k, "n": n, "panels": panels},
    )  # fmt: skip
    return packed


# -- the product --


def packed_product(work: Lowering, p: Product, block: Block, name: str) -> None:
    """Launch the product with operands in the layouts that *p* names."""
    writer = _Writer(p, block, work, name)
    local = writer.local
    blocks, panels = -(-p.m // block.rows), -(-p.n // block.columns)
    groups = (blocks, panels, p.count) if local == 1 else (-(-blocks * panels // local), 1, p.count)
    buffers = {"a": p.a, "b": p.b, "y": p.y, **writer.tail.buffers()}
    work.launch(p.node, writer.kernel(), buffers, groups, writer.scalars)


@dataclass(slots=True)
class _Writer:
    """Writes the kernel of one product."""

    p: Product
    block: Block
    work: Lowering
    name: str
    b: KernelBuilder = field(init=False)
    tail: Tail = field(init=False)
    scalars: dict[str, int | float] = field(init=False)
    local: int = field(init=False)
    x: Buffer = field(init=False)
    w: Buffer = field(init=False)
    y: Buffer = field(init=False)

    def __post_init__(self) -> None:
        p, work = self.p, self.work
        # one item a group where vectors are explicit; else neighbours share the width of the device
        self.local = 1 if self.block.lanes > 1 else 16
        b = self.b = KernelBuilder(self.name, (self.local, 1, 1))
        self.x, self.w = b.buffer("a", work.dtype(p.a)), b.buffer("b", work.dtype(p.b))
        self.y = b.buffer("y", work.dtype(p.y), "w")
        self.tail = p.epilogue.attach(b)
        panels = -(-p.n // self.block.columns)
        blocks = -(-p.m // self.block.rows)
        self.scalars = {"m": p.m, "n": p.n, "k": p.k, "blocks": blocks, "panels": panels, **self.tail.scalars()}
        for given in self.scalars:
            b.scalar(given, DType.F32 if given == "alpha" else DType.I32)

    def kernel(self) -> Kernel:
        b, item = self.b, self.b.let(self.b.global_id())
        if self.local == 1:
            self._item(item, b.let(b.group_id(1)))
        else:
            block = b.let(item / b.scalar("panels"))
            with b.when(block < b.scalar("blocks")):
                self._item(block, b.let(item - block * b.scalar("panels")))
        return b.build()

    def _item(self, block: Expr, panel: Expr) -> None:
        b, p, shape = self.b, self.p, self.block
        z = b.let(b.group_id(2))
        m, n, k = b.scalar("m"), b.scalar("n"), b.scalar("k")
        base_a, base_b, base_bias = batch_starts(b, p, z, self.scalars)
        own_row, own_column = b.let(block * shape.rows), b.let(panel * shape.columns)
        row, column = own_row, own_column  # blocks at the edge of dense operands overlap their neighbours
        if not p.packed_a:
            row = b.let(own_row.min(m - shape.rows))
        if not p.packed_b:
            column = b.let(own_column.min(n - shape.columns))
        at_a = b.let(base_a + (block * k * shape.rows if p.packed_a else row * k))
        at_b = b.let(base_b + (panel * k * shape.columns if p.packed_b else column))
        sums = self._sums(at_a, at_b, k)
        total = b.array(DType.F32, len(sums), lanes=shape.lanes)
        for i, s in enumerate(sums):
            b.write(total, i, s)
        with b.loop(0, shape.rows) as r:
            here = b.let(row + r)
            mine = here < m if p.packed_a else here >= own_row
            with b.when(mine):
                bias = None
                if self.tail.bias is not None and p.bias_rows:
                    bias = b.let(_known(self.tail.load_bias(base_bias + here)))
                start = b.let((z * m + here) * n + column)
                whole = own_column + shape.columns <= n
                with b.when(whole):
                    for v in range(shape.vectors):
                        self._vector(b.read(total, r * shape.vectors + v), start, base_bias + column, v, bias)
                with b.otherwise():
                    self._edge(total, r, start, base_bias + column, bias, (own_column - column, n - column))

    def _sums(self, at_a: Expr, at_b: Expr, k: Expr) -> list[Expr]:
        """Registers of sums in row order, after the loop over *k*."""
        b, shape, p = self.b, self.block, self.p
        zero = const(0.0, DType.F32).splat(shape.lanes)
        sums = [b.mutable(zero) for _ in range(shape.rows * shape.vectors)]
        with b.loop(0, k) as q:
            line = b.let(at_b + q * (shape.columns if p.packed_b else b.scalar("n")))
            right = [b.let(b.load(self.w, line + v * shape.lanes, shape.lanes)) for v in range(shape.vectors)]
            first = b.let(at_a + q * shape.rows) if p.packed_a else at_a + q
            for r in range(shape.rows):
                left = b.let(b.load(self.x, first + (r if p.packed_a else k * r)))
                for v in range(shape.vectors):
                    s = sums[r * shape.vectors + v]
                    b.assign(s, left.splat(shape.lanes).call("fma", right[v], s))
        return sums

    def _vector(self, total: Expr, start: Expr, columns: Expr, v: int, bias: Expr | None) -> None:
        lanes = self.block.lanes
        at = self.b.let(start + v * lanes)
        if self.tail.bias is not None and bias is None:
            bias = self.tail.load_bias(columns + v * lanes, lanes)
        self.b.store(self.y, at, self.tail.finish(total, at, bias))

    def _edge(
        self, total: Registers, r: Expr, start: Expr, columns: Expr, bias: Expr | None, range_: tuple[Expr, Expr]
    ) -> None:
        """Element by element: the columns that are this block's own and inside."""
        b, shape = self.b, self.block
        line = b.array(DType.F32, shape.columns)
        for v in range(shape.vectors):
            value = b.let(b.read(total, r * shape.vectors + v))
            for i in range(shape.lanes):
                b.write(line, v * shape.lanes + i, value.lane(i) if shape.lanes > 1 else value)
        low, high = range_
        with b.loop(low, high.min(shape.columns)) as c:
            at = b.let(start + c)
            own = self.tail.load_bias(columns + c) if bias is None else bias
            b.store(self.y, at, self.tail.finish(b.read(line, c), at, own))


def _known(e: Expr | None) -> Expr:
    assert e is not None
    return e
