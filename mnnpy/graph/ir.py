"""The graph: frozen data classes that every stage from ``convert`` to ``Program`` passes on.

Values are named by strings; a node reads names and writes names, each name is written once (SSA).
Sub-graphs are *closed*: what a body reads from outside is passed as trailing node inputs
(``captures``) and appears as trailing inputs of the body, so no pass ever needs to look outwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, Union

import numpy as np

from mnnpy.classes import dataclass, field, replace
from mnnpy.errors import ModelError
from mnnpy.graph.dims import Dim, Shape, SymDim, is_static
from mnnpy.graph.dtypes import DType

__all__ = [
    "Array",
    "Attr",
    "Graph",
    "MapType",
    "Node",
    "OptionalType",
    "SequenceType",
    "TensorType",
    "Type",
    "Value",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape; ``shape`` is ``None`` where even the rank is unknown."""

    dtype: DType
    shape: Shape | None = None

    # Types are keys everywhere in planning: written out, these two take half the time.

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorType) and self.dtype is other.dtype and self.shape == other.shape

    def __hash__(self) -> int:
        return hash((self.dtype, self.shape))

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def is_static(self) -> bool:
        return is_static(self.shape)

    def __str__(self) -> str:
        dims = "*" if self.shape is None else ",".join(str(d) for d in self.shape)
        return f"{self.dtype}[{dims}]"


@dataclass(frozen=True, slots=True)
class SequenceType:
    elem: Type

    def __str__(self) -> str:
        return f"seq({self.elem})"


@dataclass(frozen=True, slots=True)
class OptionalType:
    elem: Type

    def __str__(self) -> str:
        return f"optional({self.elem})"


@dataclass(frozen=True, slots=True)
class MapType:
    key: DType
    value: Type

    def __str__(self) -> str:
        return f"map({self.key},{self.value})"


Type: TypeAlias = Union[TensorType, SequenceType, OptionalType, MapType]


@dataclass(frozen=True, slots=True)
class Value:
    """A named graph input or output."""

    name: str
    type: Type | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.type if self.type is not None else '?'}"


#: What an attribute may hold. Lists are tuples; element types are ``DType``; tensors are arrays.
Attr: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: ``outputs = op(*inputs, **attrs)``.

    ``""`` in *inputs* is an absent optional operand, ``""`` in *outputs* an unused result.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    name: str = ""

    def replace(self, **changes: Any) -> Node:
        return replace(self, **changes)

    @property
    def label(self) -> str:
        """How errors name this node: its own name, else its first output."""
        return self.name or next((o for o in self.outputs if o), self.op)

    def subgraphs(self) -> Iterator[tuple[str, Graph]]:
        """The bodies of a control-flow node, by attribute name."""
        for key, value in self.attrs.items():
            if isinstance(value, Graph):
                yield key, value


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order over named values.

    *constants* maps names to arrays (weights may be memory-mapped, read-only); *types* holds what is
    known of intermediate values. An input that is also in *constants* has a default and need not be fed.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array] = field(default_factory=dict)
    types: Mapping[str, Type] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def replace(self, **changes: Any) -> Graph:
        return replace(self, **changes)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(v.name for v in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(v.name for v in self.outputs)

    def producers(self) -> dict[str, Node]:
        """Value name → the node that writes it."""
        return {o: n for n in self.nodes for o in n.outputs if o}

    def consumers(self) -> dict[str, list[Node]]:
        """Value name → the nodes that read it, in order."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                if name:
                    found.setdefault(name, []).append(node)
        return found

    def symbols(self) -> dict[str, None]:
        """Names of symbolic sizes of the inputs, in order of appearance."""
        return dict.fromkeys(
            atom
            for v in self.inputs
            if isinstance(v.type, TensorType) and v.type.shape is not None
            for d in v.type.shape
            if isinstance(d, SymDim)
            for atom, _ in d.terms
        )

    def check(self) -> None:
        """Raise ModelError unless every name is written once, before it is read."""
        known = {*self.input_names, *self.constants}
        if len(set(self.input_names)) != len(self.inputs):
            raise ModelError(f"graph '{self.name}': an input name appears twice")
        for node in self.nodes:
            for name in node.inputs:
                if name and name not in known:
                    raise ModelError(
                        f"graph '{self.name}', node '{node.label}' ({node.op}): input '{name}' is produced "
                        "by no earlier node, input or constant; the model is cyclic, unsorted or truncated"
                    )
            for name in node.outputs:
                if name and name in known:
                    raise ModelError(
                        f"graph '{self.name}', node '{node.label}' ({node.op}): output '{name}' already exists"
                    )
                known.add(name)
        for value in self.outputs:
            if value.name not in known:
                raise ModelError(f"graph '{self.name}': output '{value.name}' is produced by no node")

    def __str__(self) -> str:
        from mnnpy.graph.text import format_graph

        return format_graph(self)


def tensor_type_of(array: Array) -> TensorType:
    """The static type of an array."""
    shape: tuple[Dim, ...] = tuple(int(d) for d in np.shape(array))
    return TensorType(DType.of(array.dtype), shape)
