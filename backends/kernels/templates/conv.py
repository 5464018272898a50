"""Convolution: chooses among products (explicit vectors or tiles), Winograd, depthwise, and one item per element.

Products see a convolution as ``y[n, g] = w[g]·x'[n, g]`` with m/group × positions outputs over channels·taps; x' is
the input itself for 1×1 kernels, else gathered: into column panels by a kernel of its own (CPU-like devices), or in
place while tiles are filled (implicit GEMM).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.driver import Caps
from mnnpy.backends.kernels.ir import Expr
from mnnpy.backends.kernels.lowering import Lowering, choices, template
from mnnpy.backends.kernels.templates import depthwise, winograd
from mnnpy.backends.kernels.templates.gather import gather_panels
from mnnpy.backends.kernels.templates.geometry import Geometry
from mnnpy.backends.kernels.templates.packed import choose_block, packed_product, row_panels
from mnnpy.backends.kernels.templates.product import Product
from mnnpy.backends.kernels.templates.tiles import Located, choose_tile, tiled_product
from mnnpy.backends.kernels.templates.window import direct
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node

__all__ = ["ALGORITHMS", "candidates"]

_FAST = frozenset({DType.F16, DType.BF16, DType.F32})  #: summed in f32
Run = Callable[[Lowering, Node, Geometry], None]
#: An element that is gathered or transformed costs about as much as these multiplications and additions.
GATHERED, TRANSFORMED = 40.0, 40.0


@template("Convolution")
def convolution(work: Lowering, node: Node) -> None:
    """The best of ``candidates``, or what ``algorithm`` asks for."""
    names = work.algorithm(node, [name for name, _ in candidates(work, node)])
    work.first_that_fits(names, lambda name: ALGORITHMS[name](work, node, Geometry.of(work, node)))


@choices("Convolution")
def candidates(work: Lowering, node: Node) -> list[tuple[str, float]]:
    """Those that this node, device and precision allow, cheapest first."""
    shape = Geometry.of(work, node)
    found = [(a, cost(work.caps, shape, a)) for a in ALGORITHMS if not refusal(work, shape, a)]
    return sorted(found, key=lambda item: item[1])


def refusal(work: Lowering, shape: Geometry, algorithm: str) -> str:
    """Why *algorithm* cannot compute a convolution; empty where it can."""
    if algorithm == "plain":
        return ""
    if shape.dtype not in _FAST:
        return f"it has no kernel of {shape.dtype}"
    if not shape.rows * shape.depth * shape.positions * shape.batch:
        return "it has no kernel of empty tensors"
    if algorithm == "depthwise":
        return "" if shape.channels == 1 and shape.rank == 2 else "it wants one channel per group and 2 spatial dims"
    if algorithm.startswith("winograd"):
        if work.precision == "high":
            return "precision 'high' wants direct algorithms"
        return winograd.refusal(shape, shape.weights in work.constants)
    return ""


def cost(caps: Caps, s: Geometry, algorithm: str) -> float:
    """Multiplications and additions that would take as long."""
    direct_work = 2.0 * s.batch * s.group * s.rows * s.depth * s.positions
    if algorithm == "plain":
        return direct_work * (30.0 if s.dtype in _FAST else 1.0)
    if algorithm == "depthwise":
        return direct_work * 2.0
    if algorithm in ("packed", "tiles"):
        own = (algorithm == "packed") == caps.cpu_like
        if algorithm == "packed":
            block = choose_block(caps, s.rows, s.positions)
            filled = _up(s.rows, block.rows) * _up(s.positions, block.columns) / (s.rows * s.positions)
            gathered = 0.0 if s.pointwise else GATHERED * s.batch * s.group * s.depth * s.positions
        else:
            tile = choose_tile(caps, s.rows, s.positions, s.batch * s.group)
            filled = _up(s.rows, tile.rows) * _up(s.positions, tile.columns) / (s.rows * s.positions)
            gathered = 0.0
        return (direct_work * filled + gathered) * (1.0 if own else 50.0)
    return winograd.cost(caps, s, algorithm, TRANSFORMED)


def _up(x: int, step: int) -> int:
    return -(-x // step) * step


# -- products --


def _packed(work: Lowering, node: Node, s: Geometry) -> None:
    block = choose_block(work.caps, s.rows, s.positions)
    blocks, panels = -(-s.rows // block.rows), -(-s.positions // block.columns)
    weights, step_a = s.weights, s.rows * s.depth
    constant = s.weights in work.constants
    if constant:
        matrix = work.constants[s.weights]

        def pack() -> Array:
            return row_panels(matrix.reshape(s.group, s.rows, s.depth).astype(np.float32), block.rows)

        weights = work.deferred(DType.F32, (s.group, blocks, s.depth, block.rows), pack)
        step_a = blocks * s.depth * block.rows
    rows_in_place = s.pointwise and s.dtype is DType.F32 and s.positions >= block.columns
    columns, step_b = s.x, s.depth * s.positions
    if not rows_in_place:
        columns = gather_panels(work, node, s, block)
        step_b = panels * s.depth * block.columns
    p = Product(
        node, s.rows, s.positions, s.depth, weights, columns, s.out, s.epilogue, (s.batch, s.group),
        (0, step_a), (s.group * step_b, step_b), (0, s.rows), bias_rows=True,
        packed_a=constant, packed_b=not rows_in_place,
    )  # fmt: skip
    packed_product(work, p, block, "conv_packed")


def _tiles(work: Lowering, node: Node, s: Geometry) -> None:
    """Implicit GEMM: positions are decoded once a tile, taps of constant count once a step."""
    size = s.channels * prod(s.size)
    p = Product(
        node, s.rows, s.positions, s.depth, s.weights, s.x, s.out, s.epilogue, (s.batch, s.group),
        (0, s.rows * s.depth), (s.group * size, size), (0, s.rows), bias_rows=True, packed_b=False,
    )  # fmt: skip

    def place(b: KernelBuilder, base: Expr, column: Expr, inside: Expr) -> Callable[[Expr], Located]:
        out = b.unravel(column, [1, *(b.scalar(f"o{d}") for d in range(s.rank))])[1:]
        starts = [b.let(o * b.scalar(f"st{d}") - b.scalar(f"p{d}")) for d, o in enumerate(out)]

        def locate(q: Expr) -> Located:
            taps = b.unravel(q, [1, *s.kernel])
            index, good = taps[0], inside
            for d in range(s.rank):
                at = b.let(starts[d] + taps[1 + d] * b.scalar(f"d{d}"))
                good = good & (at >= 0) & (at < b.scalar(f"i{d}"))
                index = index * b.scalar(f"i{d}") + at
            return base + index, good

        return locate

    tile = choose_tile(work.caps, s.rows, s.positions, s.batch * s.group)
    geometry: dict[str, int | float] = {} if s.pointwise else {**s.scalars("i", "o", "st", "p", "d")}
    tiled_product(work, p, tile, "conv_tiles", None if s.pointwise else place, geometry)


def _winograd(size: int) -> Run:
    def run(work: Lowering, node: Node, s: Geometry) -> None:
        winograd.convolution(work, node, s, size)

    return run


def _plain(work: Lowering, node: Node, s: Geometry) -> None:
    direct(work, node, s.epilogue)


ALGORITHMS: dict[str, Run] = {
    "packed": _packed,
    "tiles": _tiles,
    "depthwise": depthwise.convolution,
    "winograd2": _winograd(2),
    "winograd4": _winograd(4),
    "plain": _plain,
}
