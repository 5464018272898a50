"""Floats of eight and four bits as kernel expressions: bits to f32 and back, by integer arithmetic.

Layouts: IEEE 754 with fewer bits (f8e5m2), without infinities (f8e4m3fn, OCP 8-bit Floating Point 1.0), with one NaN in
the place of minus zero (…fnuz, Noune et al. 2022), powers of two (f8e8m0) and f4e2m1 (OCP Microscaling 1.0).
"""

from __future__ import annotations

from dataclasses import dataclass

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Expr, const, eq, ne, select
from mnnpy.graph.dtypes import DType

__all__ = ["NARROW_FLOATS", "decode", "encode", "narrowed", "round_half"]

_NAN = 0x7FC00000
_INFINITY = 0x7F800000


@dataclass(frozen=True, slots=True)
class _Format:
    """A sign bit, *exponent* and *mantissa* bits. *largest* is the code of the greatest finite value.

    *nan* and *infinity* are codes without sign (*infinity* 0: there is none). With *fnuz* the code of minus zero is the
    only NaN.
    """

    exponent: int
    mantissa: int
    bias: int
    largest: int
    nan: int = 0
    infinity: int = 0
    fnuz: bool = False

    @property
    def sign(self) -> int:
        return 1 << (self.exponent + self.mantissa)


_FORMATS = {
    DType.F8E4M3FN: _Format(4, 3, 7, 0x7E, nan=0x7F),
    DType.F8E4M3FNUZ: _Format(4, 3, 8, 0x7F, fnuz=True),
    DType.F8E5M2: _Format(5, 2, 15, 0x7B, nan=0x7E, infinity=0x7C),
    DType.F8E5M2FNUZ: _Format(5, 2, 16, 0x7F, fnuz=True),
    DType.F4E2M1: _Format(2, 1, 1, 0x7),
}
NARROW_FLOATS = frozenset({*_FORMATS, DType.F8E8M0})


def _real(bits: Expr) -> Expr:
    return bits.bitcast(DType.F32)


def decode(b: KernelBuilder, code: Expr, source: DType) -> Expr:
    """The f32 of a code (i32, as ``load`` gives it); exact."""
    code = b.let(code)
    if source is DType.F8E8M0:
        subnormal = select(eq(code, 0), const(0x00400000), code << 23)
        return _real(select(eq(code, 255), const(_NAN), subnormal))
    f = _FORMATS[source]
    size = b.let(code & (f.sign - 1))
    shift = 23 - f.mantissa
    normal = _real((size << shift) + ((127 - f.bias) << 23))
    small = size.cast(DType.F32) * 2.0 ** (1 - f.bias - f.mantissa)
    value = b.let(select(size < (1 << f.mantissa), small, normal))
    value = b.let(select(ne(code & f.sign, 0), -value, value))
    if f.fnuz:
        return select(eq(code & 0xFF, f.sign), _real(const(_NAN)), value)
    if f.infinity:
        infinite = _real(((code & f.sign) << 24) | _INFINITY)
        value = select(eq(size, f.infinity), infinite, select(size > f.infinity, _real(const(_NAN)), value))
    elif f.nan:
        value = select(eq(size, f.nan), _real(const(_NAN)), value)
    return value


