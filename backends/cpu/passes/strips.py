"""Chains of 1×1 and depthwise convolutions become one ``ConvChain``, whose intermediates never leave the cache.

The kernel (``native/kernels/strips.cpp``) computes a few lines of the chain's output at a time. What a chain saves is
the way of its intermediates to memory and back; what it costs are lines computed twice where two threads' ranges
meet. A run of convolutions is cut into chains such that the sum of both is best.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from typing import Any

from mnnpy.backends.cpu import _native
from mnnpy.backends.passes.fuse import use_counts
from mnnpy.classes import dataclass
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, TensorType

__all__ = ["chain_node", "fuse_strips"]

MAX_STAGES = 8
#: Operations that take as long as one byte of an intermediate written and read again (measured: AVX-512, memory shared
#: with a second core; what matters is its order of magnitude).
FLOPS_PER_BYTE = 4.0


def fuse_strips(graph: Graph, threads: int) -> Graph:
    """Replace runs of convolutions by ``ConvChain`` nodes where the cost model says that it pays.

    Runs after algorithms are chosen: convolutions that compute in another way than ``direct`` stay as they are.
    """
    chains: dict[str, tuple[int, ...]] = {}  # output of a chain's last node → positions of its nodes
    inner: set[int] = set()
    for run in _runs(graph):
        for part in _cut(graph, run, threads):
            if len(part) > 1 and _supported(graph, [graph.nodes[k] for k in part]):
                chains[graph.nodes[part[-1]].outputs[0]] = part
                inner.update(part[:-1])
    if not chains:
        return graph
    nodes = []
    for k, node in enumerate(graph.nodes):
        part = chains.get(node.outputs[0], ())
        if part:
            nodes.append(chain_node([graph.nodes[p] for p in part]))
        elif k not in inner:
            nodes.append(node)
    return graph.replace(nodes=tuple(nodes))


def chain_node(nodes: Sequence[Node]) -> Node:
    """One ``ConvChain`` that computes what *nodes* compute one after the other.

    Operands: the input, weights and bias of each stage, the residual of the last; attributes are lists by stage.
    """
    inputs = [nodes[0].inputs[0]]
    for node in nodes:
        inputs += [node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else ""]
    if len(nodes[-1].inputs) > 3:
        inputs.append(nodes[-1].inputs[3])
    attrs: dict[str, Any] = {
        "strides": tuple(s for n in nodes for s in n.attrs["strides"]),
        "pads": tuple(p for n in nodes for p in n.attrs["pads"]),
        "dilations": tuple(d for n in nodes for d in n.attrs["dilations"]),
        "groups": tuple(int(n.attrs.get("group", 1)) for n in nodes),
        "acts": tuple(str(n.attrs.get("act", "")) for n in nodes),
        "act_alphas": tuple(float(n.attrs.get("act_alpha", 0.0)) for n in nodes),
        "act_betas": tuple(float(n.attrs.get("act_beta", 0.0)) for n in nodes),
        "alphas": tuple(float(n.attrs.get("alpha", 1.0)) for n in nodes),
    }
    for k, node in enumerate(nodes):  # factors of the operand of this number
        if "weight_scale" in node.attrs:
            attrs[f"weight_scale_{2 * k + 1}" if k else "weight_scale"] = node.attrs["weight_scale"]
    return Node("ConvChain", tuple(inputs), nodes[-1].outputs, attrs, nodes[-1].name)


def _runs(graph: Graph) -> list[list[int]]:
    """Positions of convolutions that feed one another and nothing else, as long as possible."""
    uses = use_counts(graph)
    open_runs: dict[str, list[int]] = {}  # value → the run that makes it
    runs = []
    for k, node in enumerate(graph.nodes):
        if not _is_stage(graph, node):
            continue
        run = open_runs.pop(node.inputs[0], None)
        if run is None:
            run = []
            runs.append(run)
        run.append(k)
        if uses.get(node.outputs[0]) == 1 and not _residual(node):
            open_runs[node.outputs[0]] = run
    return [run for run in runs if len(run) > 1]


def _residual(node: Node) -> str:
    return node.inputs[3] if len(node.inputs) > 3 else ""


def _is_stage(graph: Graph, node: Node) -> bool:
    """A channels-last 1×1 or depthwise convolution over two axes, computed directly, with constant weights."""
    if node.op != "Convolution" or node.attrs.get("layout") != "NHWC" or node.attrs.get("precision") == "low":
        return False
    if node.attrs.get("algorithm", "auto") not in ("auto", "direct"):
        return False
    w, out = graph.constants.get(node.inputs[1]), graph.types.get(node.outputs[0])
    if w is None or w.ndim != 4 or not isinstance(out, TensorType) or out.dtype is not DType.F32 or not out.is_static:
        return False
    if len(node.inputs) > 2 and node.inputs[2] and node.inputs[2] not in graph.constants:
        return False
    group, (m, per_group, *kernel) = node.attrs.get("group", 1), w.shape
    if per_group == 1 and group == m > 1:
        return True
    return group == 1 and kernel == [1, 1] and tuple(node.attrs["strides"]) == (1, 1) and not any(node.attrs["pads"])


@dataclass(slots=True)
class _Stage:
    """What the cost model knows of a convolution."""

    flops: float  #: by line of the output
    bytes: float  #: of the output
    lines: int  #: of the output
    reach: int  #: lines that a kernel covers
    stride: int


def _measure(graph: Graph, node: Node) -> _Stage:
    shape: tuple[int, ...] = graph.types[node.outputs[0]].shape  # type: ignore[union-attr, assignment]
    w = graph.constants[node.inputs[1]]
    work = 2.0 * prod(shape) * prod(w.shape[1:])
    lines = max(1, shape[1])
    reach = (w.shape[2] - 1) * node.attrs["dilations"][0] + 1
    return _Stage(work / lines / max(1, shape[0]), 4.0 * prod(shape), lines, reach, node.attrs["strides"][0])


def _cut(graph: Graph, run: Sequence[int], threads: int) -> list[tuple[int, ...]]:
    """The best way to cut *run* into chains; parts of one are left alone."""
    stages = [_measure(graph, graph.nodes[k]) for k in run]
    best: list[tuple[float, int]] = [(0.0, 0)]  # by end: gain so far (operations), begin of the last part
    for end in range(1, len(run) + 1):
        options = [(best[end - 1][0], end - 1)]
        for begin in range(max(0, end - MAX_STAGES), end - 1):
            gain = _gain(stages[begin:end], threads)
            if gain > 0:
                options.append((best[begin][0] + gain, begin))
        best.append(max(options))
    parts = []
    end = len(run)
    while end > 0:
        begin = best[end][1]
        parts.append(tuple(run[begin:end]))
        end = begin
    return parts


def _gain(stages: Sequence[_Stage], threads: int) -> float:
    """Operations that a chain saves: bytes that stay in the cache, less lines computed twice."""
    far = _l2_bytes()  # what is smaller is mostly still in the cache when it is read: nothing gained up to this size
    saved = sum(s.bytes for s in stages[:-1] if s.bytes > far) * FLOPS_PER_BYTE
    extra, halo = 0.0, 0
    for stage, before in zip(stages[:0:-1], stages[-2::-1], strict=True):
        halo = min(before.lines, halo * stage.stride + max(0, stage.reach - stage.stride))
        extra += halo * before.flops
    # One boundary between any two threads, and about as many where ranges are cut again.
    return saved - extra * (threads - 1) * 2


def _l2_bytes() -> int:
    try:
        return os.sysconf("SC_LEVEL2_CACHE_SIZE") or 1 << 20
    except (AttributeError, ValueError, OSError):
        return 1 << 20


def _supported(graph: Graph, nodes: Sequence[Node]) -> bool:
    chain = chain_node(nodes)

    def desc(name: str) -> tuple[str, tuple[Any, ...]] | None:
        t = graph.types.get(name)
        return (str(t.dtype), tuple(t.shape or ())) if name and isinstance(t, TensorType) else None

    inputs, outputs = [desc(n) for n in chain.inputs], [desc(n) for n in chain.outputs]
    fits, _ = _native.supports(chain.op, dict(chain.attrs), inputs, outputs)
    return bool(fits)
