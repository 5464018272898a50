"""Element types: ONNX's numeric types through numpy and ml_dtypes, plus strings."""

from __future__ import annotations

from enum import Enum
from functools import cache, cached_property
from typing import Any

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

    # Members are singletons. Enum's own hash is Python code, and types are keys everywhere in planning.
    __hash__ = object.__hash__

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype that holds one element (strings are ``object``)."""
        if self.value in _EXTENDED:
            import ml_dtypes  # only models with such types pay for it

            extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _EXTENDED[self.value]))
            return extended
        plain: np.dtype[Any] = np.dtype(_PLAIN[self.value])
        return plain

    @cached_property
    def itemsize(self) -> int:
        """Bytes per element in memory (8 for strings: a reference)."""
        return self.numpy.itemsize

    @cached_property
    def is_float(self) -> bool:
        return self.value[0] == "f" or self is DType.BF16

    @cached_property
    def is_int(self) -> bool:
        return self.value[0] in "iu" and self is not DType.STRING

    @cached_property
    def is_signed(self) -> bool:
        return self.value[0] in "ifcb" and self is not DType.BOOL

    @cached_property
    def is_complex(self) -> bool:
        return self in (DType.C64, DType.C128)

    @classmethod
    def of(cls, dtype: Any) -> DType:
        """The DType of anything numpy accepts as a dtype (``np.float32``, ``"int8"``, an array's dtype)."""
        if isinstance(dtype, DType):
            return dtype
        try:
            np_dtype = np.dtype(dtype)
        except TypeError:
            _extend()  # numpy knows the names of ml_dtypes once that is imported
            np_dtype = np.dtype(dtype)
        found = _FROM_NUMPY.get(np_dtype)
        if found is None and np_dtype.kind not in "UST":
            _extend()
            found = _FROM_NUMPY.get(np_dtype)
        if found is not None:
            return found
        if np_dtype.kind in "UST":
            return cls.STRING
        raise TypeError(f"numpy dtype {np_dtype} has no mnnpy element type; convert the array first")

    def __str__(self) -> str:
        return self.value


_PLAIN: dict[str, Any] = {
    "bool": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "u8": np.uint8,
    "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "f16": np.float16, "f32": np.float32, "f64": np.float64,
    "c64": np.complex64, "c128": np.complex128, "string": object,
}  # fmt: skip
#: Types that ml_dtypes defines, by their name there.
_EXTENDED = {
    "i2": "int2", "i4": "int4", "u2": "uint2", "u4": "uint4", "bf16": "bfloat16", "f8e4m3fn": "float8_e4m3fn",
    "f8e4m3fnuz": "float8_e4m3fnuz", "f8e5m2": "float8_e5m2", "f8e5m2fnuz": "float8_e5m2fnuz",
    "f8e8m0fnu": "float8_e8m0fnu", "f4e2m1": "float4_e2m1fn",
}  # fmt: skip
_FROM_NUMPY = {DType(name).numpy: DType(name) for name in _PLAIN}


@cache
def _extend() -> None:
    """Make the types of ml_dtypes known."""
    _FROM_NUMPY.update({DType(name).numpy: DType(name) for name in _EXTENDED})
