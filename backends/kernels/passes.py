"""Passes between a segment and its launches: what becomes one kernel, and rasters read through by their consumers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mnnpy.backends.passes.attention import fuse_attention
from mnnpy.backends.passes.fuse import Accepts, fuse_elementwise, fuse_epilogues
from mnnpy.backends.passes.views import axis_strides, whole_region
from mnnpy.decompose.lower import prune
from mnnpy.decompose.regions import coalesce
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node

__all__ = ["lower_graph", "read_through_rasters"]

#: Ops whose templates read operands through the strides of attribute ``views``.
_STRIDED = frozenset({"Unary", "Binary", "Select", "Convert", "Elementwise", "Reduce"})
#: Ops whose templates read bias, residual and activation.
EPILOGUES = frozenset({"Convolution", "MatMul"})
_FLOATS = frozenset({DType.F16, DType.BF16, DType.F32})
#: A raster with more readers is better made once.
MAX_READERS = 3


def lower_graph(graph: Graph, optimize: frozenset[str], accepts: Accepts) -> Graph:
    """All passes that are switched on; *accepts* says by trial lowering whether the device takes a node."""
    graph = prune(graph)
    if "fuse_attention" in optimize:
        graph = prune(fuse_attention(graph, accepts, _FLOATS))
    if "fuse_epilogue" in optimize:
        graph = prune(fuse_epilogues(graph, lambda node, types: node.op in EPILOGUES and accepts(node, types)))
    if "fuse_elementwise" in optimize:
        graph = prune(fuse_elementwise(graph, accepts))
    if "merge_vertical" in optimize:
        graph = prune(read_through_rasters(graph, accepts))
    return graph


def read_through_rasters(graph: Graph, accepts: Accepts) -> Graph:
    """Rasters of one region that fills its result become strided reads of their consumers.

    The consumer gets attribute ``views``: (operand, (offset, strides over the raster's axes)), for Reduce with
    ``view_shape``. Values keep their names; rasters that nobody reads any more are left for ``prune``.
    """
    nodes = dict(enumerate(graph.nodes))
    readers: dict[str, list[int]] = {}
    for k, node in nodes.items():
        for name in dict.fromkeys(node.inputs):
            readers.setdefault(name, []).append(k)
    kept = set(graph.output_names)
    for raster in graph.nodes:
        found = _strided(raster)
        consumers = readers.get(raster.outputs[0], [])
        if found is None or raster.outputs[0] in kept or not 0 < len(consumers) <= MAX_READERS:
            continue
        source, view = found
        changed = {k: _viewed(nodes[k], raster, source, view, graph) for k in consumers}
        if all(n is not None and accepts(n, graph.types) for n in changed.values()):
            nodes |= {k: n for k, n in changed.items() if n is not None}
    return graph.replace(nodes=tuple(nodes.values()))


def _strided(node: Node) -> tuple[str, tuple[int, tuple[int, ...]]] | None:
    """(source, (offset, strides)) of a raster that re-indexes one operand and is no plain copy of it."""
    region = whole_region(node)
    if region is None:
        return None
    strides = axis_strides(region, node.attrs["shape"])
    return None if strides is None else (node.inputs[region.origin], (coalesce(region).src_offset, strides))


def _viewed(node: Node, raster: Node, source: str, view: tuple[int, tuple[int, ...]], graph: Graph) -> Node | None:
    """*node* reading *source* instead of the raster's result; None where its kernel does not read through strides."""
    if node.op not in _STRIDED:
        return None
    name, (offset, strides) = raster.outputs[0], view
    attrs: dict[str, Any] = dict(node.attrs)
    views: Mapping[int, Any] = dict(attrs.get("views", ()))
    if node.op == "Reduce":
        attrs["view_shape"] = tuple(raster.attrs["shape"])
    else:
        rank = len(graph.types[node.outputs[0]].shape)  # type: ignore[union-attr, arg-type]
        strides = (0,) * (rank - len(strides)) + strides
    views = {**views, **{k: (offset, strides) for k, n in enumerate(node.inputs) if n == name}}
    inputs = tuple(source if n == name else n for n in node.inputs)
    return node.replace(inputs=inputs, attrs={**attrs, "views": tuple(views.items())})
