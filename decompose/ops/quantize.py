"""Shape functions of quantisation."""

from __future__ import annotations

from mnnpy.decompose.infer import Operand, normalize_axis
from mnnpy.decompose.ops.element_types import ElementType, maybe_element_type
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import is_static
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType

#: Element types that hold quantised values.
QUANTISED = frozenset(
    {
        DType.I2, DType.U2, DType.I4, DType.U4, DType.I8, DType.U8, DType.I16, DType.U16,
        DType.F8E4M3FN, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ, DType.F4E2M1,
    }
)  # fmt: skip


def quantization_axis(x_rank: int, scale_shape: tuple[object, ...], axis: int, block_size: int) -> int | None:
    """The normalised axis that *scale* runs along; ``None`` for one scale for all elements."""
    if not scale_shape or (len(scale_shape) == 1 and scale_shape[0] == 1 and not block_size):
        return None
    return 0 if x_rank == 1 else normalize_axis(axis, x_rank)


def _check_granularity(x: Operand, scale: Operand, zero_point: Operand | None, axis: int, block_size: int) -> None:
    if zero_point is not None and is_static(scale.shape) and is_static(zero_point.shape):
        single = all(s in ((), (1,)) for s in (scale.shape, zero_point.shape))
        if scale.shape != zero_point.shape and not single:
            raise ShapeError(f"the scale has shape {scale.shape}, the zero point {zero_point.shape}; they must agree")
    if block_size < 0:
        raise ShapeError(f"block_size is {block_size}; it must be positive, or 0 for per-tensor or per-axis scales")
    along = quantization_axis(x.rank, scale.shape, axis, block_size)
    if along is None:
        return
    size = x.shape[along]
    if block_size:
        if scale.rank != x.rank:
            raise ShapeError(f"blocked quantisation needs a scale of rank {x.rank}, got shape {scale.shape}")
        want = tuple((d + (block_size - 1)) // block_size if k == along else d for k, d in enumerate(x.shape))
        pairs = zip(scale.shape, want, strict=True)
    else:
        if scale.rank != 1:
            raise ShapeError(f"the scale has shape {scale.shape}; without block_size it is a scalar or a vector")
        want, pairs = (size,), zip(scale.shape, (size,), strict=True)
    if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
        raise ShapeError(
            f"the scale has shape {scale.shape}, but input {x.shape} with axis {along} and block_size "
            f"{block_size} needs {want}"
        )


@op("QuantizeLinear", OpClass.COMPOSITE)
def quantize_linear(
    x: Operand,
    y_scale: Operand,
    y_zero_point: Operand | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: ElementType | None = None,
    precision: ElementType | None = None,
    saturate: int = 1,
) -> TensorType:
    """``saturate(round(x / scale) + zero_point)``."""
    _check_granularity(x, y_scale, y_zero_point, axis, block_size)
    asked = maybe_element_type(output_dtype)
    dtype = asked or (y_zero_point.dtype if y_zero_point is not None else DType.U8)
    if y_zero_point is not None and asked is not None and asked is not y_zero_point.dtype:
        raise ShapeError(f"output_dtype is {asked}, but the zero point is {y_zero_point.dtype}; they must agree")
    if dtype not in QUANTISED:
        raise ShapeError(f"{dtype} is no quantised type; use one of {', '.join(sorted(map(str, QUANTISED)))}")
    return TensorType(dtype, x.shape)


@op("DequantizeLinear", OpClass.COMPOSITE)
def dequantize_linear(
    x: Operand,
    x_scale: Operand,
    x_zero_point: Operand | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: ElementType | None = None,
) -> TensorType:
    """``(x − zero_point) · scale``."""
    _check_granularity(x, x_scale, x_zero_point, axis, block_size)
    if x_zero_point is not None and x_zero_point.dtype is not x.dtype:
        raise ShapeError(f"the zero point is {x_zero_point.dtype}, the input {x.dtype}; they must agree")
    return TensorType(maybe_element_type(output_dtype) or float_of_scale(x_scale.dtype), x.shape)


def float_of_scale(dtype: DType) -> DType:
    """The floating type that a scale of *dtype* calculates in."""
    return dtype if dtype in (DType.F32, DType.F16, DType.BF16) else DType.F32


@op("DynamicQuantizeLinear", OpClass.COMPOSITE)
def dynamic_quantize_linear(x: Operand) -> tuple[TensorType, TensorType, TensorType]:
    """8-bit quantisation with scale and zero point from the data's range."""
    if x.dtype is not DType.F32:
        raise ShapeError(f"input is {x.dtype}; DynamicQuantizeLinear takes f32")
    return TensorType(DType.U8, x.shape), TensorType(DType.F32, ()), TensorType(DType.U8, ())
