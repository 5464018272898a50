"""Algorithm selection: forced, measured, cached; records survive damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnnpy
from mnnpy.backends.cpu import select
from mnnpy.search.measure import measure
from mnnpy.search.records import Record, Records
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
    records = Records("this machine", tmp_path / "cpu.jsonl")
    monkeypatch.setattr(select, "records", lambda: records)
    return records


@pytest.mark.parametrize("algorithm", select.ALGORITHMS)
def test_every_algorithm_gives_the_same_answer(algorithm: str, fresh: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = conv_net()
    want = mnnpy.Session(model, "reference").run(None, feeds)[0]
    monkeypatch.setattr(select.Tuner, "choose", lambda self, node, types: algorithm)
    for threads in (1, 2, 7):
        session = mnnpy.Session(model, threads=threads)
        got = session.run(None, feeds)[0]
        assert np.abs(got - want).max() <= 3e-5 * np.abs(want).max()
        assert all(algorithm in a for a in algorithms(session))


def test_measured_once_then_cached(fresh: Records) -> None:
    model, _ = conv_net()
    first = algorithms(mnnpy.Session(model, threads=1))
    assert fresh.path is not None
    lines = fresh.path.read_text().splitlines()
    assert len(lines) == 2
    row = json.loads(lines[0])
    assert set(row["samples"]) == set(select.ALGORITHMS)
    assert row["decision"] == min(row["samples"], key=lambda k: min(row["samples"][k]))
    assert algorithms(mnnpy.Session(model, threads=1)) == first
    assert fresh.path.read_text().splitlines() == lines


def test_high_precision_is_direct_and_zero_budget_measures_nothing(fresh: Records) -> None:
    model, _ = conv_net()
    assert not any("winograd" in a for a in algorithms(mnnpy.Session(model, precision="high")))
    mnnpy.Session(model, tuning=0)
    assert fresh.path is not None
    assert not fresh.path.exists()


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
