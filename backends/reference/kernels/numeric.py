"""Arithmetic shared by the reference kernels: wide computation, rounding back, exact conversion, Philox."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["erf", "extreme", "is_narrow", "narrow", "philox", "wide"]

_NARROW_INTS = frozenset({DType.I2, DType.I4, DType.U2, DType.U4})


def is_narrow(dtype: Any) -> bool:
    """True for the floating types below 32 bits and the integers below 8, in which nothing is computed directly."""
    t = DType.of(dtype)
    return t in _NARROW_INTS or (t.is_float and t not in (DType.F32, DType.F64))


def wide(x: Array) -> Array:
    """*x* in the type the references compute in: float64 for all floats, int8/uint8 for smaller integers.

    An oracle should be nearer to the truth than what it judges, so float32 is computed in float64 too.
    """
    t = DType.of(x.dtype)
    if t.is_float:
        # The small types know no direct way to float64.
        return x.astype(np.float32).astype(np.float64) if is_narrow(t) else x.astype(np.float64)
    if t in _NARROW_INTS:
        return x.astype(np.int8 if t.is_signed else np.uint8)
    return x


def narrow(y: Array, dtype: Any) -> Array:
    """Round a widely computed result back to *dtype* (integers wrap, floats round to nearest even)."""
    target = np.dtype(dtype)
    y = np.asarray(y)
    if y.dtype == target:
        return y
    with np.errstate(all="ignore"):
        return y.astype(target)


def erf(x: Array) -> Array:
    """The error function in float64, to the accuracy of the C library (below 1 ulp)."""
    flat = np.asarray(x, np.float64).reshape(-1)
    return np.fromiter(map(math.erf, flat.tolist()), np.float64, flat.size).reshape(np.shape(x))


def extreme(dtype: Any, *, largest: bool) -> Any:
    """+inf / -inf, or the largest / smallest value where the type has no infinity."""
    np_dtype = np.dtype(dtype)
    t = DType.of(np_dtype)
    if t is DType.BOOL:
        return np.bool_(largest)
    if t.is_float:
        with np.errstate(all="ignore"):
            value = np.asarray(np.inf if largest else -np.inf).astype(np_dtype)
        if not np.isinf(value.astype(np.float32)):
            import ml_dtypes  # longer to import than a small model to plan

            info: Any = ml_dtypes.finfo(np_dtype)  # type: ignore[no-untyped-call]
            return info.max if largest else info.min
        return value[()]
    if np_dtype.isbuiltin == 1:
        info = np.iinfo(np_dtype)
    else:
        import ml_dtypes

        info = ml_dtypes.iinfo(np_dtype)  # type: ignore[no-untyped-call]
    return np_dtype.type(info.max if largest else info.min)


def elementwise(fn: Callable[..., Array], *xs: Array) -> Array:
    """Apply *fn* to widened operands and round to the type of the first."""
    return narrow(fn(*(wide(x) for x in xs)), xs[0].dtype)


# Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
_PHILOX_M = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_PHILOX_W = (0x9E3779B9, 0xBB67AE85)


def philox(count: int, seed: int) -> Array:
    """*count* 32-bit words: word ``i`` is word ``i % 4`` of block ``i // 4``, the key is the 64-bit *seed*."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c = [blocks & mask, blocks >> shift, np.zeros_like(blocks), np.zeros_like(blocks)]
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    for _ in range(10):
        p0, p1 = _PHILOX_M[0] * c[0], _PHILOX_M[1] * c[2]
        c = [(p1 >> shift) ^ c[1] ^ np.uint64(key[0]), p1 & mask, (p0 >> shift) ^ c[3] ^ np.uint64(key[1]), p0 & mask]
        key = [(k + w) & 0xFFFFFFFF for k, w in zip(key, _PHILOX_W, strict=True)]
    return np.stack(c, axis=-1).reshape(-1)[:count].astype(np.uint32)


def prod(sizes: Sequence[int]) -> int:
    """Product of sizes as an exact int."""
    return math.prod(int(s) for s in sizes)
