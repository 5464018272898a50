"""Projections of one activation: products with constant weights that attention reads become one product.

Runs after attention and epilogues are fused. A result is merged only if nothing but ``FusedAttention`` reads it: that
kernel walks by strides, so it finds its part of the wide result without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from mnnpy.backends.passes.edit import Editor
from mnnpy.backends.passes.fuse import use_counts
from mnnpy.classes import dataclass
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, TensorType
from mnnpy.graph.origin import joined

__all__ = ["merge_projections"]

_OPERANDS = ("q", "k", "v")


@dataclass(frozen=True, slots=True)
class _Part:
    """Where the columns of one product are in the merged one."""

    name: str
    columns: int
    total: int
    first: int

    def moved(self, view: Sequence[int]) -> tuple[int, ...]:
        """``[offset, *strides]`` into the narrow result as one into the merged result."""
        row, column = divmod(view[0], self.columns)
        strides = (s // self.columns * self.total if s % self.columns == 0 else s for s in view[1:])
        return (row * self.total + self.first + column, *strides)


def _stays_in_rows(node: Node, key: str, columns: int) -> bool:
    """Whether strides that are not whole rows never carry from one row of *columns* into the next."""
    offset, *strides = node.attrs[key]
    features, steps = ("dim", "q_len") if key == "q" else ("v_dim" if key == "v" else "dim", "k_len")
    sizes = (*node.attrs["batch"], node.attrs[steps])
    reach = offset % columns + node.attrs[features] - 1
    for size, stride in zip(sizes, strides, strict=True):
        if size > 1 and stride % columns:
            if stride < 0:
                return False
            reach += (size - 1) * stride
    return bool(reach < columns)


def _is_projection(graph: Graph, node: Node) -> bool:
    if node.op != "MatMul" or len(node.inputs) not in (2, 3) or set(node.attrs) - {"alpha"}:
        return False
    weight = graph.constants.get(node.inputs[1])
    t = graph.types.get(node.outputs[0])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or 0 in weight.shape:
        return False
    if not isinstance(t, TensorType) or t.dtype is not DType.F32 or (t.rank or 0) < 2:
        return False
    return len(node.inputs) < 3 or node.inputs[2] in graph.constants


def merge_projections(graph: Graph) -> Graph:
    """Merge products of one activation that feed one ``FusedAttention`` and nothing of another kind."""
    readers = graph.consumers()
    uses = use_counts(graph)
    outputs = set(graph.output_names)
    groups: dict[Any, list[Node]] = {}
    for node in graph.nodes:
        name = node.outputs[0]
        if name in outputs or not uses.get(name) or not _is_projection(graph, node):
            continue
        columns = graph.constants[node.inputs[1]].shape[1]
        if all(_reads_by_strides(r, name, columns) for r in readers[name]):
            key = (node.inputs[0], float(node.attrs.get("alpha", 1.0)), readers[name][0].outputs)
            groups.setdefault(key, []).append(node)
    groups = {key: nodes for key, nodes in groups.items() if len(nodes) > 1}
    if not groups:
        return graph
    edit = Editor(graph, "merged")
    parts: dict[str, _Part] = {}
    first = {nodes[0].outputs[0]: nodes for nodes in groups.values()}
    for node in graph.nodes:
        if node.outputs[0] in first:
            parts.update(_merge(edit, first[node.outputs[0]]))
        elif node.outputs[0] not in parts:
            edit.emit(_redirect(node, parts) if node.op == "FusedAttention" else node)
    return edit.finish()


def _reads_by_strides(node: Node, name: str, columns: int) -> bool:
    if node.op != "FusedAttention" or name in node.inputs[3:]:
        return False
    return all(_stays_in_rows(node, key, columns) for key, i in zip(_OPERANDS, node.inputs, strict=False) if i == name)


def _merge(edit: Editor, nodes: Sequence[Node]) -> dict[str, _Part]:
    """Emit the merged product; where each of *nodes* is in it, by output."""
    weights: list[Array] = [edit.constants[n.inputs[1]] for n in nodes]
    biases = [
        edit.constants[n.inputs[2]].reshape(-1) if len(n.inputs) > 2 else np.zeros(w.shape[1], np.float32)
        for n, w in zip(nodes, weights, strict=True)
    ]
    total = sum(w.shape[1] for w in weights)
    head = nodes[0]
    inputs = [head.inputs[0], edit.constant(head.inputs[1], joined(weights, axis=1))]
    if any(len(n.inputs) > 2 for n in nodes):
        inputs.append(edit.constant(head.inputs[1], np.concatenate(biases)))
    name = edit.fresh(head.outputs[0])
    shape = (*edit.shape(head.outputs[0])[:-1], total)
    assert prod(shape[:-1]) == prod(edit.shape(nodes[-1].outputs[0])[:-1])
    edit.emit(Node("MatMul", tuple(inputs), (name,), head.attrs, head.name), [TensorType(DType.F32, shape)])
    parts, column = {}, 0
    for node, weight in zip(nodes, weights, strict=True):
        parts[node.outputs[0]] = _Part(name, weight.shape[1], total, column)
        column += weight.shape[1]
    return parts


def _redirect(node: Node, parts: dict[str, _Part]) -> Node:
    inputs, attrs = list(node.inputs), dict(node.attrs)
    for k, key in enumerate(_OPERANDS):
        part = parts.get(inputs[k])
        if part is not None:
            inputs[k] = part.name
            attrs[key] = part.moved(attrs[key])
    return node.replace(inputs=tuple(inputs), attrs=attrs)
