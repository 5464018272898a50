"""The readable text form of a graph, for people, error reports and tests of structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mnnpy.graph.ir import Graph, Node, Type, tensor_type_of

__all__ = ["format_attr", "format_graph", "format_node"]

#: Arrays up to this many elements are printed with their values.
_INLINE = 8
#: Longer lists in attributes are cut in the middle.
_LONG = 24


def format_graph(graph: Graph, indent: str = "") -> str:
    """*graph* as text: one line per input, constant, node and output; bodies are indented below their node."""
    inner = indent + "  "
    lines = [f"{indent}graph {graph.name or '?'} {{"]
    for value in graph.inputs:
        default = " = default" if value.name in graph.constants else ""
        lines.append(f"{inner}input {value}{default}")
    inputs = set(graph.input_names)
    for name, array in graph.constants.items():
        if name not in inputs:
            lines.append(f"{inner}const {name}: {_format_array(array)}")
    for node in graph.nodes:
        lines.append(inner + format_node(node, graph.types))
        for key, body in node.subgraphs():
            lines.append(f"{inner}  {key} =")
            lines.append(format_graph(body, inner + "    "))
    lines.extend(f"{inner}output {value}" for value in graph.outputs)
    lines.append(indent + "}")
    return "\n".join(lines)


def format_node(node: Node, types: Mapping[str, Type] | None = None) -> str:
    """``y: f32[1,8] = Op(a, b, axis=1)  # name`` (bodies are left to `format_graph`)."""
    known = types or {}
    results = ", ".join(f"{o}: {known[o]}" if o in known else (o or "_") for o in node.outputs)
    operands = [i or "_" for i in node.inputs]
    attrs = [f"{k}={format_attr(v)}" for k, v in node.attrs.items() if not isinstance(v, Graph)]
    comment = f"  # {node.name}" if node.name else ""
    return f"{results} = {node.op}({', '.join(operands + attrs)}){comment}"


def format_attr(value: Any) -> str:
    """An attribute on one line; long lists and arrays are shortened."""
    if isinstance(value, Graph):
        return f"<graph {value.name}: {len(value.nodes)} nodes>"
    if isinstance(value, np.ndarray):
        return _format_array(value)
    if isinstance(value, (tuple, list)):
        items = [format_attr(v) for v in (value if len(value) <= _LONG else (*value[:8], *value[-2:]))]
        if len(value) > _LONG:
            items.insert(8, f"… {len(value) - 10} more …")
        return f"({', '.join(items)}{',' if len(value) == 1 else ''})"
    if isinstance(value, str):
        return repr(value)
    return str(value)


def _format_array(array: Any) -> str:
    text = str(tensor_type_of(array))
    if array.size <= _INLINE:
        text += f" = {array.tolist()}"
    return text
