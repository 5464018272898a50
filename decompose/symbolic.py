"""Symbolic type inference: types of all values of a graph as imported, with named sizes kept.

Integer values that feed shapes (``Shape``, ``Gather``, ``Concat``, arithmetic …) are propagated as object arrays
whose elements may be symbolic dims, by the same NumPy references that run concrete values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.infer import Operand, UnknownTypeError, infer
from mnnpy.decompose.registry import get_op
from mnnpy.errors import MnnpyError
from mnnpy.graph.dims import SymDim
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Type, Value, tensor_type_of

__all__ = ["infer_types"]

#: Values up to this many elements are propagated.
LIMIT = 64
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,
}
_SHAPE_OPS = frozenset(
    {"Gather", "Concat", "Squeeze", "Unsqueeze", "Slice", "Cast", "Identity", "Reshape", "Add", "Sub", "Mul", "Div"}
)


def infer_types(graph: Graph) -> Graph:
    """*graph* with ``types`` for every value whose type can be told without data; declared types fill gaps.

    Raises ShapeError where the graph contradicts itself.
    """
    known: dict[str, Operand] = {}
    for name, array in graph.constants.items():
        known[name] = Operand(tensor_type_of(array), array if array.size <= LIMIT else None, name)
    for value in graph.inputs:
        known[value.name] = Operand(value.type, None, value.name)
    types: dict[str, Type] = dict(graph.types)
    for node in graph.nodes:
        inferred, values = _visit(node, [known.get(n) if n else None for n in node.inputs])
        for k, name in enumerate(node.outputs):
            if not name:
                continue
            t = _better(inferred[k] if k < len(inferred) else None, types.get(name))
            if t is not None:
                types[name] = t
            found = values[k] if values is not None and k < len(values) else None
            known[name] = Operand(t, found, name)
    outputs = tuple(Value(v.name, _better(_type_of(known, v.name), v.type)) for v in graph.outputs)
    return graph.replace(types=types, outputs=outputs)


def _type_of(known: dict[str, Operand], name: str) -> Type | None:
    found = known.get(name)
    return found.maybe_type if found is not None else None


def _visit(node: Node, operands: list[Operand | None]) -> tuple[tuple[Type | None, ...], tuple[Any, ...] | None]:
    if any(n and o is None for n, o in zip(node.inputs, operands, strict=True)):
        return (), None
    values = _values(node, operands)
    try:
        return infer(node.op, operands, node.attrs, len(node.outputs), f"node '{node.label}'"), values
    except UnknownTypeError:
        return (), values


def _values(node: Node, operands: list[Operand | None]) -> tuple[Any, ...] | None:
    """Small integer results, symbolic where they depend on input sizes."""
    first = operands[0] if operands else None
    if node.op in ("Shape", "Size") and first is not None:
        if not isinstance(first.maybe_type, TensorType) or first.maybe_type.shape is None:
            return None
        shape = first.maybe_type.shape
        if node.op == "Size":
            total: Any = 1
            for d in shape:
                total = total * d
            return (_packed(np.asarray(total, object)),)
        start, end = node.attrs.get("start", 0), node.attrs.get("end")
        cut = np.empty(len(shape), object)
        cut[:] = shape
        return (_packed(cut[slice(start, end)]),)
    if not operands or any(o is not None and o.value is None for o in operands):
        return None
    if any(o is not None and o.value is not None and o.value.size > LIMIT for o in operands):
        return None
    symbolic = any(o is not None and o.value is not None and _is_symbolic(o.value) for o in operands)
    if (symbolic and node.op not in _SHAPE_OPS) or not get_op(node.op).foldable:
        return None
    try:
        return _evaluated(node, operands, symbolic)
    except (MnnpyError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError):
        return None  # not knowing a value is no error here


def _evaluated(node: Node, operands: list[Operand | None], symbolic: bool) -> tuple[Any, ...] | None:
    arrays = [o.value if o is not None else None for o in operands]
    if not symbolic:
        return evaluate(node.op, arrays, node.attrs)
    if node.op in ("Cast", "Identity"):
        return (arrays[0],)
    if node.op in ("Add", "Sub", "Mul", "Div"):
        a, b = (np.asarray(x, object) for x in arrays if x is not None)
        made = _ARITHMETIC[node.op](a, b)
        return (_packed(np.asarray(made, object)),)
    return tuple(_packed(np.asarray(v, object)) for v in evaluate(node.op, arrays, node.attrs))


def _is_symbolic(array: Array) -> bool:
    return array.dtype == object and any(isinstance(v, SymDim) for v in array.reshape(-1))


def _packed(array: Array) -> Array:
    """Object arrays of plain ints become int64 again."""
    return array if _is_symbolic(array) else array.astype(np.int64)


def _better(inferred: Type | None, declared: Type | None) -> Type | None:
    """Inferred where known; sizes that only the data tell are taken from the declaration."""
    if not isinstance(inferred, TensorType) or not isinstance(declared, TensorType):
        return inferred if inferred is not None else declared
    if inferred.shape is None or declared.shape is None or len(inferred.shape) != len(declared.shape):
        return inferred if inferred.shape is not None else TensorType(inferred.dtype, declared.shape)
    shape = tuple(d if isinstance(i, SymDim) else i for i, d in zip(inferred.shape, declared.shape, strict=True))
    return TensorType(inferred.dtype, shape)
