"""Element types: ONNX's numeric types through numpy and ml_dtypes, plus strings."""

from __future__ import annotations

from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["DType"]


class DType(Enum):
    """An element type. ``value`` is the short name used in text forms, files and kernels.

    Sub-byte types (``int4``, ``uint4``, ``int2``, ``uint2``, ``f4e2m1``) occupy one byte an element
    in memory, as ml_dtypes stores them; only files pack them.
    """

    BOOL = "bool"
    I2 = "i2"
    I4 = "i4"
    I8 = "i8"
    I16 = "i16"
    I32 = "i32"
    I64 = "i64"
    U2 = "u2"
    U4 = "u4"
    U8 = "u8"
    U16 = "u16"
    U32 = "u32"
    U64 = "u64"
    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"
    F8E4M3FN = "f8e4m3fn"
    F8E4M3FNUZ = "f8e4m3fnuz"
    F8E5M2 = "f8e5m2"
    F8E5M2FNUZ = "f8e5m2fnuz"
    F8E8M0 = "f8e8m0fnu"
    F4E2M1 = "f4e2m1"
    C64 = "c64"
    C128 = "c128"
    STRING = "string"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype that holds one element (strings are ``object``)."""
        return _TO_NUMPY[self]

    @property
    def itemsize(self) -> int:
        """Bytes per element in memory (8 for strings: a reference)."""
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        return self in _FLOATS

    @property
    def is_int(self) -> bool:
        return self.value[0] in "iu" and self is not DType.STRING

    @property
    def is_signed(self) -> bool:
        return self.value[0] in "ifcb" and self is not DType.BOOL

    @property
    def is_complex(self) -> bool:
        return self in (DType.C64, DType.C128)

    @classmethod
    def of(cls, dtype: Any) -> DType:
        """The DType of anything numpy accepts as a dtype (``np.float32``, ``"int8"``, an array's dtype)."""
        if isinstance(dtype, DType):
            return dtype
        np_dtype = np.dtype(dtype)
        found = _FROM_NUMPY.get(np_dtype)
        if found is not None:
            return found
        if np_dtype.kind in "UST":
            return cls.STRING
        raise TypeError(f"numpy dtype {np_dtype} has no mnnpy element type; convert the array first")

    def __str__(self) -> str:
        return self.value


_TO_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.BOOL: np.dtype(np.bool_),
    DType.I2: np.dtype(ml_dtypes.int2),
    DType.I4: np.dtype(ml_dtypes.int4),
    DType.I8: np.dtype(np.int8),
    DType.I16: np.dtype(np.int16),
    DType.I32: np.dtype(np.int32),
    DType.I64: np.dtype(np.int64),
    DType.U2: np.dtype(ml_dtypes.uint2),
    DType.U4: np.dtype(ml_dtypes.uint4),
    DType.U8: np.dtype(np.uint8),
    DType.U16: np.dtype(np.uint16),
    DType.U32: np.dtype(np.uint32),
    DType.U64: np.dtype(np.uint64),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.F32: np.dtype(np.float32),
    DType.F64: np.dtype(np.float64),
    DType.F8E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.F8E4M3FNUZ: np.dtype(ml_dtypes.float8_e4m3fnuz),
    DType.F8E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DType.F8E5M2FNUZ: np.dtype(ml_dtypes.float8_e5m2fnuz),
    DType.F8E8M0: np.dtype(ml_dtypes.float8_e8m0fnu),
    DType.F4E2M1: np.dtype(ml_dtypes.float4_e2m1fn),
    DType.C64: np.dtype(np.complex64),
    DType.C128: np.dtype(np.complex128),
    DType.STRING: np.dtype(object),
}
_FROM_NUMPY = {v: k for k, v in _TO_NUMPY.items()}
_FLOATS = frozenset(d for d in DType if d.value[0] == "f" or d is DType.BF16)
