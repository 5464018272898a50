"""Graphs whose kernels no case of the table has: what passes make of several nodes, and composites that are claimed.

As a script it runs them on a backend and compares with ``reference``: ``python composites.py BACKEND``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache

import numpy as np

from mnnpy.backends.base import Segment
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.registry import open_device
from mnnpy.decompose.raster import Region
from mnnpy.graph.ir import Array, Graph, Node
from mnnpy.options import OPTIMIZATIONS
from tests.unit.kernel_helpers import attention, graph_of

__all__ = ["composites", "kernels_of", "mismatch"]

#: Kernels by work groups need rows this long.
ROW = 160


def _normal(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def _attentions() -> dict[str, tuple[Graph, dict[str, Array]]]:
    plain = {"q": _normal(2, 2, 21, 20), "k": _normal(2, 2, 37, 20), "v": _normal(2, 2, 37, 12)}
    mask = np.random.default_rng(1).random((2, 1, 21, 37)) > 0.4
    mask[..., 0] = True
    feeds = {
        "attention": plain,
        "attention, wide": {"q": _normal(1, 33, 64), "k": _normal(1, 32, 64), "v": _normal(1, 32, 64)},
        "attention, added mask": plain | {"mask": _normal(21, 37)},
        "attention, mask": plain | {"mask": mask},
        "attention, f16": {n: a.astype(np.float16) for n, a in plain.items()},
    }
    return {name: (attention(given), given) for name, given in feeds.items()}


def _rows() -> dict[str, tuple[Graph, dict[str, Array]]]:
    found = {}
    for length in (7, ROW):
        x, scale, shift = _normal(3, length), _normal(length), _normal(length + 1)[1:]
        for op, attrs, outputs in (
            ("Softmax", {"axis": -1}, ["y"]),
            ("LogSoftmax", {"axis": -1}, ["y"]),
            ("RMSNormalization", {"axis": -1}, ["y"]),
            ("LayerNormalization", {"axis": -1}, ["y", "mean", "inverse"]),
        ):
            feeds = {"x": x} | ({"scale": scale} if "Norm" in op else {}) | ({"shift": shift} if "Layer" in op else {})
            graph = graph_of([Node(op, tuple(feeds), tuple(outputs), attrs)], feeds, outputs)
            found[f"{op} of {length}"] = (graph, feeds)
    return found


def _fused() -> dict[str, tuple[Graph, dict[str, Array]]]:
    x, y = _normal(2, 3, 5, 40), _normal(3, 1, 1)
    group = [
        Node("Binary", ("x", "y"), ("a",), {"fn": "Mul"}),
        Node("Unary", ("a",), ("b",), {"fn": "Sigmoid"}),
        Node("Binary", ("a", "b"), ("c",), {"fn": "Mul"}),
    ]
    turn = Region(0, (1, 40, 5), 0, (0, 1, 40), 0, (0, 5, 1))
    strided = [
        Node("Raster", ("m",), ("t",), {"shape": (40, 5), "regions": (turn,)}),
        Node("Reduce", ("t",), ("r",), {"fn": "Sum", "axes": (1,), "keepdims": False}),
    ]
    window = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    epilogue = [
        Node("Convolution", ("x", "w", "bias"), ("d",), {**window, "group": 1}),
        Node("Binary", ("d", "x"), ("e",), {"fn": "Add"}),
        Node("Unary", ("e",), ("f",), {"fn": "Relu"}),
    ]
    product = [
        Node("MatMul", ("m", "n"), ("g",), {}),
        Node("Binary", ("g", "offset"), ("h",), {"fn": "Add"}),
        Node("Unary", ("h",), ("i",), {"fn": "Gelu"}),
    ]
    weights = {"w": _normal(3, 3, 3, 3), "bias": _normal(4)[1:]}
    m = _normal(5, 40)
    return {
        "element-wise group": (graph_of(group, {"x": x, "y": y}, ["c"]), {"x": x, "y": y}),
        "reduction of a view": (graph_of(strided, {"m": m}, ["r"]), {"m": m}),
        "convolution with a residual": (graph_of(epilogue, {"x": x}, ["f"], weights), {"x": x}),
        "product with an epilogue": (
            graph_of(product, {"m": m}, ["i"], {"n": _normal(40, 24), "offset": _normal(24)}),
            {"m": m},
        ),
    }


@cache
def composites() -> Mapping[str, tuple[Graph, Mapping[str, Array]]]:
    """Name → graph and what to feed."""
    return {**_attentions(), **_rows(), **_fused()}


def kernels_of(device: KernelDevice, graph: Graph) -> list[str]:
    """The ops of the launches that *graph* becomes."""
    program = device.compile(Segment(graph, optimize=OPTIMIZATIONS))
    try:
        return [row["op"] for row in program.describe()]
    finally:
        program.close()  # type: ignore[attr-defined]


def mismatch(device: KernelDevice, name: str) -> str:
    """What is wrong with the results on *device*, or nothing."""
    graph, feeds = composites()[name]
    given = [feeds[n] for n in graph.input_names]
    wanted = open_device("reference").compile(Segment(graph)).run(given)
    program = device.compile(Segment(graph, optimize=OPTIMIZATIONS))
    try:
        fused = any(row["op"] == "FusedAttention" for row in program.describe())
        assert fused == name.startswith("attention"), name
        found = program.run(given)
    finally:
        program.close()  # type: ignore[attr-defined]
    for got, want in zip(found, wanted, strict=True):
        error = float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())
        if got.shape != want.shape or not error <= (2e-3 if want.dtype == np.float16 else 1e-5):
            return f"{name}: {got.shape}, expected {want.shape}; error {error:.1e}"
    return ""


def main(backend: str) -> int:
    """Runs all; prints what is wrong."""
    from tests.conformance.targets import target

    device = target(backend).device
    assert isinstance(device, KernelDevice)
    problems = [p for p in (mismatch(device, name) for name in composites()) if p]
    print("\n".join(problems) or f"{len(composites())} agree")
    return len(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
