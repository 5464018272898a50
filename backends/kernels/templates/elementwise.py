"""Unary, Binary, Select, Convert and Reinterpret: one item per output element, operands broadcast by strides."""

from __future__ import annotations

from collections.abc import Sequence

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.convert import convert
from mnnpy.backends.kernels.functions import binary, unary
from mnnpy.backends.kernels.ir import Expr, select
from mnnpy.backends.kernels.lowering import Declined, Lowering, template
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__ = ["apply", "collapse"]

LOCAL = 64


def collapse(shape: Sequence[int], operands: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Merge neighbouring dims over which all operands step alike: sizes, and element strides (0 = broadcast)."""
    rank = len(shape)
    strides: list[list[int]] = []
    for dims in operands:
        full = [1] * (rank - len(dims)) + list(dims)
        step, own = 1, [0] * rank
        for k in reversed(range(rank)):
            own[k] = step if full[k] != 1 else 0
            step *= full[k]
        strides.append(own)
    sizes: list[int] = []
    kept: list[list[int]] = [[] for _ in operands]
    for k in range(rank):
        if shape[k] == 1:
            continue
        if sizes and all(o[-1] == s[k] * shape[k] for o, s in zip(kept, strides, strict=True)):
            sizes[-1] *= shape[k]
            for o, s in zip(kept, strides, strict=True):
                o[-1] = s[k]
        else:
            sizes.append(shape[k])
            for o, s in zip(kept, strides, strict=True):
                o.append(s[k])
    return sizes, kept


def apply(b: KernelBuilder, node: Node, args: Sequence[Expr], work: Lowering) -> Expr:
    """The element that *node* computes from elements of its operands."""
    if node.op == "Unary":
        dtype = work.dtype(node.inputs[0])
        return unary(b, node.attrs["fn"], args[0], dtype, node.attrs.get("alpha", 0.0), node.attrs.get("beta", 0.0))
    if node.op == "Binary":
        return binary(b, node.attrs["fn"], args[0], args[1], work.dtype(node.inputs[0]))
    if node.op == "Select":
        return select(args[0], args[1], args[2])
    if node.op == "Convert":
        return convert(b, args[0], work.dtype(node.inputs[0]), node)
    raise Declined(f"'{node.op}' is not element-wise")


def elementwise(work: Lowering, node: Node) -> None:
    """Sizes and strides are scalars, so one source serves all shapes of equal structure."""
    out = node.outputs[0]
    sizes, strides = collapse(work.shape(out), [work.shape(n) for n in node.inputs])
    b = KernelBuilder("elementwise", (LOCAL, 1, 1))
    buffers = {f"x{k}": name for k, name in enumerate(node.inputs)}
    readers = [b.buffer(f"x{k}", work.dtype(name)) for k, name in enumerate(node.inputs)]
    y = b.buffer("y", work.dtype(out), "w")
    count = b.scalar("count")
    scalars: dict[str, int | float] = {"count": work.count(out)}
    i = b.let(b.global_id())
    with b.when(i < count):
        coordinates: list[Expr] = []
        if any(o != [1] and o != [0] for o in strides):
            for k, size in enumerate(sizes):
                scalars[f"n{k}"] = size
            coordinates = b.unravel(i, [b.scalar(f"n{k}") for k in range(len(sizes))])
        args = []
        for k, (buffer, own) in enumerate(zip(readers, strides, strict=True)):
            at: Expr | int = 0
            if not coordinates:
                at = i if own == [1] else 0
            else:
                for d, (c, s) in enumerate(zip(coordinates, own, strict=True)):
                    if s == 0:
                        continue
                    name = f"s{k}_{d}"
                    scalars[name] = s
                    at = c * b.scalar(name) + at
            args.append(b.let(b.load(buffer, at)))
        b.store(y, i, apply(b, node, args, work))
    work.launch(node, b.build(), {**buffers, "y": out}, work.grid(work.count(out), LOCAL), scalars)


for _op in ("Unary", "Binary", "Select", "Convert"):
    template(_op)(elementwise)


@template("Reinterpret")
def reinterpret(work: Lowering, node: Node) -> None:
    """The same memory."""
    if DType.BOOL in (work.dtype(node.inputs[0]), work.dtype(node.outputs[0])):
        raise Declined("bool has no bits to reinterpret")
    work.view(node.outputs[0], node.inputs[0])
