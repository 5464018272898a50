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
from functools import cache
from typing import Any, TypeAlias, TypeVar

from mnnpy.errors import MnnpyError

__all__ = ["Conversion", "conversion", "conversions", "find_conversion", "load_conversions"]

#: Operands are value names (None where absent); the result is one name or several.
Conversion: TypeAlias = Callable[..., Any]
F = TypeVar("F", bound=Callable[..., Any])

_FAMILIES = ("elementwise", "movement", "normalization", "pooling", "generate", "recurrent", "control", "ml")
_TABLE: dict[tuple[str, str], list[tuple[int, int, Conversion]]] = {}
_NEWEST = 1 << 30


def conversion(*ops: str, since: int = 1, until: int = _NEWEST, domain: str = "") -> Callable[[F], F]:
    """Register the conversion of *ops* for models of opsets *since* to *until*, both included."""

    def register(fn: F) -> F:
        for op in ops:
            ranges = _TABLE.setdefault((domain, op), [])
            if any(since <= high and low <= until for low, high, _ in ranges):
                raise MnnpyError(f"two conversions of {op} overlap in opsets {since}–{until}")
            ranges.append((since, until, fn))
        return fn

    return register


@cache
def _load() -> None:
    for family in _FAMILIES:
        importlib.import_module(f"mnnpy.convert.onnx.{family}")


def find_conversion(domain: str, op: str, opset: int) -> Conversion | None:
    """The conversion of *op* as opset *opset* means it; None where it is the newest form already."""
    for low, high, fn in _TABLE.get((domain, op), ()):
        if low <= opset <= high:
            return fn
    return None


def conversions() -> dict[tuple[str, str], list[tuple[int, int, Conversion]]]:
    """All conversions: (domain, op) → (first opset, last opset, function)."""
    _load()
    return _TABLE


def load_conversions() -> None:
    """Import every family once."""
    _load()
