"""NumPy references of convolutions, matrix products and Einsum, from the ONNX operator specification."""

from __future__ import annotations

import itertools
from math import prod
from typing import Any

import numpy as np

from mnnpy.backends.reference.kernels.conversion import convert_array
from mnnpy.backends.reference.kernels.numeric import narrow, wide
from mnnpy.decompose.ops.windows import Ints, conv_window, transposed_window
from mnnpy.decompose.registry import reference
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array


def _at(*index: Any) -> Any:
    """An index expression; NumPy's type stubs do not take starred slices."""
    return index


def sliding_windows(x: Array, kernel: Ints, strides: Ints, dilations: Ints, out: Ints) -> Array:
    """A view ``[N, C, out…, kernel…]`` of padded ``x[N, C, …]``."""
    k = len(kernel)
    spatial = x.strides[2:]
    steps = tuple(spatial[i] * strides[i] for i in range(k))
    taps = tuple(spatial[i] * dilations[i] for i in range(k))
    return np.lib.stride_tricks.as_strided(
        x, (*x.shape[:2], *out, *kernel), (*x.strides[:2], *steps, *taps), writeable=False
    )


def pad_spatial(x: Array, pads: Ints, value: object = 0) -> Array:
    """``x[N, C, …]`` padded by *pads* (all begins, all ends); negative ones crop."""
    k = x.ndim - 2
    crop = (slice(max(-pads[i], 0), x.shape[2 + i] - max(-pads[k + i], 0)) for i in range(k))
    x = x[_at(..., *crop)]
    edges = [(0, 0), (0, 0), *((max(pads[i], 0), max(pads[k + i], 0)) for i in range(k))]
    return np.pad(x, edges, constant_values=value)  # type: ignore[call-overload,no-any-return]


