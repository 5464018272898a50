"""Shapes that were never measured take the decisions of similar ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.cpu import select
from mnnpy.graph.dims import SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, TensorType, Value
from mnnpy.search.buckets import ALIKE, bucket, buckets, nearest
from mnnpy.search.cost import Peaks
from mnnpy.search.observe import Event
from mnnpy.search.records import Record, Records
from tests.unit.search_devices import Picky
from tests.unit.test_background import fastest


def test_buckets() -> None:
    assert [bucket(n) for n in (0, 1, 2, 4, 1024)] == [-1, 0, 2, 4, 20]
    assert bucket(20) == bucket(21) != bucket(28)
    sizes = [bucket(n) for n in range(1, 5000)]
    assert sizes == sorted(sizes)
    assert buckets([(1, 4), (2,)]) == (0, 4, 2)


def test_nearest() -> None:
    def record(key: str, sizes: tuple[int, ...], kind: str = "k") -> Record:
        return Record(key, "f", {"a": [1.0]}, "a", "r", {}, {}, "", kind, sizes)

    known = [record("old", (4, 8)), record("new", (4, 8)), record("far", (4, 12)), record("other", (4, 9), "o")]
    assert nearest(known, "k", (4, 8)) == known[1]
    assert nearest(known, "k", (4, 9)) is None
    assert nearest(known, "k", (5, 9), 1) == known[1]
    assert nearest(known, "k", (4, 11), 1) == known[2]
    assert nearest(known, "k", (4,), 9) is None
    assert nearest([record("none", (4,), "")], "", (4,)) is None


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path))
    records = Records(f"this machine {tmp_path}", tmp_path / "cpu.jsonl")
    monkeypatch.setattr(select, "records", lambda: records)
    monkeypatch.setattr(select, "SHORTLIST", 1e9)
    monkeypatch.setattr(select, "MATTERS", 0.0)
    return records


def dynamic(channels: int = 32) -> Graph:
    """A convolution of images of any size."""
    t = TensorType(DType.F32, (1, channels, SymDim({"h": 1}), SymDim({"w": 1})))
    weights = {"w": np.full((48, channels, 3, 3), 0.01, np.float32)}
    attrs = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    node = Node("Conv", ("x", "w"), ("y",), attrs)
    return Graph("dynamic", (Value("x", t),), (Value("y", TensorType(DType.F32)),), (node,), weights, {})


def image(height: int, width: int = 18) -> dict[str, np.ndarray]:
    return {"x": np.ones((1, 32, height, width), np.float32)}


def why(session: mnnpy.Session, feeds: dict[str, np.ndarray]) -> tuple[str, str]:
    rows = [r for r in session.explain(feeds).rows if r["op"] == "Convolution"]
    return rows[-1]["algorithm"], rows[-1]["why"]


@pytest.mark.parametrize("algorithm", ["direct", "winograd2"])
def test_layers_take_the_decision_of_similar_sizes(
    algorithm: str, fresh: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest(algorithm, monkeypatch)
    tuned = mnnpy.Session(dynamic(), "cpu", threads=1, tune=20.0)
    assert why(tuned, image(20))[1] == "fastest measured"
    session = mnnpy.Session(dynamic(), "cpu", threads=1)
    assert why(session, image(20))[1] == "fastest measured"
    found, reason = why(session, image(21))
    assert reason == ALIKE
    assert algorithm in found
    assert why(session, image(40))[1] == "cost model"
    assert why(mnnpy.Session(dynamic(), "cpu", threads=1, tune="off"), image(21))[1] == "cost model"
    shipped = mnnpy.Session(dynamic(), "cpu", threads=1, tuning=tuned.tuning_results())
    assert why(shipped, image(21))[1] == ALIKE
    assert why(tuned, image(21))[1] == "fastest measured"  # there is time to know better


def test_what_won_next_door_is_measured_first(fresh: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    fastest("winograd2", monkeypatch)
    heard: list[Event] = []
    session = mnnpy.Session(dynamic(), "cpu", threads=1, tune=20.0, observer=heard.append)
    session.explain(image(20))
    assert len([e for e in heard if e.kind == "begun"]) > 2
    heard.clear()
    session.explain(image(27))
    assert bucket(27) == bucket(20) + 1
    assert next(e.candidate for e in heard if e.kind == "begun") == "winograd2"


PREFERRED, OTHER = Peaks({"f32": 1e12}, 1e11, 1e11), Peaks({"f32": 5e11}, 5e10, 5e10)


def test_plans_take_the_decision_of_similar_inputs(fresh: Records) -> None:
    import time

    def opened(**options: Any) -> mnnpy.Session:
        slow, fast = Picky("one", None, lambda: time.sleep(0.02), peaks=PREFERRED), Picky("two", None, peaks=OTHER)
        return mnnpy.Session(dynamic(), [slow, fast], threads=1, **options)  # type: ignore[list-item]

    def way(session: mnnpy.Session, height: int) -> tuple[str, str]:
        session.run(None, image(height))
        found = session.explain().decisions[-1]
        return found["way"], found["reason"]

    session = opened()
    assert way(session, 20) == ("one", "cost model")
    assert way(opened(tune=5.0), 20) == ("two", "fastest measured")
    session = opened()
    assert way(session, 20) == ("two", "fastest measured")
    assert way(session, 21) == ("two", ALIKE)
    assert way(session, 40)[1] == "cost model"
    assert way(opened(tune="off"), 21) == ("one", "cost model")
