"""Every pattern: the written-out form is recognised, and the composite gives the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from mnnpy.backends.reference.interpreter import run_graph
from mnnpy.decompose.patterns import PATTERNS, Call, Constant, Expr, Number, Pattern, Wild, recognize
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Type, Value, tensor_type_of

SHAPE = (3, 5, 8)


class Writer:
    """Writes an expression tree out as a graph."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self.types: dict[str, Type] = {"x": TensorType(DType.F32, SHAPE)}
        self.done: dict[Expr, str] = {}
        self.rng = np.random.default_rng(0)

    def constant(self, value: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        self.types[name] = tensor_type_of(value)
        return name

    def write(self, expr: Expr) -> str:
        if expr not in self.done:
            self.done[expr] = self._write(expr)
        return self.done[expr]

    def _write(self, expr: Expr) -> str:
        if isinstance(expr, Wild):
            if expr.name == "d2":  # the subtraction written a second time
                axes = self.constant(np.array([-1]))
                return self.call("Sub", ["x", self.call("ReduceMean", ["x", axes], (*SHAPE[:-1], 1))], SHAPE)
            return "x"
        if isinstance(expr, Number):
            return self.constant(np.float32(1e-5 if expr.value is None else expr.value))
        if isinstance(expr, Constant):
            if expr.name.endswith("_axes"):
                return self.constant(np.array([-1]))
            return self.constant(self.rng.standard_normal(SHAPE[-1:]).astype(np.float32))
        op = expr.op.split("|")[0]
        shape = (*SHAPE[:-1], 1) if self.is_reduced(expr) else SHAPE
        attrs = {"alpha": 1 / 6, "beta": 0.5} if op == "HardSigmoid" else {}
        return self.call(op, [self.write(a) for a in expr.args], shape, attrs)

    def is_reduced(self, expr: Call) -> bool:
        if expr.op == "ReduceMean":
            return True
        inner = [a for a in expr.args if isinstance(a, Call)]
        return (
            bool(inner) and all(self.is_reduced(a) for a in inner) and not any(isinstance(a, Wild) for a in expr.args)
        )

    def call(self, op: str, inputs: list[str], shape: tuple[int, ...], attrs: dict[str, float] | None = None) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(op, tuple(inputs), (name,), attrs or {}, name))
        self.types[name] = TensorType(DType.F32, shape)
        return name

    def graph(self, out: str) -> Graph:
        x = (Value("x", self.types["x"]),)
        return Graph("g", x, (Value(out, self.types[out]),), tuple(self.nodes), self.constants, self.types)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)
@pytest.mark.parametrize("swap", [False, True])
def test_pattern_is_exact(pattern: Pattern, swap: bool) -> None:
    writer = Writer()
    graph = writer.graph(writer.write(pattern.tree))
    if swap:  # commutative operands the other way round
        graph = graph.replace(
            nodes=tuple(n.replace(inputs=n.inputs[::-1]) if n.op in ("Add", "Mul") else n for n in graph.nodes)
        )
    found = recognize(graph)
    assert len(found.nodes) < len(graph.nodes), f"{pattern.name} was not recognised"
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32) * 3
    np.testing.assert_allclose(run_graph(found, [x])[0], run_graph(graph, [x])[0], rtol=2e-5, atol=2e-6)


def test_values_used_elsewhere_stay() -> None:
    writer = Writer()
    pattern = next(p for p in PATTERNS if p.name == "gelu_erf_0")
    out = writer.write(pattern.tree)
    graph = writer.graph(out)
    erf = next(n for n in graph.nodes if n.op == "Erf").outputs[0]
    graph = graph.replace(outputs=(*graph.outputs, Value(erf, graph.types[erf])))
    found = recognize(graph)
    assert {n.op for n in found.nodes} >= {"Gelu", "Erf"}


def test_nearly_is_not_recognised() -> None:
    writer = Writer()
    graph = writer.graph(writer.write(next(p for p in PATTERNS if p.name == "gelu_erf_0").tree))
    key = next(k for k, v in graph.constants.items() if v.shape == () and abs(float(v) - 0.5) < 1e-6)
    graph = graph.replace(constants={**graph.constants, key: np.float32(0.25)})
    assert "Gelu" not in {n.op for n in recognize(graph).nodes}
