"""Runs single nodes on devices of the kernel language; shared by the tests of templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from mnnpy.backends.base import Segment
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.registry import get_backend
from mnnpy.decompose.registry import get_op
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Value
from tests.emulation import emulator

__all__ = ["close", "emulated", "node_graph", "opencl", "oracle", "run_node"]


@cache
def _opencl() -> KernelDevice | str:
    """The first OpenCL device, or why there is none."""
    known = get_backend("opencl")
    found = known.devices()
    usable = [d for d in found if not d.unavailable]
    if not usable:
        return found[0].unavailable
    device = known.open(usable[0])
    assert isinstance(device, KernelDevice)
    return device


def opencl() -> KernelDevice:
    """The OpenCL device (label R on PoCL); skips with the reason where there is none."""
    device = _opencl()
    if isinstance(device, str):
        pytest.skip(device)
    return device


def emulated(kind: str) -> KernelDevice:
    """CUDA or Metal on the emulator (label E)."""
    if reason := emulator.available():
        pytest.skip(reason)
    return emulator.emulated_cuda() if kind == "cuda" else emulator.emulated_metal()


def oracle(op: str, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    """The NumPy reference."""
    reference = get_op(op).reference
    assert reference is not None
    result = reference(*inputs, **attrs)
    return np.asarray(result[0] if isinstance(result, tuple) else result)


def node_graph(
    op: str, inputs: Sequence[Array | None], out: tuple[int, ...], attrs: Mapping[str, Any], constants: Sequence[int]
) -> tuple[Graph, list[Array]]:
    """A graph of one node, and what to feed; operands with an index in *constants* are constants."""
    given = {f"x{k}": np.ascontiguousarray(a) for k, a in enumerate(inputs) if a is not None}
    fixed = {f"x{k}": given[f"x{k}"] for k in constants}
    fed = {n: a for n, a in given.items() if n not in fixed}
    first = given["x0"]
    node = Node(op, tuple(f"x{k}" if a is not None else "" for k, a in enumerate(inputs)), ("y",), dict(attrs), "node")
    types = {n: TensorType(DType.of(a.dtype), a.shape) for n, a in given.items()}
    types["y"] = TensorType(DType.of(first.dtype), out)
    graph = Graph(
        "test", tuple(Value(n, types[n]) for n in fed), (Value("y", types["y"]),), (node,), constants=fixed,
        types=types,
    )  # fmt: skip
    return graph, list(fed.values())


def run_node(
    device: KernelDevice,
    op: str,
    inputs: Sequence[Array | None],
    out: tuple[int, ...],
    attrs: Mapping[str, Any],
    *,
    constants: Sequence[int] = (),
    algorithm: str = "",
    precision: str = "normal",
) -> tuple[Array, list[str]]:
    """The result, and the names of the kernels that ran."""
    graph, fed = node_graph(op, inputs, out, {**attrs, "algorithm": algorithm} if algorithm else attrs, constants)
    program = device.compile(Segment(graph, precision=precision))
    try:
        result = np.array(program.run(fed)[0])
        return result, [row["algorithm"] for row in program.describe()]
    finally:
        program.close()  # type: ignore[attr-defined]


def close(actual: Array, expected: Array, tolerance: float) -> None:
    """Largest error against the largest value."""
    assert actual.shape == expected.shape
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(a).all()
    scale = max(float(np.abs(e).max(initial=0.0)), 1e-30)
    error = float(np.abs(a - e).max(initial=0.0)) / scale
    assert error <= tolerance, f"error {error:.2e} of the largest value"
