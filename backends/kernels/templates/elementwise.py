"""Unary, Binary, Select, Convert, fused groups of them, and Reinterpret: one item per output element.

Operands are read through strides, so broadcasting, and rasters that only re-index, cost no pass over memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.convert import convert
from mnnpy.backends.kernels.formats import round_half
from mnnpy.backends.kernels.functions import binary, unary
from mnnpy.backends.kernels.ir import Expr, const, select
from mnnpy.backends.kernels.lowering import Lowering, template
from mnnpy.decompose.raster import row_major
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__ = ["broadcast_strides", "collapse", "merge_dims"]

LOCAL = 64


def broadcast_strides(shape: Sequence[int], dims: Sequence[int]) -> list[int]:
    """Element strides over *shape* of a dense operand of *dims* (0 = broadcast)."""
    full = [1] * (len(shape) - len(dims)) + list(dims)
    return [0 if n == 1 else s for n, s in zip(full, row_major(tuple(full)), strict=True)]


def merge_dims(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Merge neighbouring dims over which all operands step alike, and drop those of one element."""
    sizes: list[int] = []
    kept: list[list[int]] = [[] for _ in strides]
    for k, size in enumerate(shape):
        if size == 1:
            continue
        if sizes and all(o[-1] == s[k] * size for o, s in zip(kept, strides, strict=True)):
            sizes[-1] *= size
            for o, s in zip(kept, strides, strict=True):
                o[-1] = s[k]
        else:
            sizes.append(size)
            for o, s in zip(kept, strides, strict=True):
                o.append(s[k])
    return sizes, kept


def collapse(shape: Sequence[int], operands: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """``merge_dims`` of dense operands of these shapes, broadcast to *shape*."""
    return merge_dims(shape, [broadcast_strides(shape, dims) for dims in operands])


class _Reader:
    """Operands of one launch: their strides over the output's collapsed dims, and their elements at an item.

    Sizes and strides are scalars, so one source serves all shapes of equal structure; operands that are dense over the
    dims that they have need no strides.
    """

    def __init__(self, b: KernelBuilder, work: Lowering, node: Node, scalars: dict[str, int | float]) -> None:
        self.b, self.scalars = b, scalars
        shape = work.shape(node.outputs[0])
        views: Mapping[int, tuple[int, tuple[int, ...]]] = dict(node.attrs.get("views", ()))
        strides = [
            views[k][1] if k in views else broadcast_strides(shape, work.shape(n)) for k, n in enumerate(node.inputs)
        ]
        self.sizes, self.strides = merge_dims(shape, strides)
        self.offsets = [views[k][0] if k in views else None for k in range(len(strides))]
        self.buffers = [b.buffer(f"x{k}", work.dtype(n)) for k, n in enumerate(node.inputs)]
        self._dense = [self._is_dense(own) for own in self.strides]

    def _is_dense(self, own: Sequence[int]) -> bool:
        kept = [(n, s) for n, s in zip(self.sizes, own, strict=True) if s]
        return [s for _, s in kept] == list(row_major(tuple(n for n, _ in kept)))

    def elements(self, i: Expr) -> list[Expr]:
        """The element of every operand for flat output index *i*."""
        coordinates: list[Expr] = []
        whole = list(row_major(tuple(self.sizes)))
        if any(own != whole and any(own) for own in self.strides):
            for k, size in enumerate(self.sizes):
                self.scalars[f"n{k}"] = size
            coordinates = self.b.unravel(i, [self.b.scalar(f"n{k}") for k in range(len(self.sizes))])
        out = []
        for k, buffer in enumerate(self.buffers):
            at = i if self.strides[k] == whole and whole else self._address(k, coordinates)
            if self.offsets[k]:
                self.scalars[f"o{k}"] = self.offsets[k] or 0
                at = at + self.b.scalar(f"o{k}")
            out.append(self.b.let(self.b.load(buffer, at)))
        return out

    def _address(self, k: int, coordinates: Sequence[Expr]) -> Expr:
        at: Expr = const(0)
        for d, (c, s) in enumerate(zip(coordinates, self.strides[k], strict=False)):
            if not s:
                continue
            if self._dense[k]:
                at = at * self.b.scalar(f"n{d}") + c
            else:
                self.scalars[f"s{k}_{d}"] = s
                at = at + c * self.b.scalar(f"s{k}_{d}")
        return at


def _launch(work: Lowering, node: Node, name: str, compute: Any) -> None:
    """A launch that stores ``compute(b, elements)`` for each output element."""
    out = node.outputs[0]
    b = KernelBuilder(name, (LOCAL, 1, 1))
    scalars: dict[str, int | float] = {"count": prod(work.shape(out))}
    reader = _Reader(b, work, node, scalars)
    y = b.buffer("y", work.dtype(out), "w")
    count = b.scalar("count")
    i = b.let(b.global_id())
    with b.when(i < count):
        b.store(y, i, compute(b, reader.elements(i)))
    buffers = {f"x{k}": n for k, n in enumerate(node.inputs)}
    work.launch(node, b.build(), {**buffers, "y": out}, work.grid(work.count(out), LOCAL), scalars)


def _apply(
    b: KernelBuilder, fn: str, args: Sequence[Expr], given: Sequence[DType], out: DType, settings: Mapping[str, Any]
) -> Expr:
    """The element that an op (Select, Convert, or a function's name) computes from elements of dtypes *given*."""
    if fn == "Select":
        return select(args[0], args[1], args[2])
    if fn == "Convert":
        saturate, mode = bool(settings.get("saturate", True)), str(settings.get("round_mode", "up"))
        return convert(b, args[0], given[0], out, saturate, mode)
    if len(args) == 1:
        return unary(b, fn, args[0], given[0], settings.get("alpha", 0.0), settings.get("beta", 0.0))
    return binary(b, fn, args[0], args[1], given[0])


def elementwise(work: Lowering, node: Node) -> None:
    """One op."""
    fn = node.attrs["fn"] if node.op in ("Unary", "Binary") else node.op
    given = [work.dtype(n) for n in node.inputs]
    out = work.dtype(node.outputs[0])
    _launch(work, node, "elementwise", lambda b, args: _apply(b, fn, args, given, out, node.attrs))


for _op in ("Unary", "Binary", "Select", "Convert"):
    template(_op)(elementwise)


@template("Elementwise")
def fused(work: Lowering, node: Node) -> None:
    """A group made by ``passes.fuse``: registers hold the operands, then one value per op.

    Intermediate halves stay f32 but where a conversion asks for their rounding.
    """
    a = node.attrs

    def compute(b: KernelBuilder, args: Sequence[Expr]) -> Expr:
        values = list(args)
        dtypes = [work.dtype(n) for n in node.inputs]
        for k, (fn, kind) in enumerate(zip(a["ops"], a["dtypes"], strict=True)):
            read = [r for r in a["args"][3 * k : 3 * k + 3] if r >= 0]
            out = DType(kind)
            settings = {**a, "alpha": a["params"][2 * k], "beta": a["params"][2 * k + 1]}
            value = _apply(b, fn, [values[r] for r in read], [dtypes[r] for r in read], out, settings)
            if fn == "Convert" and out in (DType.F16, DType.BF16) and k + 1 < len(a["ops"]):
                value = round_half(b, value, out)
            values.append(b.let(value))
            dtypes.append(out)
        return values[int(a["results"][0])]

    _launch(work, node, "fused", compute)


@template("Reinterpret")
def reinterpret(work: Lowering, node: Node) -> None:
    """The same memory (bool is a byte of 0 or 1, and every other byte is read as true)."""
    work.view(node.outputs[0], node.inputs[0])
