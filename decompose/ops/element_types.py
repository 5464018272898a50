"""Attributes that name an element type, as ``DType`` or as the number of ONNX's TensorProto.DataType."""

from __future__ import annotations

from typing import TypeAlias, Union

from mnnpy.errors import ShapeError
from mnnpy.graph.dtypes import DType

__all__ = ["ElementType", "element_type", "maybe_element_type"]

ElementType: TypeAlias = Union[DType, int]

_NUMBERS = {
    1: DType.F32, 2: DType.U8, 3: DType.I8, 4: DType.U16, 5: DType.I16, 6: DType.I32, 7: DType.I64, 8: DType.STRING,
    9: DType.BOOL, 10: DType.F16, 11: DType.F64, 12: DType.U32, 13: DType.U64, 14: DType.C64, 15: DType.C128,
    16: DType.BF16, 17: DType.F8E4M3FN, 18: DType.F8E4M3FNUZ, 19: DType.F8E5M2, 20: DType.F8E5M2FNUZ, 21: DType.U4,
    22: DType.I4, 23: DType.F4E2M1, 24: DType.F8E8M0, 25: DType.U2, 26: DType.I2,
}  # fmt: skip


def element_type(value: ElementType) -> DType:
    """The DType that *value* means; raises ShapeError for unknown numbers."""
    if isinstance(value, DType):
        return value
    if value not in _NUMBERS:
        raise ShapeError(f"{value} is no element type that is supported; known: {sorted(_NUMBERS)}")
    return _NUMBERS[value]


def maybe_element_type(value: ElementType | None) -> DType | None:
    """As element_type; ``None`` and 0 mean *not given*."""
    return None if value is None or (isinstance(value, int) and value == 0) else element_type(value)
