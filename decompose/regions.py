"""Algebra of raster regions: normal forms, joining, splitting, and reading one region through another.

``compose`` is the heart of vertical merging. Addresses in the middle tensor are written in the mixed radix that
the producer's destination strides define; there a producer region is a box of digits, and a consumer region,
once its axes are split where they carry from one digit into the next, is an affine image of a box. What is left
is clipping one box by another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod

from mnnpy.classes import dataclass
from mnnpy.decompose.raster import Region
from mnnpy.errors import ShapeError

__all__ = ["PIECE_LIMIT", "coalesce", "compose", "from_flat", "join_regions", "split_to_three_dims", "to_flat"]

#: One region may be cut into at most this many pieces while it is read through a producer.
PIECE_LIMIT = 64


@lru_cache(maxsize=16384)  # the passes normalise the same regions again and again
def coalesce(region: Region) -> Region:
    """The same copy with as few axes as possible.

    Destination strides become positive and fall from the first axis to the last, axes of size 1 go, and an
    axis that continues its neighbour in source and destination is merged with it.
    """
    if not region.count:
        return region.replace(size=(0,), src_strides=(1,), dst_strides=(1,), src_offset=0, dst_offset=0)
    src_offset, dst_offset = region.src_offset, region.dst_offset
    axes: list[tuple[int, int, int]] = []  # destination stride, source stride, size
    for n, s, d in zip(region.size, region.src_strides, region.dst_strides, strict=True):
        if n == 1:
            continue
        if d < 0:
            src_offset, dst_offset, s, d = src_offset + s * (n - 1), dst_offset + d * (n - 1), -s, -d
        axes.append((d, s, n))
    axes.sort(key=lambda a: -a[0])
    merged: list[tuple[int, int, int]] = []
    for d, s, n in axes:
        if merged:
            outer_d, outer_s, outer_n = merged[-1]
            if outer_d == d * n and outer_s == s * n:
                merged[-1] = (d, s, outer_n * n)
                continue
        merged.append((d, s, n))
    return Region(
        region.origin,
        tuple(a[2] for a in merged),
        src_offset,
        tuple(a[1] for a in merged),
        dst_offset,
        tuple(a[0] for a in merged),
    )


def join_regions(regions: Sequence[Region]) -> tuple[Region, ...]:
    """Coalesced regions, with those joined that continue each other or repeat at a constant distance."""
    return _joined(tuple(regions))


@lru_cache(maxsize=4096)
def _joined(regions: tuple[Region, ...]) -> tuple[Region, ...]:
    found = sorted((coalesce(r) for r in regions if r.count), key=lambda r: r.dst_offset)
    while True:
        joined = _join_once(found)
        if len(joined) == len(found):
            return tuple(joined)
        found = joined


def _join_once(regions: list[Region]) -> list[Region]:
    out: list[Region] = []
    k = 0
    while k < len(regions):
        r = regions[k]
        longer = _continued(r, regions[k + 1]) if k + 1 < len(regions) else None
        if longer is not None:
            out.append(coalesce(longer))
            k += 2
            continue
        run = _run_length(regions, k)
        if run > 1:
            step = regions[k + 1]
            r = r.replace(
                size=(run, *r.size),
                src_strides=(step.src_offset - r.src_offset, *r.src_strides),
                dst_strides=(step.dst_offset - r.dst_offset, *r.dst_strides),
            )
        out.append(coalesce(r))
        k += run
    return out


def _continued(a: Region, b: Region) -> Region | None:
    """*a* and *b* as one region where *b* goes on along an axis on which *a* ends."""
    if (a.origin, a.src_strides, a.dst_strides) != (b.origin, b.src_strides, b.dst_strides):
        return None
    differing = [k for k, (m, n) in enumerate(zip(a.size, b.size, strict=True)) if m != n]
    for k in differing or range(len(a.size)):
        n = a.size[k]
        if (
            len(differing) <= 1
            and b.src_offset - a.src_offset == n * a.src_strides[k]
            and b.dst_offset - a.dst_offset == n * a.dst_strides[k]
        ):
            return a.replace(size=(*a.size[:k], n + b.size[k], *a.size[k + 1 :]))
    return None


def _run_length(regions: list[Region], first: int) -> int:
    """How many regions from *first* on are copies of it at a constant distance (3 or more, else 1)."""

    def form(r: Region) -> tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return r.origin, r.size, r.src_strides, r.dst_strides

    def distance(k: int) -> tuple[int, int]:
        a, b = regions[k], regions[k + 1]
        return b.src_offset - a.src_offset, b.dst_offset - a.dst_offset

    end = first + 1
    while (
        end < len(regions)
        and form(regions[end]) == form(regions[first])
        and (end == first + 1 or distance(end - 1) == distance(first))
    ):
        end += 1
    return end - first if end - first > 2 else 1


def split_to_three_dims(region: Region) -> list[Region]:
    """Regions of exactly three axes that do the same: the three largest stay, the others are enumerated."""
    r = coalesce(region)
    rank = len(r.size)
    if rank <= 3:
        pad = 3 - rank
        return [
            r.replace(
                size=(1,) * pad + r.size,
                src_strides=(0,) * pad + r.src_strides,
                dst_strides=(0,) * pad + r.dst_strides,
            )
        ]
    keep = sorted(sorted(range(rank), key=lambda k: (-r.size[k], -k))[:3])
    rest = [k for k in range(rank) if k not in keep]
    return [
        Region(
            r.origin,
            tuple(r.size[k] for k in keep),
            r.src_offset + sum(i * r.src_strides[k] for i, k in zip(index, rest, strict=True)),
            tuple(r.src_strides[k] for k in keep),
            r.dst_offset + sum(i * r.dst_strides[k] for i, k in zip(index, rest, strict=True)),
            tuple(r.dst_strides[k] for k in keep),
        )
        for index in product(*(range(r.size[k]) for k in rest))
    ]


def to_flat(region: Region) -> tuple[int, ...]:
    """Eleven integers: source offset and 3 strides, destination offset and 3 strides, 3 sizes."""
    if len(region.size) != 3:
        raise ShapeError(f"the region has {len(region.size)} axes, not 3; use split_to_three_dims first")
    return (region.src_offset, *region.src_strides, region.dst_offset, *region.dst_strides, *region.size)


def from_flat(values: Sequence[int], origin: int = 0) -> Region:
    """The region that ``to_flat`` wrote."""
    if len(values) != 11:
        raise ShapeError(f"a region has 11 integers in its flat form, got {len(values)}")
    v = [int(x) for x in values]
    return Region(origin, tuple(v[8:]), v[0], tuple(v[1:4]), v[4], tuple(v[5:8]))


# -- reading one region through another ----------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Digit:
    """One digit of a middle address and the producer's box in it: ``[low, low + size)`` moves *source* a step."""

    stride: int
    radix: int  #: 0 for the leading digit, which has no bound
    low: int
    size: int
    source: int


