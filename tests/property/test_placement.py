"""Placement of whole graphs on simulated machines: equal to brute force over chunks, and sound in every other way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mnnpy.backends.analytic import moved_bytes
from mnnpy.backends.registry import open_device
from mnnpy.decompose.lower import view_of
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Value
from mnnpy.search.partition import form_parts
from mnnpy.search.place import STEP, Machine, Placement, place

SIDE = 8
#: The machines: names of the null family with what they declare differently. The first device takes everything.
MACHINES: tuple[tuple[tuple[str, dict[str, Any]], ...], ...] = (
    (("cpu", {}), ("gpu", {})),
    (("cpu", {}), ("remote", {})),
    (("cpu", {}), ("slow", {}), ("npu", {})),
    (("cpu", {}), ("small", {"memory": 2e5}), ("npu", {})),
    (("cpu", {}), ("small", {"memory": 3e5}), ("slow", {"memory": 2e5})),
    (("gpu", {}), ("npu", {"ops": ("Convolution", "Unary")}), ("remote", {"ops": ("MatMul", "Binary", "Unary")})),
    (("balanced", {}), ("slow", {"ops": ("Convolution", "MatMul", "Binary")}), ("npu", {})),
)

Members = Sequence[tuple[str, dict[str, Any]]]


@st.composite
def members(draw: st.DrawFn, tries: bool = False) -> Members:
    """A machine, its devices as slow as the small graphs here need it, so that choices are close.

    *tries*: some of them are asked only about what they would get.
    """
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    found = []
    for name, declared in draw(st.sampled_from(MACHINES)):
        closer: dict[str, Any] = {
            "tries": tries and bool(rng.random() < 0.5),
            "launch": 10 ** rng.uniform(-7, -5.5),
            "peak": 10 ** rng.uniform(9.5, 11.5),
            "bandwidth": 10 ** rng.uniform(8, 10.5),
        }
        if name != "cpu":
            closer |= {
                "transfer_latency": 10 ** rng.uniform(-8, -5.5),
                "transfer_bandwidth": 10 ** rng.uniform(9.5, 11),
            }
        found.append((name, {**closer, **declared}))
    return found


def machine_of(members: Members) -> Machine:
    return Machine([open_device(f"null:{name}", **declared) for name, declared in members])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Branches that join again: convolutions and products with weights of their own, light ops, several outputs."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    types: dict[str, TensorType] = {}
    constants: dict[str, Array] = {}
    nodes: list[Node] = []

    def of(channels: int) -> TensorType:
        return TensorType(DType.F32, (1, channels, SIDE, SIDE))

    inputs = tuple(Value(f"x{k}", of(int(rng.choice([4, 64, 256])))) for k in range(rng.integers(1, 3)))
    values = {v.name: v.type.shape[1] for v in inputs if isinstance(v.type, TensorType) and v.type.shape}
    types |= {v.name: of(int(values[v.name])) for v in inputs}
    used: set[str] = set()
    for k in range(int(rng.integers(2, 17))):
        names = list(values)
        source = names[int(rng.integers(max(0, len(names) - 4), len(names)))]
        channels = int(values[source])
        kind = rng.choice(
            ["Convolution", "MatMul", "Unary", "Binary", "Reduce", "Pool"], p=[0.3, 0.15, 0.2, 0.2, 0.05, 0.1]
        )
        out, attrs, operands = channels, dict[str, Any](), [source]
        if kind == "Convolution":
            out = int(rng.choice([4, 64, 256]))
            constants[f"w{k}"] = np.zeros((out, channels, 1, 1), np.float32)
            attrs = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "group": 1}
            operands.append(f"w{k}")
        elif kind in ("MatMul", "Binary"):
            same = [n for n in names if values[n] == channels]
            operands.append(same[int(rng.integers(len(same)))])
            attrs = {"fn": "Add"} if kind == "Binary" else {}
        elif kind == "Unary":
            attrs = {"fn": "Relu"}
        elif kind == "Reduce":
            attrs = {"fn": "Max", "axes": (2, 3), "keepdims": True}
        else:
            attrs = {
                "fn": "Max",
                "kernel": (3, 3),
                "strides": (1, 1),
                "pads": (1,) * 4,
                "dilations": (1, 1),
                "out": (SIDE,) * 2,
            }
        made = [f"y{k}"]
        types[f"y{k}"] = of(out)
        if kind == "Reduce":  # broadcast again, so that every value has one form
            types[f"r{k}"] = TensorType(DType.F32, (1, channels, 1, 1))
            nodes.append(Node("Reduce", tuple(operands), (f"r{k}",), attrs))
            kind, operands, attrs = "Binary", [source, f"r{k}"], {"fn": "Sub"}
        nodes.append(Node(str(kind), tuple(operands), tuple(made), attrs))
        used |= set(operands)
        values[f"y{k}"] = out
    types |= {n: TensorType(DType.F32, a.shape) for n, a in constants.items()}
    last = [n for n in values if n not in used and n.startswith("y")] or [nodes[-1].outputs[0]]
    outputs = tuple(Value(n, types[n]) for n in last)
    return Graph("random", inputs, outputs, tuple(nodes), constants, types)


def placed(graph: Graph, machine: Machine) -> Placement | None:
    return place(graph, machine, lambda n: view_of(n, graph.types, graph.constants), "normal")


def crossings(graph: Graph, found: Placement) -> list[tuple[int, set[int], float, bool]]:
    """(chunk that makes a value, -1 for inputs; chunks that read it; bytes; wanted by the caller)."""
    chunk_of = {k: t for t, piece in enumerate(found.chunks) for k in piece}
    maker = {o: chunk_of[k] for k, n in enumerate(graph.nodes) for o in n.outputs}
    rows = []
    for name in (*graph.input_names, *maker):
        readers = {chunk_of[k] for k, n in enumerate(graph.nodes) if name in n.inputs} - {maker.get(name, -1)}
        size = float(np.prod(graph.types[name].shape)) * 4  # type: ignore[union-attr,arg-type]
        rows.append((maker.get(name, -1), readers, size, name in graph.output_names))
    return rows


def brute_force(graph: Graph, machine: Machine, found: Placement) -> float:
    """Least seconds over all assignments of the chunks to devices that support all their nodes, within the memories."""
    views = [view_of(n, graph.types, graph.constants) for n in graph.nodes]
    count, devices = len(found.chunks), len(machine.devices)
    # rows of all assignments, a column per chunk
    every = np.stack(np.meshgrid(*[np.arange(devices)] * count, indexing="ij"), -1).reshape(-1, count)
    total = np.zeros(len(every))
    for t, piece in enumerate(found.chunks):
        able = [all(machine.devices[d].supports(views[k]) for k in piece) for d in range(devices)]
        seconds = np.array([found.problem.tasks[t].seconds[d] if able[d] else inf for d in range(devices)])
        total += seconds[every[:, t]]
    for bond in found.problem.bonds:
        together = every[:, bond.first] == every[:, bond.second]
        total -= np.where(together, np.array(bond.saved)[every[:, bond.first]], 0.0)
    speeds = [d.speeds for d in machine.devices]  # type: ignore[attr-defined]
    for maker, readers, size, wanted in crossings(graph, found):
        source = every[:, maker] if maker >= 0 else np.full(len(every), -1)
        way = [STEP + s.transfer(size) for s in speeds]
        out = np.where(source >= 0, np.array(way)[source], 0.0)  # to the host
        for d in range(devices):
            reads = np.any([every[:, r] == d for r in readers], axis=0) if readers else np.zeros(len(every), bool)
            total += np.where(reads & (source != d), out + way[d], 0.0)
        if wanted:
            total += out
    for d, limit in enumerate(machine.limits):
        if limit == inf:
            continue
        weights = [
            sum(graph.constants[n].nbytes for n in {i for k in p for i in graph.nodes[k].inputs} & set(graph.constants))
            for p in found.chunks
        ]
        scratch = [max(moved_bytes(views[k]) for k in p) for p in found.chunks]
        there = every == d
        needed = (there * np.array(weights)).sum(1) + (there * np.array(scratch)).max(1)
        total[needed > limit] = inf
    return float(total.min())


@settings(max_examples=120, deadline=None)
@given(graphs(), members(tries=True))
def test_placement_equals_brute_force(graph: Graph, machine_members: Members) -> None:
    machine = machine_of(machine_members)
    found = placed(graph, machine)
    assert found is not None  # the first device takes everything and has no limit
    assume(len(found.chunks) <= 12)
    assert found.solution.exact
    np.testing.assert_allclose(found.solution.seconds, brute_force(graph, machine, found), rtol=1e-9)


@settings(max_examples=120, deadline=None)
@given(graphs(), members(tries=True))
def test_placement_is_sound(graph: Graph, machine_members: Members) -> None:
    """Every node once, on a device that supports it; chunks and parts never wait for what comes later."""
    machine = machine_of(machine_members)
    found = placed(graph, machine)
    assert found is not None
    assert sorted(k for piece in found.chunks for k in piece) == list(range(len(graph.nodes)))
    for node, chosen in zip(graph.nodes, found.chosen, strict=True):
        assert machine.devices[chosen.device].supports(view_of(node, graph.types, graph.constants))
    for piece, device in zip(found.chunks, found.solution.devices, strict=True):
        assert {found.chosen[k].device for k in piece} == {device}
    chunk_of = {k: t for t, piece in enumerate(found.chunks) for k in piece}
    maker = {o: k for k, n in enumerate(graph.nodes) for o in n.outputs}
    for k, node in enumerate(graph.nodes):
        for name in node.inputs:
            assert name not in maker or chunk_of[maker[name]] <= chunk_of[k]
    known = {*graph.input_names, *graph.constants}
    for part in form_parts(graph, found.chosen):
        assert {*part.graph.input_names, *part.graph.constants} <= known
        known |= set(part.graph.output_names)
    assert set(graph.output_names) <= known


@settings(max_examples=120, deadline=None)
@given(graphs(), members(), st.integers(0, 2), st.sampled_from(["peak", "bandwidth", "launch", "bus"]))
def test_better_machines_are_never_slower(graph: Graph, machine_members: Members, number: int, what: str) -> None:
    """A device that got faster, or a bus that got cheaper, does not make the optimum slower."""
    machine = machine_of(machine_members)
    device: Any = machine.devices[number % len(machine_members)]
    speeds = device.speeds
    better = {
        "peak": {"peak": speeds.peak * 3},
        "bandwidth": {"bandwidth": speeds.bandwidth * 3},
        "launch": {"launch": speeds.launch / 3},
        "bus": {"transfer_bandwidth": speeds.transfer_bandwidth * 3, "transfer_latency": speeds.transfer_latency / 3},
    }[what]
    before = placed(graph, machine)
    device.speeds = replace(speeds, **better)
    after = placed(graph, Machine(machine.devices))
    assert before is not None
    assert after is not None
    assert after.solution.seconds <= before.solution.seconds * (1 + 1e-9)
