"""What a conversion writes through: nodes and constants in the frame of the node that is being converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnnpy.classes import dataclass
from mnnpy.convert.onnx.scope import Frame, Scope
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, Type, Value

if TYPE_CHECKING:
    import onnx

__all__ = ["Body", "Emitter", "GraphArgument"]


@dataclass(frozen=True, slots=True, eq=False)
class GraphArgument:
    """A body as the model holds it, with the scope in which its outer names are looked up."""

    proto: onnx.GraphProto
    scope: Scope


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """A body that has been read: not yet closed, its frame knows the captures."""

    name: str
    frame: Frame
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    def close(self, captures: Sequence[str]) -> Graph:
        """The graph whose trailing inputs are *captures* (names of the enclosing frame), used or not."""
        extra = []
        for outer in captures:
            value = self.frame.captures.get(outer)
            if value is None:
                known = self.frame.parent.type_of(outer) if self.frame.parent is not None else None
                value = Value(self.frame.names.claim(outer), known)
            extra.append(value)
        return Graph(
            name=self.name,
            inputs=(*self.inputs, *extra),
            outputs=self.outputs,
            nodes=tuple(self.frame.nodes),
            constants=self.frame.constants,
            types=self.frame.types,
        )


class Emitter:
    """Collects the nodes that replace one source node. Values are names; ``None`` is an absent operand."""

    def __init__(
        self,
        frame: Frame,
        label: str,
        outputs: Sequence[str],
        node_name: str = "",
        read_body: Callable[[GraphArgument, Frame], Body] | None = None,
    ) -> None:
        self.frame = frame
        self.label = label
        #: Names wanted for the results, ``""`` where a result is not used.
        self.outputs = tuple(outputs)
        self._node_name = node_name
        self._read_body = read_body
        self._nodes: list[Node] = []
        self._constants: dict[str, Array] = {}
        self.emitted = 0  #: nodes moved into the frame

    # -- writing --

    def op(self, name: str, *inputs: str | None, outputs: int = 1, **attrs: Any) -> Any:
        """Emit one node of the newest opset. Returns its value, or a tuple where ``outputs != 1``."""
        made = tuple(self._fresh(name.rpartition(".")[2].lower()) for _ in range(outputs))
        self.emit(name, [i or "" for i in inputs], made, attrs)
        return made[0] if outputs == 1 else made

    def emit(self, name: str, inputs: list[str], outputs: tuple[str, ...], attrs: Mapping[str, Any]) -> None:
        """Emit one node with given output names; bodies among *attrs* are read and closed."""
        attrs = {key: value for key, value in attrs.items() if value is not None}
        if any(isinstance(v, (GraphArgument, Body)) for v in attrs.values()):
            inputs, attrs = self._close(name, inputs, attrs)
        while inputs and not inputs[-1]:
            inputs.pop()
        self._nodes.append(Node(name, tuple(inputs), outputs, attrs, self._node_name))

    def _close(self, name: str, inputs: list[str], attrs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        bodies: dict[str, Body] = {}
        for key, value in attrs.items():
            if isinstance(value, GraphArgument):
                assert self._read_body is not None
                bodies[key] = self._read_body(value, self.frame)
            elif isinstance(value, Body):
                bodies[key] = value
        captures = list(dict.fromkeys(c for b in bodies.values() for c in b.frame.captures))
        attrs = {**attrs, **{key: body.close(captures) for key, body in bodies.items()}}
        if name != "If":
            attrs["captures"] = len(captures)
        if name == "Loop":  # trip count and condition keep their places where both are absent
            inputs = inputs + [""] * (2 - len(inputs))
        return inputs + captures, attrs

    def const(self, value: Any, dtype: DType | None = None) -> str:
        """A constant from anything numpy takes."""
        name = self._fresh("const")
        self._constants[name] = np.asarray(value, dtype.numpy if dtype is not None else None)
        return name

    def ints(self, *values: int) -> str:
        """A one-dimensional i64 constant."""
        return self.const(np.array(values, np.int64))

    @staticmethod
    def array(*values: int) -> Array:
        """A one-dimensional i64 array, as attributes hold them."""
        return np.array(values, np.int64)

    def like(self, value: float, x: str) -> str:
        """A scalar of *x*'s element type."""
        dtype = self.dtype(x)
        if dtype is not None:
            return self.const(np.asarray(value).astype(dtype.numpy))
        return self.op("CastLike", self.const(value, DType.F32), x)  # type: ignore[no-any-return]

    def body(self) -> Emitter:
        """An emitter for a new body inside the current frame; `end_body` turns it into an attribute."""
        frame = Frame(self.frame.names, self.frame, self.frame.depth + 1)
        return Emitter(frame, self.label, (), self._node_name, self._read_body)

    def body_input(self, hint: str, type: Type | None = None) -> Value:
        """A fresh formal input of the body that this emitter writes."""
        value = Value(self._fresh(hint), type)
        if type is not None:
            self.frame.types[value.name] = type
        return value

    def end_body(self, inputs: Sequence[Value], outputs: Sequence[str]) -> Body:
        self._flush({})
        return Body(self.label, self.frame, tuple(inputs), tuple(Value(o) for o in outputs))

    def _fresh(self, hint: str) -> str:
        return self.frame.names.claim(f"{self.label}/{hint}")

    # -- asking --

    @property
    def n_outputs(self) -> int:
        """Outputs that the source node lists, used or not."""
        return len(self.outputs)

    def used(self, index: int) -> bool:
        """Whether the source node's output *index* is used."""
        return index < len(self.outputs) and bool(self.outputs[index])

    def rank(self, x: str) -> int | None:
        return self.frame.rank(x)

    def dtype(self, x: str) -> DType | None:
        return self.frame.dtype(x)

    def value(self, x: str | None) -> Array | None:
        """The array where *x* is a constant that nobody can replace."""
        if not x or x in self.frame.overridable:
            return None
        found = self._constants.get(x)
        return self.frame.constants.get(x) if found is None else found

    # -- finishing --

    def finish(self, results: Any) -> None:
        """Move everything into the frame, the conversion's *results* under the names that the source node gave."""
        values = results if isinstance(results, (tuple, list)) else (results,)
        fresh = {o for n in self._nodes for o in n.outputs} | self._constants.keys()
        renamed: dict[str, str] = {}
        for value, wanted in zip(values, self.outputs, strict=False):
            if not wanted or value == wanted:
                continue
            if value in fresh and value not in renamed:
                renamed[value] = wanted
            else:  # an operand handed through, or one result under two names
                self._nodes.append(Node("Identity", (value,), (wanted,), {}, self._node_name))
        self._flush(renamed)

    def _flush(self, renamed: Mapping[str, str]) -> None:
        self.emitted = len(self._nodes)
        for name, array in self._constants.items():
            self.frame.constants[renamed.get(name, name)] = array
        for node in self._nodes:
            if renamed:
                node = node.replace(
                    inputs=tuple(renamed.get(i, i) for i in node.inputs),
                    outputs=tuple(renamed.get(o, o) for o in node.outputs),
                )
            self.frame.add(node)
