"""Specialisation: a graph with symbolic shapes and the actual input types become a graph with static types.

One forward walk infers types, folds constants, inlines decided ``If`` branches, and cuts the graph where only
data can tell a shape: nodes behind the cut form the *late* graph, specialised again when their inputs exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from mnnpy.classes import dataclass, field
from mnnpy.decompose.builder import FOLD_LIMIT, evaluate
from mnnpy.decompose.infer import NeedsValueError, Operand, UnknownTypeError, infer
from mnnpy.decompose.registry import OpClass, OpDef, get_op
from mnnpy.errors import MnnpyError, ModelError, ShapeError
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Type, Value, tensor_type_of

__all__ = ["Specialized", "specialize"]

#: Inputs up to this many elements may become part of a plan's signature when a shape depends on their value.
VALUE_INPUT_LIMIT = 256


@dataclass(slots=True)
class Specialized:
    """Result of one walk.

    ``graph`` holds what has static types now; ``late`` the rest, reading values of ``graph`` or its inputs.
    ``outputs`` names, per output of the source graph, the value that holds it (of either part).
    ``needs`` are graph inputs whose *values* would let the walk go further: specialise again with them.
    ``sources`` tells for a value on which small inputs it depends cheaply (``None``: it does not).
    """

    graph: Graph
    late: Graph | None
    outputs: tuple[str, ...]
    needs: frozenset[str]
    sources: Mapping[str, frozenset[str] | None]


@dataclass(slots=True)
class _Walk:
    inputs: Mapping[str, Type]
    ask: bool
    known: dict[str, Operand] = field(default_factory=dict)
    sources: dict[str, frozenset[str] | None] = field(default_factory=dict)  #: None: not cheap to know
    alias: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    late: list[Node] = field(default_factory=list)
    late_names: set[str] = field(default_factory=set)
    needs: set[str] = field(default_factory=set)
    constants: dict[str, Array] = field(default_factory=dict)
    types: dict[str, Type] = field(default_factory=dict)

    def resolve(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def constant(self, name: str, value: Array) -> None:
        self.constants[name] = value
        self.known[name] = Operand(tensor_type_of(value), value, name)
        self.sources[name] = frozenset()

    def define(self, name: str, type: Type | None, sources: frozenset[str] | None) -> None:
        self.known[name] = Operand(type, None, name)
        self.sources[name] = sources
        if type is not None:
            self.types[name] = type


def specialize(
    graph: Graph, input_types: Mapping[str, Type], known_values: Mapping[str, Array], *, ask: bool = True
) -> Specialized:
    """Specialise *graph* for static *input_types*; inputs in *known_values* are treated as constants.

    With ``ask=False`` no further values are asked for: nodes whose result has another shape for every value run
    on the host, and what reads them is late.
    """
    walk = _Walk(input_types, ask)
    for name, array in graph.constants.items():
        if name not in input_types:
            walk.constant(name, array)
    for name, type in input_types.items():
        if name in known_values:
            walk.constant(name, known_values[name])
            continue
        small = isinstance(type, TensorType) and type.is_static and _count(type) <= VALUE_INPUT_LIMIT
        walk.define(name, type, frozenset({name}) if small else None)
    for node in graph.nodes:
        _visit(walk, node)
    outputs = tuple(walk.resolve(n) for n in graph.output_names)
    if walk.needs:  # the caller walks again with these values; what was found so far is of no use
        return Specialized(graph, None, outputs, frozenset(walk.needs), walk.sources)
    return _split(graph, walk, input_types, known_values, outputs)


def _count(type: TensorType) -> int:
    return int(prod(type.shape or ()))  # type: ignore[arg-type]


def _visit(walk: _Walk, node: Node) -> None:
    inputs = tuple(walk.resolve(n) if n else "" for n in node.inputs)
    if inputs != node.inputs:
        node = node.replace(inputs=inputs)
    if any(n in walk.late_names for n in inputs):
        _postpone(walk, node)
        return
    if node.op == "If" and _inline_if(walk, node):
        return
    if node.op == "Identity" and isinstance(walk.known[inputs[0]].maybe_type, TensorType):
        walk.alias[node.outputs[0]] = inputs[0]
        return
    op = get_op(node.op)
    operands = [walk.known[n] if n else None for n in inputs]
    if _undefined(walk, operands, op):
        _postpone(walk, node)
        return
    try:
        types = infer(node.op, operands, node.attrs, len(node.outputs), f"node '{node.label}'")
    except NeedsValueError as error:
        if _ask_for(walk, error.operand):
            walk.late_names.update(o for o in node.outputs if o)  # a second walk follows
            return
        if walk.ask or not _is_cheap(walk, error.operand):
            _postpone(walk, node)
            return
        types = (None,) * len(node.outputs)
    except UnknownTypeError:
        types = (None,) * len(node.outputs)
    if _fold(walk, node, op, operands, types):
        return
    walk.nodes.append(node)
    sources = _cheap_sources(walk, inputs, op)
    for name, type in zip(node.outputs, types, strict=False):
        if name:
            walk.define(name, type, sources)


def _undefined(walk: _Walk, operands: list[Operand | None], op: OpDef) -> bool:
    """True where an operand exists but its static type does not: the node waits for data.

    Control flow and sequence ops run on whatever comes, as soon as it comes.
    """
    for operand in operands:
        if operand is None:
            continue
        type = operand.maybe_type
        if type is None or (isinstance(type, TensorType) and not type.is_static):
            return True
    return False


def _postpone(walk: _Walk, node: Node) -> None:
    walk.late.append(node)
    walk.late_names.update(o for o in node.outputs if o)


def _ask_for(walk: _Walk, operand: str) -> bool:
    """Ask for the inputs that *operand* comes from; False where they are too large or nobody may be asked."""
    if not walk.ask or not _is_cheap(walk, operand):
        return False
    # An input of the graph itself can wait for nothing: its value counts, however large it is.
    walk.needs |= walk.sources.get(operand) or {operand}
    return True


def _is_cheap(walk: _Walk, operand: str) -> bool:
    return bool(walk.sources.get(operand)) or isinstance(walk.inputs.get(operand), TensorType)


def _cheap_sources(walk: _Walk, inputs: tuple[str, ...], op: OpDef) -> frozenset[str] | None:
    if not op.foldable or op.op_class in (OpClass.CONTROL, OpClass.HOST):
        return None
    total: frozenset[str] = frozenset()
    for name in inputs:
        if name:
            part = walk.sources.get(name)
            if part is None:
                return None
            total |= part
    return total


def _fold(walk: _Walk, node: Node, op: OpDef, operands: list[Operand | None], types: tuple[Type | None, ...]) -> bool:
    """Evaluate the node now if everything it reads is known and the result stays small."""
    if node.op in ("Shape", "Size"):  # needs the type only
        return _fold_shape(walk, node, operands)
    if not op.foldable or op.op_class is OpClass.CONTROL or not operands:
        return False
    if any(o is not None and o.value is None for o in operands) or not _worth_folding(operands, types):
        return False
    try:
        values = evaluate(node.op, [o and o.value for o in operands], node.attrs)
    except MnnpyError as error:
        if getattr(error, "located", False):
            raise
        raise _located(node, operands, error, type(error)) from error
    except Exception as error:  # a reference rejects the values: say which node
        raise _located(node, operands, error, ShapeError) from error
    if any(not isinstance(v, (np.ndarray, np.generic)) for v in values[: len(node.outputs)]):
        return False  # sequences and maps stay host values
    for name, value in zip(node.outputs, values, strict=False):
        if name:
            walk.constant(name, np.asarray(value))
    return True


def _fold_shape(walk: _Walk, node: Node, operands: list[Operand | None]) -> bool:
    first = operands[0] if operands else None
    if first is None or not isinstance(first.maybe_type, TensorType):
        return False
    shape: tuple[int, ...] = first.shape  # type: ignore[assignment]
    listed = shape[node.attrs.get("start", 0) : node.attrs.get("end")] if node.op == "Shape" else prod(shape)
    try:
        walk.constant(node.outputs[0], np.asarray(listed, np.int64))
    except OverflowError as error:
        raise _located(node, operands, error, ShapeError) from error
    return True


def _located(node: Node, operands: list[Operand | None], error: Exception, kind: type[MnnpyError]) -> MnnpyError:
    shapes = ", ".join("absent" if o is None else str(o.maybe_type) for o in operands)
    detail = f"{type(error).__name__} {error}" if isinstance(error, (KeyError, MemoryError)) else str(error)
    where = f"node '{node.label}' ({node.op}) with constants ({shapes})"
    located = kind(f"{where}: {detail}; check its operands and attributes")
    located.located = True  # type: ignore[attr-defined]
    return located


def _worth_folding(operands: list[Operand | None], types: tuple[Type | None, ...]) -> bool:
    size = sum(t.dtype.itemsize * _count(t) for t in types if isinstance(t, TensorType) and t.is_static)
    read = sum(o.value.nbytes for o in operands if o is not None and o.value is not None)
    return size <= max(FOLD_LIMIT, 2 * read)


def _inline_if(walk: _Walk, node: Node) -> bool:
    """Replace an ``If`` whose condition is known by the nodes of the branch taken."""
    condition = walk.known[node.inputs[0]]
    if condition.value is None:
        if _ask_for(walk, node.inputs[0]):
            walk.late_names.update(o for o in node.outputs if o)
            return True
        return False
    if condition.value.size != 1:
        raise ModelError(f"node '{node.label}' (If): the condition has {condition.value.size} elements, not 1")
    branch: Graph = node.attrs["then_branch" if bool(condition.value.reshape(-1)[0]) else "else_branch"]
    for inner, outer in zip(branch.input_names, node.inputs[1:], strict=True):
        walk.alias[inner] = outer
    for name, array in branch.constants.items():
        walk.constant(name, array)
    for child in branch.nodes:
        _visit(walk, child)
    for outer, inner in zip(node.outputs, branch.output_names, strict=False):
        if outer:
            walk.alias[outer] = walk.resolve(inner)
    return True


def _split(
    graph: Graph,
    walk: _Walk,
    input_types: Mapping[str, Type],
    known_values: Mapping[str, Array],
    outputs: tuple[str, ...],
) -> Specialized:
    late = None
    early_outputs = {n for n in outputs if n not in walk.late_names}
    if walk.late:
        produced = {o for n in walk.late for o in n.outputs}
        read = dict.fromkeys(i for n in walk.late for i in n.inputs if i and i not in produced)
        constants = {n: walk.constants[n] for n in read if n in walk.constants}
        handed = tuple(n for n in read if n not in constants)
        early_outputs |= set(handed)
        late = Graph(
            f"{graph.name}+",
            tuple(Value(n, walk.known[n].maybe_type) for n in handed),
            tuple(Value(n) for n in dict.fromkeys(outputs) if n in walk.late_names),
            tuple(walk.late),
            constants,
            {},
        )
    types = dict(walk.types)
    for name in walk.constants:
        types[name] = walk.known[name].type
    early = Graph(
        graph.name,
        tuple(Value(n, t) for n, t in input_types.items() if n not in known_values),
        tuple(Value(n, types.get(n)) for n in sorted(early_outputs)),
        tuple(walk.nodes),
        walk.constants,
        types,
        graph.metadata,
    )
    return Specialized(_prune(early), late, outputs, frozenset(walk.needs), walk.sources)


def _prune(graph: Graph) -> Graph:
    """Drop nodes and constants that nothing reads."""
    live = set(graph.output_names)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(o in live for o in node.outputs):
            kept.append(node)
            live.update(node.inputs)
    constants: dict[str, Any] = {n: a for n, a in graph.constants.items() if n in live}
    return graph.replace(nodes=tuple(reversed(kept)), constants=constants)
