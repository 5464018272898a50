"""Raster optimisation: vertical and horizontal merging, views, and rasters that do nothing.

All passes take and return graphs with static types and keep the names of graph outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from mnnpy.decompose.raster import Region, full_region
from mnnpy.decompose.regions import (
    coalesce,
    compose,
    from_flat,
    join_regions,
    split_to_three_dims,
    to_flat,
)
from mnnpy.graph.dims import is_static
from mnnpy.graph.ir import Graph, Node, TensorType, Type, tensor_type_of

__all__ = [
    "REGION_LIMIT",
    "coalesce",
    "contiguous_view",
    "drop_identity",
    "from_flat",
    "is_view",
    "join_regions",
    "merge_horizontal",
    "merge_vertical",
    "read_through",
    "split_to_three_dims",
    "to_flat",
]

#: A merged raster may have at most this many regions; beyond that the intermediate copy is cheaper.
REGION_LIMIT = 64
#: Pairs of regions that one merge may look at: what keeps merging linear for rasters of very many regions.
WORK_LIMIT = 4096


def contiguous_view(node: Node, types: Mapping[str, Type] | None = None) -> int | None:
    """The source offset (in elements) where *node* is one dense copy of a stretch of one operand, else None."""
    if node.op != "Raster":
        return None
    count = prod(node.attrs["shape"])
    if not count:
        return 0
    regions = node.attrs["regions"]
    if sum(r.count for r in regions) != count:
        return None
    joined = join_regions(regions)
    if len(joined) != 1 or joined[0].dst_offset:
        return None
    (r,) = joined
    return r.src_offset if r.size in ((), (count,)) and r.src_strides in ((), (1,)) else None


def is_view(node: Node, types: Mapping[str, Type] | None = None) -> bool:
    """True where *node* can share its operand's memory."""
    return contiguous_view(node, types) is not None


def _view_operand(node: Node) -> str:
    """The value that a view shows."""
    regions = [r for r in node.attrs["regions"] if r.count]
    return node.inputs[regions[0].origin if regions else 0]


def read_through(
    regions: Sequence[Region], origin: int, producer: Sequence[Region], filled: bool
) -> tuple[list[Region], bool] | None:
    """Regions that read *origin*, rewritten to read what *producer* reads; and whether some read only its fill.

    Results keep the producer's origin numbers. ``None`` where that takes too many regions, or where elements
    are missing although the producer has no fill.
    """
    if len(regions) * len(producer) > WORK_LIMIT:
        return None
    out: list[Region] = []
    hole = False
    for r in regions:
        if r.origin != origin or not r.count:
            continue
        covered = 0
        for p in producer:
            parts = compose(r, p)
            if parts is None:
                return None
            covered += sum(q.count for q in parts)
            out.extend(parts)
            if len(out) > REGION_LIMIT:
                return None
        if covered != r.count:
            if not filled or covered > r.count:
                return None
            hole = True
    return out, hole


def _same_fill(a: object, b: object) -> bool:
    """Equal to the last bit: 0.0 is not −0.0, and NaN is NaN."""
    return repr(a) == repr(b) or (type(a) in (int, bool) and type(b) in (int, bool) and a == b)


def _merge_one(node: Node, producer: Node) -> Node | None:
    """*node* reading *producer*'s operands instead of its result; None where that cannot be."""
    (name,) = producer.outputs
    regions: tuple[Region, ...] = node.attrs["regions"]
    fill, inner_fill = node.attrs.get("fill"), producer.attrs.get("fill")
    inputs = [i for i in node.inputs if i != name]
    place = {i: k for k, i in enumerate(inputs)}
    for i in producer.inputs:
        if i not in place:
            place[i] = len(inputs)
            inputs.append(i)
    merged: list[Region] = [
        r.replace(origin=place[node.inputs[r.origin]]) for r in regions if node.inputs[r.origin] != name and r.count
    ]
    for origin, i in enumerate(node.inputs):
        if i != name:
            continue
        found = read_through(regions, origin, producer.attrs["regions"], inner_fill is not None)
        if found is None:
            return None
        parts, hole = found
        if hole:
            # What shows the producer's fill must be filled alike in the result.
            if fill is not None and not _same_fill(fill, inner_fill):
                return None
            fill = inner_fill
        merged.extend(r.replace(origin=place[producer.inputs[r.origin]]) for r in parts)
    joined = join_regions(merged)
    if len(joined) > max(REGION_LIMIT, len(regions)):
        return None
    used = sorted({r.origin for r in joined}) or [0]
    number = {o: k for k, o in enumerate(used)}
    joined = tuple(r.replace(origin=number[r.origin]) for r in joined)
    attrs = {**node.attrs, "regions": joined, "fill": fill}
    return node.replace(inputs=tuple(inputs[o] for o in used), attrs=attrs)


