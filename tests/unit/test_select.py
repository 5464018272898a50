"""Algorithm selection: forced, measured, cached; records survive damage."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnnpy
from mnnpy.backends.base import Candidate
from mnnpy.backends.cpu import select
from mnnpy.backends.cpu.algorithms import ran
from mnnpy.backends.cpu.provider import lower
from mnnpy.decompose.lower import view_of
from mnnpy.errors import InputError
from mnnpy.options import OPTIMIZATIONS
from mnnpy.search.cost import Peaks, predict
from mnnpy.search.measure import measure
from mnnpy.search.records import Record, Records, peak_records
from tests.models import Net


def conv_net() -> tuple[object, dict[str, np.ndarray]]:
    n = Net()
    x = n.input(1, 32, 20, 18)
    y = n.op("Relu", n.op("Conv", x, n.w(48, 32, 3, 3), n.w(48), pads=[1, 1, 1, 1]))
    y = n.op("Add", n.op("Conv", y, n.w(48, 48, 3, 3), pads=[1, 1, 1, 1]), y)
    return n.finish(y)


def algorithms(session: mnnpy.Session) -> list[str]:
    return [r["algorithm"] for r in session.explain().rows if r["op"] == "Convolution"]


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    records = Records(f"this machine {tmp_path}", tmp_path / "cpu.jsonl")
    monkeypatch.setattr(select, "records", lambda: records)
    return records


def whys(session: mnnpy.Session) -> list[str]:
    return [r["why"] for r in session.explain().rows if r["op"] == "Convolution"]


def lines(records: Records) -> list[dict[str, Any]]:
    assert records.path is not None
    return [json.loads(line) for line in records.path.read_text().splitlines() if line]


def test_calibrated_and_measured_once_then_cached(fresh: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "SHORTLIST", 1e9)
    monkeypatch.setattr(select, "MATTERS", 0.0)
    model, _ = conv_net()
    session = mnnpy.Session(model, threads=1, tune=60)
    measured = lines(fresh)
    (calibration,) = (r for r in lines(peak_records("")) if r["fingerprint"] == fresh.fingerprint)
    assert calibration["reason"] == "calibration"
    assert {"f32", "memory", "cache", "launch"} <= set(calibration["samples"])
    assert len(measured) == 2
    for row in measured:
        assert {"direct", "winograd2", "winograd4"} <= set(row["samples"])
        assert row["decision"] == select.fastest({k: min(s) for k, s in row["samples"].items()})
    assert whys(session) == ["fastest measured"] * 2
    again = mnnpy.Session(model, threads=1, tune=60)
    assert algorithms(again) == algorithms(session)
    assert whys(again) == ["fastest measured"] * 2
    assert len(lines(fresh)) == 2


def test_the_direct_algorithm_is_left_for_a_gain_only() -> None:
    assert select.fastest({"strassen": 0.98, "direct": 1.0}) == "direct"
    assert select.fastest({"strassen": 0.96, "direct": 1.0}) == "strassen"
    assert select.fastest({"winograd2": 2.0, "winograd4": 1.0}) == "winograd4"


def test_without_budget_the_cost_model_decides(fresh: Records) -> None:
    model, _ = conv_net()
    session = mnnpy.Session(model, tune="off")
    assert whys(session) == ["cost model"] * 2
    assert fresh.path is not None
    assert not fresh.path.exists()
    assert all(r["predicted_us"] > 0 and r["measured_us"] == "" for r in session.explain().rows if r["why"])


def test_high_precision_is_direct(fresh: Records) -> None:
    model, _ = conv_net()
    session = mnnpy.Session(model, precision="high")
    assert whys(session) == ["precision=high"] * 2
    assert {ran("Convolution", a) for a in algorithms(session)} == {"direct"}


def test_the_layers_with_most_time_at_stake_are_measured_first(fresh: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget for one layer goes to the one that costs more in sum, though it comes last."""
    monkeypatch.setattr(select, "SHORTLIST", 1e9)
    monkeypatch.setattr(select, "MATTERS", 0.0)
    n = Net()
    y = n.op("Conv", n.input(1, 16, 24, 24), n.w(64, 16, 3, 3), pads=[1, 1, 1, 1])
    for _ in range(3):
        y = n.op("Relu", n.op("Conv", y, n.w(64, 64, 3, 3), n.w(64), pads=[1, 1, 1, 1]))
    model, _ = n.finish(y)
    calls = iter(range(1000))
    monkeypatch.setattr(select, "now", lambda: time.perf_counter() + 100 * next(calls))  # one layer takes all the time
    session = mnnpy.Session(model, threads=1, tune=60)
    assert whys(session) == ["cost model", *["fastest measured"] * 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Convolution": "winograd7"}, "did you mean 'winograd"),
        ({"Convolutio": "direct"}, "did you mean 'Convolution'"),
        ({"Softmax": "direct"}, "ops that have: Convolution, MatMul"),
        ({"MatMul": "bf16"}, "does not keep precision 'normal', only low"),
        (["direct"], "give a mapping"),
    ],
)
def test_unknown_forced_algorithms_are_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mnnpy.Session(conv_net()[0], algorithms=given)


