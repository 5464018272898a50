"""Fusion: bias, residual and activation into MatMul and Convolution epilogues; element-wise chains into one kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import numpy as np

from mnnpy.classes import dataclass, field, replace
from mnnpy.decompose.merge import contiguous_view
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Type, tensor_type_of

__all__ = ["Accepts", "fuse_elementwise", "fuse_epilogues", "use_counts"]

#: Activations that the native epilogues know; Clip and LeakyRelu read act_alpha and act_beta.
EPILOGUE_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "Sigmoid", "Tanh", "Gelu", "GeluTanh", "Silu", "HardSwish", "LeakyRelu", "HardSigmoid"}
)
_ELEMENTWISE = frozenset({"Unary", "Binary", "Select", "Convert"})
#: Whether a device has a kernel for a node of a pass, given the types of its values.
Accepts = Callable[[Node, Mapping[str, Type]], bool]
MAX_FUSED_OPS = 24
MAX_FUSED_INPUTS = 10


def use_counts(graph: Graph) -> dict[str, int]:
    """How often each value is read; graph outputs count as one more reader."""
    counts: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.inputs:
            counts[name] = counts.get(name, 0) + 1
    for name in graph.output_names:
        counts[name] = counts.get(name, 0) + 1
    return counts


@dataclass(slots=True)
class _Head:
    """A MatMul or Convolution that may still take a follower into its epilogue."""

    node: Node
    bias: str = ""
    residual: str = ""
    channels: int = -1  #: axis of the result, from its end, along which the bias lies
    attrs: dict[str, Any] = field(default_factory=dict)

    def build(self, outputs: tuple[str, ...]) -> Node:
        inputs = [*self.node.inputs[:2], self.bias, self.residual]
        while inputs and not inputs[-1]:
            inputs.pop()
        return self.node.replace(inputs=tuple(inputs), outputs=outputs, attrs={**self.node.attrs, **self.attrs})


class _Epilogues:
    def __init__(self, graph: Graph, accepts: Accepts | None) -> None:
        self.graph = graph
        self.accepts = accepts
        self.uses = use_counts(graph)
        self.types = dict(graph.types)
        self.constants: dict[str, Array] = dict(graph.constants)
        self.heads: dict[str, tuple[int, _Head]] = {}  # output name → position and state
        self.views: dict[str, tuple[int, Node]] = {}  # name → position and raster: a head's output in another shape
        self.out: list[Node | None] = []
        self.count = 0

    def run(self) -> Graph:
        for node in self.graph.nodes:
            if self._absorb(node):
                continue
            self.out.append(node)
            if self._is_view(node):
                self.views[node.outputs[0]] = (len(self.out) - 1, node)
            if self._is_head(node):
                bias = node.inputs[2] if len(node.inputs) > 2 else ""
                plain = node.op == "Convolution" and node.attrs.get("layout") != "NHWC"
                axis = 1 - len(self._shape(node.outputs[0])) if plain else -1
                self.heads[node.outputs[0]] = (len(self.out) - 1, _Head(node, bias, channels=axis))
        nodes = tuple(n for n in self.out if n is not None)
        return self.graph.replace(nodes=nodes, constants=self.constants, types=self.types)

    def _shape(self, name: str) -> tuple[int, ...]:
        t = self.types.get(name)
        return t.shape if isinstance(t, TensorType) and t.shape is not None else ()  # type: ignore[return-value]

    def _is_head(self, node: Node) -> bool:
        t = self.types.get(node.outputs[0])
        if not isinstance(t, TensorType) or t.dtype is not DType.F32 or len(node.inputs) > 3:
            return False
        if node.op == "MatMul":
            return all(len(self._shape(n)) >= 2 for n in node.inputs[:2])
        return node.op == "Convolution" and (node.attrs.get("layout") == "NHWC" or self.accepts is not None)

    def _absorb(self, node: Node) -> bool:
        """Fold *node* into the head that feeds it; the head moves to this place."""
        for name in node.inputs:
            place, view = self.views.get(name, (-1, None))
            source = name if view is None else view.inputs[0]
            found = self.heads.get(source)
            if found is None or self.uses.get(name) != 1:
                continue
            position, head = found
            head = replace(head, attrs=dict(head.attrs))
            if self._shape(node.outputs[0]) != self._shape(name) or not self._fits(node, name, head, view is not None):
                continue
            made = node.outputs
            if view is not None:
                made = (self._name(),)
                self.types[made[0]] = self.types[source]
                self.uses[made[0]] = 1
            built = head.build(made)
            if self.accepts is not None and not self.accepts(built, self.types):
                continue
            del self.heads[source]
            self.out[position] = None
            if view is not None:
                self.out[place] = None
            self.out.append(built)
            head.node = self.out[-1]  # type: ignore[assignment]
            self.heads[made[0]] = (len(self.out) - 1, head)
            if view is not None:
                self.out.append(view.replace(inputs=made, outputs=node.outputs))
                self.views[node.outputs[0]] = (len(self.out) - 1, self.out[-1])  # type: ignore[assignment]
            return True
        return False

    def _is_view(self, node: Node) -> bool:
        """Whether *node* gives the output of a head, which nobody else reads, another shape with the same channels."""
        if len(node.inputs) != 1 or node.inputs[0] not in self.heads or self.uses.get(node.inputs[0]) != 1:
            return False
        if self.heads[node.inputs[0]][1].channels != -1:
            return False
        before, after = self._shape(node.inputs[0]), self._shape(node.outputs[0])
        return contiguous_view(node) == 0 and before[-1:] == after[-1:] and prod(before) == prod(after) > 0

    def _fits(self, node: Node, name: str, head: _Head, viewed: bool) -> bool:
        if head.attrs.get("act"):
            return False
        if node.op == "Unary":
            return self._activation(node, head)
        if node.op != "Binary":
            return False
        fn = node.attrs["fn"]
        other = node.inputs[1] if node.inputs[0] == name else node.inputs[0]
        if other == name:
            return False
        if fn == "Add":
            return not (viewed and other not in self.constants) and self._add(other, name, head)
        if fn in ("Mul", "Div") and other in self.constants and (fn == "Mul" or node.inputs[0] == name):
            return self._scale(self.constants[other], name, head, fn == "Div")
        if fn == "Sub" and other in self.constants and node.inputs[0] == name and not head.residual:
            return self._bias(-self.constants[other], name, head)
        return False

    def _activation(self, node: Node, head: _Head) -> bool:
        fn = node.attrs["fn"]
        if fn not in EPILOGUE_ACTIVATIONS:
            return False
        head.attrs.update(
            act=fn, act_alpha=float(node.attrs.get("alpha", 0.0)), act_beta=float(node.attrs.get("beta", 0.0))
        )
        return True

    def _add(self, other: str, name: str, head: _Head) -> bool:
        if other in self.constants and self._vector(self.constants[other], name, head) is not None:
            return not head.residual and self._bias(self.constants[other], name, head)
        if head.residual or other in self.constants or self._shape(other) != self._shape(name):
            return False
        head.residual = other
        return True

    def _vector(self, value: Array, name: str, head: _Head) -> Array | None:
        """*value* as one number per output channel, if it broadcasts like that."""
        axis = head.channels
        n = self._shape(name)[axis]
        if value.size == 1:
            return np.full(n, value.reshape(-1)[0], np.float32)
        if value.size == n and -axis <= value.ndim <= len(self._shape(name)) and value.shape[axis] == n:
            return np.ascontiguousarray(value.reshape(-1), np.float32)
        return None

    def _bias(self, value: Array, name: str, head: _Head) -> bool:
        vector = self._vector(value, name, head)
        if vector is None or (head.bias and head.bias not in self.constants):
            return False
        if head.bias:
            vector = vector + self.constants[head.bias].reshape(-1)
        head.bias = self._constant(vector)
        return True

    def _scale(self, value: Array, name: str, head: _Head, divide: bool) -> bool:
        """A constant factor per channel goes into the weights; a scalar one may become *alpha*."""
        vector = self._vector(value, name, head)
        if vector is None or head.residual or (head.bias and head.bias not in self.constants):
            return False
        with np.errstate(divide="ignore"):
            factor = (1.0 / vector).astype(np.float32) if divide else vector
        if not np.isfinite(factor).all():
            return False
        weight = head.node.inputs[1]
        if weight in self.constants:
            if head.node.op == "Convolution" and self.accepts is None:
                # Multiplied in when the weights are packed: a scaled copy of all weights would cost time and memory.
                known = head.attrs.get("weight_scale")
                factors = factor if known is None else np.asarray(known, np.float32) * factor
                head.attrs["weight_scale"] = tuple(factors.tolist())
            else:
                w = self.constants[weight]
                per_row = factor.reshape(-1, *[1] * (w.ndim - 1)) if head.node.op == "Convolution" else factor
                scaled = (w * per_row).astype(np.float32, copy=False)
                inputs = (head.node.inputs[0], self._constant(scaled), *head.node.inputs[2:])
                head.node = head.node.replace(inputs=inputs)
        elif value.size == 1 and factor.size and head.node.op == "MatMul" and not head.bias:
            head.attrs["alpha"] = float(head.attrs.get("alpha", 1.0)) * float(factor[0])
        else:
            return False
        if head.bias:
            head.bias = self._constant(self.constants[head.bias].reshape(-1) * factor)
        return True

    def _name(self) -> str:
        while True:
            self.count += 1
            name = f"epilogue~{self.count}"
            if name not in self.types:
                return name

    def _constant(self, value: Array) -> str:
        name = self._name()
        self.constants[name] = value
        self.types[name] = tensor_type_of(value)
        return name


def fuse_epilogues(graph: Graph, accepts: Accepts | None = None) -> Graph:
    """Move bias, scale, residual and activation into the MatMul or Convolution before them.

    Without *accepts* (is there a kernel for the node?) convolutions take part that are channels-last, and a factor of
    their weights becomes attribute ``weight_scale``.
    """
    return _Epilogues(graph, accepts).run()


def fuse_elementwise(graph: Graph, accepts: Accepts | None = None) -> Graph:
    """Fuse element-wise nodes of one output shape into ``Elementwise`` nodes of one result.

    A value that only members of a group read joins it, however many they are; a device that says by *accepts* which
    nodes it takes keeps the others, and single nodes, as they are. Without it single nodes become groups of one, so
    that a backend has one element-wise kernel.
    """
    grouping = _Grouping(graph)
    made: dict[int, Node | None] = {}  # position → what stands there; None: absorbed by a later one
    for sink in reversed(range(len(graph.nodes))):
        if sink in made or graph.nodes[sink].op not in _ELEMENTWISE:
            continue
        members = grouping.grow(sink)
        node = _emit(grouping.nodes(members), graph.types)
        if accepts is not None and len(members) > 1 and not accepts(node, graph.types):
            members = grouping.grow(sink, accepts)
            node = _emit(grouping.nodes(members), graph.types)
        made |= dict.fromkeys(members, None)
        made[sink] = graph.nodes[sink] if accepts is not None and len(members) == 1 else node
    found = [made.get(k, node) for k, node in enumerate(graph.nodes)]
    return graph.replace(nodes=tuple(n for n in found if n is not None))


class _Grouping:
    """Which nodes may be computed where their result is read."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.uses = use_counts(graph)
        self.makers = {n.outputs[0]: k for k, n in enumerate(graph.nodes) if n.op in _ELEMENTWISE}

    def nodes(self, members: Iterable[int]) -> list[Node]:
        return [self.graph.nodes[k] for k in sorted(members)]

    def grow(self, sink: int, accepts: Accepts | None = None) -> set[int]:
        """Positions of the largest group that ends with *sink*; with *accepts* every step towards it is asked for."""
        types = self.graph.types
        shape = _shape_of(types, self.graph.nodes[sink].outputs[0])
        members, refused = {sink}, set[int]()
        while True:
            reads = Counter(i for n in self.nodes(members) for i in n.inputs)
            makers = {self.makers[i] for i in reads if i in self.makers} - members - refused
            if not makers:
                return members
            maker = max(makers)  # all its readers are decided: they come later
            name = self.graph.nodes[maker].outputs[0]
            joined = self.nodes(members | {maker})
            fits = reads[name] == self.uses[name] and _shape_of(types, name) == shape and _compatible(joined)
            if fits and (accepts is None or accepts(_emit(joined, types), types)):
                members.add(maker)
            else:
                refused.add(maker)


