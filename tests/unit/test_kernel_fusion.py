"""Passes of the kernel devices: what is fused into one launch, and that results stay what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnpy.decompose.raster import Region
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node
from mnnpy.options import OPTIMIZATIONS
from tests.unit.kernel_helpers import DEVICES, device, graph_of, run_graph

RNG = np.random.default_rng(5)


def both(name: str, graph: Graph, inputs: dict[str, Array], rtol: float = 1e-6) -> list[str]:
    """Runs with and without passes, compares, and returns the kernels of the run with them."""
    from mnnpy.backends.base import Segment

    on = device(name)
    plain = run_graph(on, graph, inputs)
    fused = run_graph(on, graph, inputs, optimize=OPTIMIZATIONS)
    for a, b in zip(plain, fused, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=rtol, atol=1e-6)
    program = on.compile(Segment(graph, optimize=OPTIMIZATIONS))
    rows = program.describe()
    program.close()  # type: ignore[attr-defined]
    return [r["algorithm"] for r in rows]


def unary(fn: str, x: str, y: str, **attrs: Any) -> Node:
    return Node("Unary", (x,), (y,), {"fn": fn, **attrs})


def binary(fn: str, a: str, b: str, y: str) -> Node:
    return Node("Binary", (a, b), (y,), {"fn": fn})


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", DEVICES)
def test_a_group_with_shared_values_is_one_launch(name: str) -> None:
    inputs = {"x": normal(3, 4, 5), "scale": normal(4, 1), "y": normal(3, 4, 5)}
    nodes = [
        binary("Mul", "x", "scale", "v"),
        unary("Sigmoid", "v", "s"),
        binary("Mul", "v", "s", "silu"),
        Node("Select", ("positive", "silu", "y"), ("z",), {}),
        unary("Clip", "z", "out", alpha=-0.5, beta=0.5),
    ]
    nodes.insert(2, binary("Greater", "v", "y", "positive"))
    assert both(name, graph_of(nodes, inputs, ["out"]), inputs) == ["fused"]


@pytest.mark.parametrize("name", DEVICES[:2])
def test_values_that_others_read_stay(name: str) -> None:
    inputs = {"x": normal(4, 6)}
    nodes = [
        unary("Exp", "x", "e"),
        unary("Neg", "e", "n"),
        Node("Reduce", ("e",), ("total",), {"fn": "Sum", "axes": (1,), "keepdims": True}),
        binary("Div", "n", "total", "out"),
    ]
    assert both(name, graph_of(nodes, inputs, ["out", "e"]), inputs) == ["elementwise", "reduce", "fused"]


@pytest.mark.parametrize("name", DEVICES[:2])
def test_conversions_inside_a_group_round(name: str) -> None:
    x = np.float32([1 + 2.0**-12, 65520.0, 2.0**-25, 3e-6, -1 - 2.0**-9, np.inf, np.nan])
    nodes = [
        Node("Convert", ("x",), ("h",), {"to": DType.F16}),
        Node("Convert", ("h",), ("f",), {"to": DType.F32}),
        unary("Neg", "f", "n"),
        Node("Convert", ("n",), ("b",), {"to": DType.BF16}),
        Node("Convert", ("b",), ("out",), {"to": DType.F32}),
    ]
    assert both(name, graph_of(nodes, {"x": x}, ["out"]), {"x": x}, rtol=0) == ["fused"]


@pytest.mark.parametrize("name", DEVICES)
def test_rasters_are_read_through(name: str) -> None:
    inputs = {"x": normal(4, 6), "y": normal(2, 6, 4)}
    transposed = Region(0, (6, 4), 0, (1, 6), 0, (4, 1))
    flipped = Region(0, (2, 24), 47, (-24, -1), 0, (24, 1))
    nodes = [
        Node("Raster", ("x",), ("t",), {"regions": (transposed,), "shape": (6, 4), "fill": None}),
        Node("Raster", ("y",), ("f",), {"regions": (flipped,), "shape": (2, 6, 4), "fill": None}),
        binary("Add", "f", "t", "s"),
        unary("Tanh", "s", "out"),
        Node("Reduce", ("t",), ("total",), {"fn": "Max", "axes": (0,), "keepdims": False}),
    ]
    assert both(name, graph_of(nodes, inputs, ["out", "total"]), inputs) == ["fused", "reduce"]


@pytest.mark.parametrize("name", DEVICES[:2])
def test_a_slice_is_read_through(name: str) -> None:
    inputs = {"x": normal(10, 3)}
    part = Region(0, (4, 2), 7, (6, 1), 0, (2, 1))
    nodes = [
        Node("Raster", ("x",), ("p",), {"regions": (part,), "shape": (4, 2), "fill": None}),
        unary("Square", "p", "q"),
        Node("Reduce", ("p",), ("total",), {"fn": "Sum", "axes": (0, 1), "keepdims": False}),
    ]
    assert both(name, graph_of(nodes, inputs, ["q", "total"]), inputs) == ["elementwise", "reduce"]


def test_rasters_stay_where_a_launch_has_no_room_for_their_strides() -> None:
    """A launch holds 32 scalars: the count, four sizes, and four strides of each of six operands."""
    inputs = {f"x{k}": normal(2, 3, 4, 5) for k in range(8)}
    swap = Region(0, (5, 4, 3, 2), 0, (1, 5, 20, 60), 0, (24, 6, 2, 1))
    nodes = [
        Node("Raster", (f"x{k}",), (f"t{k}",), {"regions": (swap,), "shape": (5, 4, 3, 2), "fill": None})
        for k in range(8)
    ]
    nodes += [binary("Add", f"s{k - 1}" if k > 1 else "t0", f"t{k}", f"s{k}") for k in range(1, 8)]
    kernels = both("opencl", graph_of(nodes, inputs, ["s7"]), inputs)
    assert kernels == ["raster", "raster", "fused"]


@pytest.mark.parametrize("name", DEVICES[:2])
def test_epilogues(name: str) -> None:
    """A factor, a bias, a residual and an activation are part of the product; a second residual is not."""
    inputs = {"x": normal(3, 5, 8), "more": normal(3, 5, 6)}
    constants = {"w": normal(8, 6), "scale": normal(6), "bias": normal(6)}
    nodes = [
        Node("MatMul", ("x", "w"), ("p",), {}),
        binary("Mul", "p", "scale", "q"),
        binary("Add", "q", "bias", "r"),
        binary("Add", "more", "r", "s"),
        unary("LeakyRelu", "s", "t", alpha=0.1),
        binary("Sub", "t", "more", "out"),
    ]
    kernels = both(name, graph_of(nodes, inputs, ["out"], constants), inputs, rtol=2e-5)
    assert len(kernels) == 2
    assert kernels[1] == "elementwise"
