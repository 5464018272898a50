"""Rules of quantisation: conversion, arithmetic in the stated precision, rounding half to even, saturation."""

from __future__ import annotations

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.ops.element_types import ElementType, maybe_element_type
from mnnpy.decompose.ops.quantize import float_of_scale, quantization_axis
from mnnpy.decompose.raster import Region, row_major
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import LIMITS, is_zero
from mnnpy.graph.dtypes import DType


def _spread(g: Builder, v: Var, x: Var, axis: int, block_size: int) -> Var:
    """Scale or zero point *v*, broadcastable to *x*."""
    along = quantization_axis(x.rank, v.shape, axis, block_size)
    if along is None:
        return v if v.rank == 0 else g.reshape(v, ())
    if not block_size:
        return g.reshape(v, tuple(-1 if k == along else 1 for k in range(x.rank)))
    if block_size == 1:
        return v
    # every element is repeated block_size times; the last block may be cut
    size, s, d = x.shape[along], row_major(v.shape), row_major(x.shape)
    whole, rest = divmod(size, block_size)
    regions = []
    for first, blocks, length in ((0, whole, block_size), (whole, 1, rest)):
        if blocks and length:
            regions.append(
                Region(
                    0,
                    (*x.shape[:along], blocks, length, *x.shape[along + 1 :]),
                    first * s[along],
                    (*s[:along], s[along], 0, *s[along + 1 :]),
                    first * block_size * d[along],
                    (*d[:along], block_size * d[along], d[along], *d[along + 1 :]),
                )
            )
    return g.raster([v], regions, x.shape)


@rule("QuantizeLinear")
def quantize_linear(
    g: Builder,
    x: Var,
    y_scale: Var,
    y_zero_point: Var | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: ElementType | None = None,
    precision: ElementType | None = None,
    saturate: int = 1,
) -> Var:
    to = maybe_element_type(output_dtype) or (y_zero_point.dtype if y_zero_point is not None else DType.U8)
    division = maybe_element_type(precision) or float_of_scale(y_scale.dtype)
    scale = g.cast(_spread(g, g.cast(y_scale, DType.F32), x, axis, block_size), division)
    value = g.cast(g.div(g.cast(x, division), scale), DType.F32)
    if to.is_int:
        value = g.unary("Round", value)
    if y_zero_point is not None and not is_zero(y_zero_point):
        value = g.add(value, _spread(g, g.cast(y_zero_point, DType.F32), x, axis, block_size))
    if not to.is_int:
        return g.op("Convert", value, to=to, saturate=bool(saturate))  # type: ignore[no-any-return]
    low, high = LIMITS[to]
    return g.cast(g.unary("Clip", value, alpha=float(low), beta=float(high)), to)


@rule("DequantizeLinear")
def dequantize_linear(
    g: Builder,
    x: Var,
    x_scale: Var,
    x_zero_point: Var | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: ElementType | None = None,
) -> Var:
    to = maybe_element_type(output_dtype) or float_of_scale(x_scale.dtype)
    zero = None if x_zero_point is None or is_zero(x_zero_point) else x_zero_point
    if x.dtype is DType.I32 and zero is not None:
        # differences of 32-bit values are exact in i32 only
        value = g.cast(g.sub(x, _spread(g, zero, x, axis, block_size)), DType.F32)
    else:
        value = g.cast(x, DType.F32)
        if zero is not None:
            value = g.sub(value, _spread(g, g.cast(zero, DType.F32), x, axis, block_size))
    return g.cast(g.mul(value, _spread(g, g.cast(x_scale, DType.F32), x, axis, block_size)), to)


@rule("DynamicQuantizeLinear")
def dynamic_quantize_linear(g: Builder, x: Var) -> tuple[Var, Var, Var]:
    axes = range(x.rank)
    low = g.binary("Min", g.reduce("Min", x, axes, keepdims=False), 0)
    high = g.binary("Max", g.reduce("Max", x, axes, keepdims=False), 0)
    scale = g.div(g.sub(high, low), 255)
    # all zeros: any scale will do, and 1 keeps the division defined
    scale = g.select(g.binary("Equal", scale, 0), g.const(1, DType.F32), scale)
    zero = g.unary("Clip", g.unary("Round", g.div(g.unary("Neg", low), scale)), alpha=0.0, beta=255.0)
    shifted = g.add(g.unary("Round", g.div(x, scale)), zero)
    return g.cast(g.unary("Clip", shifted, alpha=0.0, beta=255.0), DType.U8), scale, g.cast(zero, DType.U8)
