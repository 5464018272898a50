"""Strides of values that are only rearranged: how a kernel with strided operands reads through rasters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from mnnpy.decompose.raster import Region, row_major
from mnnpy.decompose.regions import coalesce, join_regions
from mnnpy.graph.ir import Node

__all__ = ["axis_strides", "refine", "split_axes", "swapped", "whole_region"]


def whole_region(node: Node) -> Region | None:
    """The region of a Raster that fills its whole result from one operand with one region, else None."""
    if node.op != "Raster":
        return None
    joined = join_regions(node.attrs["regions"])
    if len(joined) != 1 or not joined[0].count or joined[0].count != prod(node.attrs["shape"]):
        return None
    return joined[0]


def swapped(region: Region) -> Region:
    """The copy in the other direction."""
    return region.replace(
        src_offset=region.dst_offset,
        src_strides=region.dst_strides,
        dst_offset=region.src_offset,
        dst_strides=region.src_strides,
    )


def axis_strides(region: Region, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Strides in the source per axis of a dense destination of *shape* that *region* fills completely.

    None where an axis has no single stride. Axes of size 1 get stride 0.
    """
    joined = coalesce(region)
    if joined.count != prod(shape) or joined.dst_offset:
        return None
    axes = list(zip(joined.size, joined.dst_strides, joined.src_strides, strict=True))
    expected = 1
    for size, d, _ in reversed(axes):
        if d != expected:
            return None
        expected *= size
    found = []
    for n, step in zip(shape, row_major(tuple(shape)), strict=True):
        if n == 1:
            found.append(0)
            continue
        stride = None
        for size, d, s in axes:
            if step % d == 0 and (d * size) % (step * n) == 0:
                stride = s * (step // d)
        if stride is None:
            return None
        found.append(stride)
    return tuple(found)


def refine(*shapes: Sequence[int]) -> tuple[int, ...] | None:
    """The coarsest shape of which all *shapes* (of equal count) are reshapes that merge neighbouring axes."""
    steps = {1}
    for shape in shapes:
        step = 1
        for n in reversed(shape):
            step *= n
            steps.add(step)
    ordered = sorted(steps)
    sizes = []
    for low, high in pairwise(ordered):
        if low == 0 or high % low:
            return None
        sizes.append(high // low)
    return tuple(reversed(sizes))


def split_axes(shape: Sequence[int], refined: Sequence[int]) -> list[tuple[int, ...]] | None:
    """For each axis of *shape* the run of axes of *refined* that it consists of; None where they do not fit."""
    out: list[tuple[int, ...]] = []
    rest = list(refined)
    for n in reversed(shape):
        run: list[int] = []
        while prod(run) < n and rest:
            run.insert(0, rest.pop())
        if prod(run) != n:
            return None
        out.insert(0, tuple(run))
    return out if not rest else None
