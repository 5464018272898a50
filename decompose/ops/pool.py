"""Shape functions of pooling."""

from __future__ import annotations

from mnnpy.decompose.infer import Operand
from mnnpy.decompose.ops.windows import Ints, fits, pool_window
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim, Shape
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType


def _pooled(
    x: Operand,
    kernel_shape: Ints,
    strides: Ints | None,
    pads: Ints | None,
    dilations: Ints | None,
    auto_pad: str,
    ceil_mode: int,
) -> Shape:
    window = pool_window(x.shape, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return (*x.shape[:2], *window.out)


@op("AveragePool", OpClass.COMPOSITE)
def average_pool(
    x: Operand,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Mean over sliding windows."""
    return TensorType(x.dtype, _pooled(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode))


@op("MaxPool", OpClass.COMPOSITE)
def max_pool(
    x: Operand,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
) -> tuple[TensorType, TensorType]:
    """Maximum over sliding windows, and its flat index in the input."""
    shape = _pooled(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return TensorType(x.dtype, shape), TensorType(DType.I64, shape)


@op("LpPool", OpClass.COMPOSITE)
def lp_pool(
    x: Operand,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    p: int = 2,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Lp norm over sliding windows."""
    return TensorType(x.dtype, _pooled(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode))


def _global(x: Operand) -> TensorType:
    if x.rank < 2:
        raise ShapeError(f"input has rank {x.rank}; global pooling needs (N, C, spatial…)")
    return TensorType(x.dtype, (*x.shape[:2], *(1 for _ in x.shape[2:])))


@op("GlobalAveragePool", OpClass.COMPOSITE)
def global_average_pool(x: Operand) -> TensorType:
    """Mean over all spatial dims."""
    return _global(x)


@op("GlobalMaxPool", OpClass.COMPOSITE)
def global_max_pool(x: Operand) -> TensorType:
    """Maximum over all spatial dims."""
    return _global(x)


@op("GlobalLpPool", OpClass.COMPOSITE)
def global_lp_pool(x: Operand, *, p: int = 2) -> TensorType:
    """Lp norm over all spatial dims."""
    return _global(x)


def unpooled_shape(shape: Shape, kernel_shape: Ints, strides: Ints | None, pads: Ints | None) -> Shape:
    """The size a max pooling with these attributes would have had as its input."""
    k = len(shape) - 2
    if k < 1 or len(kernel_shape) != k:
        raise ShapeError(f"input has shape {shape}, but kernel_shape has {len(kernel_shape)} entries")
    step, edge = strides or (1,) * k, pads or (0,) * (2 * k)
    spatial: list[Dim] = [(shape[2 + i] - 1) * step[i] - (edge[i] + edge[k + i]) + kernel_shape[i] for i in range(k)]
    return (*shape[:2], *spatial)


@op("MaxUnpool", OpClass.COMPOSITE)
def max_unpool(
    x: Operand,
    indices: Operand,
    output_shape: Operand | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Values of *x* at flat *indices* of an otherwise zero tensor."""
    inferred = unpooled_shape(x.shape, kernel_shape, strides, pads)
    if output_shape is None:
        return TensorType(x.dtype, inferred)
    wanted = output_shape.require_ints()
    if len(wanted) != x.rank:
        raise ShapeError(f"output_shape has {len(wanted)} entries for an input of rank {x.rank}")
    return TensorType(x.dtype, wanted)


@op("MaxRoiPool", OpClass.COMPOSITE)
def max_roi_pool(x: Operand, rois: Operand, *, pooled_shape: Ints, spatial_scale: float = 1.0) -> TensorType:
    """Maximum over a grid of bins of each region of interest (Fast R-CNN)."""
    if x.rank != 4 or not fits(rois.shape, (None, 5)):
        raise ShapeError(f"input {x.shape} must be [N,C,H,W] and rois {rois.shape} must be [R,5]")
    return TensorType(x.dtype, (rois.shape[0], x.shape[1], *pooled_shape))
