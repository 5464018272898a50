"""Concatenations along the channels that convolutions and pools write in place."""

from __future__ import annotations

from math import prod
from typing import Any

from mnnpy.backends.cpu import _native
from mnnpy.backends.passes.fuse import use_counts
from mnnpy.graph.ir import Graph, Node, TensorType

__all__ = ["write_concats"]


def write_concats(graph: Graph) -> Graph:
    """Let producers write their columns of a concatenation: they get the attribute ``pitch``, the Raster ``written``.

    ``pitch`` is the number of elements from one pixel to the next, ``written`` are the operands that need no copy any
    more. For after the choice of algorithms: a node with ``pitch`` cannot run on its own.
    """
    uses = use_counts(graph)
    makers = {n.outputs[0]: n for n in graph.nodes}
    outputs = set(graph.output_names)
    changed: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op != "Raster" or node.outputs[0] in outputs or node.attrs["fill"] is not None:
            continue
        written = []
        for k, name in enumerate(node.inputs):
            pitch = _column_pitch(graph, node, k)
            if pitch is None or uses[name] != 1 or name not in makers:
                continue
            pitched = makers[name].replace(attrs={**makers[name].attrs, "pitch": pitch})
            if _can_write(graph, pitched):
                changed[name] = pitched
                written.append(k)
        if written:
            changed[node.outputs[0]] = node.replace(attrs={**node.attrs, "written": tuple(written)})
    if not changed:
        return graph
    return graph.replace(nodes=tuple(changed.get(n.outputs[0], n) for n in graph.nodes))


def _column_pitch(graph: Graph, node: Node, operand: int) -> int | None:
    """Elements per row of the result if *operand* is some of its columns, as it lies, and fills them."""
    mine = [r for r in node.attrs["regions"] if r.origin == operand]
    t, out = graph.types.get(node.inputs[operand]), graph.types.get(node.outputs[0])
    if len(mine) != 1 or not isinstance(t, TensorType) or not isinstance(out, TensorType) or t.dtype is not out.dtype:
        return None
    shape: tuple[int, ...] = t.shape  # type: ignore[assignment]
    r, width, total = mine[0], shape[-1] if shape else 0, (out.shape or (0,))[-1]
    if r.src_offset or len(r.size) < 2 or r.count != prod(shape) or not 0 < width < total:  # type: ignore[operator]
        return None
    pitch, row = r.dst_strides[-2], 1
    for k, size in reversed(list(enumerate(r.size[:-1]))):
        if r.src_strides[k] != row * width or r.dst_strides[k] != row * pitch:
            return None
        row *= size
    dense = r.size[-1] == width and r.src_strides[-1] == r.dst_strides[-1] == 1
    return pitch if dense and pitch == total and r.dst_offset + width <= total else None


def _can_write(graph: Graph, node: Node) -> bool:
    """Whether the kernel that *node* got takes a pitch."""
    if node.op == "Convolution":
        own = node.attrs.get("group", 1) == 1 and node.attrs.get("precision") != "low" and len(node.inputs) < 4
        if not own or node.attrs.get("layout") != "NHWC":
            return False
    elif node.op != "ConvChain" and (node.op != "Pool" or node.attrs.get("layout") != "NHWC"):
        return False
    attrs: dict[str, Any] = dict(node.attrs)
    if len(node.inputs) > 1 and node.inputs[1] in graph.constants:
        attrs["weights"] = "constant"

    def desc(name: str) -> tuple[str, tuple[int, ...]] | None:
        t = graph.types.get(name)
        return (str(t.dtype), tuple(t.shape or ())) if isinstance(t, TensorType) else None  # type: ignore[arg-type]

    return bool(_native.supports(node.op, attrs, [desc(i) for i in node.inputs], [desc(node.outputs[0])])[0])
