"""Shape functions against truth: recorded results of ONNX's node cases, with static and with symbolic input sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnpy.conformance import _as_input, load_cases
from mnnpy.convert import from_onnx
from mnnpy.decompose.symbolic import infer_types
from mnnpy.errors import MnnpyError
from mnnpy.graph.dims import SymDim
from mnnpy.graph.ir import Graph, TensorType, Value

CASES = [
    c for c in load_cases() if "_expanded" not in c.name and not c.name.startswith(("test_cast_", "test_castlike_"))
]


def check(graph: Graph, wanted: list[Any], sizes: dict[str, int]) -> int:
    """Compare what was inferred with what came out; returns how many sizes could be compared."""
    compared = 0
    for value, want in zip(graph.outputs, wanted, strict=False):
        t = value.type
        if not isinstance(t, TensorType) or not isinstance(want, np.ndarray) or t.shape is None:
            continue
        assert len(t.shape) == want.ndim, f"{value} but the result has shape {want.shape}"
        for dim, size in zip(t.shape, want.shape, strict=True):
            text = str(dim)
            if isinstance(dim, SymDim) and ("?" in text or not all(n in sizes for n in names_in(text))):
                continue
            assert eval(text, {"max": max}, dict(sizes)) == size, (
                f"{value} at {sizes} but the result has shape {want.shape}"
            )
            compared += 1
    return compared


def names_in(text: str) -> set[str]:
    import ast

    return {n.id for n in ast.walk(ast.parse(text, mode="eval")) if isinstance(n, ast.Name)} - {"max"}


def symbolic(graph: Graph, arrays: list[Any]) -> tuple[Graph, dict[str, int]]:
    """The graph with every size of its first input replaced by a symbol."""
    sizes: dict[str, int] = {}
    inputs = []
    for k, (value, array) in enumerate(zip(graph.inputs, arrays, strict=False)):
        if k or not isinstance(value.type, TensorType) or not isinstance(array, np.ndarray):
            inputs.append(value)
            continue
        dims = []
        for axis, size in enumerate(array.shape):
            sizes[f"i{k}_{axis}"] = size
            dims.append(SymDim({f"i{k}_{axis}": 1}))
        inputs.append(Value(value.name, TensorType(value.type.dtype, tuple(dims))))
    outputs = tuple(Value(v.name) for v in graph.outputs)
    return graph.replace(inputs=(*inputs, *graph.inputs[len(inputs) :]), outputs=outputs, types={}), sizes


@pytest.mark.parametrize("form", ["static", "symbolic"])
def test_inferred_shapes_are_those_of_the_results(form: str) -> None:
    problems = []
    compared = 0
    for case in CASES:
        try:
            graph = from_onnx(case.model)
        except MnnpyError:
            continue
        for inputs, outputs in case.data_sets[:1]:
            arrays = [_as_input(x) for x in inputs]
            given, sizes = symbolic(graph, arrays) if form == "symbolic" else (graph, {})
            if form == "static":
                given = given.replace(outputs=tuple(Value(v.name) for v in graph.outputs), types={})
            try:
                compared += check(infer_types(given), [_as_input(o) for o in outputs], sizes)
            except (MnnpyError, AssertionError) as error:
                problems.append(f"{case.name}: {error}")
    assert not problems, f"{len(problems)} cases:\n" + "\n".join(problems[:20])
    assert compared > 1000
