"""What measurements teach the cost model, and when measuring stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import isnan, log
from typing import Any

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.analytic import node_flops
from mnnpy.backends.base import Candidate, NodeView
from mnnpy.backends.cpu import select
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, TensorType, Value
from mnnpy.search.agree import agree, wrong
from mnnpy.search.correct import Corrections, errors
from mnnpy.search.cost import Peaks, bound
from mnnpy.search.measure import measure
from mnnpy.search.place import Machine, family
from mnnpy.search.records import Record, Records
from tests.unit.search_devices import Picky, branches


def records(law: Callable[[float, float], float], count: int = 30, noise: float = 0.0) -> list[Record]:
    """Layers whose predictions are off by *law* of operations and bytes."""
    rng = np.random.default_rng(3)
    found = []
    for k in range(count):
        flops, size = float(10 ** rng.uniform(6, 9)), float(10 ** rng.uniform(4, 7))
        seconds = flops / 1e11
        measured = seconds * law(flops, size) * float(np.exp(noise * rng.normal()))
        found.append(
            Record(f"{k}", "f", {"a": [2 * measured, measured]}, "a", "r", {}, {"a": (flops, size, seconds)}, "g")
        )
    return found


def test_a_constant_factor_and_a_slope_are_learnt() -> None:
    known = Corrections(records(lambda f, s: 3.0))
    assert known.factor("g", "a", 1e7, 1e5) == pytest.approx(3.0, rel=0.05)
    assert known.factor("g", "other", 1e7, 1e5) == 1.0
    assert known.factor("other", "a", 1e7, 1e5) == 1.0
    sloped = Corrections(records(lambda f, s: 1 + 2 * (9 - np.log10(f)) / 3, 60, 0.05))
    assert sloped.factor("g", "a", 1e6, 1e5) > 1.8 * sloped.factor("g", "a", 1e9, 1e5)


def test_little_evidence_changes_little_and_nothing_far_away() -> None:
    one = Corrections(records(lambda f, s: 4.0, 1))
    assert 1.5 < one.factor("g", "a", 1e7, 1e5) < 4.0
    many = Corrections(records(lambda f, s: (f / 1e8) ** 0.3))
    assert many.factor("g", "a", 1e20, 1e5) == many.factor("g", "a", 1e9, 1e5)  # as far as was seen
    assert Corrections(records(lambda f, s: 1e6)).factor("g", "a", 1e7, 1e5) <= 8.0


def test_one_outlier_moves_little() -> None:
    good = records(lambda f, s: 2.0, 12, 0.02)
    bad = Record("x", "f", {"a": [1.0]}, "a", "r", {}, {"a": (1e8, 1e6, 1e-3)}, "g")
    factor = Corrections([*good, bad]).factor("g", "a", 1e7, 1e5)
    assert abs(log(factor / Corrections(good).factor("g", "a", 1e7, 1e5))) < 0.3


def test_errors_before_and_after() -> None:
    found = errors(records(lambda f, s: 3.0, 40, 0.05))
    assert found["count"] == 40
    assert found["before"] > 0.5
    assert found["after"] < 0.1
    assert found["after"] <= found["unseen"] < 0.15
    assert isnan(errors([])["before"])


def test_estimates_of_the_cpu_improve_with_use(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes three times as long as predicted is predicted to in the next session, but not with "off"."""
    own = Records("here", tmp_path / "cpu.jsonl")
    monkeypatch.setattr(select, "records", lambda: own)
    t, w = TensorType(DType.F32, (256, 256)), np.ones((256, 256), np.float32)
    graph = Graph("one", (Value("x", t),), (Value("y", t),), (Node("MatMul", ("x", "w"), ("y",)),), {"w": w}, {})

    def predicted(**options: Any) -> float:
        return mnnpy.Session(graph, "cpu", threads=1, cache=False, **options).explain().rows[0]["predicted_us"]

    device = mnnpy.Session(graph, "cpu", threads=1)._context.devices[0]
    view = NodeView(graph.nodes[0], (t, t), (t,), {"w": w})
    placed = Machine([device]).heavy(0, view, "normal").seconds
    first = predicted(tune="off")
    work = {c.algorithm: (c.flops, c.bytes, 1e-3) for c in device.candidates(view)}
    group = select.family("MatMul", device.isa, 1)  # type: ignore[attr-defined]
    for k in range(20):
        own.add(Record(f"{k}", "here", {name: [3e-3] for name in work}, "direct", "r", {}, work, group))
    assert predicted(tune="off") == pytest.approx(first)
    assert predicted() == pytest.approx(3 * first, rel=0.1)
    assert Machine([device]).heavy(0, view, "normal").seconds == pytest.approx(3 * placed, rel=0.1)
    assert Machine([device], learnt=False).heavy(0, view, "normal").seconds == pytest.approx(placed)


