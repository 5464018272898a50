"""Batches of matrix products, as the templates of MatMul and Convolution hand them to a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Expr, const
from mnnpy.backends.kernels.templates.epilogue import Epilogue
from mnnpy.graph.ir import Node

__all__ = ["Product", "batch_starts"]


@dataclass(frozen=True, slots=True)
class Product:
    """``y[z] = tail(a[z]·b[z])`` with m × n outputs over k, for every index z of *batch* dims.

    *steps*: elements from one index of a batch dim to the next, for ``a``, ``b`` and the bias (by rows where
    *bias_rows*, else by columns); outputs and residual are dense.
    """

    node: Node
    m: int
    n: int
    k: int
    a: str
    b: str
    y: str
    epilogue: Epilogue
    batch: tuple[int, ...] = ()
    step_a: tuple[int, ...] = ()
    step_b: tuple[int, ...] = ()
    step_bias: tuple[int, ...] = ()
    bias_rows: bool = False
    packed_a: bool = False  #: ``a`` lies in row panels
    packed_b: bool = True  #: ``b`` lies in column panels, else in rows

    @property
    def count(self) -> int:
        """Products in the batch."""
        return prod(self.batch)


def batch_starts(b: KernelBuilder, p: Product, z: Expr, scalars: dict[str, int | float]) -> tuple[Expr, Expr, Expr]:
    """Where the operands and the bias of batch index *z* begin; adds what the launch must give to *scalars*."""
    zero = const(0)
    found = [zero, zero, zero]
    steps = {"a": p.step_a, "b": p.step_b} | ({"c": p.step_bias} if p.step_bias else {})
    for d, at in enumerate(b.unravel(z, [b.scalar(f"n{d}") for d in range(len(p.batch))])):
        scalars[f"n{d}"] = p.batch[d]
        for i, (letter, step) in enumerate(steps.items()):
            scalars[f"s{letter}{d}"] = step[d]
            found[i] = at * b.scalar(f"s{letter}{d}") + found[i]
    return b.let(found[0]), b.let(found[1]), b.let(found[2])
