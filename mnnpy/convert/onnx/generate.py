"""Constants, and signals whose axis became an operand."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnnpy.convert.onnx.conversions import conversion
from mnnpy.convert.onnx.emitter import Emitter
from mnnpy.errors import ModelError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array


@conversion("Constant")
def constant(
    g: Emitter,
    *,
    value: Array | None = None,
    sparse_value: Array | None = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
    value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
    value_string: str | None = None,
    value_strings: tuple[str, ...] | None = None,
) -> Any:
    """A node without operands becomes a constant of the graph."""
    forms = (
        (value, None),
        (sparse_value, None),
        (value_float, np.float32),
        (value_floats, np.float32),
        (value_int, np.int64),
        (value_ints, np.int64),
        (value_string, object),
        (value_strings, object),
    )
    given = [(v, dtype) for v, dtype in forms if v is not None]
    if len(given) != 1:
        raise ModelError(f"a Constant needs exactly one value, it has {len(given)}")
    found, dtype = given[0]
    return g.const(np.asarray(found, dtype))


@conversion("DFT", since=17, until=19)
def dft(g: Emitter, x: str, length: str | None = None, *, axis: int = 1, **attrs: Any) -> Any:
    """The axis was an attribute, and another one by default."""
    return g.op("DFT", x, length, g.const(axis, DType.I64), **attrs)
