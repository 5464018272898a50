"""Recognises composites that an exporter wrote out, before decomposition takes everything apart.

A pattern is a small expression tree over source ops. Matching starts at the last node of an expression and
walks to its operands; commutative ops are tried both ways. What is matched becomes one composite node; nodes
that nobody reads afterwards are pruned. Each pattern is exact algebra: results differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import pi, sqrt
from typing import Any, TypeAlias, Union

import numpy as np

from mnnpy.classes import dataclass
from mnnpy.decompose.lower import prune
from mnnpy.graph.ir import Array, Graph, Node, TensorType, tensor_type_of

__all__ = ["PATTERNS", "Call", "Number", "Pattern", "Wild", "recognize"]

_COMMUTATIVE = frozenset({"Add", "Mul"})


@dataclass(frozen=True, slots=True)
class Wild:
    """Any value; the same name must match the same value everywhere."""

    name: str


@dataclass(frozen=True, slots=True)
class Number:
    """A scalar constant: captured under *name*, or equal to *value* within 0.1 %."""

    value: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Constant:
    """Any constant, captured under *name*."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A node of one of the ops in *op* ("A|B") on operands that match *args*; captured under *name* if given."""

    op: str
    args: tuple[Expr, ...]
    name: str = ""


Expr: TypeAlias = Union[Wild, Number, Constant, Call]
Found: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pattern:
    """*tree* becomes the node that *build* returns, or stays where *build* returns None."""

    name: str
    tree: Call
    build: Callable[[Rewriter, Found, Node], Node | None]


