"""Names, scopes and frames: how ONNX's nested, shadowing names become closed graphs with unique names.

A *frame* is one graph under construction; a *scope* is one lexical naming context. The body of a control-flow
node has its own frame and scope; an inlined function has its own scope in the caller's frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mnnpy.classes import dataclass, field
from mnnpy.decompose.infer import Operand, UnknownTypeError, infer, operand_of
from mnnpy.errors import MnnpyError, ModelError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node, TensorType, Type, Value

if TYPE_CHECKING:
    from onnx import AttributeProto

__all__ = ["Frame", "Names", "Scope"]


class Names:
    """Hands out value names that are unique in the whole model."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._next: dict[str, int] = {}

    def claim(self, name: str) -> str:
        """*name* itself where it is free, else ``name.1``, ``name.2`` …"""
        found = name
        while found in self._used:
            k = self._next[name] = self._next.get(name, 0) + 1
            found = f"{name}.{k}"
        self._used.add(found)
        return found


@dataclass(eq=False)
class Frame:
    """A graph under construction."""

    names: Names
    parent: Frame | None = None
    depth: int = 0
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    types: dict[str, Type] = field(default_factory=dict)
    #: Names of graph inputs with defaults: constants that a caller may replace.
    overridable: set[str] = field(default_factory=set)
    #: Outer value → (value here, type), in order of first use.
    captures: dict[str, Value] = field(default_factory=dict)
    _copied: dict[str, str] = field(default_factory=dict)
    _producers: dict[str, Node] = field(default_factory=dict)
    _unknown: set[str] = field(default_factory=set)

    def bring(self, value: str, home: Frame) -> str:
        """The name under which *value* of the enclosing frame *home* is known here; captures it on the way down."""
        if home is self or not value:
            return value
        if value in home.constants and value not in home.overridable:
            if value not in self._copied:
                self._copied[value] = self.names.claim(value)
                self.constants[self._copied[value]] = home.constants[value]
            return self._copied[value]
        if self.parent is None:
            raise ModelError(f"value '{value}' is not visible here")
        outer = self.parent.bring(value, home)
        if outer not in self.captures:
            known = self.parent.type_of(outer)
            inner = self.names.claim(outer)
            self.captures[outer] = Value(inner, known)
            if known is not None:
                self.types[inner] = known
        return self.captures[outer].name

    def add(self, node: Node) -> None:
        self.nodes.append(node)
        for name in node.outputs:
            if name:
                self._producers[name] = node

    def type_of(self, name: str) -> Type | None:
        """The type of a value where it is declared or follows from its producers; inferred only when asked for."""
        pending = [name]
        while pending:
            current = pending[-1]
            node = self._producers.get(current)
            if self._settled(current) or node is None:
                pending.pop()
                continue
            missing = [i for i in node.inputs if i in self._producers and not self._settled(i)]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            self._infer(node)
        return self._known(name)

    def _settled(self, name: str) -> bool:
        return name in self.types or name in self.constants or name in self._unknown

    def _known(self, name: str) -> Type | None:
        found = self.types.get(name)
        if found is None and name in self.constants:
            found = operand_of(self.constants[name]).maybe_type
        return found

    def _infer(self, node: Node) -> None:
        operands = [
            None if not i else Operand(self._known(i), None if i in self.overridable else self.constants.get(i), i)
            for i in node.inputs
        ]
        try:
            types = infer(node.op, operands, node.attrs, len(node.outputs), node.label)
        except (UnknownTypeError, MnnpyError):
            types = ()  # a question, not a check: what is wrong shows when the graph is specialised
        for k, name in enumerate(node.outputs):
            if name and name not in self.types:
                found = types[k] if k < len(types) else None
                if found is None:
                    self._unknown.add(name)
                else:
                    self.types[name] = found

    def rank(self, name: str) -> int | None:
        found = self.type_of(name)
        return found.rank if isinstance(found, TensorType) else None

    def dtype(self, name: str) -> DType | None:
        found = self.type_of(name)
        return found.dtype if isinstance(found, TensorType) else None


@dataclass(eq=False)
class Scope:
    """A lexical naming context: ONNX names → values, the opsets in force, and a function's attribute arguments."""

    frame: Frame
    opsets: Mapping[str, int]
    parent: Scope | None = None
    #: Put before node names: the call path of inlined functions.
    prefix: str = ""
    #: Attribute arguments of the function being inlined, with the scope that their bodies belong to.
    arguments: Mapping[str, tuple[AttributeProto, Scope]] | None = None
    values: dict[str, tuple[str, Frame]] = field(default_factory=dict)

    def bind(self, name: str, value: str) -> None:
        """Let the ONNX name *name* stand for *value* of this scope's frame."""
        self.values[name] = (value, self.frame)

    def find(self, name: str) -> str | None:
        """The value that *name* stands for, brought into this scope's frame; None where it is not defined."""
        scope: Scope | None = self
        while scope is not None:
            found = scope.values.get(name)
            if found is not None:
                return self.frame.bring(*found)
            scope = scope.parent
        return None
