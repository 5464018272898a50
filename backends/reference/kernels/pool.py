"""NumPy references of pooling, from the ONNX operator specification."""

from __future__ import annotations

from math import prod

import numpy as np

from mnnpy.backends.reference.kernels.contract import pad_spatial, sliding_windows
from mnnpy.backends.reference.kernels.numeric import extreme, narrow, wide
from mnnpy.decompose.ops.pool import unpooled_shape
from mnnpy.decompose.ops.windows import Ints, Window, pool_window
from mnnpy.decompose.registry import reference
from mnnpy.graph.ir import Array


def _windows(x: Array, win: Window, fill: object) -> tuple[Array, Ints]:
    """Windows ``[N, C, out…, kernel…]`` over *x* padded with *fill*, also where ceil mode reaches beyond the pads."""
    k = len(win.kernel)
    out = tuple(int(d) for d in win.out)  # type: ignore[arg-type]
    reach = [(out[i] - 1) * win.strides[i] + (win.kernel[i] - 1) * win.dilations[i] + 1 for i in range(k)]
    after = [max(win.pads[k + i], reach[i] - x.shape[2 + i] - win.pads[i]) for i in range(k)]
    padded = pad_spatial(x, (*win.pads[:k], *after), fill)
    return sliding_windows(padded, win.kernel, win.strides, win.dilations, out), out


def _window_axes(k: int) -> tuple[int, ...]:
    return tuple(range(-k, 0))


@reference("AveragePool")
def average_pool(
    x: Array,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    win = pool_window(x.shape, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    axes = _window_axes(len(win.kernel))
    total = _windows(wide(x), win, 0)[0].sum(axis=axes)
    counted = np.ones((1, 1, *x.shape[2:]))
    if count_include_pad:
        counted = pad_spatial(counted, win.pads, 1)
        win = Window(win.kernel, win.strides, win.dilations, (0,) * len(win.pads), win.out)
    return narrow(total / _windows(counted, win, 0)[0].sum(axis=axes), x.dtype)


@reference("MaxPool")
def max_pool(
    x: Array,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
) -> tuple[Array, Array]:
    win = pool_window(x.shape, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    k = len(win.kernel)
    values = wide(x)
    windows, out = _windows(values, win, extreme(values.dtype, largest=False))
    numbers = np.arange(prod(x.shape), dtype=np.int64).reshape(x.shape)
    if storage_order:
        spatial = np.arange(prod(x.shape[2:]), dtype=np.int64).reshape(x.shape[:1:-1]).T
        numbers = numbers[(slice(None), slice(None), *(slice(0, 1),) * k)] + spatial
    places = _windows(numbers, win, -1)[0].reshape(*x.shape[:2], *out, prod(win.kernel))
    flat = windows.reshape(*x.shape[:2], *out, prod(win.kernel))
    best = np.argmax(flat, axis=-1)[..., None] if flat.size else np.zeros((*flat.shape[:-1], 1), np.int64)
    # where all elements equal the smallest value, padding must not win
    padding = np.take_along_axis(places, best, -1) < 0
    best = np.where(padding, np.argmax(places >= 0, axis=-1)[..., None], best) if flat.size else best
    y = np.take_along_axis(flat, best, -1)[..., 0]
    return narrow(y, x.dtype), np.take_along_axis(places, best, -1)[..., 0]


def _lp(values: Array, axes: tuple[int, ...], p: int, keepdims: bool = False) -> Array:
    return np.power(np.sum(np.power(np.abs(values), p), axis=axes, keepdims=keepdims), 1.0 / p)  # type: ignore[no-any-return]


@reference("LpPool")
def lp_pool(
    x: Array,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    p: int = 2,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    win = pool_window(x.shape, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return narrow(_lp(_windows(wide(x), win, 0)[0], _window_axes(len(win.kernel)), p), x.dtype)


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@reference("GlobalAveragePool")
def global_average_pool(x: Array) -> Array:
    return narrow(np.mean(wide(x), axis=_spatial(x), keepdims=True), x.dtype)


@reference("GlobalMaxPool")
def global_max_pool(x: Array) -> Array:
    values = wide(x)
    low = extreme(values.dtype, largest=False)
    return narrow(np.max(values, axis=_spatial(x), keepdims=True, initial=low), x.dtype)


@reference("GlobalLpPool")
def global_lp_pool(x: Array, *, p: int = 2) -> Array:
    return narrow(_lp(wide(x), _spatial(x), p, keepdims=True), x.dtype)


@reference("MaxUnpool")
def max_unpool(
    x: Array,
    indices: Array,
    output_shape: Array | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    inferred = tuple(int(d) for d in unpooled_shape(x.shape, kernel_shape, strides, pads))  # type: ignore[arg-type]
    flat = np.zeros(prod(inferred), x.dtype)
    flat[indices.reshape(-1)] = x.reshape(-1)
    y = flat.reshape(inferred)
    if output_shape is None:
        return y
    result = np.zeros(tuple(int(d) for d in output_shape), x.dtype)
    common = tuple(slice(0, min(a, b)) for a, b in zip(y.shape, result.shape, strict=True))
    result[common] = y[common]
    return result


@reference("MaxRoiPool")
def max_roi_pool(x: Array, rois: Array, *, pooled_shape: Ints, spatial_scale: float = 1.0) -> Array:
    # Fast R-CNN (arXiv 1504.08083): corners rounded to pixels, bins overlap by rounding outwards, empty bins are 0.
    # Coordinates are computed in f32 (f64 for f64 data): where a product rounds to decides which pixels a bin has.
    values, kind = wide(x), np.float64 if x.dtype == np.float64 else np.float32
    regions, scale = rois.astype(kind), kind(spatial_scale)
    height, width = x.shape[2:]
    ph, pw = pooled_shape
    y = np.zeros((len(rois), x.shape[1], ph, pw))
    for r, (batch, *corners) in enumerate(regions):
        x1, y1, x2, y2 = (int(np.floor(v * scale + kind(0.5))) for v in corners)
        tall, broad = kind(max(y2 - y1 + 1, 1)) / kind(ph), kind(max(x2 - x1 + 1, 1)) / kind(pw)
        for i in range(ph):
            edges = np.floor(kind(i) * tall), np.ceil(kind(i + 1) * tall)
            top, bottom = (min(max(int(v) + y1, 0), height) for v in edges)
            for j in range(pw):
                edges = np.floor(kind(j) * broad), np.ceil(kind(j + 1) * broad)
                left, right = (min(max(int(v) + x1, 0), width) for v in edges)
                if bottom > top and right > left:
                    y[r, :, i, j] = values[int(batch), :, top:bottom, left:right].max(axis=(1, 2))
    return narrow(y, x.dtype)
