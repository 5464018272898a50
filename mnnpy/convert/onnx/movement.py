"""Ops that move, cut and index: attributes that became operands."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnnpy.convert.onnx.conversions import conversion
from mnnpy.convert.onnx.emitter import Emitter
from mnnpy.errors import ModelError
from mnnpy.graph.dtypes import DType


@conversion("Reshape", until=4)
def reshape(g: Emitter, x: str, *, shape: tuple[int, ...] = ()) -> Any:
    """The target shape is an attribute."""
    return g.op("Reshape", x, g.ints(*shape))


@conversion("Concat", until=3)
def concat(g: Emitter, *xs: str, axis: int = 1) -> Any:
    """The axis is optional."""
    return g.op("Concat", *xs, axis=axis)


@conversion("Squeeze", until=12)
def squeeze(g: Emitter, x: str, *, axes: tuple[int, ...] | None = None) -> Any:
    return g.op("Squeeze", x, None if axes is None else g.ints(*axes))


@conversion("Unsqueeze", until=12)
def unsqueeze(g: Emitter, x: str, *, axes: tuple[int, ...]) -> Any:
    return g.op("Unsqueeze", x, g.ints(*axes))


@conversion("Slice", until=9)
def slice_(
    g: Emitter, x: str, *, starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...] | None = None
) -> Any:
    """Bounds are attributes, steps are always 1."""
    if axes is None:
        axes = tuple(range(len(starts)))
    if not len(starts) == len(ends) == len(axes):
        raise ModelError(f"starts, ends and axes have {len(starts)}, {len(ends)} and {len(axes)} entries")
    return g.op("Slice", x, g.ints(*starts), g.ints(*ends), g.ints(*axes))


@conversion("Split", until=1)
def split_1(
    g: Emitter, x: str, sizes: str | None = None, *, axis: int = 0, split: tuple[int, ...] | None = None
) -> Any:
    """Sizes may come as an operand (of the type of *x*) or as an attribute."""
    if sizes is not None:
        return g.op("Split", x, g.op("Cast", sizes, to=DType.I64), outputs=g.n_outputs, axis=axis)
    return split_2(g, x, axis=axis, split=split)


@conversion("Split", since=2, until=12)
def split_2(g: Emitter, x: str, *, axis: int = 0, split: tuple[int, ...] | None = None) -> Any:
    """Sizes are an attribute."""
    if split is None:
        return split_13(g, x, axis=axis)
    if len(split) != g.n_outputs:
        raise ModelError(f"{len(split)} sizes for {g.n_outputs} outputs")
    return g.op("Split", x, g.ints(*split), outputs=g.n_outputs, axis=axis)


@conversion("Split", since=13)
def split_13(g: Emitter, x: str, split: str | None = None, *, axis: int = 0, num_outputs: int | None = None) -> Any:
    """Without sizes the number of parts is always stated."""
    count = None if split is not None else num_outputs or g.n_outputs
    if num_outputs is not None and num_outputs != g.n_outputs:
        raise ModelError(f"num_outputs is {num_outputs}, the node has {g.n_outputs} outputs")
    return g.op("Split", x, split, outputs=g.n_outputs, axis=axis, num_outputs=count)


@conversion("Pad", until=1)
def pad_1(g: Emitter, x: str, *, paddings: tuple[int, ...], mode: str = "constant", value: float = 0.0) -> Any:
    return pad_2(g, x, pads=paddings, mode=mode, value=value)


@conversion("Pad", since=2, until=10)
def pad_2(g: Emitter, x: str, *, pads: tuple[int, ...], mode: str = "constant", value: float = 0.0) -> Any:
    """Pads and fill are attributes."""
    fill = g.like(value, x) if mode == "constant" and value else None
    return g.op("Pad", x, g.ints(*pads), fill, mode=mode)


@conversion("Tile", until=5)
def tile(g: Emitter, x: str, tiles: str, axis: str) -> Any:
    """One axis is repeated; both operands are one number, maybe a float."""
    ones = g.op("ConstantOfShape", g.op("Shape", g.op("Shape", x)), value=g.array(1))
    at = g.op("Reshape", g.op("Cast", axis, to=DType.I64), g.ints(1))
    count = g.op("Reshape", g.op("Cast", tiles, to=DType.I64), g.ints(1))
    return g.op("Tile", x, g.op("ScatterElements", ones, at, count, axis=0))


@conversion("TopK", until=9)
def topk(g: Emitter, x: str, *, k: int, axis: int = -1) -> Any:
    return g.op("TopK", x, g.ints(k), outputs=2, axis=axis)


@conversion("Scatter", since=9)
def scatter(g: Emitter, data: str, indices: str, updates: str, *, axis: int = 0) -> Any:
    """Renamed in opset 11."""
    return g.op("ScatterElements", data, indices, updates, axis=axis)


# -- resizing --


@conversion("Upsample", until=6)
def upsample_1(g: Emitter, x: str, *, height_scale: float, width_scale: float, mode: str = "nearest") -> Any:
    return upsample_7(g, x, scales=(1.0, 1.0, height_scale, width_scale), mode=mode)


@conversion("Upsample", since=7, until=8)
def upsample_7(g: Emitter, x: str, *, scales: tuple[float, ...], mode: str = "nearest") -> Any:
    return upsample_9(g, x, g.const(np.array(scales, np.float32)), mode=mode)


@conversion("Upsample", since=9)
def upsample_9(g: Emitter, x: str, scales: str, *, mode: str = "nearest") -> Any:
    """Scales are at least 1; coordinates are those of ``asymmetric``."""
    mode = "nearest" if mode == "nearest" else "linear"  # opset 1 says "bilinear"
    return g.op("Resize", x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@conversion("Resize", since=10, until=10)
def resize_10(g: Emitter, x: str, scales: str, *, mode: str = "nearest") -> Any:
    """Upsample that may shrink; where it shrinks, *nearest* rounds up (as the runtimes of its time do).

    Sizes are independent per axis, so growing and shrinking axes are resized one after the other.
    """
    if mode != "nearest":
        return upsample_9(g, x, scales, mode=mode)
    known = g.value(scales)
    one = g.const(np.float32(1))
    grow = shrink = True
    if known is not None:
        grow, shrink = bool((known > 1).any()), bool((known < 1).any())
    if grow or not shrink:
        x = upsample_9(g, x, g.op("Max", scales, one) if shrink else scales)
    if shrink:
        down = g.op("Min", scales, one) if grow else scales
        x = g.op("Resize", x, None, down, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="ceil")
    return x


@conversion("Resize", since=11, until=12)
def resize_11(
    g: Emitter,
    x: str,
    roi: str | None = None,
    scales: str | None = None,
    sizes: str | None = None,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    **attrs: Any,
) -> Any:
    """``tf_half_pixel_for_nn`` (half a pixel beyond ``half_pixel``) was withdrawn in opset 13."""
    if coordinate_transformation_mode == "tf_half_pixel_for_nn":
        # x + ½ rounded: floor(x + ½) is round-half-up of x, and round-half-down of x + ½ is ceil(x).
        equal = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}
        if attrs.get("mode", "nearest") != "nearest" or nearest_mode not in equal:
            raise ModelError(
                f"tf_half_pixel_for_nn with mode '{attrs.get('mode')}' and nearest_mode '{nearest_mode}' has no "
                "equivalent in later opsets; export with half_pixel"
            )
        coordinate_transformation_mode, nearest_mode = "half_pixel", equal[nearest_mode]
    return resize_13(
        g,
        x,
        roi,
        scales,
        sizes,
        coordinate_transformation_mode=coordinate_transformation_mode,
        nearest_mode=nearest_mode,
        **attrs,
    )


@conversion("Resize", since=13)
def resize_13(
    g: Emitter, x: str, roi: str | None = None, scales: str | None = None, sizes: str | None = None, **attrs: Any
) -> Any:
    """An empty operand is an absent one: exporters write both."""
    operands = [None if name is None or _empty(g, name) else name for name in (roi, scales, sizes)]
    return g.op("Resize", x, *operands, **attrs)


def _empty(g: Emitter, name: str) -> bool:
    value = g.value(name)
    return value is not None and value.size == 0


@conversion("GridSample", since=16, until=19)
def grid_sample(g: Emitter, x: str, grid: str, *, mode: str = "bilinear", **attrs: Any) -> Any:
    """Interpolation modes were named for images."""
    renamed = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return g.op("GridSample", x, grid, mode=renamed, **attrs)


@conversion("RoiAlign", since=10, until=15)
def roi_align(g: Emitter, x: str, rois: str, batch_indices: str, **attrs: Any) -> Any:
    """Coordinates were not shifted by half a pixel."""
    return g.op("RoiAlign", x, rois, batch_indices, coordinate_transformation_mode="output_half_pixel", **attrs)
