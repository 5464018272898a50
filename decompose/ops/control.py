"""Control flow: If, Loop, Scan, SequenceMap over closed sub-graphs (captured values are trailing inputs)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from mnnpy.decompose.infer import Operand, UnknownTypeError, data_dim, infer, normalize_axis, operand_of
from mnnpy.decompose.registry import OpClass, get_op, op
from mnnpy.errors import MnnpyError, ShapeError
from mnnpy.graph.dims import Dim, SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, OptionalType, SequenceType, TensorType, Type

__all__ = ["empty_scan_outputs", "infer_graph", "merge_types"]

#: Values up to this many elements are followed through a body, so that its shape arithmetic is understood.
_VALUE_LIMIT = 1024
_SCALAR_I64 = TensorType(DType.I64, ())
_SCALAR_BOOL = TensorType(DType.BOOL, ())


def infer_graph(graph: Graph, operands: Sequence[Operand | None]) -> list[Operand]:
    """Types (and small values) of the outputs of *graph* for *operands*; the type is None where it cannot be told.

    Declared types of the graph's values fill in what inference leaves open.
    """
    known: dict[str, Operand] = {n: operand_of(a, n) for n, a in graph.constants.items()}
    for value, given in zip(graph.inputs, operands, strict=False):
        if given is not None:
            known[value.name] = Operand(given.maybe_type or value.type, given.value, value.name)
    for value in graph.inputs:
        known.setdefault(value.name, Operand(value.type, None, value.name))
    for node in graph.nodes:
        known.update(zip(node.outputs, _visit(graph, node, known), strict=False))
    known.pop("", None)
    return [
        Operand(known[v.name].maybe_type or v.type, known[v.name].value, v.name) if v.name in known else Operand(v.type)
        for v in graph.outputs
    ]


def _visit(graph: Graph, node: Node, known: Mapping[str, Operand]) -> list[Operand]:
    args = [known.get(n, Operand(graph.types.get(n), None, n)) if n else None for n in node.inputs]
    try:
        types = infer(node.op, args, node.attrs, len(node.outputs), f"node '{node.label}' of body '{graph.name}'")
    except UnknownTypeError:
        types = (None,) * len(node.outputs)
    values = _fold(node, args, types)
    made = []
    for k, name in enumerate(node.outputs):
        value = values[k] if values is not None and k < len(values) else None
        known_type = types[k] if types[k] is not None else graph.types.get(name)
        made.append(operand_of(value, name) if isinstance(value, np.ndarray) else Operand(known_type, None, name))
    return made


def _fold(node: Node, args: Sequence[Operand | None], types: Sequence[Type | None]) -> tuple[Any, ...] | None:
    found = get_op(node.op)
    if node.op in ("Shape", "Size") and args and args[0] is not None:
        t = args[0].maybe_type
        if not isinstance(t, TensorType) or not t.is_static:
            return None
        return _evaluate(node, [np.broadcast_to(np.zeros((), np.int8), t.shape)])  # type: ignore[arg-type]
    if not found.foldable or found.op_class is OpClass.CONTROL or not args or found.reference is None:
        return None
    small = all(a is None or (a.value is not None and a.value.size <= _VALUE_LIMIT) for a in args)
    fits = all(isinstance(t, TensorType) and t.is_static and _count(t) <= _VALUE_LIMIT for t in types)
    return _evaluate(node, [a and a.value for a in args]) if small and fits else None


def _count(t: TensorType) -> int:
    return prod(d for d in t.shape or () if isinstance(d, int))


def _evaluate(node: Node, values: list[Any]) -> tuple[Any, ...] | None:
    from mnnpy.decompose.builder import evaluate

    try:
        return evaluate(node.op, values, node.attrs)
    except (MnnpyError, ValueError, TypeError, IndexError, KeyError, ZeroDivisionError):
        return None  # the run will say what is wrong with these values


def empty_scan_outputs(body: Graph, operands: Sequence[Operand | None], first: int, axes: Sequence[int]) -> list[Array]:
    """Scan outputs of zero iterations: shaped as the body would make them, with length 0."""
    made = []
    for found, axis in zip(infer_graph(body, operands)[first:], axes, strict=True):
        t = found.maybe_type
        if not isinstance(t, TensorType):
            raise ShapeError(
                f"no iteration ran and the type of scan output '{found.name}' is not known; declare it in the body"
            )
        sizes = [d if isinstance(d, int) else 0 for d in t.shape or ()]
        sizes.insert(axis + len(sizes) + 1 if axis < 0 else axis, 0)
        made.append(np.zeros(sizes, t.dtype.numpy))
    return made


def merge_types(a: Type | None, b: Type | None) -> Type | None:
    """The type that covers both: equal dims stay, others become unknown. Different element types raise ShapeError."""
    if a is None or b is None:
        return None
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        if a.dtype is not b.dtype:
            raise ShapeError(f"types {a} and {b} of the same value have different element types")
        if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
            return TensorType(a.dtype, None)
        return TensorType(
            a.dtype, tuple(x if x == y else data_dim("merge") for x, y in zip(a.shape, b.shape, strict=True))
        )
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        elem = merge_types(a.elem, b.elem)
        return SequenceType(elem) if elem is not None else None
    if isinstance(a, OptionalType) and isinstance(b, OptionalType):
        elem = merge_types(a.elem, b.elem)
        return OptionalType(elem) if elem is not None else None
    return a if a == b else None


@op("If", OpClass.CONTROL)
def if_(cond: Operand, *captures: Operand | None, then_branch: Graph, else_branch: Graph) -> tuple[Type | None, ...]:
    """Run one of two sub-graphs, whose inputs are exactly the captures."""
    if isinstance(cond.maybe_type, TensorType) and cond.dtype is not DType.BOOL:
        raise ShapeError(f"the condition is {cond.dtype}, not bool")
    if len(then_branch.outputs) != len(else_branch.outputs):
        raise ShapeError(f"the branches have {len(then_branch.outputs)} and {len(else_branch.outputs)} outputs")
    for branch in (then_branch, else_branch):
        _check_inputs(branch, len(captures), "captures")
    if cond.value is not None and cond.value.size == 1:
        taken = then_branch if bool(cond.value.reshape(-1)[0]) else else_branch
        return tuple(o.maybe_type for o in infer_graph(taken, captures))
    pairs = zip(infer_graph(then_branch, captures), infer_graph(else_branch, captures), strict=True)
    return tuple(_merge_branches(a.maybe_type, b.maybe_type) for a, b in pairs)


def _merge_branches(a: Type | None, b: Type | None) -> Type | None:
    # ONNX lets the branches of an If differ in anything but the element type.
    try:
        return merge_types(a, b)
    except ShapeError:
        return None


def _check_inputs(body: Graph, count: int, what: str) -> None:
    if len(body.inputs) != count:
        raise ShapeError(f"sub-graph '{body.name}' has {len(body.inputs)} inputs, the node gives it {count} ({what})")


@op("Loop", OpClass.CONTROL)
def loop(
    trip_count: Operand | None = None,
    cond: Operand | None = None,
    *values: Operand | None,
    body: Graph,
    captures: int = 0,
) -> tuple[Type | None, ...]:
    """Repeat *body* (iteration, condition, carried…, captures…) → (condition, carried…, scan outputs…)."""
    _check_inputs(body, 2 + len(values), "iteration, condition, carried values, captures")
    n_carried = len(values) - captures
    n_scans = len(body.outputs) - 1 - n_carried
    if n_carried < 0 or n_scans < 0:
        raise ShapeError(
            f"body '{body.name}' has {len(body.outputs)} outputs for {n_carried} carried values and a condition"
        )
    first = Operand(_SCALAR_I64, None, "iteration")
    going = Operand(cond.maybe_type if cond is not None else _SCALAR_BOOL, None, "condition")
    carried = [None if v is None else v.maybe_type for v in values[:n_carried]]
    outputs = _fixed_point(body, [first, going], carried, list(values[n_carried:]))
    scans = [o.maybe_type for o in outputs[1 + n_carried :]]
    trips = _trips(trip_count, cond, body, outputs[0])
    return (*carried, *(_stacked(t, trips, 0) for t in scans))


def _fixed_point(
    body: Graph, lead: list[Operand | None], carried: list[Type | None], rest: list[Operand | None]
) -> list[Operand]:
    """Infer the body until the types of the *carried* values (changed in place) hold for every iteration."""
    skip = 1 if lead else 0
    while True:
        outputs = infer_graph(body, [*lead, *(Operand(t) for t in carried), *rest])
        changed = False
        for k, old in enumerate(carried):
            new = merge_types(old, outputs[skip + k].maybe_type)
            if _wider(new, old):
                carried[k], changed = new, True
        if not changed:
            return outputs


def _wider(new: Type | None, old: Type | None) -> bool:
    """Whether merging lost something (fresh unknown dims in place of unknown ones do not count)."""
    if isinstance(new, TensorType) and isinstance(old, TensorType):
        if new.shape is None or old.shape is None:
            return new.shape != old.shape
        return any(n != o and not _unknown(o) for n, o in zip(new.shape, old.shape, strict=True))
    if isinstance(new, (SequenceType, OptionalType)) and isinstance(old, (SequenceType, OptionalType)):
        return _wider(new.elem, old.elem)
    return new != old


def _unknown(d: Dim) -> bool:
    return isinstance(d, SymDim) and any(atom.startswith("?merge") for atom, _ in d.terms)


def _trips(trip_count: Operand | None, cond: Operand | None, body: Graph, condition: Operand) -> Dim:
    """Iterations where they are certain before the run, else a dimension that only the data decide."""
    passes = body.outputs[0].name == body.inputs[1].name or (
        condition.value is not None and condition.value.size == 1 and bool(condition.value.reshape(-1)[0])
    )
    begins = cond is None or (cond.value is not None and bool(cond.value.reshape(-1)[0]))
    if (passes or cond is None) and begins and trip_count is not None and trip_count.value is not None:
        return max(0, int(trip_count.value.reshape(-1)[0]))
    return data_dim("loop")


def _stacked(type: Type | None, length: Dim, axis: int) -> Type | None:
    if not isinstance(type, TensorType):
        return None
    if type.shape is None:
        return type
    axis = normalize_axis(axis, len(type.shape) + 1, "scan output axis")
    return TensorType(type.dtype, (*type.shape[:axis], length, *type.shape[axis:]))


@op("Scan", OpClass.CONTROL)
def scan(
    *values: Operand | None,
    body: Graph,
    num_scan_inputs: int,
    captures: int = 0,
    scan_input_axes: tuple[int, ...] | None = None,
    scan_input_directions: tuple[int, ...] | None = None,
    scan_output_axes: tuple[int, ...] | None = None,
    scan_output_directions: tuple[int, ...] | None = None,
) -> tuple[Type | None, ...]:
    """Run *body* over slices: inputs (states…, scan inputs…, captures…), outputs (states…, scan outputs…)."""
    _check_inputs(body, len(values), "states, slices, captures")
    n_states = len(values) - captures - num_scan_inputs
    n_scans = len(body.outputs) - n_states
    if n_states < 0 or n_scans < 0 or num_scan_inputs < 1:
        raise ShapeError(
            f"{len(values)} inputs with num_scan_inputs={num_scan_inputs} and {len(body.outputs)} "
            "body outputs do not fit"
        )
    for name, given, want in (
        ("scan_input_axes", scan_input_axes, num_scan_inputs),
        ("scan_input_directions", scan_input_directions, num_scan_inputs),
        ("scan_output_axes", scan_output_axes, n_scans),
        ("scan_output_directions", scan_output_directions, n_scans),
    ):
        if given and len(given) != want:
            raise ShapeError(f"{name} has {len(given)} entries, {want} are needed")
    slices: list[Operand | None] = []
    length: Dim | None = None
    for k, x in enumerate(values[n_states : n_states + num_scan_inputs]):
        if x is None:
            raise ShapeError(f"scan input {k} is absent")
        axis = normalize_axis((scan_input_axes or (0,) * num_scan_inputs)[k], x.rank, "scan input axis")
        if isinstance(length, int) and isinstance(x.shape[axis], int) and x.shape[axis] != length:
            raise ShapeError(f"scan inputs have lengths {length} and {x.shape[axis]}")
        if not isinstance(length, int):
            length = x.shape[axis]
        slices.append(Operand(TensorType(x.dtype, x.shape[:axis] + x.shape[axis + 1 :])))
    states = [None if v is None else v.maybe_type for v in values[:n_states]]
    outputs = _fixed_point(body, [], states, [*slices, *values[n_states + num_scan_inputs :]])
    axes = scan_output_axes or (0,) * n_scans
    assert length is not None
    return (*states, *(_stacked(o.maybe_type, length, a) for o, a in zip(outputs[n_states:], axes, strict=True)))


@op("SequenceMap", OpClass.CONTROL)
def sequence_map(
    input_sequence: Operand, *additional: Operand | None, body: Graph, captures: int = 0
) -> tuple[Type | None, ...]:
    """Apply *body* to every element of a sequence; tensors among the additional inputs are the same for each."""
    _check_inputs(body, 1 + len(additional), "the element, additional inputs, captures")
    end = len(additional) - captures
    args = [_element(input_sequence), *(_element(a) for a in additional[:end]), *additional[end:]]
    outputs = infer_graph(body, args)
    return tuple(SequenceType(o.maybe_type) if o.maybe_type is not None else None for o in outputs)


def _element(x: Operand | None) -> Operand | None:
    if x is None or not isinstance(x.maybe_type, SequenceType):
        return x
    return Operand(x.maybe_type.elem, None, x.name)
