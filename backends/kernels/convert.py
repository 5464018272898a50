"""Element type conversion with the semantics of ONNX Cast."""

from __future__ import annotations

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.formats import NARROW_FLOATS, decode, encode, narrowed
from mnnpy.backends.kernels.functions import wrap
from mnnpy.backends.kernels.ir import Expr, const, register_type, select
from mnnpy.backends.kernels.lowering import Declined
from mnnpy.graph.dtypes import DType

__all__ = ["convert"]

_RANGE = {DType.I32: 2.0**31, DType.U32: 2.0**32, DType.I64: 2.0**63, DType.U64: 2.0**64}


def _to_integer(b: KernelBuilder, x: Expr, kind: DType) -> Expr:
    """Truncation; what does not fit gives a bound or 0 instead of what the device makes of undefined behaviour."""
    x = b.let(x)
    high = _RANGE[kind]
    low = -high if kind in (DType.I32, DType.I64) else 0.0
    inside = b.let((x >= low) & (x < high))
    safe = b.let(select(inside, x, const(0.0, x.type)).cast(kind))
    bottom = const(int(low), kind)
    top = const(int(high) - 1, kind)
    return select(inside, safe, select(x >= high, top, select(x < low, bottom, const(0, kind))))


def convert(
    b: KernelBuilder, x: Expr, source: DType, target: DType, saturate: bool = True, round_mode: str = "up"
) -> Expr:
    """*x*, an element of *source*, as the register type of *target*; halves are left for their store to round."""
    if target is source:
        return x
    if source in (DType.I2, DType.I4, DType.U2, DType.U4):
        x = wrap(x, source)  # one byte an element, of which only the low bits count
    if source in NARROW_FLOATS:
        x = b.let(decode(b, x, source))
    if target in NARROW_FLOATS:
        if target is DType.F8E8M0 and source.is_int and source.itemsize >= 4:
            # Rounding to f32 might reach the next power of two.
            if source.itemsize == 8:
                raise Declined(f"no conversion of {source} to {target}")
            x = x.cast(DType.F64)
        return encode(b, b.let(narrowed(b, x)), target, saturate=saturate, round_mode=round_mode)
    if target in (DType.F16, DType.BF16):
        return narrowed(b, x)
    if target is DType.BOOL or source is DType.BOOL or not target.is_int or not source.is_float:
        return wrap(x.cast(register_type(target)), target)
    return wrap(_to_integer(b, x, register_type(target)), target)
