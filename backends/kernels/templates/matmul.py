"""MatMul: explicit vectors on packed panels (CPU-like devices), local-memory tiles (GPUs), and one item per element."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import const, register_type
from mnnpy.backends.kernels.lowering import Lowering, choices, template
from mnnpy.backends.kernels.templates.elementwise import collapse
from mnnpy.backends.kernels.templates.epilogue import Epilogue
from mnnpy.backends.kernels.templates.library import by_library, in_library
from mnnpy.backends.kernels.templates.packed import choose_block, column_panels, pack_columns, packed_product
from mnnpy.backends.kernels.templates.product import Product, batch_starts
from mnnpy.backends.kernels.templates.tiles import choose_tile, tiled_product
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node

__all__ = ["ALGORITHMS", "candidates"]

LOCAL = 64
_FLOATS = frozenset({DType.F16, DType.F32, DType.F64})
_FAST = frozenset({DType.F16, DType.BF16, DType.F32})  #: summed in f32
ALGORITHMS = ("packed", "tiles", "plain")  #: ``library`` besides, on devices that have one
#: Multiplications and additions that take as long as: packing an element, a launch, one of the plain kernel, one of a
#: kernel made for other devices. Orders of magnitude, from PoCL.
PACKED, LAUNCH, PLAIN, FOREIGN = 40.0, 4096.0, 20.0, 50.0


@template("MatMul")
def matmul(work: Lowering, node: Node) -> None:
    """Chooses a shape by device and sizes; ``algorithm`` forces one of ``ALGORITHMS``."""
    product = _product(work, node)

    def make(name: str) -> None:
        if name == "library":
            by_library(work, product, _tiles)
        else:
            {"packed": _packed, "tiles": _tiles, "plain": _plain}[name](work, product)

    work.first_that_fits(work.algorithm(node, [name for name, _ in candidates(work, node)]), make)


@choices("MatMul")
def candidates(work: Lowering, node: Node) -> list[tuple[str, float]]:
    """Panels on CPU-like devices, tiles elsewhere, the plain kernel where there is little to reuse."""
    p = _product(work, node)
    flops = 2.0 * p.m * p.n * p.k * p.count
    if work.dtype(p.a) not in _FAST or not flops:
        return [("plain", flops)]
    block, tile = choose_block(work.caps, p.m, p.n), choose_tile(work.caps, p.m, p.n, p.count)
    packing = 0.0 if p.b in work.constants else PACKED * p.k * p.n * prod(work.shape(p.b)[:-2])
    found = {
        "packed": flops * waste(p, block.rows, block.columns) + packing,
        "tiles": flops * waste(p, tile.rows, tile.columns) + LAUNCH,
        "plain": flops * PLAIN,
    }
    found["tiles" if work.caps.cpu_like else "packed"] *= FOREIGN
    if in_library(work, p):
        found["library"] = flops
    return sorted(found.items(), key=lambda item: item[1])


def waste(p: Product, rows: int, columns: int) -> float:
    """Outputs computed for each one wanted."""
    return -(-p.m // rows) * rows * -(-p.n // columns) * columns / max(1, p.m * p.n)


def _product(work: Lowering, node: Node) -> Product:
    a, c = node.inputs[:2]
    sa, sc = work.shape(a), work.shape(c)
    m, k = (sa[-2] if len(sa) > 1 else 1), sa[-1]
    n = sc[-1] if len(sc) > 1 else 1
    batch = _batch(sa[:-2], sc[:-2])
    sizes, (step_a, step_b) = collapse(batch, [sa[:-2], sc[:-2]])
    if step_b == [0] and step_a == [1]:  # rows of a batch against one matrix are rows of one product
        m, sizes, step_a, step_b = m * sizes[0], [], [], []
    return Product(
        node, m, n, k, a, c, node.outputs[0], Epilogue.of(work, node), tuple(sizes),
        tuple(s * m * k for s in step_a), tuple(s * k * n for s in step_b),
    )  # fmt: skip


def _packed(work: Lowering, p: Product) -> None:
    block = choose_block(work.caps, p.m, p.n)
    width, count = block.columns, prod(work.shape(p.b)[:-2])
    panels = -(-p.n // width)
    if p.b in work.constants:
        matrix = work.constants[p.b]

        def pack() -> Array:
            return column_panels(matrix.reshape(count, p.k, p.n).astype("float32"), width)

        packed = work.deferred(DType.F32, (count, panels, p.k, width), pack)
    else:
        packed = pack_columns(work, p.node, p.b, count, p.k, p.n, block)
    steps = tuple(s // (p.k * p.n) * panels * p.k * width for s in p.step_b)
    packed_product(work, replace(p, b=packed, step_b=steps), block, "matmul_packed")


def _tiles(work: Lowering, p: Product) -> None:
    tiled_product(work, p, choose_tile(work.caps, p.m, p.n, p.count), "matmul_tiles")


def _plain(work: Lowering, p: Product) -> None:
    """One item per element; all types."""
    dtype = work.dtype(p.a)
    b = KernelBuilder("matmul", (LOCAL, 1, 1))
    x, w, y = b.buffer("a", dtype), b.buffer("b", dtype), b.buffer("y", dtype, "w")
    tail = p.epilogue.attach(b)
    count, m, n, k = (b.scalar(s) for s in ("count", "m", "n", "k"))
    scalars: dict[str, int | float] = {"count": work.count(p.y), "m": p.m, "n": p.n, "k": p.k}
    i = b.let(b.global_id())
    with b.when(i < count):
        column = b.let(i % n)
        rest = b.let(i / n)
        row = b.let(rest % m)
        at_a, at_b = batch_starts(b, p, b.let(rest / m), scalars)[:2]
        base_a, base_b = b.let(at_a + row * k), b.let(at_b + column)
        kind = register_type(dtype)
        total = b.mutable(const(0.0 if kind in _FLOATS else 0, kind))
        with b.loop(0, k) as q:
            product = b.load(x, base_a + q) * b.load(w, base_b + q * n)
            b.assign(total, total + product)
        b.store(y, i, tail.finish(total, i, tail.load_bias(column)))
    buffers = {"a": p.a, "b": p.b, "y": p.y, **tail.buffers()}
    work.launch(p.node, b.build(), buffers, work.grid(work.count(p.y), LOCAL), {**scalars, **tail.scalars()})


def _batch(a: tuple[int, ...], c: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(a), len(c))
    wide = [(1,) * (rank - len(s)) + s for s in (a, c)]
    return tuple(y if x == 1 else x for x, y in zip(*wide, strict=True))
