"""The table of conversions: which function rewrites an op of an old opset into its newest form.

A conversion is written like the op itself, operands positional and attributes keyword-only with the defaults
*of that version*::

    @conversion("Softmax", until=12)
    def softmax(g: Emitter, x: str, *, axis: int = 1) -> str: ...

Ops whose meaning never changed need none. Source: ONNX operator changelog.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from mnnpy.errors import MnnpyError

__all__ = ["Conversion", "conversion", "conversions", "find_conversion"]

#: Operands are value names (None where absent); the result is one name or several.
Conversion: TypeAlias = Callable[..., Any]
F = TypeVar("F", bound=Callable[..., Any])

#: Module → ops that it converts (with their domain where it is not ONNX's own): only what a model uses is imported.
_FAMILIES = {
    "elementwise": "Add And Cast Clip Div Equal Greater Less Mul Or PRelu Pow Selu Sub Xor",
    "movement": (
        "Concat GridSample Pad Reshape Resize RoiAlign Scatter Slice Split Squeeze Tile TopK Unsqueeze Upsample"
    ),
    "normalization": (
        "BatchNormalization Dropout GroupNormalization Hardmax LogSoftmax ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax"
    ),
    "pooling": "Gemm GlobalLpPool LpPool",
    "generate": "Constant DFT",
    "recurrent": "GRU LSTM RNN",
    "control": "Scan",
    "ml": "ai.onnx.ml:LabelEncoder",
}
_FAMILY_OF = {
    (domain, op): family
    for family, names in _FAMILIES.items()
    for domain, _, op in (name.rpartition(":") for name in names.split())
}
_TABLE: dict[tuple[str, str], list[tuple[int, int, Conversion]]] = {}
_NEWEST = 1 << 30
#: Whether somebody else registered conversions.
extended = False


def conversion(*ops: str, since: int = 1, until: int = _NEWEST, domain: str = "") -> Callable[[F], F]:
    """Register the conversion of *ops* for models of opsets *since* to *until*, both included."""

    def register(fn: F) -> F:
        global extended
        extended = extended or not str(fn.__module__).startswith("mnnpy.")
        for op in ops:
            if (domain, op) not in _FAMILY_OF:
                raise MnnpyError(f"list {op} under its module in _FAMILIES: nobody would find its conversion")
            ranges = _TABLE.setdefault((domain, op), [])
            if any(since <= high and low <= until for low, high, _ in ranges):
                raise MnnpyError(f"two conversions of {op} overlap in opsets {since}–{until}")
            ranges.append((since, until, fn))
        return fn

    return register


def find_conversion(domain: str, op: str, opset: int) -> Conversion | None:
    """The conversion of *op* as opset *opset* means it; None where it is the newest form already."""
    family = _FAMILY_OF.get((domain, op))
    if family is None:
        return None
    if (domain, op) not in _TABLE:
        importlib.import_module(f"mnnpy.convert.onnx.{family}")
    for low, high, fn in _TABLE[domain, op]:
        if low <= opset <= high:
            return fn
    return None


def conversions() -> dict[tuple[str, str], list[tuple[int, int, Conversion]]]:
    """All conversions: (domain, op) → (first opset, last opset, function)."""
    for family in _FAMILIES:
        importlib.import_module(f"mnnpy.convert.onnx.{family}")
    return _TABLE
