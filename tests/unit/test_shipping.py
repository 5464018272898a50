"""Tuning results leave one machine and count on others of the same kind."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.cpu import select
from mnnpy.errors import InputError
from mnnpy.search.calibrate import device_kind
from mnnpy.search.cost import Peaks
from mnnpy.search.records import Record, Records, record_of
from tests.models import Net
from tests.unit.search_devices import Picky, branches

Machine = Callable[[str], Records]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Go to another machine: other records, another build."""
    monkeypatch.setattr(select, "SHORTLIST", 1e9)
    monkeypatch.setattr(select, "MATTERS", 0.0)

    def go(name: str) -> Records:
        monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path / name))
        records = Records(f"build of {name}", tmp_path / name / "cpu.jsonl")
        monkeypatch.setattr(select, "records", lambda: records)
        return records

    return go


def conv_net() -> Any:
    n = Net()
    y = n.op("Relu", n.op("Conv", n.input(1, 32, 20, 18), n.w(48, 32, 3, 3), n.w(48), pads=[1, 1, 1, 1]))
    return n.finish(n.op("Conv", y, n.w(40, 48, 3, 3), pads=[1, 1, 1, 1]))[0]


def rows(session: mnnpy.Session) -> list[tuple[str, str]]:
    return [(r["algorithm"], r["why"]) for r in session.explain().rows if r["op"] == "Convolution"]


def shipped(results: dict[str, Any], decision: str) -> dict[str, Any]:
    """The same results, but for the decisions."""
    changed = json.loads(json.dumps(results))
    for row in changed["records"]:
        if decision in row["samples"]:
            row["decision"] = decision
    return changed


def test_decisions_count_elsewhere(machine: Machine, tmp_path: Path) -> None:
    model = conv_net()
    machine("lab")
    results = mnnpy.Session(model, threads=1, tune=60).tuning_results()
    assert json.loads(json.dumps(results)) == results
    assert len([r for r in results["records"] if r["decision"]]) == 2
    assert not any("build of" in json.dumps(r) for r in results["records"])
    machine("field")
    plain = mnnpy.Session(model, threads=1)
    assert {why for _, why in rows(plain)} == {"cost model"}
    for algorithm in ("direct", "winograd4", "winograd2"):
        given = shipped(results, algorithm)
        path = tmp_path / f"{algorithm}.json"
        path.write_text(json.dumps(given))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            session = mnnpy.Session(model, threads=1, tuning=given)
            from_file = mnnpy.Session(model, threads=1, tuning=path)
        assert {why for _, why in rows(session)} == {"fastest measured"}
        assert all(algorithm in a for a, _ in rows(session))
        assert rows(from_file) == rows(session)
        assert session.tuning_results()["records"] == [r for r in given["records"] if r["decision"]]
    assert {why for _, why in rows(mnnpy.Session(model, threads=1))} == {"cost model"}  # nothing stays behind


def test_a_plan_that_was_kept_knows_its_records(machine: Machine, tmp_path: Path) -> None:
    machine("lab")
    path = tmp_path / "model.onnx"
    path.write_bytes(conv_net().SerializeToString())
    results = [mnnpy.Session(path, threads=1, tune=60).tuning_results() for _ in range(3)]
    decided = [[r for r in found["records"] if r["decision"]] for found in results]
    assert decided[0] == decided[1] == decided[2]
    assert len(decided[0]) == 2


def test_other_devices_and_versions_are_skipped_with_one_warning(machine: Machine) -> None:
    model = conv_net()
    machine("lab")
    results = mnnpy.Session(model, threads=1, tune=60).tuning_results()
    decided = [r for r in results["records"] if r["decision"]]
    for row, change in zip(decided, ("another processor", None), strict=True):
        row["device"] = change or row["device"].replace(f"mnnpy {mnnpy.__version__}", "mnnpy 0.0.0")
    decided.append({"device": results["devices"][0], "key": 5})
    machine("field")
    with pytest.warns(RuntimeWarning, match=r"3 of 3 .* skipped: 2 for other.*1 unreadable") as seen:
        session = mnnpy.Session(model, threads=1, tuning={**results, "records": decided})
    assert len(seen) == 1
    assert {why for _, why in rows(session)} == {"cost model"}
    with pytest.warns(RuntimeWarning, match="schema 99 are not used"):
        mnnpy.Session(model, threads=1, tuning={**results, "schema": 99})


def test_what_is_no_tuning_result_is_an_error(tmp_path: Path) -> None:
    model = conv_net()
    text = tmp_path / "text.json"
    text.write_text("no json")
    for wrong, message in (
        (tmp_path / "absent.json", "cannot be read"),
        (text, "is no JSON"),
        ({"a": 1}, "holds no tuning results"),
        ({"schema": 1, "records": {}}, "holds no tuning results"),
    ):
        with pytest.raises(InputError, match=message):
            mnnpy.Session(model, tuning=wrong)
    with pytest.raises(InputError, match="leave one of them out"):
        mnnpy.Session(model, tune="off", tuning={"schema": 1, "records": []})


FAST = Peaks({"f32": 1e11}, 1e10, 1e10)
SLOW = Peaks({"f32": 6e10}, 6e9, 6e9)


def test_the_choice_among_devices_is_shipped_too(machine: Machine) -> None:
    model, feeds = branches(320)

    def opened(**options: Any) -> mnnpy.Session:
        devices: Any = [Picky("one", None, peaks=FAST), Picky("two", None, peaks=SLOW)]
        return mnnpy.Session(model, devices, threads=1, **options)

    machine("lab")
    session = opened(tune=5.0)
    results = session.tuning_results()
    (plan,) = (r for r in results["records"] if r["decision"])
    assert plan["device"] == " | ".join(device_kind(d) for d in session._context.devices)
    machine("field")
    assert opened().explain().decisions[0]["reason"] == "cost model"
    for way in ("one", "two"):
        found = opened(tuning=shipped({**results, "records": [{**plan, "samples": {way: [0.1]}}]}, way))
        assert found.explain().decisions[0]["way"] == way
        assert found.explain().decisions[0]["reason"].startswith("fastest measured")
        assert [s.device for s in found._executable.plans()[0].steps] == [way]
        np.testing.assert_allclose(found.run(None, feeds)[0], session.run(None, feeds)[0], rtol=1e-4, atol=1e-5)


def test_records_of_plain_data() -> None:
    good = {"key": "k", "fingerprint": "f", "samples": {"a": [1.0]}, "decision": "a", "reason": "r"}
    assert record_of({**good, "of the future": 1}) == Record("k", "f", {"a": [1.0]}, "a", "r")
    for wrong in ({"key": 5}, {"samples": {"a": ["x"]}}, {"decision": "b"}, {"samples": {"a": [-1]}}, {"samples": 5}):
        with pytest.raises((ValueError, TypeError, AttributeError)):
            record_of({**good, **wrong})
