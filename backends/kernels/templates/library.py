"""Large products by the vendor's library, where a driver has one: cuBLAS, Metal Performance Shaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.driver import Gemm
from mnnpy.backends.kernels.lowering import Declined, Lowering
from mnnpy.backends.kernels.templates.epilogue import Epilogue
from mnnpy.backends.kernels.templates.product import Product
from mnnpy.graph.dtypes import DType

__all__ = ["WORTH", "by_library", "in_library"]

LOCAL = 256
#: Multiplications from which a library's kernel pays for a launch of its own and for storing sums before the epilogue.
WORTH = 1 << 24
_NAMES = {DType.F32: "gemm_f32", DType.F16: "gemm_f16"}


def in_library(work: Lowering, p: Product) -> bool:
    """Whether the device has a library that knows the product, and it is large enough to pay."""
    name = _NAMES.get(work.dtype(p.a), "")
    return name in work.caps.libraries and _gemm(p, name) is not None and p.m * p.n * p.k * p.count >= WORTH


def by_library(work: Lowering, p: Product, make: Callable[[Lowering, Product], None]) -> None:
    """Lower *p* to a launch of *make* that the library may replace, and its epilogue to another."""
    gemm = _gemm(p, _NAMES[work.dtype(p.a)])
    if gemm is None:
        raise Declined("the library does not know how this batch lies in memory")
    plain = Epilogue(work.dtype(p.y))
    sums = p.y if p.epilogue == plain else work.temporary(work.dtype(p.y), work.shape(p.y), "product")
    make(work, replace(p, y=sums, epilogue=plain))
    step = work.steps[-1]
    a, b, c = (step.buffers.index(v) for v in (p.a, p.b, sums))
    work.steps[-1] = replace(step, library=replace(gemm, operands=(a, b, c)))
    if sums != p.y:
        _finish(work, p, sums)


def _gemm(p: Product, name: str) -> Gemm | None:
    """The library's view of a product; None where the batch has steps that it does not know."""
    if not p.batch:
        return Gemm(name, p.m, p.n, p.k)
    if len(p.batch) > 1 or p.step_a != (p.m * p.k,) or p.step_b not in ((0,), (p.k * p.n,)):
        return None
    return Gemm(name, p.m, p.n, p.k, p.batch[0], shared=p.step_b == (0,))


def _finish(work: Lowering, p: Product, sums: str) -> None:
    """The epilogue alone."""
    b = KernelBuilder("matmul_finish", (LOCAL, 1, 1))
    x, y = b.buffer("x", work.dtype(sums)), b.buffer("y", work.dtype(p.y), "w")
    tail = p.epilogue.attach(b)
    i, n = b.let(b.global_id()), b.scalar("n")
    with b.when(i < b.scalar("count")):
        b.store(y, i, tail.finish(b.load(x, i), i, tail.load_bias(b.let(i % n))))
    scalars = {"n": p.n, "count": work.count(p.y), **tail.scalars()}
    work.launch(p.node, b.build(), {"x": sums, "y": p.y, **tail.buffers()}, work.grid(work.count(p.y), LOCAL), scalars)
