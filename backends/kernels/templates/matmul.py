"""MatMul: a plain kernel, local-memory tiles for GPUs, and explicit vectors on packed weights for CPU-like devices."""

from __future__ import annotations

from math import prod

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.functions import wrap
from mnnpy.backends.kernels.ir import Expr, const, register_type
from mnnpy.backends.kernels.lowering import Lowering, template
from mnnpy.backends.kernels.templates.elementwise import collapse
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__: list[str] = []

LOCAL = 64
_FLOATS = frozenset({DType.F16, DType.F32, DType.F64})


@template("MatMul")
def matmul(work: Lowering, node: Node) -> None:
    """Batch dims broadcast by strides; one item per element."""
    a, c = node.inputs
    out = node.outputs[0]
    sa, sc = work.shape(a), work.shape(c)
    rows, depth = (sa[-2] if len(sa) > 1 else 1), sa[-1]
    columns = sc[-1] if len(sc) > 1 else 1
    batch = _batch(sa[:-2], sc[:-2])
    sizes, (step_a, step_c) = collapse(batch, [sa[:-2], sc[:-2]])
    dtype = work.dtype(a)
    b = KernelBuilder("matmul", (LOCAL, 1, 1))
    x, w, y = b.buffer("a", dtype), b.buffer("b", dtype), b.buffer("y", dtype, "w")
    count, m, n, k = (b.scalar(s) for s in ("count", "m", "n", "k"))
    scalars: dict[str, int | float] = {"count": work.count(out), "m": rows, "n": columns, "k": depth}
    i = b.let(b.global_id())
    with b.when(i < count):
        column = b.let(i % n)
        rest = b.let(i / n)
        row = b.let(rest % m)
        at_a: Expr | int = row * k
        at_c: Expr | int = column
        if sizes:
            for d, size in enumerate(sizes):
                scalars |= {f"n{d}": size, f"sa{d}": step_a[d] * rows * depth, f"sb{d}": step_c[d] * depth * columns}
            for d, at in enumerate(b.unravel(b.let(rest / m), [b.scalar(f"n{d}") for d in range(len(sizes))])):
                at_a = at * b.scalar(f"sa{d}") + at_a
                at_c = at * b.scalar(f"sb{d}") + at_c
        base_a, base_c = b.let(_expr(at_a)), b.let(_expr(at_c))
        kind = register_type(dtype)
        total = b.mutable(const(0.0 if kind in _FLOATS else 0, kind))
        with b.loop(0, k) as q:
            product = b.load(x, base_a + q) * b.load(w, base_c + q * n)
            b.assign(total, total + product)
        b.store(y, i, wrap(total, dtype))
    work.launch(node, b.build(), {"a": a, "b": c, "y": out}, work.grid(prod(work.shape(out)), LOCAL), scalars)


def _expr(value: Expr | int) -> Expr:
    return value if isinstance(value, Expr) else const(value)


def _batch(a: tuple[int, ...], c: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(a), len(c))
    wide = [(1,) * (rank - len(s)) + s for s in (a, c)]
    return tuple(y if x == 1 else x for x, y in zip(*wide, strict=True))
