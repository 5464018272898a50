"""Strides of values that are only rearranged: how a kernel with strided operands reads through rasters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from mnnpy.decompose.raster import Region, row_major
from mnnpy.decompose.regions import coalesce, join_regions
from mnnpy.graph.ir import Graph, Node, TensorType

__all__ = ["axis_strides", "constant_gathers", "refine", "split_axes", "swapped", "whole_region"]


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


def constant_gathers(graph: Graph) -> Graph:
    """Every Gather of one constant position as a Raster, which other rasters can be merged with."""
    nodes = [_taken(graph, n) if n.op == "Gather" else n for n in graph.nodes]
    return (
        graph.replace(nodes=tuple(nodes)) if any(a is not b for a, b in zip(nodes, graph.nodes, strict=True)) else graph
    )


def _taken(graph: Graph, node: Node) -> Node:
    index = graph.constants.get(node.inputs[1])
    source, result = graph.types.get(node.inputs[0]), graph.types.get(node.outputs[0])
    if index is None or index.size != 1 or not isinstance(source, TensorType) or not isinstance(result, TensorType):
        return node
    if not source.is_static or not result.is_static or len(node.inputs) != 2:
        return node
    shape: tuple[int, ...] = source.shape  # type: ignore[assignment]
    axis = node.attrs.get("axis", 0) % len(shape)
    at = int(index.reshape(-1)[0])
    at += shape[axis] if at < 0 else 0
    if not 0 <= at < shape[axis]:
        return node  # the kernel reports it
    outer, inner = prod(shape[:axis]), prod(shape[axis + 1 :])
    region = Region(0, (outer, inner), at * inner, (shape[axis] * inner, 1), 0, (inner, 1))
    attrs = {"regions": (region,), "shape": result.shape, "fill": None}
    return Node("Raster", node.inputs[:1], node.outputs, attrs, node.name)
