"""A graph as an ONNX model: to look at, and, for graphs of source ops, to run elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from mnnpy.convert.onnx.schemas import schema_for
from mnnpy.convert.onnx.tensors import onnx_number
from mnnpy.decompose.registry import OpClass, get_op, has_op
from mnnpy.graph.dims import SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, MapType, Node, OptionalType, SequenceType, TensorType, Type
from mnnpy.graph.text import format_attr

__all__ = ["to_onnx"]

_NEWEST = int(onnx.defs.onnx_opset_version())
_DOMAINS = {"": "", "ml": "ai.onnx.ml", "preview": "ai.onnx.preview", "training": "ai.onnx.preview.training"}
_LISTS = ((int, AttributeProto.INTS), (float, AttributeProto.FLOATS), (str, AttributeProto.STRINGS))
#: Constants above this many bytes are drawn without their data, unless weights are asked for.
_INLINE_BYTES = 4096


def to_onnx(graph: Graph, *, backends: Mapping[str, str] | None = None, weights: bool = False) -> onnx.ModelProto:
    """*graph* as a ModelProto with mnnpy's op names.

    Atomic ops lie in the domain ``mnnpy``; a graph of source ops only, with *weights*, is a standard ONNX model.
    *backends* tells which backend runs a node, by the node's label or its first output: it is shown as the node's
    metadata ``backend`` and in its documentation. Without *weights* large constants keep their shape only.
    Attributes that ONNX cannot hold (raster regions) become text.
    """
    writer = _Writer(backends or {}, weights)
    proto = writer.graph(graph, {})
    model = helper.make_model(
        proto, producer_name="mnnpy", opset_imports=[helper.make_opsetid(d, v) for d, v in writer.opsets.items()]
    )
    helper.set_model_props(model, dict(graph.metadata))
    return model


class _Writer:
    """Writes graphs; collects the opsets that they need."""

    def __init__(self, backends: Mapping[str, str], weights: bool) -> None:
        self._backends = backends
        self._weights = weights
        self.opsets: dict[str, int] = {"": onnx.defs.onnx_opset_version()}

    def graph(self, graph: Graph, outer: Mapping[str, str], captured: int = 0) -> onnx.GraphProto:
        """*graph* with its last *captured* inputs replaced by the *outer* names: ONNX bodies see those directly."""
        formal = graph.inputs[: len(graph.inputs) - captured]
        proto = onnx.GraphProto(name=graph.name)
        for kind, values in (("input", formal), ("output", graph.outputs)):
            for value in values:
                info = getattr(proto, kind).add(name=value.name)
                if value.type is not None:
                    info.type.CopyFrom(_type(value.type))
        known = {*graph.input_names, *graph.output_names, *graph.constants}
        for name, found in graph.types.items():
            if name not in known:
                proto.value_info.add(name=name).type.CopyFrom(_type(found))
        for name, array in graph.constants.items():
            proto.initializer.append(_tensor(name, np.asarray(array), self._weights))
        proto.node.extend(self._node(n, outer) for n in graph.nodes)
        for value in proto.output:
            if value.name in outer:  # a body that returns what it captured
                proto.node.add(op_type="Identity", input=[outer[value.name]], output=[f"{value.name}/out"])
                value.name += "/out"
        return proto

    def _node(self, node: Node, outer: Mapping[str, str]) -> onnx.NodeProto:
        atomic = has_op(node.op) and get_op(node.op).op_class is OpClass.ATOMIC and not schema_for("", node.op, _NEWEST)
        prefix, _, op = node.op.rpartition(".")
        domain = "mnnpy" if atomic else _DOMAINS.get(prefix, prefix)
        self._import(domain, op)
        inputs = [outer.get(i, i) for i in node.inputs]
        captured = 0
        if any(True for _ in node.subgraphs()):
            captured = len(inputs) - 1 if node.op == "If" else int(node.attrs.get("captures", 0))
        mine = inputs[: len(inputs) - captured]
        proto = onnx.NodeProto(op_type=op, domain=domain, name=node.name, input=mine, output=list(node.outputs))
        found = self._backends
        backend = found.get(node.label) or next((found[o] for o in node.outputs if o in found), "")
        if backend:
            proto.doc_string = f"backend: {backend}"
            proto.metadata_props.add(key="backend", value=backend)
        for key, value in node.attrs.items():
            if isinstance(value, Graph):
                names = value.input_names[len(value.inputs) - captured :]
                inner = {**outer, **dict(zip(names, inputs[len(mine) :], strict=True))}
                proto.attribute.append(helper.make_attribute(key, self.graph(value, inner, captured)))
            elif key != "captures":
                proto.attribute.append(self._attribute(key, value))
        return proto

    def _import(self, domain: str, op: str) -> None:
        if domain == "ai.onnx.ml":
            newest = int(onnx.defs.onnx_ml_opset_version())
            # TreeEnsembleClassifier and -Regressor were withdrawn in version 5
            wanted = min(newest, 4) if op.startswith("TreeEnsemble") and op != "TreeEnsemble" else newest
            self.opsets[domain] = min(self.opsets.get(domain, newest), wanted)
        else:
            self.opsets.setdefault(domain, 1)

    def _attribute(self, key: str, value: Any) -> onnx.AttributeProto:
        if isinstance(value, np.ndarray):
            return helper.make_attribute(key, _tensor("", value, self._weights))
        if isinstance(value, DType):
            return helper.make_attribute(key, onnx_number(value))
        if isinstance(value, (TensorType, SequenceType, OptionalType, MapType)):
            return helper.make_attribute(key, _type(value))
        if isinstance(value, int) and abs(int(value)) < 1 << 63:
            return helper.make_attribute(key, int(value))
        if isinstance(value, (float, str)):
            return helper.make_attribute(key, value)
        if isinstance(value, tuple):
            for kind, number in _LISTS:
                if all(type(v) is kind for v in value):
                    return helper.make_attribute(key, list(value), attr_type=number)
        return helper.make_attribute(key, format_attr(value))


def _tensor(name: str, array: Array, weights: bool) -> TensorProto:
    dtype = DType.of(array.dtype)
    if dtype is DType.STRING:
        flat = [str(s).encode() for s in array.reshape(-1)]
        return TensorProto(name=name, data_type=TensorProto.STRING, dims=array.shape, string_data=flat)
    if weights or array.nbytes <= _INLINE_BYTES:
        return numpy_helper.from_array(array, name)
    proto = TensorProto(name=name, data_type=onnx_number(dtype), dims=array.shape)
    proto.data_location = TensorProto.EXTERNAL
    proto.external_data.add(key="location", value="weights-not-included")
    return proto


def _type(type: Type) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    if isinstance(type, TensorType):
        proto.tensor_type.elem_type = onnx_number(type.dtype)
        if type.shape is not None:
            proto.tensor_type.shape.SetInParent()
            for d in type.shape:
                dim = proto.tensor_type.shape.dim.add()
                if isinstance(d, SymDim):
                    dim.dim_param = str(d)
                else:
                    dim.dim_value = d
    elif isinstance(type, SequenceType):
        proto.sequence_type.elem_type.CopyFrom(_type(type.elem))
    elif isinstance(type, OptionalType):
        proto.optional_type.elem_type.CopyFrom(_type(type.elem))
    elif isinstance(type, MapType):
        proto.map_type.key_type = onnx_number(type.key)
        proto.map_type.value_type.CopyFrom(_type(type.value))
    return proto
