"""Rules of convolutions and matrix products."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.ops.windows import Ints, conv_window
from mnnpy.decompose.raster import Region, row_major
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import LIMITS, along_channel, channel_rows, is_zero, linear_taps, sample, to_float
from mnnpy.graph.dtypes import DType

#: Spatial dims that the atomic convolution takes.
MAX_SPATIAL = 3


@rule("Conv")
def conv(
    g: Builder,
    x: Var,
    w: Var,
    b: Var | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var | None:
    win = conv_window(x.shape, w.shape, kernel_shape, strides, pads, dilations, auto_pad)
    if len(win.kernel) > MAX_SPATIAL:
        return None
    return _convolution(g, x, w, b, win.strides, win.pads, win.dilations, group)


def _convolution(
    g: Builder, x: Var, w: Var, b: Var | None, strides: Ints, pads: Ints, dilations: Ints, group: int
) -> Var:
    if any(p < 0 for p in pads):
        k = len(strides)
        begins, ends = (0, 0, *(min(p, 0) for p in pads[:k])), (0, 0, *(min(p, 0) for p in pads[k:]))
        x, pads = g.pad(x, begins, ends), tuple(max(p, 0) for p in pads)
    return g.op("Convolution", x, w, b, strides=strides, pads=pads, dilations=dilations, group=group)  # type: ignore[no-any-return]


def _centred(g: Builder, x: Var, zero_point: Var | None, shape: tuple[int, ...] = ()) -> Var:
    """``x − zero_point`` in i32, in f32 where *x* is a float."""
    to = DType.I32 if x.dtype.is_int else DType.F32
    values = g.cast(x, to)
    if zero_point is None or is_zero(zero_point):
        return values
    zero = g.cast(zero_point, to)
    if zero.rank == 1:
        zero = g.reshape(zero, shape if zero.shape[0] != 1 else ())
    return g.sub(values, zero)


@rule("ConvInteger")
def conv_integer(
    g: Builder,
    x: Var,
    w: Var,
    x_zero_point: Var | None = None,
    w_zero_point: Var | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var | None:
    return _integer_convolution(
        g, x, w, None, x_zero_point, w_zero_point, auto_pad, dilations, group, kernel_shape, pads, strides
    )


def _integer_convolution(
    g: Builder,
    x: Var,
    w: Var,
    b: Var | None,
    x_zero_point: Var | None,
    w_zero_point: Var | None,
    auto_pad: str,
    dilations: Ints | None,
    group: int,
    kernel_shape: Ints | None,
    pads: Ints | None,
    strides: Ints | None,
) -> Var | None:
    win = conv_window(x.shape, w.shape, kernel_shape, strides, pads, dilations, auto_pad)
    if len(win.kernel) > MAX_SPATIAL:
        return None
    data = _centred(g, x, x_zero_point)
    filters = _centred(g, w, w_zero_point, (w.shape[0], *(1,) * (w.rank - 1)))
    return _convolution(g, data, filters, b, win.strides, win.pads, win.dilations, group)


def requantize(g: Builder, value: Var, factor: Var, zero_point: Var) -> Var:
    """``saturate(round(value · factor) + zero_point)`` in f32, in the zero point's type."""
    to = zero_point.dtype
    scaled = g.mul(g.cast(value, DType.F32), factor)
    if to.is_int:
        scaled = g.unary("Round", scaled)
    if not is_zero(zero_point):
        scaled = g.add(scaled, g.cast(zero_point, DType.F32))
    if not to.is_int:
        return g.cast(scaled, to)
    low, high = LIMITS[to]
    return g.cast(g.unary("Clip", scaled, alpha=float(low), beta=float(high)), to)


def _scalar(g: Builder, v: Var) -> Var:
    return v if v.rank == 0 else g.reshape(v, ())