class Rewriter:
    """The graph being matched: producers, constants and types by name."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer = graph.producers()
        self.constants: dict[str, Array] = dict(graph.constants)
        self.types = dict(graph.types)
        for value in graph.inputs:
            if value.type is not None:
                self.types[value.name] = value.type

    def shape(self, name: str) -> tuple[int, ...]:
        t = self.types.get(name)
        return t.shape if isinstance(t, TensorType) and t.shape is not None else ()  # type: ignore[return-value]

    def is_float32(self, name: str) -> bool:
        t = self.types.get(name)
        return isinstance(t, TensorType) and t.dtype.value == "f32"

    def constant(self, hint: str, value: Array) -> str:
        name = f"{hint}~pattern{len(self.constants)}"
        self.constants[name] = value
        self.types[name] = tensor_type_of(value)
        return name

    def matches(self, name: str, expr: Expr, found: Found) -> Iterator[Found]:
        """All ways in which value *name* matches *expr*, given what is bound already."""
        if isinstance(expr, Wild):
            if found.get(expr.name, name) == name:
                yield {**found, expr.name: name}
        elif isinstance(expr, Constant):
            if name in self.constants and found.get(expr.name, name) == name:
                yield {**found, expr.name: name}
        elif isinstance(expr, Number):
            yield from self._number(name, expr, found)
        else:
            node = self.producer.get(name)
            if node is not None and node.outputs[0] == name:
                yield from self.call(node, expr, found)

    def _number(self, name: str, expr: Number, found: Found) -> Iterator[Found]:
        array = self.constants.get(name)
        if array is None or array.size != 1 or array.dtype == object:
            return
        value = float(array.reshape(-1)[0])
        if expr.value is not None and abs(value - expr.value) > 1e-3 * abs(expr.value):
            return
        yield {**found, expr.name: value} if expr.name else found

    def call(self, node: Node, expr: Call, found: Found) -> Iterator[Found]:
        if node.op not in expr.op.split("|") or len([n for n in node.inputs if n]) < len(expr.args):
            return
        orders = [expr.args]
        if node.op in _COMMUTATIVE and len(expr.args) == 2:
            orders.append(expr.args[::-1])
        bound = {**found, expr.name: node} if expr.name else found
        for args in orders:
            yield from self._args(node.inputs, args, bound)

    def _args(self, names: tuple[str, ...], args: tuple[Expr, ...], found: Found) -> Iterator[Found]:
        if not args:
            yield found
            return
        for step in self.matches(names[0], args[0], found):
            yield from self._args(names[1:], args[1:], step)


def recognize(graph: Graph, patterns: tuple[Pattern, ...] | None = None) -> Graph:
    """Replace every match of *patterns* (all known ones by default), largest first."""
    work = Rewriter(graph)
    by_op: dict[str, list[Pattern]] = {}
    for pattern in PATTERNS if patterns is None else patterns:
        for op in pattern.tree.op.split("|"):
            by_op.setdefault(op, []).append(pattern)
    replaced: dict[int, Node] = {}
    for k in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[k]
        for pattern in by_op.get(node.op, ()):
            new = next((n for f in work.call(node, pattern.tree, {}) if (n := pattern.build(work, f, node))), None)
            if new is not None:
                replaced[k] = new
                break
    if not replaced:
        return graph
    nodes = tuple(replaced.get(k, n) for k, n in enumerate(graph.nodes))
    return prune(graph.replace(nodes=nodes, constants=work.constants, types=work.types))


# -- normalisation ---------------------------------------------------------------------------------------------


def _x() -> Wild:
    return Wild("x")


def _mean(of: Expr, name: str) -> Call:
    return Call("ReduceMean", (of, Constant(f"{name}_axes")), name)


def _square(of: Expr) -> tuple[Call, ...]:
    return (Call("Pow", (of, Number(2.0))), Call("Mul", (of, of)))


def _layer_norms() -> Iterator[Call]:
    """Normalised value: (x − mean) / sqrt(mean((x − mean)²) + ε), with and without shared subtraction."""
    centred = Call("Sub", (_x(), _mean(_x(), "m1")))
    for squared in (*_square(centred), Call("Pow", (Wild("d2"), Number(2.0)))):
        deviation = Call("Sqrt", (Call("Add", (_mean(squared, "m2"), Number(name="eps"))),))
        yield Call("Div", (centred, deviation))


def _rms_norms() -> Iterator[Call]:
    for squared in _square(_x()):
        root = Call("Sqrt", (Call("Add", (_mean(squared, "m2"), Number(name="eps"))),))
        yield Call("Div", (_x(), root))
        yield Call("Mul", (_x(), Call("Reciprocal", (root,))))


def _last_axes(work: Rewriter, found: Found, key: str, rank: int) -> int | None:
    """First axis of a trailing run of reduced axes (keepdims), or None."""
    node: Node = found[key]
    if not node.attrs.get("keepdims", 1):
        return None
    axes = sorted(int(a) % rank for a in work.constants[found[f"{key}_axes"]].reshape(-1))
    return axes[0] if axes and axes == list(range(axes[0], rank)) else None


def _affine(work: Rewriter, name: str | None, shape: tuple[int, ...], fallback: float) -> str | None:
    """Scale or bias as an array of exactly the normalised shape."""
    if name is None:
        return work.constant("affine", np.full(shape, fallback, np.float32))
    value = work.constants[name]
    if value.size == 1 or value.shape == shape:
        return name if value.shape == shape else work.constant("affine", np.broadcast_to(value, shape).copy())
    return work.constant("affine", value.reshape(shape)) if value.size == int(np.prod(shape)) else None


def _build_layer_norm(work: Rewriter, found: Found, node: Node) -> Node | None:
    x = found["x"]
    shape = work.shape(x)
    if not shape or not work.is_float32(x) or ("d2" in found and not _is_centred(work, found["d2"], found)):
        return None
    first = _last_axes(work, found, "m1", len(shape))
    if first is None or first != _last_axes(work, found, "m2", len(shape)):
        return None
    scale = _affine(work, found.get("gamma"), shape[first:], 1.0)
    bias = _affine(work, found["beta"], shape[first:], 0.0) if "beta" in found else ""
    if scale is None or bias is None:
        return None
    inputs = (x, scale, bias) if bias else (x, scale)
    attrs = {"axis": first, "epsilon": float(found["eps"])}
    return Node("LayerNormalization", inputs, node.outputs, attrs, node.name)


def _is_centred(work: Rewriter, name: str, found: Found) -> bool:
    """Exporters sometimes write the subtraction twice."""
    return any(True for _ in work.matches(name, Call("Sub", (_x(), _mean(_x(), "m1b"))), {"x": found["x"]}))


def _build_rms_norm(work: Rewriter, found: Found, node: Node) -> Node | None:
    x = found["x"]
    shape = work.shape(x)
    if not shape or not work.is_float32(x):
        return None
    first = _last_axes(work, found, "m2", len(shape))
    if first is None:
        return None
    scale = _affine(work, found.get("gamma"), shape[first:], 1.0)
    if scale is None:
        return None
    attrs = {"axis": first, "epsilon": float(found["eps"])}
    return Node("RMSNormalization", (x, scale), node.outputs, attrs, node.name)


def _norm_patterns() -> Iterator[Pattern]:
    for k, base in enumerate(_layer_norms()):
        scaled = Call("Mul", (base, Constant("gamma")))
        yield Pattern(f"layer_norm_affine_{k}", Call("Add", (scaled, Constant("beta"))), _build_layer_norm)
        yield Pattern(f"layer_norm_scale_{k}", scaled, _build_layer_norm)
        yield Pattern(f"layer_norm_{k}", base, _build_layer_norm)
    for k, base in enumerate(_rms_norms()):
        yield Pattern(f"rms_norm_scale_{k}", Call("Mul", (base, Constant("gamma"))), _build_rms_norm)


# -- activations -----------------------------------------------------------------------------------------------


def _erf_gelus() -> Iterator[Call]:
    """X · ½ · (1 + erf(x / √2)) in the orders that exporters write."""
    for scaled in (Call("Div", (_x(), Number(sqrt(2.0)))), Call("Mul", (_x(), Number(sqrt(0.5))))):
        one_plus = Call("Add", (Call("Erf", (scaled,)), Number(1.0)))
        yield Call("Mul", (Call("Mul", (_x(), one_plus)), Number(0.5)))
        yield Call("Mul", (_x(), Call("Mul", (one_plus, Number(0.5)))))
        yield Call("Mul", (Call("Mul", (_x(), Number(0.5))), one_plus))


def _tanh_gelus() -> Iterator[Call]:
    """½ · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))."""
    x, small = _x(), Number(0.044715)
    cubes = (
        Call("Mul", (Call("Pow", (x, Number(3.0))), small)),
        Call("Mul", (Call("Mul", (Call("Mul", (x, x)), x)), small)),
        Call("Mul", (x, Call("Mul", (x, Call("Mul", (x, small)))))),
    )
    for cube in cubes:
        inner = Call("Add", (x, cube))
        one_plus = Call("Add", (Call("Tanh", (Call("Mul", (inner, Number(sqrt(2.0 / pi)))),)), Number(1.0)))
        yield Call("Mul", (Call("Mul", (x, one_plus)), Number(0.5)))
        yield Call("Mul", (x, Call("Mul", (one_plus, Number(0.5)))))
        yield Call("Mul", (Call("Mul", (x, Number(0.5))), one_plus))


def _unary(op: str, **attrs: Any) -> Callable[[Rewriter, Found, Node], Node | None]:
    def build(work: Rewriter, found: Found, node: Node) -> Node | None:
        if work.shape(found["x"]) != work.shape(node.outputs[0]):
            return None
        return Node(op, (found["x"],), node.outputs, attrs, node.name)

    return build


def _activation_patterns() -> Iterator[Pattern]:
    for k, tree in enumerate(_erf_gelus()):
        yield Pattern(f"gelu_erf_{k}", tree, _unary("Gelu"))
    for k, tree in enumerate(_tanh_gelus()):
        yield Pattern(f"gelu_tanh_{k}", tree, _unary("Gelu", approximate="tanh"))
    yield Pattern("silu", Call("Mul", (_x(), Call("Sigmoid", (_x(),)))), _unary("Unary", fn="Silu"))
    yield Pattern("mish", Call("Mul", (_x(), Call("Tanh", (Call("Softplus", (_x(),)),)))), _unary("Mish"))
    clipped = Call("Clip", (Call("Add", (_x(), Number(3.0))), Number(0.0), Number(6.0)))
    yield Pattern("hard_swish_0", Call("Div", (Call("Mul", (_x(), clipped)), Number(6.0))), _unary("HardSwish"))
    yield Pattern("hard_swish_1", Call("Mul", (_x(), Call("Div", (clipped, Number(6.0))))), _unary("HardSwish"))
    hard = Call("HardSigmoid", (_x(),), "hs")

    def build(work: Rewriter, found: Found, node: Node) -> Node | None:
        attrs: Mapping[str, Any] = found["hs"].attrs
        if abs(attrs.get("alpha", 0.2) - 1 / 6) > 1e-4 or abs(attrs.get("beta", 0.5) - 0.5) > 1e-6:
            return None
        return _unary("HardSwish")(work, found, node)

    yield Pattern("hard_swish_2", Call("Mul", (_x(), hard)), build)


#: All patterns; of those with one root op the larger come first.
PATTERNS: tuple[Pattern, ...] = (*_norm_patterns(), *_activation_patterns())
