"""Constants that lie in a memory-mapped model file: their pages need not stay once they were read."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from typing import Any

from mnnpy.graph.ir import Array

__all__ = ["forget_pages", "map_of"]


def map_of(array: Array) -> mmap.mmap | None:
    """The map that holds the bytes of *array*, if nobody can have written to it."""
    owner: Any = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    return owner if owner is not None and memoryview(owner).readonly else None


def forget_pages(arrays: Iterable[Array]) -> None:
    """Give back the pages of all maps that hold *arrays*; whoever reads them again gets them from the file."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    maps = {id(m): m for a in arrays if (m := map_of(a)) is not None}
    for found in maps.values():
        found.madvise(mmap.MADV_DONTNEED)
