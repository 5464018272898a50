"""NumPy references of quantisation, from the ONNX operator specification."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from mnnpy.backends.reference.kernels.conversion import convert_array
from mnnpy.backends.reference.kernels.numeric import wide
from mnnpy.decompose.ops.element_types import ElementType, maybe_element_type
from mnnpy.decompose.ops.quantize import float_of_scale, quantization_axis
from mnnpy.decompose.registry import reference
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array


def _spread(v: Array, x: Array, axis: int, block_size: int) -> Array:
    """Scale or zero point *v*, broadcastable to *x*."""
    along = quantization_axis(x.ndim, v.shape, axis, block_size)
    if along is None:
        return v.reshape(())
    if block_size:
        return np.take(v, np.arange(x.shape[along]) // block_size, axis=along)
    return v.reshape(tuple(-1 if k == along else 1 for k in range(x.ndim)))


def _f32(x: Array) -> Array:
    return x.astype(np.float32)


@reference("QuantizeLinear")
def quantize_linear(
    x: Array,
    y_scale: Array,
    y_zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: ElementType | None = None,
    precision: ElementType | None = None,
    saturate: int = 1,
) -> Array:
    to = maybe_element_type(output_dtype) or (DType.U8 if y_zero_point is None else DType.of(y_zero_point.dtype))
    division = maybe_element_type(precision) or float_of_scale(DType.of(y_scale.dtype))
    # the operands of the division are rounded to its precision, and so is the quotient
    numerator, scale = (_f32(v.astype(division.numpy)) for v in (x, _f32(_spread(y_scale, x, axis, block_size))))
    quotient = _f32((numerator / scale).astype(division.numpy))
    zero = np.float32(0) if y_zero_point is None else _f32(wide(_spread(y_zero_point, x, axis, block_size)))
    if not to.is_int:
        return convert_array(quotient + zero, to, bool(saturate))
    info = ml_dtypes.iinfo(to.numpy)  # type: ignore[no-untyped-call]
    clipped = np.clip(np.rint(quotient) + zero, float(info.min), float(info.max))
    return convert_array(clipped, to)


@reference("DequantizeLinear")
def dequantize_linear(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: ElementType | None = None,
) -> Array:
    to = maybe_element_type(output_dtype) or float_of_scale(DType.of(x_scale.dtype))
    scale = _spread(x_scale, x, axis, block_size).astype(np.float32)
    values = wide(x)
    if values.dtype.kind in "iu":
        values = values.astype(np.int64)
    if x_zero_point is not None:
        values = values - wide(_spread(x_zero_point, x, axis, block_size)).astype(values.dtype)
    return (_f32(values) * scale).astype(to.numpy)


@reference("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Array) -> tuple[Array, Array, Array]:
    low = np.minimum(np.float32(0), x.min(initial=0)).astype(np.float32)
    high = np.maximum(np.float32(0), x.max(initial=0)).astype(np.float32)
    scale = np.float32((high - low) / np.float32(255))
    # all zeros: any scale will do, and 1 keeps the division defined
    scale = np.float32(1) if scale == 0 else scale
    zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.float32)
    y = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8)
    return y, np.asarray(scale, np.float32), np.asarray(zero).astype(np.uint8)