def _compatible(nodes: list[Node]) -> bool:
    """Whether one kernel can hold the nodes: limits, and conversions of one kind."""
    settings = {(n.attrs.get("saturate", True), n.attrs.get("round_mode", "up")) for n in nodes if n.op == "Convert"}
    return len(nodes) <= MAX_FUSED_OPS and len(_outside(nodes)) <= MAX_FUSED_INPUTS and len(settings) <= 1


def _shape_of(types: Any, name: str) -> tuple[int, ...]:
    return types[name].shape  # type: ignore[no-any-return]


def _outside(nodes: list[Node]) -> list[str]:
    made = {n.outputs[0] for n in nodes}
    return list(dict.fromkeys(i for n in nodes for i in n.inputs if i not in made))


def _emit(nodes: list[Node], types: Any) -> Node:
    inputs = _outside(nodes)
    register = {name: k for k, name in enumerate(inputs)}
    ops: list[str] = []
    args: list[int] = []
    dtypes: list[str] = []
    params: list[float] = []
    for node in nodes:
        ops.append(node.attrs["fn"] if node.op in ("Unary", "Binary") else node.op)
        read = [register[i] for i in node.inputs]
        args += [*read, *([-1] * (3 - len(read)))]
        dtypes.append(str(types[node.outputs[0]].dtype))
        params += [float(node.attrs.get("alpha", 0.0)), float(node.attrs.get("beta", 0.0))]
        register[node.outputs[0]] = len(register)
    last = nodes[-1]
    convert = next((n for n in nodes if n.op == "Convert"), None)
    attrs: dict[str, Any] = {"ops": tuple(ops), "args": tuple(args), "dtypes": tuple(dtypes), "params": tuple(params),
                             "results": (register[last.outputs[0]],)}  # fmt: skip
    if convert is not None:
        attrs["saturate"] = int(convert.attrs.get("saturate", True))
        attrs["round_mode"] = str(convert.attrs.get("round_mode", "up"))
    return Node("Elementwise", tuple(inputs), last.outputs, attrs, last.name)
