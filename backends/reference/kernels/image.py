"""NumPy references of resampling and detection, from the ONNX operator specification."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from math import prod

import numpy as np

from mnnpy.backends.reference.kernels.numeric import narrow, wide
from mnnpy.decompose.ops.image import resize_sizes
from mnnpy.decompose.ops.resampling import resize_taps, taps_matrix
from mnnpy.decompose.registry import reference
from mnnpy.errors import InputError, MnnpyError
from mnnpy.graph.ir import Array


@reference("AffineGrid")
def affine_grid(theta: Array, size: Array, *, align_corners: int = 0) -> Array:
    sizes = [int(v) for v in size]
    points = base_grid(tuple(sizes[2:]), bool(align_corners))
    grid = np.matmul(points, wide(theta).swapaxes(1, 2))
    return narrow(grid.reshape(sizes[0], *sizes[2:], len(sizes) - 2), theta.dtype)


def base_grid(spatial: tuple[int, ...], align_corners: bool) -> Array:
    """Homogeneous positions ``[points, r + 1]``: x fastest, each from −1 to 1."""
    axes = []
    for d in spatial:
        if align_corners:
            axes.append(np.linspace(-1, 1, d) if d > 1 else np.zeros(d))
        else:
            axes.append((2 * np.arange(d) + 1) / d - 1)
    mesh = np.meshgrid(*axes, indexing="ij")
    return np.stack([*(m.reshape(-1) for m in reversed(mesh)), np.ones(prod(spatial))], axis=-1)


def _reflect(x: Array, low: float, high: float) -> Array:
    span = high - low
    if span <= 0:
        return np.full_like(x, low)
    t = np.mod(x - low, 2 * span)
    return low + np.where(t > span, 2 * span - t, t)


def _cubic_weights(t: Array) -> list[Array]:
    """Weights of the taps at −1, 0, 1, 2 for the fraction *t* (Keys' kernel with a = −0.75)."""
    a = -0.75

    def near(d: Array) -> Array:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Array) -> Array:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _axis_taps(x: Array, size: int, mode: str, padding: str, align: bool) -> list[tuple[Array, Array]]:
    """Integer places and weights along one axis for pixel coordinates *x*."""
    low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
    if mode == "nearest":
        x = np.rint(x)
    if padding != "zeros":
        out = (x < low) | (x > high)
        x = np.where(out, np.clip(x, 0, size - 1) if padding == "border" else _reflect(x, low, high), x)
    if mode == "nearest":
        return [(x, np.ones_like(x))]
    base = np.floor(x)
    t = x - base
    if mode == "linear":
        return [(base, 1 - t), (base + 1, t)]
    return [(base + k - 1, w) for k, w in enumerate(_cubic_weights(t))]