def test_candidates_carry_analytic_costs() -> None:
    session = mnnpy.Session(conv_net()[0])
    ((_, graph),) = session.parts(conv_net()[1])
    graph = lower(graph, OPTIMIZATIONS)
    device = session._context.devices[0]
    for node in graph.nodes:
        if node.op == "Convolution":
            found = {c.algorithm: c for c in device.candidates(view_of(node, graph.types, graph.constants))}
            assert {"direct", "winograd2", "winograd4"} <= set(found)
            assert found["winograd4"].flops < found["winograd2"].flops < found["direct"].flops
            assert all(c.bytes > 0 and c.launches == 1 for c in found.values())


def test_prediction_is_the_roofline_and_what_does_not_overlap() -> None:
    p = Peaks({"f32": 1e9}, memory=1e9, cache=1e10, launch=1e-6)
    assert predict(Candidate("a", 2e6, 1e6), p) == pytest.approx(2e-3 + 1e-6)
    assert predict(Candidate("a", 1e6, 2e6, 2, {"cached": 1e7}), p) == pytest.approx(3e-3 + 2e-6)
    assert predict(Candidate("a", 1, 1, 1, {"rate": "bf16"}), p) == float("inf")


def test_damaged_and_foreign_lines_are_skipped_with_one_warning(tmp_path: Path) -> None:
    path = tmp_path / "cpu.jsonl"
    writer = Records("a", path)
    writer.add(Record("k", "a", {"x": [1.0]}, "x", "r"))
    Records("b", path).add(Record("k", "b", {"y": [1.0]}, "y", "r"))
    with path.open("ab") as file:
        file.write(b'{"schema":1,"key":\n\xff\xfe\n[]\n{"schema":99}\n{"schema":1,"key":"z","fingerprint":"a","tail')
    reader = Records("a", path)
    with pytest.warns(RuntimeWarning, match="4 unreadable"):
        found = reader.get("k")
    assert found is not None
    assert found.decision == "x"
    assert reader.get("z") is None


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    records = Records("a", tmp_path / "file" / "cpu.jsonl")
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        records.add(Record("k", "a", {"x": [1.0]}, "x", "r"))
    assert records.get("k") is not None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=5, unique=True))
def test_measure_finds_the_fastest(times: list[float]) -> None:
    best, samples = measure({str(k): lambda t=t: t for k, t in enumerate(times)}, budget=1.0)  # type: ignore[misc]
    assert times[int(best)] == min(times)
    assert all(samples.values())


def test_peaks_are_measured_for_a_choice_only(fresh: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products: Strassen's algorithm would need more of everything, so there is nothing to weigh."""

    def never(*_: object) -> object:
        raise AssertionError("peaks were measured")

    monkeypatch.setattr(select, "calibrated", lambda *_: False)
    monkeypatch.setattr(select, "peaks", never)
    n = Net()
    model, _ = n.finish(n.op("MatMul", n.input(40, 48), n.w(48, 64)))
    session = mnnpy.Session(model, threads=1, isa="avx2")
    assert [(r["why"], r["predicted_us"]) for r in session.explain().rows if r["why"]] == [("cost model", "")]
    with pytest.raises(AssertionError, match="peaks were measured"):
        mnnpy.Session(model, threads=1, isa="avx2", tune=0.1)