def test_devices_without_layers_learn_from_whole_plans(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path))
    model, _ = branches(64)
    peaks = Peaks({"f32": 1e11}, 1e10, 1e10)

    def way(name: str, **options: Any) -> float:
        devices: Any = [Picky("one", None, peaks=peaks), Picky("two", None, peaks=peaks)]
        session = mnnpy.Session(model, devices, threads=1, **options)
        return session.explain().decisions[0]["ways"][name]["predicted"]

    first = way("one", tune="off")
    fingerprint = mnnpy.Session(
        model, [Picky("one", None, peaks=peaks), Picky("two", None, peaks=peaks)], threads=1  # type: ignore[list-item]
    )._context.chooser.records.fingerprint  # type: ignore[union-attr]
    plans = Records(fingerprint, tmp_path / "plans.jsonl")
    for k in range(20):
        plans.add(Record(f"{k}", fingerprint, {"one": [2.0]}, "one", "r", {}, {"one": (1, 1, 1.0)}, family("normal")))
    assert way("one", tune="off") == pytest.approx(first)
    assert way("one") == pytest.approx(2 * first, rel=0.15)


# -- measuring --


def scripted(*times: float) -> tuple[Callable[[], float], list[float]]:
    called: list[float] = []

    def run() -> float:
        called.append(times[min(len(called), len(times) - 1)])
        return called[-1]

    return run, called


def test_a_leader_at_the_roofline_has_won() -> None:
    (fast, calls), (slow, others) = scripted(1.0), scripted(1.2)
    best, samples = measure({"fast": fast, "slow": slow}, 10.0, bounds={"fast": 0.99, "slow": 0.99})
    assert best == "fast"
    assert len(samples["fast"]) == 2 < 5
    assert len(calls) == len(others) == 3
    _, samples = measure({"fast": fast, "slow": slow}, 10.0, bounds={"fast": 0.99, "slow": 0.5})
    assert len(samples["fast"]) == 5  # the other one might still do better


def test_who_cannot_win_is_left_after_one_run() -> None:
    (fast, _), (hopeless, calls) = scripted(1.0), scripted(1.3)
    _, samples = measure({"fast": fast, "hopeless": hopeless}, 10.0, bounds={"hopeless": 1.25})
    assert len(samples["hopeless"]) == 1
    assert len(calls) == 2


def test_nothing_begins_after_the_deadline() -> None:
    (one, _), (two, calls) = scripted(1.0), scripted(1.0)
    best, samples = measure({"one": one, "two": two}, 10.0, deadline=time.perf_counter() - 1)
    assert best == "one"
    assert len(samples["one"]) == 1
    assert "two" not in samples
    assert not calls


def test_bound() -> None:
    peaks = Peaks({"f32": 1e9, "bf16": 2e9}, 1e9, 1e9, launch=1.0)
    assert bound(Candidate("a", 2e9, 1e12), peaks) == 2.0
    assert bound(Candidate("a", 2e9, 1e12, 1, {"rate": "bf16"}), peaks) == 1.0
    assert bound(Candidate("a", 2e9, 1e12, 1, {"rate": "f16"}), peaks) == float("inf")