def encode(b: KernelBuilder, x: Expr, target: DType, *, saturate: bool, round_mode: str) -> Expr:
    """The code (i32) of an f32, rounded to nearest even (f8e8m0: as *round_mode* says)."""
    bits = b.let(x.bitcast(DType.I32))
    size = b.let(bits & 0x7FFFFFFF)
    if target is DType.F8E8M0:
        return _encode_power(b, size, saturate=saturate, round_mode=round_mode)
    f = _FORMATS[target]
    shift = 23 - f.mantissa
    first = (128 - f.bias) << 23  # bits of the smallest normal number
    rest = b.let(size - ((127 - f.bias) << 23))
    normal = (rest + ((1 << (shift - 1)) - 1) + ((rest >> shift) & 1)) >> shift
    tiny = select(size < first, size, const(0))  # what is computed for the others must not overflow
    small = (_real(b.let(tiny)) * 2.0 ** (f.bias - 1 + f.mantissa)).call("rint").cast(DType.I32)
    code = b.let(select(size < first, small, normal))
    over = code > f.largest
    bounded = saturate or target is DType.F4E2M1  # f4e2m1 has neither infinity nor NaN
    beyond = f.largest if bounded else (f.infinity or f.nan or f.sign)
    code = b.let(select(over, const(beyond), code))
    sign = b.let((bits >> 24) & 0x80 if f.sign == 0x80 else (bits >> 28) & 8)
    if f.fnuz:
        signed = select(eq(code, 0) | eq(code, f.sign), code, code | sign)  # no minus zero
        return select(size > _INFINITY, const(f.sign), signed)
    nan = code if target is DType.F4E2M1 else const(f.nan)
    nan = const(f.sign) if target is DType.F4E2M1 else nan | sign
    return select(size > _INFINITY, nan, code | sign)


def _encode_power(b: KernelBuilder, size: Expr, *, saturate: bool, round_mode: str) -> Expr:
    """f8e8m0: the exponent alone; neither sign nor zero, code 255 is NaN (OCP Microscaling 1.0, 5.4.1)."""
    exponent, fraction = b.let(size >> 23), b.let(size & 0x7FFFFF)
    # Subnormal f32: 2^-127 has code 0, 2^-128 would have −1; what is smaller rounds to neither.
    leading = b.let(select(fraction >= 0x400000, const(22), const(21)))
    tiny = b.let(eq(exponent, 0))
    rest = b.let(select(tiny, (fraction & ((const(1) << leading) - 1)) << (23 - leading), fraction))
    low = select(fraction >= 0x400000, const(0), select(fraction >= 0x200000, const(-1), const(-2)))
    code = b.let(select(tiny, low, exponent))
    if round_mode == "up":
        code = b.let(code + select(rest > 0, const(1), const(0)))
    elif round_mode == "nearest":
        code = b.let(code + select(rest >= 0x400000, const(1), const(0)))
    infinite, zero = eq(size, _INFINITY), eq(size, 0)
    if saturate:
        code = select(infinite, const(254), select(zero, const(0), code.max(0).min(254)))
    else:
        code = select(infinite | zero | (code < 0) | (code > 254), const(255), code)
    return select(size > _INFINITY, const(255), code)


def narrowed(b: KernelBuilder, x: Expr) -> Expr:
    """f64 as f32 rounded to odd, so that a second rounding to a narrower float gives what one would (Boldo 2008)."""
    if x.dtype is not DType.F64:
        return x.cast(DType.F32)
    x = b.let(x)
    near = b.let(x.cast(DType.F32))
    back = b.let(near.cast(DType.F64))
    bits = b.let(near.bitcast(DType.I32))
    low = b.let(select(back.call("abs") > x.call("abs"), bits - 1, bits))
    return _real(select(eq(back, x) | x.call("isnan"), bits, low | 1))


def round_half(b: KernelBuilder, x: Expr, dtype: DType) -> Expr:
    """f32 rounded to the nearest even f16 or bf16, still as f32."""
    bits = b.let(x.bitcast(DType.I32))
    size = b.let(bits & 0x7FFFFFFF)
    sign = b.let(bits ^ size)
    cut = 13 if dtype is DType.F16 else 16
    near = b.let(((size + (1 << (cut - 1)) - 1 + ((size >> cut) & 1)) >> cut) << cut)
    if dtype is DType.F16:
        first = (127 - 14) << 23
        tiny = b.let(_real(select(size < first, size, const(0))))
        small = ((tiny * 2.0**24).call("rint") * 2.0**-24).bitcast(DType.I32)
        near = select(size < first, small, select(near > 0x477FE000, const(_INFINITY), near))
    return _real(select(size > _INFINITY, bits, near | sign))
