"""Raster: one launch per region; a raster that is one whole copy in order is a view."""

from __future__ import annotations

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Expr, Kernel, as_expr
from mnnpy.backends.kernels.lowering import Lowering, template
from mnnpy.backends.kernels.templates.elementwise import LOCAL
from mnnpy.decompose.raster import Region, full_region
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__: list[str] = []


@template("Raster")
def raster(work: Lowering, node: Node) -> None:
    out = node.outputs[0]
    regions: tuple[Region, ...] = node.attrs["regions"]
    fill = node.attrs.get("fill")
    dtype = work.dtype(out)
    if is_view(work, node):
        work.view(out, node.inputs[regions[0].origin])
        return
    if fill is not None:
        b = KernelBuilder("fill", (LOCAL, 1, 1))
        y = b.buffer("y", dtype, "w")
        count = b.scalar("count")
        i = b.let(b.global_id())
        with b.when(i < count):
            b.store(y, i, as_expr(fill, b.load(y, 0).type))
        work.launch(node, b.build(), {"y": out}, work.grid(work.count(out), LOCAL), {"count": work.count(out)})
    for r in regions:
        small = _squeezed(r)
        kernel = _copy(dtype, len(small.size))
        scalars: dict[str, int | float] = {"count": r.count, "src": r.src_offset, "dst": r.dst_offset}
        for k, size in enumerate(small.size):
            scalars |= {f"n{k}": size, f"s{k}": small.src_strides[k], f"d{k}": small.dst_strides[k]}
        buffers = {"x": node.inputs[r.origin], "y": out}
        work.launch(node, kernel, buffers, work.grid(r.count, LOCAL), scalars)


def _squeezed(r: Region) -> Region:
    """Without dims of one element, neighbours merged where both sides step alike."""
    dims: list[tuple[int, int, int]] = []
    for n, s, d in zip(r.size, r.src_strides, r.dst_strides, strict=True):
        if n == 1:
            continue
        if dims and dims[-1][1] == s * n and dims[-1][2] == d * n:
            dims[-1] = (dims[-1][0] * n, s, d)
        else:
            dims.append((n, s, d))
    size, src, dst = (tuple(x) for x in zip(*dims, strict=True)) if dims else ((), (), ())
    return r.replace(size=size, src_strides=src, dst_strides=dst)


def _copy(dtype: DType, rank: int) -> Kernel:
    """Element moves keep bits: half and bf16 travel as 16-bit integers."""
    carried = {DType.F16: DType.U16, DType.BF16: DType.U16}.get(dtype, dtype)
    b = KernelBuilder("raster", (LOCAL, 1, 1))
    x, y = b.buffer("x", carried), b.buffer("y", carried, "w")
    count = b.scalar("count")
    src, dst = b.scalar("src"), b.scalar("dst")
    i = b.let(b.global_id())
    with b.when(i < count):
        s: Expr = src
        d: Expr = dst
        for k, c in enumerate(b.unravel(i, [b.scalar(f"n{k}") for k in range(rank)])):
            s = s + c * b.scalar(f"s{k}")
            d = d + c * b.scalar(f"d{k}")
        b.store(y, d, b.load(x, s))
    return b.build()


def is_view(work: Lowering, node: Node) -> bool:
    """Whether the raster copies one whole tensor in order."""
    regions = node.attrs["regions"]
    if len(regions) != 1:
        return False
    shape = work.shape(node.inputs[regions[0].origin])
    r = _squeezed(regions[0])
    whole = _squeezed(full_region(shape, r.origin))
    return r == whole and work.count(node.outputs[0]) == r.count
