"""Sizes that are near enough for the same decision: shape buckets.

Sizes are rounded to powers of two in steps of √2. Tasks that differ in nothing but sizes of the same buckets take each
other's decisions where nothing was measured for just these sizes, and those one step away are measured first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log2
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnnpy.search.records import Record

__all__ = ["ALIKE", "bucket", "buckets", "nearest"]

#: Reason of a decision that was measured for other sizes of the same buckets.
ALIKE = "fastest measured for similar sizes"


def bucket(size: int) -> int:
    """The number of a size's bucket: twice its binary logarithm, rounded; -1 for nothing."""
    return round(2 * log2(size)) if size > 0 else -1


def buckets(shapes: Iterable[Iterable[Any]]) -> tuple[int, ...]:
    """Buckets of all sizes of static shapes."""
    return tuple(bucket(int(n)) for shape in shapes for n in shape)


def nearest(records: Iterable[Record], kind: str, sizes: Sequence[int], reach: int = 0) -> Record | None:
    """The record of the same kind whose buckets are nearest (the newest one), none more than *reach* steps off."""
    best, least = None, reach
    for record in records:
        if record.kind == kind and record.kind and record.decision and len(record.sizes) == len(sizes):
            off = max((abs(a - b) for a, b in zip(record.sizes, sizes, strict=True)), default=0)
            if off <= least:
                best, least = record, off
    return best