def test_a_kernel_that_computes_something_else_is_banned(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Records("here", tmp_path / "cpu.jsonl")
    monkeypatch.setattr(select, "records", lambda: own)
    monkeypatch.setattr(select, "SHORTLIST", 1e9)
    monkeypatch.setattr(select, "MATTERS", 0.0)
    real = select._timed

    def spoiled(program: Any, inputs: list[Any], output: Any) -> Callable[[], float]:
        run = real(program, inputs, output)
        if "winograd4" not in program.describe()[0]["algorithm"]:
            return run

        def wrongly() -> float:
            run()
            output[...] += 1
            return 1e-9

        return wrongly

    monkeypatch.setattr(select, "_timed", spoiled)
    t = TensorType(DType.F32, (1, 64, 28, 28))
    attrs = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    weights = {"w": np.full((64, 64, 3, 3), 0.01, np.float32)}
    graph = Graph("one", (Value("x", t),), (Value("y", t),), (Node("Conv", ("x", "w"), ("y",), attrs),), weights, {})
    session = mnnpy.Session(graph, "cpu", threads=1, tune=20.0, cache=False)
    (row,) = (r for r in session.explain().rows if r["op"] == "Convolution")
    assert "winograd4" not in row["algorithm"] or "winograd4x2" in row["algorithm"]
    assert "banned for wrong results: winograd4" in row["why"]
    (record,) = own.all()
    assert "winograd4" not in record.samples


def test_agreement() -> None:
    a = np.ones(4, np.float32)
    assert agree([a], [a + 1e-3])
    assert not agree([a], [a + 1])
    assert not agree([a], [a * np.nan])
    assert wrong({"one": [a], "two": [a + 1], "three": [a]}) == {"two"}
    assert wrong({"one": [a], "two": [a + 1]}) == {"two"}
    assert wrong({}) == set()


def test_work_of_products_and_recurrences() -> None:
    def view(op: str, shapes: list[tuple[int, ...]], out: tuple[int, ...], **attrs: Any) -> NodeView:
        types = tuple(TensorType(DType.F32, s) for s in shapes)
        names = tuple(f"i{k}" for k in range(len(shapes)))
        return NodeView(Node(op, names, ("y",), attrs), types, (TensorType(DType.F32, out),), {})

    assert node_flops(view("MatMul", [(7, 5), (7, 3)], (5, 3), trans_a=1)) == 2 * 7 * 5 * 3
    assert node_flops(view("LSTM", [(9, 2, 5), (1, 12, 5), (1, 12, 3)], (9, 1, 2, 3))) == 2 * 18 * 12 * 8


def test_the_budget_of_a_plan_holds_for_all_its_parts(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part gets what the ones before it left, and half of that goes to the comparison of ways."""
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path))
    model, _ = branches(320)
    peaks = Peaks({"f32": 1e11}, 1e10, 1e10)
    one, two = Picky("one", {"Convolution"}, peaks=peaks), Picky("two", None, peaks=peaks)
    mnnpy.Session(model, [one, two], threads=1, tune=8.0)  # type: ignore[list-item]
    given = [s.tuning for s in (*one.compiled, *two.compiled)]
    assert len(given) >= 2
    assert all(0 < t <= 4.0 for t in given)
    assert len(set(given)) == len(given)
    one.compiled.clear()
    mnnpy.Session(model, [one], threads=1, tune="cache", fallback=True)  # type: ignore[list-item]
    assert [s.tuning for s in one.compiled] == [0.0] * len(one.compiled)


def test_without_time_to_compare_nothing_is_recorded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path))
    model, _ = branches(64)
    peaks = Peaks({"f32": 1e11}, 1e10, 1e10)

    def reason(tune: float) -> str:
        devices: Any = [Picky("one", None, peaks=peaks), Picky("two", None, peaks=peaks)]
        return str(mnnpy.Session(model, devices, threads=1, tune=tune).explain().decisions[0]["reason"])

    assert reason(1e-9) == "cost model: no time to measure"
    assert not (tmp_path / "plans.jsonl").exists()
    assert reason(5.0) == "fastest measured"
    assert reason(1e-9) == "fastest measured"
