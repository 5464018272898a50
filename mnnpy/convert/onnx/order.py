"""Topological order of ONNX nodes (Kahn 1962), in time linear in the number of edges."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mnnpy.convert.onnx.proto import AttributeKind
from mnnpy.errors import ModelError

if TYPE_CHECKING:
    import onnx

__all__ = ["free_names", "graphs_of", "topological"]


def graphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies that a node carries itself."""
    found: list[onnx.GraphProto] = []
    for a in node.attribute:
        if a.type == AttributeKind.GRAPH or (not a.type and a.HasField("g")):
            found.append(a.g)
        elif a.type == AttributeKind.GRAPHS:
            found.extend(a.graphs)
    return found


def free_names(graph: onnx.GraphProto) -> dict[str, None]:
    """Names that *graph* reads but does not define, in order of first use."""
    own = {v.name for v in graph.input}
    own.update(t.name for t in graph.initializer)
    own.update(s.values.name for s in graph.sparse_initializer)
    own.update(o for n in graph.node for o in n.output)
    used: dict[str, None] = {}
    for node in graph.node:
        used.update(dict.fromkeys(_reads(node)))
    used.update((v.name, None) for v in graph.output)
    return {name: None for name in used if name and name not in own}


def _reads(node: onnx.NodeProto) -> list[str]:
    reads = list(node.input)
    if node.attribute:
        for body in graphs_of(node):
            reads.extend(free_names(body))
    return reads


def topological(nodes: Sequence[onnx.NodeProto], where: str) -> Sequence[onnx.NodeProto]:
    """*nodes* in an order in which every value is written before it is read; an order that is already one is kept."""
    producer: dict[str, int] = {}
    for k, node in enumerate(nodes):
        for name in node.output:
            if name:
                producer[name] = k
    sources = [{producer[i] for i in _reads(n) if i in producer} for n in nodes]
    if all(k > max(s) for k, s in enumerate(sources) if s):
        return nodes
    consumers: list[list[int]] = [[] for _ in nodes]
    for k, found in enumerate(sources):
        for s in found:
            consumers[s].append(k)
    open_sources = [len(s) for s in sources]
    ready = deque(k for k, n in enumerate(open_sources) if n == 0)
    order: list[int] = []
    while ready:
        k = ready.popleft()
        order.append(k)
        for c in consumers[k]:
            open_sources[c] -= 1
            if open_sources[c] == 0:
                ready.append(c)
    if len(order) != len(nodes):
        raise ModelError(f"{where}: the graph has a cycle through {_cycle(nodes, sources, set(order))}")
    return [nodes[k] for k in order]


def _cycle(nodes: Sequence[onnx.NodeProto], sources: Sequence[set[int]], done: set[int]) -> str:
    """The nodes of one cycle, in the direction of the data, for the error message."""
    k = next(k for k in range(len(nodes)) if k not in done)
    path: dict[int, None] = {}
    while k not in path:
        path[k] = None
        k = min(s for s in sources[k] if s not in done)  # a node that never became ready waits for another such node
    cycle = list(path)[list(path).index(k) :][::-1]
    first = cycle.index(min(cycle))
    cycle = cycle[first:] + cycle[:first]
    labels = [f"'{nodes[j].name or next(iter(nodes[j].output), '?')}' ({nodes[j].op_type})" for j in cycle[:8]]
    if len(cycle) > 8:
        labels.append(f"… {len(cycle) - 8} more")
    return " → ".join([*labels, labels[0]])
