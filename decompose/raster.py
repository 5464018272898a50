"""Raster regions: how elements move.

The address of element ``i`` of a strided view is ``offset + sum(strides[k] * i[k])`` (Walle, OSDI 2022,
section 4.1). A region copies ``size`` elements from a view of one origin value to a view of the output.
All offsets and strides count elements, not bytes; tensors are dense and row-major.
"""

from __future__ import annotations

from math import prod

from mnnpy.classes import dataclass

__all__ = ["Region", "full_region", "row_major"]


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Element strides of a dense row-major tensor of *shape*."""
    strides, step = [], 1
    for d in reversed(shape):
        strides.append(step)
        step *= d
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class Region:
    """Copy ``dst[dst_offset + i·dst_strides] = origin[src_offset + i·src_strides]`` for all ``i < size``.

    *origin* is the index of the raster's input that is read. Strides may be 0 (broadcast, source only) or
    negative (flip). Destination addresses of one raster never collide.
    """

    origin: int
    size: tuple[int, ...]
    src_offset: int
    src_strides: tuple[int, ...]
    dst_offset: int
    dst_strides: tuple[int, ...]

    def replace(
        self,
        *,
        origin: int | None = None,
        size: tuple[int, ...] | None = None,
        src_offset: int | None = None,
        src_strides: tuple[int, ...] | None = None,
        dst_offset: int | None = None,
        dst_strides: tuple[int, ...] | None = None,
    ) -> Region:
        """The region with some fields changed (called too often for ``dataclasses.replace``)."""
        return Region(
            self.origin if origin is None else origin,
            self.size if size is None else size,
            self.src_offset if src_offset is None else src_offset,
            self.src_strides if src_strides is None else src_strides,
            self.dst_offset if dst_offset is None else dst_offset,
            self.dst_strides if dst_strides is None else dst_strides,
        )

    @property
    def count(self) -> int:
        return prod(self.size)


def full_region(shape: tuple[int, ...], origin: int = 0) -> Region:
    """The region that copies a whole dense tensor of *shape* in place."""
    s = row_major(shape)
    return Region(origin, shape, 0, s, 0, s)
