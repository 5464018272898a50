"""Attributes of ONNX nodes as Python values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mnnpy.convert.onnx.emitter import GraphArgument
from mnnpy.convert.onnx.proto import AttributeKind
from mnnpy.convert.onnx.schemas import drop_ignored
from mnnpy.convert.onnx.scope import Scope
from mnnpy.convert.onnx.tensors import ExternalData, dtype_of, read_sparse, read_tensor, read_type
from mnnpy.errors import ModelError
from mnnpy.graph.dtypes import DType

if TYPE_CHECKING:
    import onnx
    from onnx import AttributeProto

__all__ = ["attribute_type", "attribute_value", "resolved_attributes"]

_A = AttributeKind
#: INT attributes that hold a TensorProto.DataType; 0 means "not given".
_ELEMENT_TYPES = frozenset(
    {"dtype", "output_datatype", "output_dtype", "precision", "softmax_precision", "stash_type", "to"}
)
_FIELDS: tuple[tuple[str, int], ...] = (
    ("floats", _A.FLOATS),
    ("ints", _A.INTS),
    ("strings", _A.STRINGS),
    ("tensors", _A.TENSORS),
    ("graphs", _A.GRAPHS),
)
_SINGLE: tuple[tuple[str, int], ...] = (
    ("f", _A.FLOAT),
    ("i", _A.INT),
    ("s", _A.STRING),
    ("t", _A.TENSOR),
    ("g", _A.GRAPH),
)


def attribute_type(a: AttributeProto) -> int:
    """The attribute's type; files of IR version 1 do not state it, there the field that is set tells."""
    if a.type:
        return int(a.type)
    for name, kind in _SINGLE:
        if a.HasField(name):
            return kind
    for name, kind in _FIELDS:
        if len(getattr(a, name)):
            return kind
    return int(_A.UNDEFINED)


def resolved_attributes(node: onnx.NodeProto, scope: Scope, where: str) -> Iterator[tuple[AttributeProto, str, Scope]]:
    """(attribute, its name here, scope of its bodies), references to function arguments followed.

    A reference to an argument that the call does not give is the same as no attribute (ONNX IR, "Functions").
    """
    seen: set[str] = set()
    for a in drop_ignored(node.attribute):
        if a.name in seen:
            raise ModelError(f"{where}: attribute '{a.name}' is given twice")
        seen.add(a.name)
        if not a.ref_attr_name:
            yield a, a.name, scope
            continue
        if scope.arguments is None:
            raise ModelError(f"{where}: attribute '{a.name}' refers to '{a.ref_attr_name}' outside of any function")
        found = scope.arguments.get(a.ref_attr_name)
        if found is not None:
            yield found[0], a.name, found[1]


def attribute_value(
    a: AttributeProto, name: str, scope: Scope, external: ExternalData, standard: bool, where: str
) -> Any:
    """The Python value: lists are tuples, element types ``DType``, tensors arrays, bodies ``GraphArgument``."""
    where = f"{where}, attribute '{name}'"
    match attribute_type(a):
        case _A.INT:
            if standard and name in _ELEMENT_TYPES:
                return _element_type(a.i, name, where)
            return int(a.i)
        case _A.FLOAT:
            return float(a.f)
        case _A.STRING:
            return _text(a.s, where)
        case _A.TENSOR:
            return read_tensor(a.t, external, where)
        case _A.GRAPH:
            return GraphArgument(a.g, scope)
        case _A.SPARSE_TENSOR:
            return read_sparse(a.sparse_tensor, external, where)
        case _A.TYPE_PROTO:
            return read_type(a.tp, name, lambda hint: hint, where)
        case _A.INTS:
            return tuple(int(i) for i in a.ints)
        case _A.FLOATS:
            return tuple(float(f) for f in a.floats)
        case _A.STRINGS:
            return tuple(_text(s, where) for s in a.strings)
        case _A.TENSORS:
            return tuple(read_tensor(t, external, where) for t in a.tensors)
        case _A.SPARSE_TENSORS:
            return tuple(read_sparse(t, external, where) for t in a.sparse_tensors)
        case _A.TYPE_PROTOS:
            return tuple(read_type(t, name, lambda hint: hint, where) for t in a.type_protos)
        case kind:
            raise ModelError(
                f"{where}: attributes of type {_A.NAMES[kind] if 0 <= kind < len(_A.NAMES) else kind} are not supported"
            )


def _element_type(number: int, name: str, where: str) -> DType | None:
    if number == 0 and name != "to":
        return None
    return dtype_of(number, where)


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{where} is not UTF-8 ({error.reason} at byte {error.start})") from error
