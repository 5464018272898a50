"""A graph as an ONNX file to look at, in Netron for instance. It is a picture: other runtimes cannot run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mnnpy.convert.onnx.tensors import onnx_number
from mnnpy.decompose.registry import OpClass, get_op, has_op
from mnnpy.graph.dims import SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, MapType, Node, OptionalType, SequenceType, TensorType, Type
from mnnpy.graph.text import format_attr

__all__ = ["to_onnx"]

#: Constants above this many bytes are drawn without their data, unless weights are asked for.
_INLINE_BYTES = 4096


def to_onnx(graph: Graph, *, backends: Mapping[str, str] | None = None, weights: bool = False) -> onnx.ModelProto:
    """*graph* as a ModelProto with mnnpy's op names; atomic ops lie in the domain ``mnnpy``.

    *backends* tells which backend runs a node, by the node's label or its first output: it is shown as the node's
    metadata ``backend`` and in its documentation. Large constants keep their shape only, unless *weights* is true.
    Attributes that ONNX cannot hold (raster regions) become text.
    """
    model = helper.make_model(
        _graph(graph, backends or {}, weights),
        producer_name="mnnpy",
        opset_imports=[
            helper.make_opsetid("", onnx.defs.onnx_opset_version()),
            helper.make_opsetid("mnnpy", 1),
            helper.make_opsetid("ai.onnx.ml", onnx.defs.onnx_ml_opset_version()),
        ],
    )
    helper.set_model_props(model, dict(graph.metadata))
    return model


def _graph(graph: Graph, backends: Mapping[str, str], weights: bool) -> onnx.GraphProto:
    proto = onnx.GraphProto(name=graph.name)
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            info = getattr(proto, kind).add(name=value.name)
            if value.type is not None:
                info.type.CopyFrom(_type(value.type))
    known = {*graph.input_names, *graph.output_names}
    for name, type in graph.types.items():
        if name not in known:
            proto.value_info.add(name=name).type.CopyFrom(_type(type))
    for name, array in graph.constants.items():
        proto.initializer.append(_tensor(name, np.asarray(array), weights))
    proto.node.extend(_node(n, backends, weights) for n in graph.nodes)
    return proto


def _node(node: Node, backends: Mapping[str, str], weights: bool) -> onnx.NodeProto:
    atomic = has_op(node.op) and get_op(node.op).op_class is OpClass.ATOMIC
    prefix, _, op = node.op.rpartition(".")
    domain = "mnnpy" if atomic else {"": "", "ml": "ai.onnx.ml"}.get(prefix, prefix)
    proto = onnx.NodeProto(
        op_type=op, domain=domain, name=node.name, input=list(node.inputs), output=list(node.outputs)
    )
    backend = backends.get(node.label) or next((backends[o] for o in node.outputs if o in backends), "")
    if backend:
        proto.doc_string = f"backend: {backend}"
        proto.metadata_props.add(key="backend", value=backend)
    for key, value in node.attrs.items():
        proto.attribute.append(_attribute(key, value, backends, weights))
    return proto


def _attribute(key: str, value: Any, backends: Mapping[str, str], weights: bool) -> onnx.AttributeProto:
    if isinstance(value, Graph):
        return helper.make_attribute(key, _graph(value, backends, weights))
    if isinstance(value, np.ndarray):
        return helper.make_attribute(key, _tensor(key, value, weights))
    if isinstance(value, (bool, int)) and abs(int(value)) < 1 << 63:
        return helper.make_attribute(key, int(value))
    if isinstance(value, (float, str)):
        return helper.make_attribute(key, value)
    if isinstance(value, tuple) and value:
        for kind in (int, float, str):
            if all(type(v) is kind for v in value):
                return helper.make_attribute(key, list(value))
    return helper.make_attribute(key, format_attr(value))


def _tensor(name: str, array: Array, weights: bool) -> TensorProto:
    dtype = DType.of(array.dtype)
    if dtype is DType.STRING:
        flat = [str(s).encode() for s in array.reshape(-1)]
        return helper.make_tensor(name, TensorProto.STRING, array.shape, flat)
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