@dataclass(slots=True, eq=False)
class _Piece:
    """A part of the consumer region: axes are (size, middle stride ≥ 0, destination stride)."""

    middle: int
    destination: int
    axes: tuple[tuple[int, int, int], ...]

    @property
    def count(self) -> int:
        return prod(a[0] for a in self.axes)

    def part(self, k: int, first: int, size: int) -> _Piece:
        """Axis *k* limited to ``[first, first + size)``."""
        _, s, d = self.axes[k]
        axes = (*self.axes[:k], (size, s, d), *self.axes[k + 1 :])
        return _Piece(self.middle + first * s, self.destination + first * d, axes)


class _TooComplexError(Exception):
    """The composition is not a moderate number of regions."""


def _digits(producer: Region) -> list[_Digit] | None:
    """The mixed radix of the (coalesced) producer's destination, coarse to fine; None where strides do not nest."""
    strides = list(producer.dst_strides)
    sizes, sources = list(producer.size), list(producer.src_strides)
    if not strides or strides[-1] != 1:
        # Addresses between the producer's elements: only the remainder that its offset has belongs to it.
        strides, sizes, sources = [*strides, 1], [*sizes, 1], [*sources, 0]
    digits: list[_Digit] = []
    rest, radix = producer.dst_offset, 0
    for k, (stride, size, source) in enumerate(zip(strides, sizes, sources, strict=True)):
        low, rest = divmod(rest, stride)
        if radix and low + size > radix:
            return None
        digits.append(_Digit(stride, radix, low, size, source))
        if k + 1 < len(strides):
            if stride % strides[k + 1]:
                return None
            radix = stride // strides[k + 1]
    return digits


