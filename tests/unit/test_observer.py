"""Who watches a search hears what it does, and a plan says why it is as it is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.base import Device
from mnnpy.backends.registry import open_device
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, TensorType, Value
from mnnpy.search.measure import measure
from mnnpy.search.observe import Event
from mnnpy.search.planner import Decision, decide, measured
from mnnpy.search.records import Record, Records


@pytest.fixture(autouse=True)
def _own_records(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path))


def convolution() -> Graph:
    """A 3×3 convolution with its activation, large enough to be measured."""
    t = TensorType(DType.F32, (1, 64, 56, 56))
    attrs = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    weights = {"w": np.full((64, 64, 3, 3), 0.01, np.float32)}
    nodes = (Node("Conv", ("x", "w"), ("a",), attrs, name="first"), Node("Relu", ("a",), ("y",), name="rectify"))
    return Graph("one", (Value("x", t),), (Value("y", t),), nodes, weights, {})


def test_runs_and_candidates_left_behind() -> None:
    heard: list[tuple[Any, ...]] = []
    times = {"fast": 1.0, "slow": 2.0}
    runs: Mapping[str, Callable[[], float]] = {n: lambda s=s: s for n, s in times.items()}  # type: ignore[misc]
    best, samples = measure(runs, budget=10.0, tell=lambda *words: heard.append(words))
    assert best == "fast"
    counts = Counter(w[:2] for w in heard)
    assert counts["begun", "fast"] == counts["begun", "slow"] == 1
    assert counts["measured", "slow"] == len(samples["slow"]) == 2
    assert [w for w in heard if w[0] == "dropped"] == [("dropped", "slow", 2.0)]


def test_layers_of_the_cpu() -> None:
    heard: list[Event] = []
    mnnpy.Session(convolution(), "cpu", tune=5.0, threads=1, cache=False, observer=heard.append)
    (decided,) = (e for e in heard if e.kind == "decided")
    assert decided.task.device == "cpu"
    assert decided.task.label.startswith("Convolution f32[1,")
    record = decided.record
    assert record is not None
    assert decided.candidate == record.decision
    assert decided.seconds == min(record.samples[record.decision])
    assert set(record.samples) <= set(decided.task.predicted) == set(record.predicted)
    for name, samples in record.samples.items():
        assert [e.seconds for e in heard if e.kind == "measured" and e.candidate == name] == samples
    again: list[Event] = []
    mnnpy.Session(convolution(), "cpu", tune=5.0, threads=1, cache=False, observer=again.append)
    assert [(e.kind, e.candidate, e.record) for e in again] == [("recalled", record.decision, record)]


def twins() -> list[Device]:
    """The cpu, and the same under another name."""
    first, second = open_device("cpu", threads=1), open_device("cpu", threads=1)
    second.info = replace(second.info, backend="twin")
    return [first, second]


def test_ways_of_a_graph() -> None:
    heard: list[Event] = []
    session = mnnpy.Session(convolution(), twins(), tune=5.0, threads=1, cache=False, observer=heard.append)
    feeds = {"x": np.ones((1, 64, 56, 56), np.float32)}
    rows = session.explain(feeds).rows
    (decided,) = (e for e in heard if e.kind == "decided" and not e.task.device)
    assert decided.task.label == "graph one"
    assert {e.candidate for e in heard if e.kind == "begun" and not e.task.device} == {"cpu", "twin"}
    (decision,) = session.explain().decisions
    assert decision["way"] == decided.candidate
    assert decision["reason"] == "fastest measured"
    assert set(decision["ways"]) == {"cpu", "twin"}
    assert all(w["predicted"] > 0 and w["measured"] > 0 for w in decision["ways"].values())
    assert {r["backend"] for r in rows} == {decision["way"]}
    assert {r["reason"] for r in rows} == {decision["text"]}
    (times,) = (r["devices_us"] for r in rows if r["op"] == "Convolution")
    assert set(times) == {"cpu", "twin"}
    assert all(us > 0 for us in times.values())


def test_ways_of_a_graph_whose_shapes_depend_on_data() -> None:
    """What is measured gets the caller's inputs, also those whose values are known in advance."""
    t = TensorType(DType.F32, (4, 8))
    branches = {
        f"{name}_branch": Graph(name, (), (Value(name, t),), (Node(op, ("x",), (name,)),))
        for name, op in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = (
        Node("If", ("c",), ("z",), branches),
        Node("NonZero", ("z",), ("n",)),
        Node("Cast", ("n",), ("y",), {"to": 1}),
    )
    inputs = (Value("c", TensorType(DType.BOOL, ())), Value("x", t))
    graph = Graph("late", inputs, (Value("y", None),), nodes, {}, {})
    heard: list[Event] = []
    session = mnnpy.Session(graph, twins(), tune=2.0, threads=1, cache=False, observer=heard.append)
    x = np.eye(4, 8, dtype=np.float32)
    for c in (True, False):
        (y,) = session.run(None, {"c": np.array(c), "x": x})
        np.testing.assert_array_equal(y, np.array(np.nonzero(x), np.float32))
    assert [e for e in heard if e.kind == "decided" and not e.task.device]


def test_what_a_decision_says() -> None:
    decision = Decision("a", "fastest measured", {"c": 0.009, "b": 0.004, "a": 0.007}, {"b": 0.0062, "a": 0.0003})
    assert str(decision) == "a: fastest measured (a 300 µs, b 6.2 ms, c 9 ms predicted)"


def test_a_way_that_is_gone_leaves_the_best_that_was_measured_beside_it() -> None:
    ways: Any = [SimpleNamespace(name=n, predicted=s) for n, s in (("new", 0.001), ("a", 0.002), ("b", 0.003))]
    record = Record("key", "here", {"a": [0.009, 0.008], "a+": [0.004], "b": [0.005]}, "a+", "fastest measured")
    way, decision = decide(ways, record)
    assert way.name == decision.way == "b"
    assert decision.measured == {"a": 0.008, "b": 0.005}
    assert decide(ways, replace(record, decision="a", samples={"a": [0.009], "b": [0.005]}))[0].name == "a"
    assert decide(ways, replace(record, samples={"a+": [0.004]}))[1].reason == "cost model"


def test_a_wrong_way_is_banned_aloud() -> None:
    heard: list[tuple[str, str]] = []
    ways: Any = [SimpleNamespace(name=n, predicted=0.001, work=None, family="") for n in ("one", "two", "wrong")]

    def prepare(way: Any) -> Callable[[], list[Any]]:
        return lambda: [np.full(4, 2.0 if way.name == "wrong" else 1.0, np.float32)]

    def tell(kind: str, name: str, *rest: Any) -> None:
        heard.append((kind, name))

    _, record = measured(ways, "key", Records("here", None), prepare, 1.0, time.perf_counter, tell)
    assert ("banned", "wrong") in heard
    assert ("measured", "wrong") not in heard
    assert heard[-1] == ("decided", record.decision)
