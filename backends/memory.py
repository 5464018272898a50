"""Static memory plan: where every intermediate of a segment lives.

Values that are views of one another share a root. A root lives in the arena, in an output, or in place of an
input operand that dies in the same step. Arena offsets come from greedy placement, largest first.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence

from mnnpy.classes import dataclass

__all__ = ["ALIGN", "Interval", "place"]

ALIGN = 64
#: Above this many buffers placement goes by time instead of by size, to stay near linear.
GREEDY_LIMIT = 2000


@dataclass(slots=True)
class Interval:
    """A buffer of *size* bytes that must exist from step *first* to step *last*, both included."""

    key: str
    size: int
    first: int
    last: int


def place(intervals: Sequence[Interval]) -> tuple[Mapping[str, int], int]:
    """Offsets (multiples of 64) such that buffers alive at the same time do not overlap; and the arena's size."""
    if len(intervals) > GREEDY_LIMIT:
        return _place_by_time(intervals)
    placed: list[tuple[int, int, Interval]] = []
    offsets: dict[str, int] = {}
    total = 0
    for item in sorted(intervals, key=lambda i: (-i.size, i.first, i.key)):
        size = _aligned(item.size)
        at = 0
        for begin, end, other in placed:  # sorted by begin
            if other.last < item.first or item.last < other.first:
                continue
            if begin - at >= size:
                break
            at = max(at, end)
        offsets[item.key] = at
        total = max(total, at + size)
        insort(placed, (at, at + size, item), key=_begin)
    return offsets, total


def _begin(entry: tuple[int, int, Interval]) -> int:
    return entry[0]


def _aligned(size: int) -> int:
    return (max(size, 1) + ALIGN - 1) // ALIGN * ALIGN


def _place_by_time(intervals: Sequence[Interval]) -> tuple[Mapping[str, int], int]:
    """Best fit out of free lists by exact size: linear in the number of buffers."""
    ordered = sorted(intervals, key=lambda i: i.first)
    dying = sorted(intervals, key=lambda i: i.last)
    free: dict[int, list[int]] = {}
    offsets: dict[str, int] = {}
    total, gone = 0, 0
    for item in ordered:
        while gone < len(dying) and dying[gone].last < item.first:
            free.setdefault(_aligned(dying[gone].size), []).append(offsets[dying[gone].key])
            gone += 1
        size = _aligned(item.size)
        same = free.get(size)
        if same:
            offsets[item.key] = same.pop()
        else:
            offsets[item.key] = total
            total += size
    return offsets, total