def convolve(x: Array, w: Array, strides: Ints, pads: Ints, dilations: Ints, group: int, out: Ints) -> Array:
    """Grouped cross-correlation, in the (common) dtype of the operands."""
    n, c = x.shape[:2]
    m, kernel = w.shape[0], w.shape[2:]
    k = len(kernel)
    windows = sliding_windows(pad_spatial(x, pads), kernel, strides, dilations, out)
    windows = windows.reshape(n, group, c // group, *out, *kernel) if group > 1 else windows[:, None]
    order = (0, 1, *range(3, 3 + k), 2, *range(3 + k, 3 + 2 * k))
    columns = windows.transpose(order).reshape(n, group, prod(out), (c // group) * prod(kernel))
    rows = w.reshape(group, m // group, columns.shape[-1]).swapaxes(1, 2)
    y: Array = np.matmul(columns, rows[None])
    return y.swapaxes(2, 3).reshape(n, m, *out)


def _per_channel(b: Array, spatial: int) -> Array:
    return b.reshape(-1, *(1,) * spatial)


@reference("Conv")
def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    win = conv_window(x.shape, w.shape, kernel_shape, strides, pads, dilations, auto_pad)
    y = convolve(wide(x), wide(w), win.strides, win.pads, win.dilations, group, win.out)  # type: ignore[arg-type]
    if b is not None:
        y = y + _per_channel(wide(b), x.ndim - 2)
    return narrow(y, x.dtype)


def _centred(x: Array, zero_point: Array | None, shape: tuple[int, ...] = ()) -> Array:
    """``x − zero_point`` in i32 (f64 for float8)."""
    target = np.dtype(np.int32 if x.dtype.kind in "iu" else np.float64)
    values: Array = wide(x).astype(target)
    if zero_point is None:
        return values
    zero: Array = wide(zero_point).astype(target)
    return np.subtract(values, zero.reshape(shape) if zero.size > 1 and zero.ndim == 1 and shape else zero)


@reference("ConvInteger")
def conv_integer(
    x: Array,
    w: Array,
    x_zero_point: Array | None = None,
    w_zero_point: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    win = conv_window(x.shape, w.shape, kernel_shape, strides, pads, dilations, auto_pad)
    per_channel = (-1, *(1,) * (w.ndim - 1))
    a, f = _centred(x, x_zero_point), _centred(w, w_zero_point, per_channel)
    return convolve(a, f, win.strides, win.pads, win.dilations, group, win.out)  # type: ignore[arg-type]


def requantize(value: Array, factor: Array, zero_point: Array) -> Array:
    """``saturate(round(value · factor) + zero_point)`` in f32, in the zero point's type."""
    scaled = (value.astype(np.float32) * factor.astype(np.float32)).astype(np.float32)
    to = DType.of(zero_point.dtype)
    if not to.is_int:
        return convert_array((scaled + wide(zero_point).astype(np.float32)).astype(np.float32), to)
    info = np.iinfo(zero_point.dtype)
    rounded: Array = np.rint(scaled) + zero_point.astype(np.float32)
    return np.clip(rounded, info.min, info.max).astype(zero_point.dtype)


@reference("QLinearConv")
def qlinear_conv(
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    window = {"auto_pad": auto_pad, "kernel_shape": kernel_shape, "pads": pads, "strides": strides}
    total = conv_integer(x, w, x_zero_point, w_zero_point, dilations=dilations, group=group, **window)  # type: ignore[arg-type]
    k = x.ndim - 2
    if b is not None:
        total = total + _per_channel(b.astype(np.int32), k)
    factor = x_scale.reshape(()) * w_scale.reshape(-1) / y_scale.reshape(())
    return requantize(total, _per_channel(factor, k), y_zero_point.reshape(()))


@reference("ConvTranspose")
def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    win = transposed_window(
        x.shape, w.shape, kernel_shape, strides, pads, dilations, auto_pad, output_padding, output_shape
    )
    n, c, *spatial = x.shape
    k, mg = len(spatial), w.shape[1]
    begins, out = win.begins, tuple(int(d) for d in win.out)  # type: ignore[arg-type]
    extent = [(spatial[i] - 1) * win.strides[i] + (win.kernel[i] - 1) * win.dilations[i] + 1 for i in range(k)]
    full = np.zeros((n, group, mg, *(max(extent[i], begins[i] + out[i]) + max(-begins[i], 0) for i in range(k))))
    xs = wide(x).astype(np.float64).reshape(n, group, c // group, prod(spatial))
    ws = wide(w).astype(np.float64).reshape(group, c // group, mg, *win.kernel)
    shift = [max(-b0, 0) for b0 in begins]
    for spot in itertools.product(*map(range, win.kernel)):
        part = np.matmul(ws[_at(slice(None), slice(None), slice(None), *spot)].swapaxes(1, 2)[None], xs)
        place = tuple(
            slice(at := shift[i] + spot[i] * win.dilations[i], at + spatial[i] * win.strides[i], win.strides[i])
            for i in range(k)
        )
        target = full[_at(..., *place)]
        target += part.reshape(n, group, mg, *spatial)[_at(..., *(slice(0, d) for d in target.shape[3:]))]
    crop = tuple(slice(shift[i] + begins[i], shift[i] + begins[i] + out[i]) for i in range(k))
    y = full[_at(..., *crop)].reshape(n, group * mg, *out)
    if b is not None:
        y = y + _per_channel(wide(b), k)
    return narrow(y, x.dtype)


def interpolate_nd(data: Array, position: Array) -> Array:
    """N-linear samples of ``data[C, S1…Sk]`` at ``position[k, P]``; zero outside. Returns ``[C, P]``."""
    sizes = data.shape[1:]
    base = np.floor(position)
    fraction = position - base
    result = np.zeros((data.shape[0], position.shape[1]))
    for corner in itertools.product((0, 1), repeat=len(sizes)):
        weight = np.ones(position.shape[1])
        inside = np.ones(position.shape[1], bool)
        index = []
        for j, up in enumerate(corner):
            at = base[j] + up
            inside &= (at >= 0) & (at < sizes[j])
            weight = weight * (fraction[j] if up else 1 - fraction[j])
            index.append(np.nan_to_num(np.clip(at, 0, sizes[j] - 1)).astype(np.int64))
        result += np.where(inside, data[(slice(None), *index)] * weight, 0)
    return result


@reference("DeformConv")
def deform_conv(
    x: Array,
    w: Array,
    offset: Array,
    b: Array | None = None,
    mask: Array | None = None,
    *,
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    offset_group: int = 1,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    win = conv_window(x.shape, w.shape, kernel_shape, strides, pads, dilations, "NOTSET")
    n, c = x.shape[:2]
    k, m, taps, out = len(win.kernel), w.shape[0], prod(win.kernel), tuple(int(d) for d in win.out)  # type: ignore[arg-type]
    data, moved = wide(x), wide(offset).reshape(n, offset_group, taps, k, *out)
    scale = np.ones((n, offset_group, taps, *out)) if mask is None else wide(mask).reshape(n, offset_group, taps, *out)
    columns = np.zeros((n, c, taps, prod(out)))
    per = c // offset_group
    grid = np.stack(np.meshgrid(*(np.arange(out[i]) * win.strides[i] - win.pads[i] for i in range(k)), indexing="ij"))
    for t, spot in enumerate(itertools.product(*map(range, win.kernel))):
        base = grid + np.asarray([spot[i] * win.dilations[i] for i in range(k)]).reshape(k, *(1,) * k)
        for i, g in itertools.product(range(n), range(offset_group)):
            position = (base + moved[i, g, t]).reshape(k, prod(out))
            values = interpolate_nd(data[i, g * per : (g + 1) * per], position)
            columns[i, g * per : (g + 1) * per, t] = values * scale[i, g, t].reshape(-1)
    rows = wide(w).reshape(group, m // group, -1)
    y = np.matmul(rows[None], columns.reshape(n, group, (c // group) * taps, prod(out))).reshape(n, m, *out)
    if b is not None:
        y = y + _per_channel(wide(b), k)
    return narrow(y, x.dtype)


@reference("Gemm")
def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    y = np.matmul(wide(a.T if transA else a), wide(b.T if transB else b))
    y = y if alpha == 1 else y * float(alpha)
    if c is not None:
        y = y + (wide(c) if beta == 1 else wide(c) * float(beta))
    return narrow(y, a.dtype)


def _row_wise(value: Array, matrix: Array) -> Array:
    """A vector of per-row parameters as a column; anything else broadcasts as it is."""
    return value.reshape(-1, 1) if value.ndim == 1 and value.size > 1 and matrix.ndim > 1 else value


@reference("MatMulInteger")
def matmul_integer(a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None) -> Array:
    left = _centred(a, None if a_zero_point is None else _row_wise(a_zero_point, a))
    product: Array = np.matmul(left, _centred(b, b_zero_point))
    return product


@reference("QLinearMatMul")
def qlinear_matmul(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    total = np.matmul(_centred(a, _row_wise(a_zero_point, a)), _centred(b, b_zero_point))
    left, right, out = (s.astype(np.float32) for s in (_row_wise(a_scale, a), b_scale, y_scale))
    return requantize(total, left * right / out, y_zero_point)


@reference("Col2Im")
def col2im(
    x: Array,
    image_shape: Array,
    block_shape: Array,
    *,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    image, block = [int(v) for v in image_shape], [int(v) for v in block_shape]
    k, n, c = len(image), x.shape[0], x.shape[1] // prod(block)
    step, dil, edge = strides or (1,) * k, dilations or (1,) * k, pads or (0,) * (2 * k)
    padded = [image[i] + edge[i] + edge[k + i] for i in range(k)]
    count = [(padded[i] - (block[i] - 1) * dil[i] - 1) // step[i] + 1 for i in range(k)]
    values = wide(x)
    columns = values.reshape(n, c, *block, *count)
    full = np.zeros((n, c, *padded), values.dtype)
    for spot in itertools.product(*map(range, block)):
        place = tuple(
            slice(spot[i] * dil[i], spot[i] * dil[i] + (count[i] - 1) * step[i] + 1, step[i]) for i in range(k)
        )
        full[_at(..., *place)] += columns[_at(slice(None), slice(None), *spot)]
    return narrow(full[_at(..., *(slice(edge[i], edge[i] + image[i]) for i in range(k)))], x.dtype)


@reference("Einsum")
def einsum(*xs: Array, equation: str) -> Array:
    # NumPy sums narrow integers in their own type; the wide ones wrap to the same result.
    values = [wide(x) for x in xs]
    return narrow(np.asarray(np.einsum(equation, *values)), xs[0].dtype)
