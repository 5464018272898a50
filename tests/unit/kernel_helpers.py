"""Devices of the kernel backends that run without a GPU, and one node or graph run on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnnpy.backends.base import Segment
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.decompose.raster import Region
from mnnpy.decompose.registry import OpClass, get_op
from mnnpy.decompose.symbolic import infer_types
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Value
from mnnpy.session import Session

__all__ = ["DEVICES", "assert_close", "attention", "device", "elsewhere", "graph_of", "run_graph", "run_node"]

#: OpenCL on PoCL and Vulkan on lavapipe run really; CUDA is emulated.
DEVICES = ("opencl", "vulkan", "cuda")
_LAVAPIPE = Path("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json")


@cache
def _opened(name: str, gpu: bool) -> KernelDevice | str:
    if name == "cuda":
        from tests.emulation import emulator

        return emulator.available() or emulator.emulated_cuda()
    if name == "vulkan":
        if _LAVAPIPE.is_file():
            os.environ.setdefault("VK_ICD_FILENAMES", str(_LAVAPIPE))
        from mnnpy.backends.vulkan.provider import VulkanBackend as Backend
    else:
        from mnnpy.backends.opencl.provider import OpenCLBackend as Backend  # type: ignore[assignment]
    backend = Backend()
    info = backend.devices()[0]
    if not info.available:
        return info.unavailable
    made = backend.open(info)
    if gpu:
        caps = made.driver.caps
        made.driver.caps = replace(caps, cpu_like=False, lanes=4, max_group=min(256, caps.max_group))
    return made


def device(name: str) -> KernelDevice:
    """The device, or the test is skipped with the reason why there is none.

    ``opencl-groups`` and ``vulkan-groups`` say that they are GPUs: the templates' work-group variants then run.
    """
    kind, _, groups = name.partition("-")
    found = _opened(kind, bool(groups))
    if isinstance(found, str):
        pytest.skip(f"{name}: {found}")
    return found


def graph_of(
    nodes: Sequence[Node],
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
) -> Graph:
    """A graph with the types that the ops infer."""
    feeds = tuple(Value(n, TensorType(DType.of(a.dtype), tuple(a.shape))) for n, a in inputs.items())
    return infer_types(Graph("g", feeds, tuple(Value(n, None) for n in outputs), tuple(nodes), dict(constants or {})))


def attention(inputs: dict[str, Array], value: float = -np.inf) -> Graph:
    """softmax(0.25·q·kᵀ, masked)·v in atomic ops; a bool mask puts *value* where it is false."""
    dtype = inputs["q"].dtype
    *outer, t, d = inputs["k"].shape
    turn = Region(0, (prod(outer), d, t), 0, (t * d, 1, d), 0, (d * t, t, 1))
    nodes = [
        Node("Raster", ("k",), ("turned",), {"shape": (*outer, d, t), "regions": (turn,)}),
        Node("MatMul", ("q", "turned"), ("p",), {}),
        Node("Binary", ("p", "factor"), ("s",), {"fn": "Mul"}),
    ]
    constants = {"factor": np.array(0.25, dtype)}
    if "mask" in inputs:
        if inputs["mask"].dtype == bool:
            nodes.append(Node("Select", ("mask", "s", "other"), ("m",), {}))
            constants["other"] = np.array(value, dtype)
        else:
            nodes.append(Node("Binary", ("s", "mask"), ("m",), {"fn": "Add"}))
    nodes += [
        Node("Softmax", (nodes[-1].outputs[0],), ("w",), {"axis": -1}),
        Node("MatMul", ("w", "v"), ("out",), {}),
    ]
    return graph_of(nodes, inputs, ["out"], constants)


def run_graph(on: KernelDevice, graph: Graph, inputs: Mapping[str, Array], **options: Any) -> list[Array]:
    """The outputs of *graph* compiled as one segment."""
    program = on.compile(Segment(graph, **options))
    try:
        return program.run([inputs[n] for n in graph.input_names])
    finally:
        program.close()  # type: ignore[attr-defined]


def run_node(on: KernelDevice, op: str, *inputs: Array, outputs: int = 1, **attrs: Any) -> list[Array]:
    """One node on arrays."""
    names = tuple(f"x{k}" for k in range(len(inputs)))
    node = Node(op, names, tuple(f"y{k}" for k in range(outputs)), attrs)
    feeds = dict(zip(names, map(np.ascontiguousarray, inputs), strict=True))
    return run_graph(on, graph_of([node], feeds, node.outputs), feeds)


def elsewhere(session: Session, name: str) -> list[str]:
    """Steps that did not run on the backend and are no host ops, with their reasons."""
    rows = [r for r in session.explain().rows if r["backend"] != name]
    hosted = (OpClass.HOST, OpClass.CONTROL)
    return [f"{r['op']} ({r['node']}): {r['reason']}" for r in rows if get_op(r["op"]).op_class not in hosted]


def assert_close(session: Session, got: Sequence[Array], wanted: Sequence[Array], tolerance: float) -> None:
    """Outputs of a session have the shapes, types and, within *tolerance* of the largest value, the values wanted."""
    for arg, g, w in zip(session.get_outputs(), got, wanted, strict=True):
        assert g.shape == w.shape, arg.name
        assert g.dtype == w.dtype, arg.name
        error = float(np.abs(g.astype(np.float64) - w).max() / max(np.abs(w).max(), 1e-30))
        assert error <= tolerance, f"output '{arg.name}': {error:.2e}"