@rule("QLinearConv")
def qlinear_conv(
    g: Builder,
    x: Var,
    x_scale: Var,
    x_zero_point: Var,
    w: Var,
    w_scale: Var,
    w_zero_point: Var,
    y_scale: Var,
    y_zero_point: Var,
    b: Var | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var | None:
    total = _integer_convolution(
        g, x, w, b, x_zero_point, w_zero_point, auto_pad, dilations, group, kernel_shape, pads, strides
    )
    if total is None:
        return None
    factor = g.div(g.mul(_scalar(g, x_scale), w_scale), _scalar(g, y_scale))
    factor = along_channel(g, factor, x.rank) if factor.shape not in ((), (1,)) else _scalar(g, factor)
    return requantize(g, total, factor, _scalar(g, y_zero_point))


@rule("DeformConv")
def deform_conv(
    g: Builder,
    x: Var,
    w: Var,
    offset: Var,
    b: Var | None = None,
    mask: Var | None = None,
    *,
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    offset_group: int = 1,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var:
    win = conv_window(x.shape, w.shape, kernel_shape, strides, pads, dilations, "NOTSET")
    (n, c, *spatial), m, k, og = x.shape, w.shape[0], len(win.kernel), offset_group
    out = tuple(int(d) for d in win.out)  # type: ignore[arg-type]
    taps, points, per = prod(win.kernel), prod(out), c // og
    data = to_float(g, x)
    # undeformed positions [k, taps, points]
    spots = np.stack(
        np.meshgrid(*(np.arange(s) * d for s, d in zip(win.kernel, win.dilations, strict=True)), indexing="ij")
    )
    grid = np.stack(
        np.meshgrid(*(np.arange(o) * win.strides[i] - win.pads[i] for i, o in enumerate(out)), indexing="ij")
    )
    base = spots.reshape(k, 1, 1, taps, 1) + grid.reshape(k, 1, 1, 1, points)
    moved = g.transpose(g.reshape(g.cast(offset, data.dtype), (n, og, taps, k, points)), (3, 0, 1, 2, 4))
    count = n * og * taps * points
    position = g.reshape(g.add(moved, g.const(base, data.dtype)), (k, count))
    first = np.repeat(np.arange(n * og) * prod(spatial), taps * points)
    scale = None if mask is None else g.reshape(g.cast(mask, data.dtype), (count,))
    place, weight = linear_taps(g, position)
    sampled = sample(g, channel_rows(g, data, og), place, weight, spatial, zeros=True, first_row=first, scale=scale)
    columns = g.reshape(
        g.transpose(g.reshape(sampled, (n, og, taps, points, per)), (0, 1, 4, 2, 3)),
        (n, group, c // group * taps, points),
    )
    filters = g.reshape(g.cast(w, data.dtype), (group, m // group, c // group * taps))
    y = g.reshape(g.matmul(filters, columns), (n, m, *out))
    if b is not None:
        y = g.add(y, along_channel(g, g.cast(b, data.dtype), x.rank))
    return g.cast(y, x.dtype)


@rule("Gemm")
def gemm(
    g: Builder,
    a: Var,
    b: Var,
    c: Var | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Var:
    y = g.matmul(g.transpose(a, (1, 0)) if transA else a, g.transpose(b, (1, 0)) if transB else b)
    y = _times(g, y, alpha)
    if c is None or beta == 0:
        return y
    # scalars of any rank ≤ 2 broadcast in Add
    return g.add(y, _times(g, c, beta))


def _times(g: Builder, x: Var, factor: float) -> Var:
    if factor == 1:
        return x
    if not x.dtype.is_int or float(factor).is_integer():
        return g.mul(x, factor)
    return g.cast(g.mul(g.cast(x, DType.F64), factor), x.dtype)


@rule("MatMulInteger")
def matmul_integer(g: Builder, a: Var, b: Var, a_zero_point: Var | None = None, b_zero_point: Var | None = None) -> Var:
    columns = (b.shape[-1],)
    return g.matmul(_centred(g, a, a_zero_point, _rows(a)), _centred(g, b, b_zero_point, columns))


def _rows(a: Var) -> tuple[int, ...]:
    return (a.shape[-2], 1) if a.rank > 1 else (-1,)


@rule("QLinearMatMul")
def qlinear_matmul(
    g: Builder,
    a: Var,
    a_scale: Var,
    a_zero_point: Var,
    b: Var,
    b_scale: Var,
    b_zero_point: Var,
    y_scale: Var,
    y_zero_point: Var,
) -> Var:
    left, right = _centred(g, a, a_zero_point, _rows(a)), _centred(g, b, b_zero_point, (b.shape[-1],))
    if left.dtype is not right.dtype:
        left, right = g.cast(left, DType.F32), g.cast(right, DType.F32)
    total = g.matmul(left, right)
    scale = g.cast(a_scale, DType.F32)
    if scale.rank == 1:
        scale = g.reshape(scale, _rows(a) if scale.shape[0] != 1 else ())
    factor = g.div(g.mul(scale, g.cast(b_scale, DType.F32)), g.cast(y_scale, DType.F32))
    # one-element parameters must not add dims to a vector product
    if factor.rank > total.rank:
        factor = g.reshape(factor, total.shape if prod(factor.shape) == prod(total.shape) else ())
    zero = y_zero_point if y_zero_point.rank <= total.rank else g.reshape(y_zero_point, ())
    return requantize(g, total, factor, zero)


def _layers(kernel: int, stride: int, dilation: int) -> list[list[int]]:
    """Kernel positions in groups whose strided footprints do not overlap."""
    layers: list[list[int]] = []
    for k in range(kernel):
        phase = k * dilation % stride
        for layer in layers:
            if all(q * dilation % stride != phase for q in layer):
                layer.append(k)
                break
        else:
            layers.append([k])
    return layers


@rule("Col2Im")
def col2im(
    g: Builder,
    x: Var,
    image_shape: Var,
    block_shape: Var,
    *,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var | None:
    if not (x.dtype.is_int or x.dtype.is_float):
        return None
    image, block = image_shape.require_ints(), block_shape.require_ints()
    k, n, c = len(image), x.shape[0], x.shape[1] // max(prod(block), 1)
    step, dil, edge = strides or (1,) * k, dilations or (1,) * k, pads or (0,) * (2 * k)
    count = [(image[i] + edge[i] + edge[k + i] - (block[i] - 1) * dil[i] - 1) // step[i] + 1 for i in range(k)]
    source, target = row_major((n, c, *block, *count)), row_major((n, c, *image))
    regions, layers = [], list(itertools.product(*(_layers(block[i], step[i], dil[i]) for i in range(k))))
    for level, choice in enumerate(layers):
        for spot in itertools.product(*choice):
            start = [spot[i] * dil[i] - edge[i] for i in range(k)]
            low = [max(0, -(start[i] // step[i])) for i in range(k)]
            high = [min(count[i], (image[i] - 1 - start[i]) // step[i] + 1) for i in range(k)]
            size = tuple(max(high[i] - low[i], 0) for i in range(k))
            if 0 in size:
                continue
            regions.append(
                Region(
                    0,
                    (n, c, *size),
                    sum(spot[i] * source[2 + i] + low[i] * source[2 + k + i] for i in range(k)),
                    (*source[:2], *source[2 + k :]),
                    level * n * target[0] + sum((start[i] + low[i] * step[i]) * target[2 + i] for i in range(k)),
                    (*target[:2], *(step[i] * target[2 + i] for i in range(k))),
                )
            )
    stacked = g.raster([x], regions, (len(layers), n, c, *image), fill=0)
    if len(layers) == 1:
        return g.reshape(stacked, (n, c, *image))
    return g.reduce("Sum", stacked, (0,), keepdims=False)