@reference("GridSample")
def grid_sample(
    x: Array, grid: Array, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Array:
    r, spatial = x.ndim - 2, x.shape[2:]
    points = wide(grid).reshape(x.shape[0], prod(grid.shape[1:-1]), r)
    if padding_mode != "zeros":
        points = np.where(np.isnan(points), -1, points)
    data = x if mode == "nearest" else wide(x)
    y = np.zeros((*x.shape[:2], points.shape[1]), data.dtype if mode == "nearest" else np.float64)
    for n in range(x.shape[0]):
        taps = []
        for j, size in enumerate(spatial):
            g = points[n, :, r - 1 - j]
            at = (g + 1) / 2 * (size - 1) if align_corners else ((g + 1) * size - 1) / 2
            taps.append(_axis_taps(at, size, mode, padding_mode, bool(align_corners)))
        for choice in itertools.product(*taps):
            index, weight, inside = [], np.ones(points.shape[1]), np.ones(points.shape[1], bool)
            for (place, w), size in zip(choice, spatial, strict=True):
                if padding_mode == "reflection":
                    place = np.rint(_reflect(place, *((0, size - 1) if align_corners else (-0.5, size - 0.5))))
                if padding_mode == "zeros":
                    inside &= (place >= 0) & (place <= size - 1)
                index.append(np.nan_to_num(np.clip(place, 0, size - 1)).astype(np.int64))
                weight = weight * w
            values = data[n][(slice(None), *index)]
            if mode == "nearest":
                y[n] = np.where(inside, values, np.zeros((), values.dtype))
            else:
                y[n] += np.where(inside, values * weight, 0)
    return from_float(y, x).reshape(*x.shape[:2], *grid.shape[1:-1])


def from_float(y: Array, x: Array) -> Array:
    """*y* in the type of *x*; integers are clipped to its range and truncated."""
    if y.dtype == x.dtype:
        return y
    if x.dtype.kind in "iu":
        info = np.iinfo(x.dtype)
        y = np.clip(y, float(info.min), float(info.max))
    return narrow(y, x.dtype)


@reference("Resize")
def resize(
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    along = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    window = wide(roi).reshape(-1) if crop and roi is not None and roi.size else None
    factors = [float(v) for v in scales] if scales is not None and scales.size else None
    wanted = [int(v) for v in sizes] if factors is None and sizes is not None else None
    out, scale = resize_sizes(x.shape, window, factors, wanted, axes, keep_aspect_ratio_policy, crop)
    assert scale is not None
    y = x if mode == "nearest" else wide(x)
    outside = []
    for axis, (d, o) in enumerate(zip(x.shape, out, strict=True)):
        region = (0.0, 1.0)
        if window is not None and axis in along:
            region = (float(window[along.index(axis)]), float(window[len(along) + along.index(axis)]))
        taps = resize_taps(
            d, int(o), scale[axis], mode=mode, transformation=coordinate_transformation_mode, nearest_mode=nearest_mode,  # type: ignore[arg-type]
            antialias=bool(antialias), cubic_coeff_a=cubic_coeff_a, exclude_outside=bool(exclude_outside), roi=region,
        ) if axis in along else None  # fmt: skip
        outside.append(taps.outside if taps is not None else np.zeros(d, bool))
        if taps is None or (d == o and scale[axis] == 1 and not crop):
            continue
        if mode == "nearest":
            y = np.take(y, taps.indices[:, 0], axis=axis)
        else:
            y = np.moveaxis(np.tensordot(taps_matrix(taps, d), y, axes=(1, axis)), 0, axis)
    beyond = np.zeros(y.shape, bool)
    for axis, flags in enumerate(outside):
        beyond |= flags.reshape(tuple(-1 if k == axis else 1 for k in range(x.ndim)))
    if y.dtype != x.dtype and x.dtype.kind in "iu" and antialias:
        y = np.rint(y)
    y = from_float(y, x)
    return np.where(beyond, np.asarray(extrapolation_value).astype(x.dtype), y) if beyond.any() else y


def _roi_axis(low: float, length: float, bins: int, samples: int, size: int) -> tuple[Array, Array, Array, Array]:
    """Lower and upper place and their weights for the sample points along one axis of one region."""
    at = low + (np.arange(bins)[:, None] + (np.arange(samples) + 0.5) / samples) * (length / bins)
    void = (at < -1) | (at > size)
    at = np.clip(at, 0, size - 1)
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, size - 1)
    t = at - below
    return below, above, np.where(void, 0, 1 - t), np.where(void, 0, t)


@reference("RoiAlign")
def roi_align(
    x: Array,
    rois: Array,
    batch_indices: Array,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Array:
    values, regions = wide(x), wide(rois) * spatial_scale
    half = coordinate_transformation_mode == "half_pixel"
    bins = (output_height, output_width)
    y = np.zeros((len(rois), x.shape[1], *bins))
    for r, (x1, y1, x2, y2) in enumerate(regions - (0.5 if half else 0.0)):
        lengths = [y2 - y1, x2 - x1]
        if not half:
            lengths = [max(v, 1.0) for v in lengths]
        counts = [sampling_ratio or max(int(np.ceil(v / b)), 0) for v, b in zip(lengths, bins, strict=True)]
        if 0 in counts:
            continue
        rows = _roi_axis(y1, lengths[0], bins[0], counts[0], x.shape[2])
        columns = _roi_axis(x1, lengths[1], bins[1], counts[1], x.shape[3])
        parts = []
        for i, j in itertools.product((0, 1), (0, 1)):
            pixels = values[int(batch_indices[r])][:, rows[i][:, None, :, None], columns[j][None, :, None, :]]
            parts.append(pixels * (rows[2 + i][:, None, :, None] * columns[2 + j][None, :, None, :]))
        # max mode takes the largest weighted corner, as the specification's reference does
        y[r] = sum(parts).mean(axis=(3, 4)) if mode == "avg" else np.max(parts, axis=(0, 4, 5))
    return narrow(y, x.dtype)


def _corners(boxes: Array, center_point_box: int) -> Array:
    if center_point_box:
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        return np.concatenate([centre - half, centre + half], axis=1)
    return np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)


def _overlap(box: Array, others: Array) -> Array:
    """Intersection over union of one box with *others*."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.maximum(sides, 0).prod(axis=1)
    area: Callable[[Array], Array] = lambda b: (b[..., 2:] - b[..., :2]).prod(axis=-1)  # noqa: E731
    union = area(box) + area(others) - common
    return np.where((common > 0) & (union > 0), common / np.where(union > 0, union, 1), 0)


@reference("NonMaxSuppression")
def non_max_suppression(
    boxes: Array,
    scores: Array,
    max_output_boxes_per_class: Array | None = None,
    iou_threshold: Array | None = None,
    score_threshold: Array | None = None,
    *,
    center_point_box: int = 0,
) -> Array:
    limit = 0 if max_output_boxes_per_class is None else int(max_output_boxes_per_class.reshape(-1)[0])
    threshold = 0.0 if iou_threshold is None else float(iou_threshold.reshape(-1)[0])
    chosen: list[tuple[int, int, int]] = []
    for n, c in itertools.product(range(scores.shape[0]), range(scores.shape[1])):
        corners = _corners(boxes[n], center_point_box)
        order = np.argsort(-scores[n, c], kind="stable")
        if score_threshold is not None:
            order = order[scores[n, c][order] > score_threshold.reshape(-1)[0]]
        kept = 0
        while order.size and kept < limit:
            best, rest = order[0], order[1:]
            chosen.append((n, c, int(best)))
            kept += 1
            order = rest[_overlap(corners[best], corners[rest]) <= threshold]
    return np.asarray(chosen, np.int64).reshape(-1, 3)


@reference("ImageDecoder")
def image_decoder(encoded: Array, *, pixel_format: str = "RGB") -> Array:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MnnpyError(
            "ImageDecoder needs Pillow, which is not installed; run: pip install 'mnnpy-engine[image]'"
        ) from error
    try:
        picture = Image.open(io.BytesIO(np.ascontiguousarray(encoded, np.uint8).tobytes()))
        pixels = np.asarray(picture.convert("L" if pixel_format == "Grayscale" else "RGB"))
    except Image.DecompressionBombError as error:
        raise InputError(f"ImageDecoder: {error}; the image is too large to be decoded safely") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        # the specification asks for an empty image where the stream cannot be decoded
        return np.zeros((0, 0, 1 if pixel_format == "Grayscale" else 3), np.uint8)
    if pixel_format == "Grayscale":
        return pixels[:, :, None]
    return np.ascontiguousarray(pixels[:, :, ::-1]) if pixel_format == "BGR" else pixels
