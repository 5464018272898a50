"""The reference interpreter and the null family as devices."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from mnnpy.backends.base import Device, NodeView, Program, Segment, device_names
from mnnpy.backends.reference.interpreter import Interpreter, run_graph
from mnnpy.backends.registry import open_device
from mnnpy.errors import BackendError, MnnpyError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, TensorType, Value

T = TensorType(DType.F32, (2, 3))


def chain(n: int = 3) -> Graph:
    nodes = [Node("Unary", (f"v{k}",), (f"v{k + 1}",), {"fn": "Neg"}, f"neg{k}") for k in range(n)]
    return Graph("chain", (Value("v0", T),), (Value(f"v{n}", T),), tuple(nodes), {}, {f"v{k}": T for k in range(n + 1)})


def test_runs_and_describes() -> None:
    device = open_device("reference", threads=2)
    assert isinstance(device, Device)
    program = device.compile(Segment(chain()))
    assert isinstance(program, Program)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    (y,) = program.run([x])
    np.testing.assert_array_equal(y, -x)
    assert [r["op"] for r in program.describe()] == ["Unary"] * 3
    assert [r[1] for r in program.profile([x])] == ["neg0", "neg1", "neg2"]
    assert program.time([x]) > 0


def test_values_die_after_their_last_use() -> None:
    steps = Interpreter(chain()).program
    assert [s.dead for s in steps] == [("v0",), ("v1",), ("v2",)]
    x = np.ones((2, 3), np.float32)
    ref = weakref.ref(x)
    result = run_graph(chain(), [x])
    del x
    gc.collect()
    assert ref() is None
    assert result[0].shape == (2, 3)


def test_unused_outputs_and_absent_inputs() -> None:
    node = Node("Sort", ("x",), ("", "i"), {"axis": 0, "k": 2})
    g = Graph("g", (Value("x"),), (Value("i"),), (node,))
    (i,) = run_graph(g, [np.asarray([1.0, 3.0, 2.0], np.float32)])
    np.testing.assert_array_equal(i, [1, 2])


def test_default_inputs() -> None:
    g = Graph("g", (Value("a"), Value("b")), (Value("c"),), (Node("Binary", ("a", "b"), ("c",), {"fn": "Add"}),),
              {"b": np.float32(2)})  # fmt: skip
    assert run_graph(g, [np.float32(1)])[0] == 3
    with pytest.raises(BackendError, match="input 'a' is missing"):
        run_graph(g, [])


def test_errors_name_the_node() -> None:
    g = Graph(
        "g", (Value("a"), Value("b")), (Value("c"),), (Node("Binary", ("a", "b"), ("c",), {"fn": "Add"}, "sum7"),)
    )
    with pytest.raises(MnnpyError, match=r"node 'sum7' \(Binary\) with \(float32\[2\], float32\[3\]\)"):
        run_graph(g, [np.ones(2, np.float32), np.ones(3, np.float32)])


def test_atomic_only() -> None:
    whole, atomic = open_device("reference"), open_device("reference:atomic")
    view = NodeView(Node("Unary", ("x",), ("y",), {"fn": "Neg"}), (T,), (T,), {})
    other = NodeView(Node("If", ("c",), ("y",)), (T,), (T,), {})
    assert whole.supports(view)
    assert atomic.supports(view)
    assert whole.supports(other)
    assert "atomic ops only" in atomic.supports(other).reason
    assert "not known" in whole.supports(NodeView(Node("Nope", (), ("y",)), (), (T,), {})).reason


def test_null_plans_and_refuses_to_run() -> None:
    device = open_device("null:gpu", peak=2e12)
    assert isinstance(device, Device)
    assert device.speeds.peak == 2e12
    assert device.speeds.bandwidth == 5e11
    program = device.compile(Segment(chain()))
    assert device.compiled == [program]
    assert len(program.describe()) == 3
    for call in (program.run, program.time, program.profile):
        with pytest.raises(BackendError, match=r"plans but never runs.*3 nodes"):
            call([])
    with pytest.raises(BackendError, match="peak=0"):
        open_device("null", peak=0)


def test_null_costs_are_a_roofline() -> None:
    device = open_device("null:balanced", peak=1e9, bandwidth=1e9, launch=1.0)
    a, b, c = TensorType(DType.F32, (4, 8)), TensorType(DType.F32, (8, 16)), TensorType(DType.F32, (4, 16))
    (candidate,) = device.candidates(NodeView(Node("MatMul", ("a", "b"), ("c",)), (a, b), (c,), {}))
    assert candidate.flops == 2 * 4 * 8 * 16
    assert candidate.bytes == 4 * (4 * 8 + 8 * 16 + 4 * 16)
    assert device.speeds.seconds(candidate) == pytest.approx(1.0 + 1024e-9)
    assert device.speeds.transfer(0) == device.speeds.transfer_latency


def test_null_devices_declare_ops_and_memory() -> None:
    npu = open_device("null:npu")
    view = NodeView(Node("Unary", ("x",), ("y",), {"fn": "Neg"}), (T,), (T,), {})
    assert "Convolution only" in npu.supports(view).reason
    assert open_device("null:npu", ops=["Unary"]).supports(view)
    assert open_device("null:small", memory=5.0).info.facts["memory"] == 5.0
    assert "memory" not in open_device("null:gpu").info.facts
    assert open_device("null:cpu").peaks().shared
    for wrong, what in (({"ops": ["Nope"]}, "Nope"), ({"memory": 0}, "memory=0"), ({"speed": 1.0}, "known: peak")):
        with pytest.raises(BackendError, match=what):
            open_device("null", **wrong)


def test_devices_of_one_backend_are_told_apart() -> None:
    devices = [open_device(n) for n in ("null:gpu", "reference", "null:npu", "null:gpu")]
    assert device_names(devices) == ("null:gpu", "reference", "null:npu", "null:gpu#2")
    assert device_names(devices[:2]) == ("null", "reference")
