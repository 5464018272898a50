"""Old versions of ``ai.onnx.ml`` ops."""

from __future__ import annotations

from typing import Any

from mnnpy.convert.onnx.conversions import conversion
from mnnpy.convert.onnx.emitter import Emitter
from mnnpy.errors import ModelError
from mnnpy.graph.dtypes import DType


@conversion("LabelEncoder", until=1, domain="ai.onnx.ml")
def label_encoder(
    g: Emitter,
    x: str,
    *,
    classes_strings: tuple[str, ...] = (),
    default_int64: int | None = None,
    default_string: str | None = None,
) -> Any:
    """A list of names: strings become their index and indices their string; the type of *x* tells which."""
    dtype = g.dtype(x)
    if dtype is None and (default_int64 is None) != (default_string is None):
        dtype = DType.STRING if default_string is None else DType.I64
    if dtype not in (DType.STRING, DType.I64):
        raise ModelError(f"the operand '{x}' must be known to hold strings or i64, it is {dtype or 'unknown'}")
    numbers = tuple(range(len(classes_strings)))
    if dtype is DType.STRING:
        default = -1 if default_int64 is None else default_int64
        return g.op("ml.LabelEncoder", x, keys_strings=classes_strings, values_int64s=numbers, default_int64=default)
    fallback = "_Unused" if default_string is None else default_string
    return g.op("ml.LabelEncoder", x, keys_int64s=numbers, values_strings=classes_strings, default_string=fallback)
