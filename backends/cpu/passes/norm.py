"""Residual sums in front of LayerNormalization become part of it."""

from __future__ import annotations

from mnnpy.backends.passes.fuse import use_counts
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, TensorType

__all__ = ["fuse_add_norm"]


def fuse_add_norm(graph: Graph) -> Graph:
    """``LayerNormalization(a + b)`` as ``AddLayerNormalization``; the sum becomes its second output where it is read.

    Runs after epilogues are fused: what is left are sums that no product could take over.
    """
    uses = use_counts(graph)
    sums = {n.outputs[0]: n for n in graph.nodes if _is_sum(graph, n)}
    taken: dict[str, Node] = {}  # sum → the node that makes it now
    by_norm: dict[str, Node] = {}
    for node in graph.nodes:
        add = sums.get(node.inputs[0]) if node.op == "LayerNormalization" else None
        if add is None or add.outputs[0] in taken or len([o for o in node.outputs if o]) > 1:
            continue
        if any(n and n not in graph.constants for n in node.inputs[1:]):
            continue
        name = add.outputs[0]
        total = name if uses[name] > 1 else ""
        outputs = (node.outputs[0], total) if total else (node.outputs[0],)
        taken[name] = by_norm[node.outputs[0]] = node.replace(
            op="AddLayerNormalization", inputs=(*add.inputs, *node.inputs[1:]), outputs=outputs
        )
    if not taken:
        return graph
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.outputs[0] in taken:
            if uses[node.outputs[0]] > 1:  # others may read the sum before the place of the normalisation
                nodes.append(taken[node.outputs[0]])
        elif node.outputs[0] not in by_norm:
            nodes.append(node)
        elif len(by_norm[node.outputs[0]].outputs) == 1:
            nodes.append(by_norm[node.outputs[0]])
    return graph.replace(nodes=tuple(nodes))


def _is_sum(graph: Graph, node: Node) -> bool:
    """A sum of two f32 arrays of one shape."""
    if node.op != "Binary" or node.attrs.get("fn") != "Add":
        return False
    types = [graph.types.get(n) for n in (*node.inputs, *node.outputs)]
    first = types[0]
    return isinstance(first, TensorType) and first.dtype is DType.F32 and all(t == first for t in types)