def merge_vertical(graph: Graph) -> Graph:
    """Let every Raster that reads a Raster's result read through it. Producers nobody needs stay for ``prune``."""
    rasters: dict[str, Node] = {}
    uses = graph.consumers()
    outputs = set(graph.output_names)
    nodes: list[Node] = []
    changed = False
    for original in graph.nodes:
        node = original
        if node.op == "Raster":
            refused: set[str] = set()
            while True:
                name = next((i for i in node.inputs if i in rasters and i not in refused), None)
                if name is None:
                    break
                producer = rasters[name]
                shared = name in outputs or len(uses.get(name, ())) > 1
                # A view of a value that exists anyway is free; reading through would copy once more.
                keep = shared and is_view(node) and not is_view(producer)
                merged = None if keep else _merge_one(node, producer)
                if merged is None:
                    refused.add(name)
                else:
                    node, changed = merged, True
            rasters[node.outputs[0]] = node
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes)) if changed else graph


def _types(graph: Graph) -> dict[str, Type]:
    known: dict[str, Type] = dict(graph.types)
    known.update({v.name: v.type for v in graph.inputs if v.type is not None})
    known.update({n: tensor_type_of(a) for n, a in graph.constants.items() if n not in known})
    return known


def merge_horizontal(graph: Graph) -> Graph:
    """Keep one of several rasters that move the same elements; one of another shape becomes a view of the first."""
    seen: dict[object, Node] = {}
    alias: dict[str, str] = {}
    nodes: list[Node] = []
    outputs = set(graph.output_names)
    changed = False
    for node in graph.nodes:
        if alias and any(i in alias for i in node.inputs):
            node = node.replace(inputs=tuple(alias.get(i, i) for i in node.inputs))
        if node.op == "Raster":
            shape, fill = tuple(node.attrs["shape"]), node.attrs.get("fill")
            regions = tuple(r.replace(origin=0) for r in join_regions(node.attrs["regions"]))
            sources = tuple(node.inputs[r.origin] for r in join_regions(node.attrs["regions"]))
            key = (sources or node.inputs[:1], regions, prod(shape), repr(fill))
            first = seen.setdefault(key, node)
            if first is not node and not is_view(node):
                (name,), (source,) = node.outputs, first.outputs
                changed = True
                if tuple(first.attrs["shape"]) == shape and name not in outputs:
                    alias[name] = source
                    continue
                flat = full_region((prod(shape),))
                node = node.replace(inputs=(source,), attrs={"regions": (flat,), "shape": shape, "fill": None})
            elif first is not node and tuple(first.attrs["shape"]) == shape and node.outputs[0] not in outputs:
                alias[node.outputs[0]] = first.outputs[0]
                changed = True
                continue
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes)) if changed else graph


def drop_identity(graph: Graph) -> Graph:
    """Remove rasters that copy a whole value under its own shape (unless they make a graph output)."""
    types = _types(graph)
    alias: dict[str, str] = {}
    nodes: list[Node] = []
    outputs = set(graph.output_names)
    for node in graph.nodes:
        if alias and any(i in alias for i in node.inputs):
            node = node.replace(inputs=tuple(alias.get(i, i) for i in node.inputs))
        if contiguous_view(node) == 0 and node.outputs[0] not in outputs:
            source = _view_operand(node)
            t = types.get(source)
            if isinstance(t, TensorType) and is_static(t.shape) and t.shape == tuple(node.attrs["shape"]):
                alias[node.outputs[0]] = source
                continue
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes)) if alias else graph
