"""References of sequences (Python lists) and optionals (``None`` where empty)."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnnpy.decompose.ops.element_types import ElementType
from mnnpy.decompose.registry import reference
from mnnpy.errors import InputError
from mnnpy.graph.ir import Array, Type


def _index(position: Array | None, length: int, default: int, *, end: bool = False) -> int:
    """A position in ``[0, length)``, or ``[0, length]`` where *end* is a position too."""
    if position is None:
        return default
    k = int(np.asarray(position).reshape(-1)[0])
    if not -length <= k < length + end:
        raise InputError(f"position {k} is outside of a sequence of {length} elements")
    return k + length if k < 0 else k


@reference("SequenceConstruct")
def sequence_construct(*inputs: Any) -> list[Any]:
    return list(inputs)


@reference("SequenceEmpty")
def sequence_empty(*, dtype: ElementType | None = None) -> list[Any]:
    return []


@reference("SequenceAt")
def sequence_at(input_sequence: list[Any], position: Array) -> Any:
    return input_sequence[_index(position, len(input_sequence), 0)]


@reference("SequenceLength")
def sequence_length(input_sequence: list[Any]) -> Array:
    return np.asarray(len(input_sequence), np.int64)


@reference("SequenceErase")
def sequence_erase(input_sequence: list[Any], position: Array | None = None) -> list[Any]:
    n = len(input_sequence)
    if n == 0:
        raise InputError("nothing can be erased from an empty sequence")
    k = _index(position, n, n - 1)
    return [*input_sequence[:k], *input_sequence[k + 1 :]]


@reference("SequenceInsert")
def sequence_insert(input_sequence: list[Any], tensor: Any, position: Array | None = None) -> list[Any]:
    n = len(input_sequence)
    k = _index(position, n, n, end=True)
    return [*input_sequence[:k], tensor, *input_sequence[k:]]


@reference("ConcatFromSequence")
def concat_from_sequence(input_sequence: list[Any], *, axis: int, new_axis: int = 0) -> Array:
    if not input_sequence:
        raise InputError("an empty sequence cannot be concatenated")
    return np.stack(input_sequence, axis) if new_axis else np.concatenate(input_sequence, axis)


@reference("SplitToSequence")
def split_to_sequence(x: Array, split: Array | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Any]:
    length = x.shape[axis]
    if split is None:
        parts = [np.take(x, [k], axis) for k in range(length)]
        return parts if keepdims else [np.asarray(p.squeeze(axis)) for p in parts]
    if split.ndim == 0:
        size = int(split)
        if size < 1:
            raise InputError(f"parts of size {size} never fill the axis")
        ends = list(range(size, length, size))
    else:
        sizes = [int(s) for s in split]
        if min(sizes, default=0) < 0 or sum(sizes) != length:
            raise InputError(f"parts {sizes} do not add up to {length}")
        ends = np.cumsum(sizes)[:-1].tolist() if sizes else []
    return [np.ascontiguousarray(p) for p in np.split(x, ends, axis)]


@reference("Optional")
def optional(x: Any = None, *, type: Type | None = None) -> tuple[Any]:
    return (x,)


@reference("OptionalGetElement")
def optional_get_element(x: Any) -> tuple[Any]:
    if x is None:
        raise InputError("the optional is empty")
    return (x,)


@reference("OptionalHasElement")
def optional_has_element(x: Any = None) -> Array:
    return np.asarray(x is not None)
