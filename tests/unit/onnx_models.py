"""Helpers for tests of the ONNX front end: build small models, and run a graph by way of the ONNX reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mnnpy.backends.reference.interpreter import run_graph
from mnnpy.convert import from_onnx, to_onnx
from mnnpy.graph.ir import Graph


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    opset: int = 28,
    *,
    constants: Mapping[str, Any] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    opsets: Mapping[str, int] | None = None,
    ir_version: int = 10,
) -> onnx.ModelProto:
    """A model whose inputs have the types of the arrays given."""
    graph = helper.make_graph(
        nodes,
        "test",
        [value_info(name, array) for name, array in inputs.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [numpy_helper.from_array(np.asarray(a), k) for k, a in (constants or {}).items()],
    )
    imports = [helper.make_opsetid(d, v) for d, v in {"": opset, **(opsets or {})}.items()]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=ir_version)


def value_info(name: str, array: Any) -> onnx.ValueInfoProto:
    array = np.asarray(array)
    if array.dtype == object:
        return helper.make_tensor_value_info(name, TensorProto.STRING, array.shape)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", domain: str = "", **attrs: Any
) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), name=name, domain=domain, **attrs)


def run(graph: Graph, feeds: Mapping[str, Any]) -> list[Any]:
    """The graph's outputs by the reference backend."""
    graph.check()
    return run_graph(graph, [feeds[name] for name in graph.input_names])


def run_onnx(graph: Graph, feeds: Mapping[str, Any]) -> list[Any]:
    """The graph's outputs by the ONNX reference, to which it is handed as ONNX of the newest opset."""
    return ReferenceEvaluator(to_onnx(graph, weights=True)).run(None, dict(feeds))  # type: ignore[no-any-return]


def read_and_run(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any]:
    return run(from_onnx(proto.SerializeToString(), check_ops=False), feeds)
