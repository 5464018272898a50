"""The search in trouble: nothing is lost, nothing crashes, and no stale decision counts."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.cpu import select
from mnnpy.search.calibrate import calibrate
from mnnpy.search.cost import Peaks
from mnnpy.search.observe import Event
from mnnpy.search.records import SCHEMA, Record, Records
from tests.faults.search_worker import LAYERS, network
from tests.unit.search_devices import Picky, branches

ROOT = Path(__file__).parents[2]
NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own, for this process and those it starts."""
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(select, "SHORTLIST", 1e9)
    monkeypatch.setattr(select, "MATTERS", 0.0)
    own = select.records
    own.cache_clear()
    yield tmp_path
    own.cache_clear()


def worker(folder: Path, seconds: float, *limit: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.search_worker", str(seconds), *map(str, limit)]
    surroundings = {**os.environ, "MNNPY_CACHE_DIR": str(folder)}
    return subprocess.Popen(
        command, cwd=ROOT, env=surroundings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ended(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.splitlines(), err


def tuned(**options: Any) -> tuple[mnnpy.Session, list[str]]:
    """A session with time to measure, and what it did about each layer."""
    heard: list[Event] = []
    model, _ = network()
    session = mnnpy.Session(model, "cpu", threads=1, tune=60.0, observer=heard.append, **options)
    return session, [e.kind for e in heard if e.kind in ("decided", "recalled")]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def test_two_processes_tune_into_one_folder(folder: Path) -> None:
    both = [worker(folder, 60) for _ in range(2)]
    outputs = [ended(p)[0] for p in both]
    for lines in outputs:
        assert len([x for x in lines if x.split()[0] in ("decided", "recalled")]) == LAYERS
    found = rows(folder / "cpu.jsonl")  # every line is whole
    assert {r["schema"] for r in found} == {SCHEMA}
    decided = sum(line.startswith("decided") for lines in outputs for line in lines)
    assert len(found) == decided >= LAYERS
    assert tuned()[1] == ["recalled"] * LAYERS
    model, feeds = network()
    (y,) = mnnpy.Session(model, "cpu", threads=1, tune="off").run(None, feeds)
    for lines in outputs:
        assert float(lines[-1].split()[1]) == pytest.approx(float(np.abs(y).sum()), rel=1e-4)


def test_a_killed_tuner_loses_nothing_that_was_decided(folder: Path) -> None:
    process = worker(folder, 60)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("decided"):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    known = len(rows(folder / "cpu.jsonl"))
    assert known >= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session, kinds = tuned()
    assert kinds.count("recalled") == known
    assert kinds.count("decided") == LAYERS - known
    model, feeds = network()
    expected = mnnpy.Session(model, "cpu", threads=1, tune="off").run(None, feeds)[0]
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-3, atol=1e-4)


def test_a_full_disk(folder: Path) -> None:
    """Writes stop in the middle of a line: the tuner goes on in memory, later ones read what is whole."""
    pytest.importorskip("resource")
    out, err = ended(worker(folder, 60, 3000))
    assert [x.split()[0] for x in out] == ["decided"] * LAYERS + ["sum"]
    assert err.count("tuning records cannot be written") == 1
    assert (folder / "cpu.jsonl").stat().st_size <= 3000
    with pytest.warns(RuntimeWarning, match=r"1 unreadable line\(s\)"):
        _, kinds = tuned()
    whole = kinds.count("recalled")
    assert 0 < whole < LAYERS
    assert kinds.count("decided") == LAYERS - whole
    select.records.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"1 unreadable line\(s\)"):
        assert tuned()[1] == ["recalled"] * LAYERS  # what was written behind the torn line is there


@pytest.mark.parametrize("fault", ["refused", "cut off"])
def test_a_write_that_fails(fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records("here", folder / "some.jsonl")
    real = os.write

    def failing(handle: int, data: bytes) -> int:
        if fault == "refused":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data[: len(data) // 2])

    record = Record("key", "here", {"a": [1.0]}, "a", "r")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", failing)
        with pytest.warns(RuntimeWarning, match="cannot be written"):
            records.add(record)
    assert records.get("key") == record
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records.add(Record("more", "here", {"a": [1.0]}, "a", "r"))  # not tried again, and not complained of
    later = Records("here", folder / "some.jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert later.get("key") is None
    later.add(record)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Records("here", folder / "some.jsonl").get("key") == record


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    blocked = folder / "file"
    blocked.write_text("a file where the folder would be")
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(blocked))
    select.records.cache_clear()
    model, feeds = network()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        session, kinds = tuned()
        assert kinds == ["decided"] * LAYERS
        assert tuned()[1] == ["recalled"] * LAYERS  # this process remembers
    texts = [str(w.message) for w in seen if "cpu.jsonl" in str(w.message)]
    assert len(texts) == 1
    assert "cannot be written" in texts[0]
    expected = mnnpy.Session(model, "cpu", threads=1, tune="off").run(None, feeds)[0]
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-3, atol=1e-4)
    assert blocked.read_text().startswith("a file")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users here")
def test_a_read_only_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what another user tuned in it: that counts, and what is new stays in memory."""
    assert tuned()[1] == ["decided"] * LAYERS  # all that is imported on the way is imported now
    kept = [line for line in (folder / "cpu.jsonl").read_bytes().splitlines() if line][:2]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "cpu.jsonl"
        path.write_bytes(b"\n".join(kept))
        path.chmod(0o444)
        Path(name).chmod(0o555)
        monkeypatch.setenv("MNNPY_CACHE_DIR", name)
        select.records.cache_clear()
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(NOBODY)  # nothing is read-only to root
            with pytest.warns(RuntimeWarning) as seen:
                _, kinds = tuned()
        finally:
            if root:
                os.seteuid(0)
            Path(name).chmod(0o755)
        assert sorted(kinds) == ["decided"] * (LAYERS - 2) + ["recalled"] * 2
        assert sum(f"cannot be written to {path}" in str(w.message) for w in seen) == 1
        assert path.read_bytes() == b"\n".join(kept)


GARBAGE = (
    b"no json",
    b"\xff\xfe\x00binary",
    b"[" * 100_000,
    b"5",
    b"[1, 2]",
    b"{}",
    b'{"schema": 1}',
    b'{"schema": 1, "key": 5, "fingerprint": "f", "samples": {}, "decision": "", "reason": ""}',
    b'{"schema": 1, "key": "k", "fingerprint": "f", "samples": {"a": [NaN]}, "decision": "a", "reason": ""}',
    b'{"schema": 1, "key": "k", "fingerprint": "f", "samples": {"a": []}, "decision": "a", "reason": ""}',
    b'{"schema": 1, "key": "k", "fingerprint": "f", "samples": {"a": [1]}, "decision": "b", "reason": ""}',
)


def test_torn_and_foreign_lines(folder: Path) -> None:
    """Garbage is counted in one warning, other schemas and devices are passed over, good lines all count."""
    tuned()
    path = folder / "cpu.jsonl"
    good = [line for line in path.read_bytes().splitlines() if line]
    foreign = [json.dumps({**json.loads(line), "fingerprint": "elsewhere"}).encode() for line in good]
    newer = [json.dumps({**json.loads(line), "schema": SCHEMA + 1}).encode() for line in good]
    extended = [json.dumps({**json.loads(line), "of the future": [1]}).encode() for line in good[:1]]
    lines = [*GARBAGE, *foreign, *newer, *extended, *good[1:], good[0][: len(good[0]) // 2]]
    path.write_bytes(b"\n".join(lines))  # the last one is torn and has no end
    select.records.cache_clear()
    with pytest.warns(RuntimeWarning) as seen:
        _, kinds = tuned()
    assert [str(w.message) for w in seen] == [f"{len(GARBAGE) + 1} unreadable line(s) in {path} were skipped"]
    assert kinds == ["recalled"] * LAYERS
    records = select.records()
    records.add(Record("behind", records.fingerprint, {"a": [1.0]}, "a", "r"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Records(records.fingerprint, path).get("behind") is not None


def test_decisions_for_algorithms_that_are_gone_are_made_anew(folder: Path) -> None:
    tuned()
    path = folder / "cpu.jsonl"
    gone = [{**r, "decision": "of old", "samples": {"of old": [1e-9]}, "work": {}} for r in rows(path)]
    path.write_text("\n".join(map(json.dumps, gone)))
    select.records.cache_clear()
    session, kinds = tuned()
    assert kinds == ["decided"] * LAYERS
    model, feeds = network()
    expected = mnnpy.Session(model, "cpu", threads=1, tune="off").run(None, feeds)[0]
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-3, atol=1e-4)


FAST, LESS = Peaks({"f32": 1e11}, 1e10, 1e10), Peaks({"f32": 6e10}, 6e9, 6e9)


def test_another_driver_measures_anew(folder: Path) -> None:
    """Decisions and peaks of an old driver count neither for the new one, nor are they lost for the old one."""
    model, feeds = branches(64)

    def session(driver: str, **options: Any) -> mnnpy.Session:
        one, two = (Picky(n, None, peaks=p, driver=driver) for n, p in (("one", FAST), ("two", LESS)))
        return mnnpy.Session(model, [one, two], threads=1, **options)  # type: ignore[list-item]

    def reason(driver: str, **options: Any) -> str:
        return str(session(driver, **options).explain().decisions[0]["reason"])

    first = session("1.0", tune=5.0)
    results = first.tuning_results()
    assert reason("1.0") == "fastest measured"
    assert reason("2.0") == "cost model"
    with pytest.warns(RuntimeWarning, match="tuning record.*were skipped"):
        assert reason("2.0", tuning=results) == "cost model"
    assert reason("2.0", tune=5.0) == reason("2.0") == reason("1.0") == "fastest measured"
    np.testing.assert_allclose(
        session("2.0").run(None, feeds)[0], first.run(None, feeds)[0], rtol=1e-4, atol=1e-5
    )


def test_another_driver_is_calibrated_anew(folder: Path) -> None:
    for driver, count in (("1.0", 1), ("1.0", 1), ("2.0", 2), ("1.0", 2)):
        calibrate(Picky("one", None, driver=driver))
        assert len(rows(folder / "peaks.jsonl")) == count


def test_another_build_measures_anew_and_keeps_no_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "model.onnx"
    path.write_bytes(network()[0].SerializeToString())

    def whys(**options: Any) -> set[str]:
        found = mnnpy.Session(path, "cpu", threads=1, **options).explain().rows
        return {r["why"] for r in found if r["op"] == "Convolution"}

    assert whys(tune=60.0) == {"fastest measured"}
    for _ in range(2):  # made, then read from disk
        assert whys() == {"fastest measured"}
    other = Records("another build", folder / "cpu.jsonl")
    monkeypatch.setattr(select, "records", lambda: other)
    monkeypatch.setattr("mnnpy.backends.cpu.machine.fingerprint", lambda: "another build")
    for _ in range(2):
        assert whys() == {"cost model"}
