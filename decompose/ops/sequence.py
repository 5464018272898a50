"""Sequences and optionals: host ops over Python lists (``None`` is an empty optional)."""

from __future__ import annotations

from mnnpy.decompose.infer import Operand, data_dim, normalize_axis
from mnnpy.decompose.ops.control import merge_types
from mnnpy.decompose.ops.element_types import ElementType, maybe_element_type
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import OptionalType, SequenceType, TensorType, Type

_SCALAR_I64 = TensorType(DType.I64, ())


def _sequence(x: Operand) -> SequenceType | None:
    """The type of a sequence operand, None where it is not known."""
    t = x.maybe_type
    if t is not None and not isinstance(t, SequenceType):
        raise ShapeError(f"'{x.name}' is {t}, but a sequence is needed here")
    return t


def _element(x: Operand) -> TensorType | None:
    t = _sequence(x)
    return t.elem if t is not None and isinstance(t.elem, TensorType) else None


def _position(position: Operand | None) -> None:
    if position is not None and isinstance(position.maybe_type, TensorType):
        if position.dtype not in (DType.I32, DType.I64):
            raise ShapeError(f"the position is {position.dtype}, not i32 or i64")


@op("SequenceConstruct", OpClass.HOST)
def sequence_construct(*inputs: Operand) -> Type | None:
    """A sequence of the inputs."""
    if not inputs:
        raise ShapeError("SequenceConstruct takes at least one input; SequenceEmpty makes an empty sequence")
    elem = inputs[0].maybe_type
    for x in inputs[1:]:
        elem = merge_types(elem, x.maybe_type)
    return SequenceType(elem) if elem is not None else None


@op("SequenceEmpty", OpClass.HOST)
def sequence_empty(*, dtype: ElementType | None = None) -> Type:
    """An empty sequence of tensors of *dtype* (f32 where not given)."""
    return SequenceType(TensorType(maybe_element_type(dtype) or DType.F32, None))


@op("SequenceAt", OpClass.HOST)
def sequence_at(input_sequence: Operand, position: Operand) -> Type | None:
    """One element; negative positions count from the end."""
    _position(position)
    return _element(input_sequence)


@op("SequenceLength", OpClass.HOST)
def sequence_length(input_sequence: Operand) -> Type:
    """Number of elements, an i64 scalar."""
    _sequence(input_sequence)
    return _SCALAR_I64


@op("SequenceErase", OpClass.HOST)
def sequence_erase(input_sequence: Operand, position: Operand | None = None) -> Type | None:
    """The sequence without one element, the last one by default."""
    _position(position)
    return _sequence(input_sequence)


@op("SequenceInsert", OpClass.HOST)
def sequence_insert(input_sequence: Operand, tensor: Operand, position: Operand | None = None) -> Type | None:
    """The sequence with one more element, at the end by default."""
    _position(position)
    t = _sequence(input_sequence)
    elem = merge_types(t.elem, tensor.maybe_type) if t is not None else None
    return SequenceType(elem) if elem is not None else None


@op("ConcatFromSequence", OpClass.HOST)
def concat_from_sequence(input_sequence: Operand, *, axis: int, new_axis: int = 0) -> Type | None:
    """All elements concatenated along *axis*, or stacked along a new one."""
    if new_axis not in (0, 1):
        raise ShapeError(f"new_axis {new_axis} is not 0 or 1")
    elem = _element(input_sequence)
    if elem is None or elem.shape is None:
        return elem
    rank = len(elem.shape) + new_axis
    axis = normalize_axis(axis, rank)
    shape: list[Dim] = list(elem.shape)
    if new_axis:
        shape.insert(axis, data_dim("concat"))
    else:
        shape[axis] = data_dim("concat")
    return TensorType(elem.dtype, tuple(shape))


@op("SplitToSequence", OpClass.HOST)
def split_to_sequence(x: Operand, split: Operand | None = None, *, axis: int = 0, keepdims: int = 1) -> Type:
    """Parts of a tensor along *axis*: of one size, of given sizes, or single elements."""
    axis = normalize_axis(axis, x.rank)
    shape = list(x.shape)
    if split is None and not keepdims:
        del shape[axis]
    elif split is None:
        shape[axis] = 1
    else:
        shape[axis] = data_dim("part")
    return SequenceType(TensorType(x.dtype, tuple(shape)))


@op("Optional", OpClass.HOST)
def optional(x: Operand | None = None, *, type: Type | None = None) -> Type | None:
    """An optional that holds *x*, or an empty one of the given type."""
    if x is None:
        if type is None:
            raise ShapeError("Optional needs an input, or the attribute 'type' for an empty one")
        return type if isinstance(type, OptionalType) else OptionalType(type)
    return OptionalType(x.maybe_type) if x.maybe_type is not None else None


@op("OptionalGetElement", OpClass.HOST)
def optional_get_element(x: Operand) -> Type | None:
    """What an optional holds; tensors and sequences hold themselves."""
    return x.maybe_type.elem if isinstance(x.maybe_type, OptionalType) else x.maybe_type


@op("OptionalHasElement", OpClass.HOST)
def optional_has_element(x: Operand | None = None) -> Type:
    """Whether an optional holds something (a bool scalar)."""
    return TensorType(DType.BOOL, ())
