"""Taps and weights of Resize along one axis: which input elements make an output element, and how much of each.

Coordinate transformations and filters from the ONNX operator specification of Resize (opset 19). The cubic
filter is Keys' convolution kernel (IEEE Trans. ASSP 29, 1981, equation 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mnnpy.classes import dataclass
from mnnpy.graph.ir import Array

__all__ = ["Taps", "resize_taps", "taps_matrix"]


@dataclass(frozen=True, slots=True)
class Taps:
    """``out[i] = sum_t weights[i, t] · in[indices[i, t]]``; *outside* marks outputs that lie beyond the input."""

    indices: Array  #: ``[out, taps]`` i64, inside the input
    weights: Array  #: ``[out, taps]`` f64
    outside: Array  #: ``[out]`` bool


def _coordinates(
    mode: str, size: int, out: int, scale: float, start: float, end: float, wanted: float, dtype: type[Any]
) -> Array:
    """Where each output position lies in the input. *wanted* is the output's extent before rounding down."""
    x = np.arange(out, dtype=dtype)
    scale, start, end, wanted = (dtype(v) for v in (scale, start, end, wanted))
    if mode == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        # the centre of the input stays the centre of the output, although the output size was rounded
        adjustment = out / wanted if wanted else 1.0
        centre = size / 2
        return centre * (1 - adjustment) + (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if out > 1 else np.zeros(out)
    if mode == "align_corners":
        return x * (size - 1) / (wanted - 1) if out > 1 else np.zeros(out)
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if out > 1:  # tf_crop_and_resize
        return start * (size - 1) + x * (end - start) * (size - 1) / (wanted - 1)
    return np.full(out, 0.5 * (start + end) * (size - 1))


def _nearest(x: Array, rounding: str) -> Array:
    if rounding == "round_prefer_floor":
        return np.ceil(x - 0.5)
    if rounding == "round_prefer_ceil":
        return np.floor(x + 0.5)
    if rounding == "simple":
        return np.trunc(x)
    return np.floor(x) if rounding == "floor" else np.ceil(x)


def _linear(d: Array) -> Array:
    return np.maximum(0, 1 - np.abs(d))  # type: ignore[no-any-return]


def _cubic(d: Array, a: float) -> Array:
    d = np.abs(d)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def resize_taps(
    size: int,
    out: int,
    scale: float,
    *,
    mode: str,
    transformation: str,
    nearest_mode: str,
    antialias: bool,
    cubic_coeff_a: float,
    exclude_outside: bool,
    roi: tuple[float, float] = (0.0, 1.0),
) -> Taps:
    """Taps of one axis of *size* elements resampled to *out*."""
    crop = transformation == "tf_crop_and_resize"
    # the specification calculates with the extent that scale asks for, not with the rounded output size
    wanted = float(out) if crop else size * scale
    # A scale such as 1/3 is known in f32 only. Nearest neighbours are taken in f32 as well, where 1/(1/3) is 3 again:
    # in f64 the rounding of the scale would move whole pixels.
    x = _coordinates(transformation, size, out, scale, *roi, wanted, np.float32 if mode == "nearest" else np.float64)
    outside = (x < 0) | (x > size - 1) if crop else np.zeros(out, bool)
    if mode == "nearest":
        indices = np.clip(_nearest(x, nearest_mode), 0, size - 1).astype(np.int64)[:, None]
        return Taps(indices, np.ones((out, 1)), outside)
    # the filter is stretched when it scales down
    stretch = min(scale, 1.0) if antialias else 1.0
    radius = (1 if mode == "linear" else 2) / stretch
    count = 2 * int(np.ceil(radius))
    first = np.floor(x) - count // 2 + 1
    places = first[:, None] + np.arange(count)
    distance = (places - x[:, None]) * stretch
    weights = _linear(distance) if mode == "linear" else _cubic(distance, cubic_coeff_a)
    if exclude_outside:
        weights = np.where((places < 0) | (places > size - 1), 0, weights)
    if exclude_outside or antialias:
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    indices = np.clip(places, 0, max(size - 1, 0)).astype(np.int64)
    used = np.flatnonzero(np.any(weights != 0, axis=0))
    keep = slice(used[0], used[-1] + 1) if used.size else slice(0, 1)
    return Taps(indices[:, keep], weights[:, keep], outside)


def taps_matrix(taps: Taps, size: int) -> Array:
    """The same as a dense matrix ``[out, size]`` (f64)."""
    matrix = np.zeros((len(taps.indices), size))
    rows = np.broadcast_to(np.arange(len(taps.indices))[:, None], taps.indices.shape)
    np.add.at(matrix, (rows, taps.indices), taps.weights)
    return matrix
