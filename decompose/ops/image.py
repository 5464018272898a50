"""Shape functions of resampling and detection."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

import numpy as np

from mnnpy.decompose.infer import Operand, data_dim, normalize_axis
from mnnpy.decompose.ops.windows import fits
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim, SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, TensorType


@op("AffineGrid", OpClass.COMPOSITE)
def affine_grid(theta: Operand, size: Operand, *, align_corners: int = 0) -> TensorType:
    """Sampling positions of an affine map ``theta[N,r,r+1]`` over an output of *size* (N, C, spatial)."""
    sizes = size.require_ints()
    r = len(sizes) - 2
    if r not in (2, 3) or not fits(theta.shape, (None, r, r + 1)):
        raise ShapeError(f"theta {theta.shape} does not fit size {sizes}; use [N,2,3] with 4 or [N,3,4] with 5 sizes")
    return TensorType(theta.dtype, (sizes[0], *sizes[2:], r))


_GRID_MODES = ("linear", "nearest", "cubic")
_PADDING = ("zeros", "border", "reflection")


@op("GridSample", OpClass.COMPOSITE)
def grid_sample(
    x: Operand, grid: Operand, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> TensorType:
    """Values of ``x[N,C,…]`` at normalised positions ``grid[N,…,r]``."""
    r = x.rank - 2
    if r < 1 or not fits(grid.shape, (*(None,) * (r + 1), r)):
        raise ShapeError(f"grid {grid.shape} does not fit input {x.shape}; it must be [N, {r} output dims, {r}]")
    if mode not in _GRID_MODES or padding_mode not in _PADDING:
        raise ShapeError(
            f"mode '{mode}' or padding_mode '{padding_mode}' is unknown; use {', '.join(_GRID_MODES)} and "
            f"{', '.join(_PADDING)}"
        )
    return TensorType(x.dtype, (*x.shape[:2], *grid.shape[1:-1]))


def resize_sizes(
    shape: Sequence[Dim],
    roi: Array | None,
    scales: Sequence[float] | None,
    sizes: Sequence[Dim] | None,
    axes: tuple[int, ...] | None,
    policy: str,
    crop: bool,
) -> tuple[tuple[Dim, ...], tuple[float, ...] | None]:
    """Output sizes of Resize, and the scale of every axis (``None`` where sizes are symbolic)."""
    rank = len(shape)
    along = [normalize_axis(a, rank) for a in axes] if axes is not None else list(range(rank))
    out, factor = list(shape), [1.0] * rank
    given = scales if scales is not None else sizes
    if given is None or len(given) != len(along):
        raise ShapeError(f"scales or sizes must have {len(along)} entries, got {None if given is None else len(given)}")
    if scales is not None:
        for k, axis in enumerate(along):
            factor[axis] = float(scales[k])
            part = float(roi[len(along) + k]) - float(roi[k]) if crop and roi is not None else 1.0
            d = shape[axis]
            if isinstance(d, SymDim):
                out[axis] = d * int(factor[axis]) if part == 1 and factor[axis].is_integer() else data_dim("resized")
            else:
                # in f32, in which scales are given: 10 · f32(0.7) is 7
                out[axis] = int(np.floor(np.float32(d) * np.float32(part) * np.float32(factor[axis])))
        return tuple(out), tuple(factor)
    assert sizes is not None
    if any(isinstance(d, SymDim) for d in (*sizes, *shape)):
        if policy != "stretch":
            sizes = [data_dim("resized") for _ in sizes]
        return tuple(sizes[along.index(a)] if a in along else d for a, d in enumerate(shape)), None
    wanted = [int(s) for s in sizes]  # type: ignore[arg-type]
    for k, axis in enumerate(along):
        out[axis], factor[axis] = wanted[k], wanted[k] / int(shape[axis]) if shape[axis] else 1.0  # type: ignore[arg-type]
    if policy != "stretch":
        pick = min if policy == "not_larger" else max
        common = pick(factor[a] for a in along)
        for axis in along:
            factor[axis] = common
            # ONNX rounds halves up here
            out[axis] = floor(common * int(shape[axis]) + 0.5)  # type: ignore[arg-type]
    return tuple(out), tuple(factor)


_RESIZE = {
    "mode": ("nearest", "linear", "cubic"),
    "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple"),
    "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
    "coordinate_transformation_mode": (
        "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
        "tf_half_pixel_for_nn",
    ),
}  # fmt: skip


def present(operand: Operand | None) -> Operand | None:
    """Exporters write an empty tensor for an absent operand of Resize."""
    if operand is not None and operand.type.shape == (0,):
        return None
    return operand


@op("Resize", OpClass.COMPOSITE)
def resize(
    x: Operand,
    roi: Operand | None = None,
    scales: Operand | None = None,
    sizes: Operand | None = None,
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
) -> TensorType:
    """Resampling by scales or to sizes."""
    chosen = {
        "mode": mode,
        "nearest_mode": nearest_mode,
        "keep_aspect_ratio_policy": keep_aspect_ratio_policy,
        "coordinate_transformation_mode": coordinate_transformation_mode,
    }
    for key, value in chosen.items():
        if value not in _RESIZE[key]:
            raise ShapeError(f"{key} '{value}' is not one of {', '.join(_RESIZE[key])}")
    scale_operand, size_operand = present(scales), present(sizes)
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    region = present(roi)
    window = np.asarray(region.require_value()).reshape(-1) if crop and region is not None else None
    factors: list[float] | None = None
    if scale_operand is not None:
        factors = [float(v) for v in scale_operand.require_value().reshape(-1).tolist()]
        if any(v <= 0 for v in factors):
            raise ShapeError(f"scales are {factors}; they must be positive")
    wanted = size_operand.require_ints() if size_operand is not None and factors is None else None
    out, _ = resize_sizes(x.shape, window, factors, wanted, axes, keep_aspect_ratio_policy, crop)
    return TensorType(x.dtype, out)


@op("RoiAlign", OpClass.COMPOSITE)
def roi_align(
    x: Operand,
    rois: Operand,
    batch_indices: Operand,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> TensorType:
    """Bilinear pooling of regions of interest (Mask R-CNN, arXiv 1703.06870)."""
    if x.rank != 4 or not fits(rois.shape, (None, 4)) or batch_indices.rank != 1:
        raise ShapeError(
            f"input {x.shape}, rois {rois.shape}, batch_indices {batch_indices.shape}: [N,C,H,W], [R,4], [R] are needed"
        )
    if mode not in ("avg", "max") or coordinate_transformation_mode not in ("half_pixel", "output_half_pixel"):
        raise ShapeError(
            f"mode '{mode}' or coordinate_transformation_mode '{coordinate_transformation_mode}' is unknown"
        )
    return TensorType(x.dtype, (rois.shape[0], x.shape[1], output_height, output_width))


@op("NonMaxSuppression", OpClass.HOST)
def non_max_suppression(
    boxes: Operand,
    scores: Operand,
    max_output_boxes_per_class: Operand | None = None,
    iou_threshold: Operand | None = None,
    score_threshold: Operand | None = None,
    *,
    center_point_box: int = 0,
) -> TensorType:
    """Indices ``[selected, 3]`` (batch, class, box) of boxes that do not overlap a better one."""
    if boxes.rank != 3 or (boxes.shape[2] != 4 and isinstance(boxes.shape[2], int)) or scores.rank != 3:
        raise ShapeError(
            f"boxes {boxes.shape} must be [batches, boxes, 4], scores {scores.shape} [batches, classes, boxes]"
        )
    return TensorType(DType.I64, (data_dim("boxes"), 3))


@op("ImageDecoder", OpClass.HOST)
def image_decoder(encoded: Operand, *, pixel_format: str = "RGB") -> TensorType:
    """Pixels ``[height, width, channels]`` of an encoded image file."""
    if pixel_format not in ("RGB", "BGR", "Grayscale"):
        raise ShapeError(f"pixel_format '{pixel_format}' is not one of RGB, BGR, Grayscale")
    channels = 1 if pixel_format == "Grayscale" else 3
    return TensorType(DType.U8, (data_dim("height"), data_dim("width"), channels))
