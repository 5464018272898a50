"""Element type conversion with the semantics of ONNX Cast (operator specification, Cast-28), strings included."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnnpy.errors import ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["convert_array"]

_FLOAT8 = frozenset({DType.F8E4M3FN, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ})
_SUB_BYTE_BITS = {DType.I2: 2, DType.U2: 2, DType.I4: 4, DType.U4: 4}


def convert_array(x: Array, to: DType, saturate: bool = True, round_mode: str = "up") -> Array:
    """*x* as element type *to*. Out-of-range floats to integers (undefined in ONNX) truncate to int64 and wrap."""
    source = DType.of(x.dtype)
    if source is to and to is not DType.STRING:
        return x
    with np.errstate(all="ignore"):
        if to is DType.STRING:
            return _to_string(x, source)
        if source is DType.STRING:
            return _from_string(x, to, saturate, round_mode)
        if to in _FLOAT8:
            return _to_float8(x, to, saturate)
        if to is DType.F8E8M0:
            return _to_e8m0(x, source, saturate, round_mode)
        if to is DType.BOOL:
            return np.not_equal(_as_plain(x, source), 0)
        if to.is_int:
            return _to_int(_as_plain(x, source), to)
        return _as_plain(x, source).astype(to.numpy)


def _as_plain(x: Array, source: DType) -> Array:
    """In a type of NumPy's own: float32 for small floats, int8/uint8 for small integers (both exact)."""
    if source in _SUB_BYTE_BITS:
        return x.astype(np.int8 if source.is_signed else np.uint8)
    if source.is_float and source not in (DType.F16, DType.F32, DType.F64):
        return x.astype(np.float32)
    return x


def _to_int(x: Array, to: DType) -> Array:
    if x.dtype.kind == "f":
        as_int = x.astype(np.int64)
        # Above the int64 range only uint64 can hold the value.
        x = np.where(x >= 2.0**63, x.astype(np.uint64).view(np.int64), as_int) if to is DType.U64 else as_int
    bits = _SUB_BYTE_BITS.get(to)
    if bits is None:
        return x.astype(to.numpy)
    low = x.astype(np.uint8) & np.uint8(2**bits - 1)
    return low.view(to.numpy)


def _to_float8(x: Array, to: DType, saturate: bool) -> Array:
    plain = _as_plain(x, DType.of(x.dtype))
    if plain.dtype.kind not in "f":
        plain = plain.astype(np.float64)
    out = plain.astype(to.numpy)
    if not saturate:
        return out
    import ml_dtypes  # longer to import than a small model to plan

    limit = ml_dtypes.finfo(to.numpy).max  # type: ignore[no-untyped-call]
    wrong = ~np.isfinite(out.astype(np.float32)) & ~np.isnan(plain)
    bounded = np.where(plain > 0, np.float32(limit), -np.float32(limit)).astype(to.numpy)
    return np.where(wrong, bounded, out)


def _to_e8m0(x: Array, source: DType, saturate: bool, round_mode: str) -> Array:
    """Powers of two from 2^-127 to 2^127, no sign, no zero; code 255 is NaN (OCP Microscaling 1.0, 5.4.1)."""
    if round_mode not in ("up", "down", "nearest"):
        raise ShapeError(f"round_mode '{round_mode}' is not one of up, down, nearest")
    v = _as_plain(x, source).astype(np.float64)
    mantissa, exponent = np.frexp(np.abs(v))  # v = mantissa · 2^exponent, mantissa in [0.5, 1)
    code = exponent.astype(np.int64) - 1 + 127
    fraction = mantissa * 2 - 1
    if round_mode == "up":
        code += fraction > 0
    elif round_mode == "nearest":
        code += fraction >= 0.5
    if saturate:
        code = np.clip(np.where(np.isinf(v), 254, np.where(v == 0, 0, code)), 0, 254)
    else:
        code = np.where(np.isinf(v) | (v == 0) | (code < 0) | (code > 254), 255, code)
    code = np.where(np.isnan(v), 255, code)
    return code.astype(np.uint8).view(to_numpy_e8m0())


def to_numpy_e8m0() -> np.dtype[Any]:
    """The NumPy dtype of F8E8M0."""
    return DType.F8E8M0.numpy


def _to_string(x: Array, source: DType) -> Array:
    if source is DType.STRING:
        return x.astype(object)
    plain = _as_plain(x, source)
    out = np.empty(plain.shape, object)
    out.reshape(-1)[:] = [_spell(v) for v in plain.reshape(-1)]
    return out


def _spell(value: Any) -> str:
    """Plain floating-point representation; the shortest digits that read back as the same value."""
    if isinstance(value, (np.floating, float)):
        if np.isnan(value):
            return "NaN"
        if np.isinf(value):
            return "INF" if value > 0 else "-INF"
    return str(value)


def _from_string(x: Array, to: DType, saturate: bool, round_mode: str) -> Array:
    texts = [v.decode() if isinstance(v, bytes) else str(v) for v in x.reshape(-1).tolist()]
    try:
        if to.is_int:
            numbers = np.empty(len(texts), np.int64 if to is not DType.U64 else np.uint64)
            numbers[:] = [_parse_int(t) for t in texts]
        else:
            numbers = np.asarray([float(t) for t in texts], np.float64)
    except (ValueError, OverflowError) as error:
        raise ShapeError(f"a string spells no number: {error}; Cast takes plain or scientific notation") from error
    return convert_array(numbers.reshape(x.shape), to, saturate, round_mode)


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(float(text))
