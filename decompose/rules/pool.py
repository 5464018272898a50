"""Rules of pooling."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.ops.pool import unpooled_shape
from mnnpy.decompose.ops.windows import Ints, Window, pool_window
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import index_dtype, to_float
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

#: Elements of all running maxima of MaxRoiPool, beyond which it stays a host op.
_ROI_TABLE = 1 << 26
#: Elements of one gathered block of MaxRoiPool; larger ones are taken corner by corner.
_ROI_BLOCK = 1 << 24

#: Spatial dims that the atomic pooling takes.
MAX_SPATIAL = 3


def _pool(g: Builder, x: Var, win: Window, fn: str, **options: Any) -> Var:
    return g.op(  # type: ignore[no-any-return]
        "Pool", x, fn=fn, kernel=win.kernel, strides=win.strides, pads=win.pads, dilations=win.dilations, out=win.out,
        **options,
    )  # fmt: skip


@rule("AveragePool")
def average_pool(
    g: Builder,
    x: Var,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var | None:
    win = pool_window(x.shape, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    if len(win.kernel) > MAX_SPATIAL:
        return None
    return _pool(g, x, win, "Average", count_include_pad=bool(count_include_pad))


@rule("MaxPool")
def max_pool(
    g: Builder,
    x: Var,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
) -> tuple[Var, Var] | None:
    win = pool_window(x.shape, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    if len(win.kernel) > MAX_SPATIAL:
        return None
    # two nodes, of which dead-code removal keeps what is used: indices cost extra
    y = _pool(g, x, win, "Max")
    options = {"indices": True, "column_major": bool(storage_order)}
    with_indices = g.op(
        "Pool", x, outputs=2, fn="Max", kernel=win.kernel, strides=win.strides, pads=win.pads, dilations=win.dilations,
        out=win.out, **options,
    )  # fmt: skip
    return y, with_indices[1]


@rule("LpPool")
def lp_pool(
    g: Builder,
    x: Var,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    p: int = 2,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var | None:
    win = pool_window(x.shape, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return None if len(win.kernel) > MAX_SPATIAL else _pool(g, x, win, "Lp", p=p)


@rule("GlobalAveragePool")
def global_average_pool(g: Builder, x: Var) -> Var:
    return g.reduce("Mean", x, range(2, x.rank))


@rule("GlobalMaxPool")
def global_max_pool(g: Builder, x: Var) -> Var:
    return g.reduce("Max", x, range(2, x.rank))


@rule("GlobalLpPool")
def global_lp_pool(g: Builder, x: Var, *, p: int = 2) -> Var:
    axes = range(2, x.rank)
    if p in (1, 2):
        return g.reduce(f"L{p}", x, axes)
    data = to_float(g, x)
    powers = g.binary("Pow", g.unary("Abs", data), float(p))
    return g.cast(g.binary("Pow", g.reduce("Sum", powers, axes), 1.0 / p), x.dtype)


@rule("MaxUnpool")
def max_unpool(
    g: Builder,
    x: Var,
    indices: Var,
    output_shape: Var | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var:
    inferred = tuple(int(d) for d in unpooled_shape(x.shape, kernel_shape, strides, pads))  # type: ignore[arg-type]
    count = prod(x.shape)
    empty = g.raster([g.const(np.zeros((1, 1)), x.dtype)], (), (prod(inferred), 1), fill=0)
    flat = g.op("Scatter", empty, g.cast(g.reshape(indices, (count,)), DType.I64), g.reshape(x, (count, 1)), fn="none")
    y = g.reshape(flat, inferred)
    if output_shape is None:
        return y
    wanted = output_shape.require_ints()
    if wanted == inferred:
        return y
    return g.pad(y, (0,) * x.rank, tuple(w - d for w, d in zip(wanted, inferred, strict=True)))


def _running_maxima(g: Builder, x: Var, levels: tuple[int, int]) -> tuple[Var, Array, list[int], list[int]]:
    """Maxima over every window of 2^a rows and 2^b columns of ``x[N, C, H, W]``, as rows ``[…, C]``.

    Returns the rows, where those of level (a, b) start, and the heights and widths of the levels.
    """
    n, c, height, width = x.shape
    heights = [height - (1 << a) + 1 for a in range(levels[0])]
    widths = [width - (1 << b) + 1 for b in range(levels[1])]
    starts = np.zeros(levels, np.int64)
    parts: list[Var] = []
    column, offset = g.transpose(x, (0, 2, 3, 1)), 0
    for a, h in enumerate(heights):
        if a:  # a window of 2^a rows is two of half the height, one below the other
            column = _pair(g, column, 1, 1 << (a - 1))
        here = column
        for b, w in enumerate(widths):
            if b:
                here = _pair(g, here, 2, 1 << (b - 1))
            starts[a, b] = offset
            offset += n * h * w
            parts.append(g.reshape(here, (n * h * w, c)))
    return (g.concat(parts, 0) if len(parts) > 1 else parts[0]), starts, heights, widths


def _pair(g: Builder, x: Var, axis: int, apart: int) -> Var:
    """Maximum of each element and the one *apart* from it along *axis*."""
    size = x.shape[axis] - apart
    return g.binary("Max", g.slice(x, axis, 0, size), g.slice(x, axis, apart, apart + size))


def _roi_bins(g: Builder, low: Var, high: Var, bins: int, size: int, kind: DType) -> tuple[Var, Var, Var, Var]:
    """Level, first and last window start of the bins ``[R, bins]`` along one axis, and which of them are empty."""
    span = g.div(g.binary("Max", g.add(g.sub(high, low), 1), 1), bins)
    steps = np.arange(bins)

    def edge(fn: str, at: Array) -> Var:
        pixel = g.add(g.unary(fn, g.mul(span, g.const(at.reshape(1, -1), low.dtype))), low)
        return g.cast(g.unary("Clip", pixel, alpha=0.0, beta=float(size)), kind)

    start, stop = edge("Floor", steps), edge("Ceil", steps + 1)
    length = g.sub(stop, start)
    empty = g.binary("LessEqual", length, 0)
    length = g.binary("Max", length, 1)
    lengths = np.maximum(np.arange(size + 1), 1)
    powers = np.floor(np.log2(lengths)).astype(np.int64)
    level = g.gather(g.const(powers, kind), length)
    first = g.binary("Min", start, size - 1)
    last = g.sub(g.add(first, length), g.gather(g.const(1 << powers, kind), length))
    return level, first, last, empty


@rule("MaxRoiPool")
def max_roi_pool(g: Builder, x: Var, rois: Var, *, pooled_shape: Ints, spatial_scale: float = 1.0) -> Var | None:
    # Any window is the union of two (in two dims four) windows of a power of two that may overlap: with the maxima of
    # those at hand (a sparse table) a bin of any size costs four look-ups.
    (n, c, height, width), count = x.shape, rois.shape[0]
    ph, pw = pooled_shape
    shape = (count, c, ph, pw)
    if 0 in shape or 0 in (height, width):
        return g.raster([x], (), shape, fill=0)
    levels = height.bit_length(), width.bit_length()
    if not n or n * c * height * width * levels[0] * levels[1] > _ROI_TABLE:
        return None
    rows, starts, heights, widths = _running_maxima(g, x, levels)
    kind = index_dtype(rows.shape[0])
    regions = g.cast(rois, DType.F64 if x.dtype is DType.F64 else DType.F32)
    corners = g.unary("Floor", g.add(g.mul(regions, spatial_scale), 0.5))
    x1, y1, x2, y2 = (g.slice(corners, 1, k, k + 1) for k in range(1, 5))
    tall, top, bottom, flat = _roi_bins(g, y1, y2, ph, height, kind)
    wide, left, right, thin = _roi_bins(g, x1, x2, pw, width, kind)
    image = g.reshape(g.cast(g.slice(regions, 1, 0, 1), kind), (count,))
    image = g.reshape(g.gather(g.const(np.arange(n), kind), image), (count, 1, 1))  # refuses images that are not there
    down, across = (count, ph, 1), (count, 1, pw)
    level = g.add(g.mul(g.reshape(tall, down), levels[1]), g.reshape(wide, across))
    start = g.gather(g.const(starts.reshape(-1), kind), level)
    high = g.reshape(g.gather(g.const(heights, kind), tall), down)
    broad = g.reshape(g.gather(g.const(widths, kind), wide), across)
    corner = [
        g.add(g.add(g.mul(g.add(g.mul(image, high), g.reshape(v, down)), broad), g.reshape(h, across)), start)
        for v in (top, bottom)
        for h in (left, right)
    ]
    if count * ph * pw * c * 4 <= _ROI_BLOCK:
        together = g.concat([g.reshape(k, (1, *k.shape)) for k in corner], 0)
        y = g.reduce("Max", g.gather(rows, together), [0], keepdims=False)
    else:
        y = g.gather(rows, corner[0])
        for index in corner[1:]:
            y = g.binary("Max", y, g.gather(rows, index))
    empty = g.binary("Or", g.reshape(flat, (*down, 1)), g.reshape(thin, (*across, 1)))
    y = g.select(empty, g.const(np.zeros((), x.dtype.numpy)), y)
    return g.transpose(y, (0, 3, 1, 2))