def _numerals(address: int, digits: Sequence[_Digit]) -> list[int]:
    out = []
    for d in digits:
        value, address = divmod(address, d.stride)
        out.append(value)
    return out


def _digit_of(stride: int, digits: Sequence[_Digit]) -> int:
    """The coarsest digit that a step of *stride* changes by a whole number."""
    for j, d in enumerate(digits):
        if stride % d.stride == 0:
            return j
    raise AssertionError("the last digit has stride 1")


def _aligned(piece: _Piece, digits: Sequence[_Digit], budget: int) -> Iterator[_Piece]:
    """Cut *piece* until no axis carries from one digit into a coarser one."""
    work, done = [piece], 0
    while work:
        if len(work) + done > budget:
            raise _TooComplexError
        current = work.pop()
        cut = _cut_carry(current, digits)
        if cut is None:
            done += 1
            yield current
        else:
            work.extend(reversed(cut))


def _cut_carry(piece: _Piece, digits: Sequence[_Digit]) -> list[_Piece] | None:
    """One step towards alignment, or None where *piece* is aligned."""
    numerals = _numerals(piece.middle, digits)
    at: dict[int, list[int]] = {}
    for k, (n, s, _) in enumerate(piece.axes):
        if s and n > 1:
            at.setdefault(_digit_of(s, digits), []).append(k)
    for j, axes in at.items():
        digit = digits[j]
        steps = {k: piece.axes[k][1] // digit.stride for k in axes}
        reach = numerals[j] + sum(steps[k] * (piece.axes[k][0] - 1) for k in axes)
        if not digit.radix or reach < digit.radix:
            continue
        k = max(axes, key=lambda a: steps[a])
        n, s, d = piece.axes[k]
        others = reach - numerals[j] - steps[k] * (n - 1)
        if others and numerals[j] + others >= steps[k]:
            return _enumerate(piece, min((a for a in axes), key=lambda a: piece.axes[a][0]))
        cycle, uneven = divmod(digit.radix, steps[k])
        if uneven:
            return _enumerate(piece, k)
        head = -(-(digit.radix - numerals[j]) // steps[k])
        if numerals[j] >= steps[k]:
            return [piece.part(k, 0, head), piece.part(k, head, n - head)]
        if n < cycle:
            # Only the other axes reach over the edge; their cut comes first.
            return _enumerate(piece, min(axes, key=lambda a: piece.axes[a][0]))
        if n % cycle:
            whole = n - n % cycle
            return [piece.part(k, 0, whole), piece.part(k, whole, n - whole)]
        split = ((n // cycle, s * cycle, d * cycle), (cycle, s, d))
        return [_Piece(piece.middle, piece.destination, (*piece.axes[:k], *split, *piece.axes[k + 1 :]))]
    return None


def _enumerate(piece: _Piece, k: int) -> list[_Piece]:
    n = piece.axes[k][0]
    if n > PIECE_LIMIT:
        raise _TooComplexError
    return [piece.part(k, i, 1) for i in range(n)]


def _clip(piece: _Piece, digits: Sequence[_Digit], budget: int) -> Iterator[_Piece]:
    """The parts of an aligned *piece* whose addresses lie in the producer's box."""
    work, done = [piece], 0
    while work:
        if len(work) + done > budget:
            raise _TooComplexError
        current: _Piece | None = work.pop()
        numerals: list[int] | None = None
        homes: list[int] = []
        for j, digit in enumerate(digits):
            assert current is not None
            if numerals is None:
                numerals = _numerals(current.middle, digits)
                homes = [_digit_of(s, digits) if s and n > 1 else -1 for n, s, _ in current.axes]
            cut = _clip_digit(current, numerals[j], [k for k, home in enumerate(homes) if home == j], digit)
            if cut is current:
                continue
            numerals = None
            if isinstance(cut, list):
                work.extend(cut)
                current = None
            else:
                current = cut
            if current is None:
                break
        if current is not None:
            done += 1
            yield current


def _clip_digit(piece: _Piece, value: int, axes: Sequence[int], digit: _Digit) -> _Piece | list[_Piece] | None:
    """*piece* within the bounds of *digit*, which has *value* at its start and is moved by *axes*."""
    steps = {k: piece.axes[k][1] // digit.stride for k in axes}
    low, high = digit.low - value, digit.low + digit.size - 1 - value  # bounds of the axes' contribution
    reach = sum(steps[k] * (piece.axes[k][0] - 1) for k in axes)
    if reach < low or high < 0:
        return None
    if low <= 0 and reach <= high:
        return piece
    if len(axes) > 1:
        return _enumerate(piece, min(axes, key=lambda a: piece.axes[a][0]))
    k = axes[0]
    first = max(0, -(-low // steps[k]))
    last = min(piece.axes[k][0] - 1, high // steps[k])
    return piece.part(k, first, last - first + 1) if last >= first else None


def _extent(offset: int, size: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """Lowest and highest address of a strided box."""
    reach = [s * (n - 1) for n, s in zip(size, strides, strict=True)]
    return offset + sum(r for r in reach if r < 0), offset + sum(r for r in reach if r > 0)


@lru_cache(maxsize=4096)  # networks repeat their blocks, and plans for other shapes repeat some too
def compose(consumer: Region, producer: Region) -> tuple[Region, ...] | None:
    """*consumer*, limited to what *producer* wrote, reading *producer*'s source instead of its destination.

    Both address the same middle tensor: the consumer as its source, the producer as its destination. The
    result (maybe empty) has the producer's origin. ``None``: not expressible in ``PIECE_LIMIT`` regions.
    """
    p = coalesce(producer)
    if not consumer.count or not p.count:
        return ()
    low, high = _extent(consumer.src_offset, consumer.size, consumer.src_strides)
    first, last = _extent(p.dst_offset, p.size, p.dst_strides)
    if high < first or last < low:
        return ()
    digits = _digits(p)
    if digits is None:
        return None
    start = _Piece(consumer.src_offset, consumer.dst_offset, ())
    for n, s, d in zip(consumer.size, consumer.src_strides, consumer.dst_strides, strict=True):
        if s < 0:  # walk the axis backwards, so that addresses rise
            start = _Piece(start.middle + s * (n - 1), start.destination + d * (n - 1), (*start.axes, (n, -s, -d)))
        else:
            start = _Piece(start.middle, start.destination, (*start.axes, (n, s, d)))
    out: list[Region] = []
    try:
        for aligned in _aligned(start, digits, PIECE_LIMIT):
            for piece in _clip(aligned, digits, PIECE_LIMIT):
                out.append(_through(piece, p, digits))
                if len(out) > PIECE_LIMIT:
                    return None
    except _TooComplexError:
        return None
    return join_regions(out)


def _through(piece: _Piece, producer: Region, digits: Sequence[_Digit]) -> Region:
    numerals = _numerals(piece.middle, digits)
    offset = producer.src_offset
    offset += sum(d.source * (v - d.low) for d, v in zip(digits, numerals, strict=True))
    src = []
    for n, s, _ in piece.axes:
        digit = digits[_digit_of(s, digits)] if s and n > 1 else None
        src.append(0 if digit is None else digit.source * (s // digit.stride))
    return Region(
        producer.origin,
        tuple(a[0] for a in piece.axes),
        offset,
        tuple(src),
        piece.destination,
        tuple(a[2] for a in piece.axes),
    )
