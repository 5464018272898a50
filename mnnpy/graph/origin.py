"""Where arrays come from: what can be had again from its parts need not be stored a second time."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np

from mnnpy.graph.ir import Array

__all__ = ["joined", "parts_of"]

_made: dict[int, tuple[weakref.ref[Array], tuple[Array, ...], int]] = {}


def joined(parts: Sequence[Array], axis: int) -> Array:
    """``np.concatenate`` that remembers its parts for as long as the result lives."""
    made = np.concatenate(parts, axis=axis)
    key = id(made)
    _made[key] = (weakref.ref(made, lambda _: _made.pop(key, None)), tuple(parts), axis)
    return made


def parts_of(array: Array) -> tuple[tuple[Array, ...], int] | None:
    """The parts and the axis that *array* was joined of, if it was."""
    found = _made.get(id(array))
    return (found[1], found[2]) if found is not None and found[0]() is array else None
