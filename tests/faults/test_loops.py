"""Loops and branches that data decide: right results, and no plan per iteration for ever."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import mnnpy
from mnnpy.runtime import VALUE_PLAN_LIMIT
from tests.faults.test_bad_inputs import BACKENDS, I64, F, _i, make, node, ones

B = TensorProto.BOOL
info = helper.make_tensor_value_info


def loop(
    body: list[onnx.NodeProto], carried: list[tuple[str, str, int, Any]], scans: Sequence[str] = ()
) -> onnx.GraphProto:
    """A Loop body with counter ``i``; *carried* lists (input, output, type, shape)."""
    return helper.make_graph(
        [*body, node("Identity", ["c"], ["c2"])],
        "body",
        [info("i", I64, []), info("c", B, []), *(info(n, t, s) for n, _, t, s in carried)],
        [onnx.ValueInfoProto(name=o) for o in ("c2", *(o for _, o, _, _ in carried), *scans)],
    )


def plan_count(session: mnnpy.Session) -> int:
    def count(executable: Any) -> int:
        total = executable._made
        for plan in executable.plans():
            total += sum(count(b) for s in plan.steps for b in s.bodies.values())
            total += count(plan.late) if plan.late is not None else 0
        return total

    return count(session._executable)


def test_slice_at_the_counter() -> None:
    """x[i:i+1] has one shape for every i: after a few plans per value the slice runs on the host."""
    body = loop(
        [node("Unsqueeze", ["i", "zero"], ["from"]), node("Add", ["from", "one"], ["to"]),
         node("Slice", ["x", "from", "to", "zero"], ["row"]), node("Add", ["s", "row"], ["t"]),
         node("Tanh", ["t"], ["s2"])],
        [("s", "s2", F, [1, 4])],
    )  # fmt: skip
    nodes = [node("Loop", ["n", "", "s0"], ["y"], body=body)]
    model = make(nodes, {"x": (F, [10000, 4]), "n": (I64, []), "s0": (F, [1, 4])}, ["y"], {"zero": _i(0), "one": _i(1)})
    session = mnnpy.Session(model, threads=1)
    x = np.random.default_rng(0).standard_normal((10000, 4)).astype(np.float32)
    start = time.perf_counter()
    (y,) = session.run(None, {"x": x, "n": np.array(10000), "s0": np.zeros((1, 4), np.float32)})
    assert time.perf_counter() - start < 30
    want = np.zeros((1, 4), np.float32)
    for row in x:
        want = np.tanh(want + row)
    np.testing.assert_allclose(y, want, atol=1e-5)
    assert plan_count(session) < 2 * VALUE_PLAN_LIMIT + 10
    assert "Slice" in str(session.explain())


def test_shape_from_the_counter() -> None:
    """A new shape in every iteration: the body is interpreted once that was measured to be cheaper."""
    body = loop(
        [node("Add", ["i", "one"], ["j"]), node("Expand", ["half", "j"], ["e"]),
         node("ReduceSum", ["e", "zero"], ["r"], keepdims=0), node("Add", ["s", "r"], ["s2"])],
        [("s", "s2", F, [])],
    )  # fmt: skip
    nodes = [node("Loop", ["n", "", "s0"], ["y"], body=body)]
    constants = {"one": _i(1), "zero": _i(0), "half": np.float32([0.5])}
    model = make(nodes, {"n": (I64, []), "s0": (F, [])}, ["y"], constants)
    session = mnnpy.Session(model, threads=1)
    start = time.perf_counter()
    (y,) = session.run(None, {"n": np.array(10000), "s0": np.float32(0)})
    assert time.perf_counter() - start < 30
    np.testing.assert_allclose(y, 0.5 * 10000 * 10001 / 2, rtol=1e-4)
    assert plan_count(session) < 2000
    (few,) = session.run(None, {"n": np.array(3), "s0": np.float32(0)})
    assert few == 3.0


def test_growing_state() -> None:
    """A state that grows by a row in every iteration, as caches do."""
    body = loop([node("Concat", ["s", "one"], ["s2"], axis=0), node("ReduceSum", ["s2"], ["k"], keepdims=0)],
                [("s", "s2", F, ["n", 1])], ["k"])  # fmt: skip
    nodes = [node("Loop", ["n", "", "s0"], ["y", "ks"], body=body)]
    model = make(nodes, {"n": (I64, []), "s0": (F, ["m", 1])}, ["y", "ks"], {"one": ones(1, 1)})
    session = mnnpy.Session(model, threads=1)
    y, ks = session.run(None, {"n": np.array(1000), "s0": ones(1, 1)})
    assert y.shape == (1001, 1)
    np.testing.assert_array_equal(ks, np.arange(2, 1002))


@pytest.mark.parametrize("backend", BACKENDS)
def test_trip_counts_and_conditions_that_are_inputs(backend: str) -> None:
    body = loop([node("Add", ["s", "s"], ["s2"])], [("s", "s2", F, [2])], ["s2"])
    model = make([node("Loop", ["n", "go", "s0"], ["y", "rows"], body=body)],
                 {"n": (I64, []), "go": (B, []), "s0": (F, [2])}, ["y", "rows"])  # fmt: skip
    session = mnnpy.Session(model, backend, threads=1)
    for n in (0, 1, 5, -3):
        for go in (True, False):
            y, rows = session.run(None, {"n": np.array(n), "go": np.array(go), "s0": ones(2)})
            steps = max(n, 0) if go else 0
            assert (y == 2**steps).all()
            assert rows.shape == (steps, 2)
    branches = {
        k: helper.make_graph([node(op, ["x"], [k])], k, [], [onnx.ValueInfoProto(name=k)])
        for k, op in (("then_branch", "Neg"), ("else_branch", "Shape"))
    }
    model = make([node("If", ["c"], ["y"], **branches)], {"x": (F, [2]), "c": (B, [])}, ["y"])
    session = mnnpy.Session(model, backend, threads=1)
    for _ in range(2):
        assert session.run(None, {"x": ones(2), "c": np.array(True)})[0].tolist() == [-1, -1]
        assert session.run(None, {"x": ones(2), "c": np.array(False)})[0].tolist() == [2]


def test_many_values_of_a_shape_input() -> None:
    """A session fed with ever new target sizes keeps a bounded number of plans and stays right."""
    model = make([node("Tanh", ["x"], ["t"]), node("Reshape", ["t", "s"], ["r"]), node("Neg", ["r"], ["y"])],
                 {"x": (F, [720]), "s": (I64, [2])}, ["y"])  # fmt: skip
    session = mnnpy.Session(model, threads=1)
    x = np.linspace(-1, 1, 720, dtype=np.float32)
    for _ in range(2):
        for rows in (k for k in range(1, 721) if 720 % k == 0):
            (y,) = session.run(None, {"x": x, "s": _i(rows, -1)})
            assert y.shape == (rows, 720 // rows)
            np.testing.assert_allclose(y.ravel(), -np.tanh(x), atol=1e-6)
    assert len(session._executable.plans()) <= 32


def test_shape_operand_that_is_a_long_input() -> None:
    """More than 256 numbers that decide a shape: no endless chain of late parts."""
    model = make([node("Expand", ["x", "s"], ["y"])], {"x": (F, [1]), "s": (I64, [300])}, ["y"])
    with pytest.raises(mnnpy.MnnpyError, match="Expand"):
        mnnpy.Session(model).run(None, {"x": ones(1), "s": np.ones(300, np.int64)})
    model = make([node("Split", ["x", "s"], [f"y{k}" for k in range(300)], axis=0)],
                 {"x": (F, [300]), "s": (I64, [300])}, ["y0", "y299"])  # fmt: skip
    first, last = mnnpy.Session(model).run(None, {"x": np.arange(300, dtype=np.float32), "s": np.ones(300, np.int64)})
    assert first.tolist() == [0]
    assert last.tolist() == [299]


def test_long_chain_of_late_parts() -> None:
    """Every NonZero cuts the graph once more: no recursion."""
    nodes, x = [], "x"
    for k in range(250):
        nodes += [node("NonZero", [x], [f"n{k}"]), node("Reshape", [f"n{k}", "flat"], [f"r{k}"]),
                  node("Cast", [f"r{k}"], [f"f{k}"], to=F), node("Cos", [f"f{k}"], [f"c{k}"])]  # fmt: skip
        x = f"c{k}"
    session = mnnpy.Session(make(nodes, {"x": (F, [3])}, [x, "c0"], {"flat": _i(-1)}), threads=1)
    for y in session.run(None, {"x": ones(3)}):
        np.testing.assert_allclose(y, np.cos([0, 1, 2]), atol=1e-6)
