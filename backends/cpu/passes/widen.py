"""Half precision: kernels that compute in f32 get f32 operands and their results are rounded back."""

from __future__ import annotations

import numpy as np

from mnnpy.backends.passes.edit import Editor
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, TensorType

__all__ = ["widen_half"]

_HALF = (DType.F16, DType.BF16)


def widen_half(graph: Graph, ops: frozenset[str]) -> Graph:
    """Wrap nodes of *ops* with f16 or bf16 operands in conversions to and from f32."""

    def is_half(name: str) -> bool:
        t = graph.types.get(name)
        return isinstance(t, TensorType) and t.dtype in _HALF

    if not any(n.op in ops and is_half(n.outputs[0]) for n in graph.nodes):
        return graph
    edit = Editor(graph, "w")
    for node in graph.nodes:
        if node.op not in ops or not is_half(node.outputs[0]):
            edit.emit(node)
            continue
        inputs = tuple(_widened(edit, n, node.name) if n and is_half(n) else n for n in node.inputs)
        dtype = edit.type(node.outputs[0]).dtype
        wide = edit.fresh(node.outputs[0])
        edit.emit(
            node.replace(inputs=inputs, outputs=(wide, *node.outputs[1:])),
            [TensorType(DType.F32, edit.shape(node.outputs[0]))],
        )
        edit.emit(Node("Convert", (wide,), (node.outputs[0],), {"to": dtype}, node.name))
    return edit.finish()


def _widened(edit: Editor, name: str, origin: str) -> str:
    if name in edit.constants:
        return edit.constant(name, edit.constants[name].astype(np.float32))
    out = edit.fresh(name)
    edit.emit(Node("Convert", (name,), (out,), {"to": DType.F32}, origin), [TensorType(DType.F32, edit.shape(name))])
    return out
