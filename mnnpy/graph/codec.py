"""Types and sizes as plain data (JSON), for files and for what is kept on disk."""

from __future__ import annotations

from typing import Any

from mnnpy.graph.dims import Dim, SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import MapType, OptionalType, SequenceType, TensorType, Type

__all__ = ["dim_of", "plain_dim", "plain_type", "type_of"]


def plain_dim(dim: Dim) -> Any:
    """An int, or terms and constant of a symbolic size."""
    if isinstance(dim, SymDim):
        return {"terms": [[atom, c] for atom, c in dim.terms], "constant": dim.constant}
    return int(dim)


def plain_type(type: Type) -> Any:
    """``{kind: …}``, nested as the type is."""
    if isinstance(type, TensorType):
        shape = None if type.shape is None else [plain_dim(d) for d in type.shape]
        return {"tensor": type.dtype.value, "shape": shape}
    if isinstance(type, SequenceType):
        return {"sequence": plain_type(type.elem)}
    if isinstance(type, OptionalType):
        return {"optional": plain_type(type.elem)}
    return {"map": [type.key.value, plain_type(type.value)]}


def dim_of(form: Any) -> Dim:
    """What ``plain_dim`` made; raises ValueError, TypeError or KeyError for anything else."""
    if isinstance(form, dict):
        return SymDim({_str(atom): int(c) for atom, c in form["terms"]}, int(form["constant"]))
    return int(form)


def type_of(form: Any) -> Type:
    """What ``plain_type`` made; raises ValueError, TypeError or KeyError for anything else."""
    if "tensor" in form:
        shape = form["shape"]
        return TensorType(DType(form["tensor"]), None if shape is None else tuple(dim_of(d) for d in shape))
    if "sequence" in form:
        return SequenceType(type_of(form["sequence"]))
    if "optional" in form:
        return OptionalType(type_of(form["optional"]))
    key, value = form["map"]
    return MapType(DType(key), type_of(value))


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {type(value).__name__}")
    return value
