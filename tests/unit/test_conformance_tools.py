"""The conformance program's own parts: guard bytes, judging, expectations, labels, reports, command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnnpy.backends.base import DeviceInfo
from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.driver import Binding, Launch
from mnnpy.cli import main
from mnnpy.conformance.cases import Case, Operand, all_cases, select
from mnnpy.conformance.coverage import covered
from mnnpy.conformance.expectations import Expectation, Expectations, load_expectations
from mnnpy.conformance.guards import GuardDriver, GuardError, fenced, intact
from mnnpy.conformance.perf import perf_cases, time_case
from mnnpy.conformance.report import TargetReport, load_report, markdown, save_report
from mnnpy.conformance.run import Runner, judge
from mnnpy.conformance.targets import Target, label_of, open_target
from mnnpy.errors import InputError
from mnnpy.graph.dtypes import DType
from tests.emulation import emulator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def driver() -> GuardDriver:
    if reason := emulator.available():
        pytest.skip(reason)
    return GuardDriver(emulator.emulated_cuda().driver)


def stray(driver: GuardDriver, index: int) -> None:
    """Run a kernel that reads ``x`` and writes element *index* of ``y``; both have four elements."""
    b = KernelBuilder("stray", (1, 1, 1))
    x, y = b.buffer("x", DType.F32), b.buffer("y", DType.F32, "w")
    at = b.scalar("at")
    b.store(y, at, b.load(x, 0) + 1)
    memory = driver.allocate(64)
    buffers = (Binding(memory, 0, 16), Binding(memory, 32, 16))
    driver.upload(buffers[0], np.arange(4, dtype=np.float32))
    (handle,) = driver.compile([b.build()])
    driver.submit(driver.record([Launch(handle, buffers, (index,), (1, 1, 1))]))


@pytest.mark.parametrize(
    ("index", "what"), [(4, "'y' has 16 bytes"), (-1, "'y' has 16"), (9, "'y' has 16"), (-256, "'x' reads only")]
)
def test_a_stray_write_is_seen(driver: GuardDriver, index: int, what: str) -> None:
    with pytest.raises(GuardError, match=rf"kernel 'stray' .* buffer {what}"):
        stray(driver, index)


def test_a_good_write_is_none(driver: GuardDriver) -> None:
    stray(driver, 3)
    assert driver.launches == 1
    driver.close()
    assert driver.inner.allocated == 0


def test_memory_starts_as_nan(driver: GuardDriver) -> None:
    found = np.zeros(4, np.float32)
    driver.download(Binding(driver.allocate(16), 0, 16), found)
    assert np.isnan(found).all()


def test_fences() -> None:
    inside, block = fenced(np.arange(5.0))
    assert intact(inside, block)
    assert inside.ctypes.data % 64 == 0
    np.lib.stride_tricks.as_strided(inside, (6,))[5] = 1
    assert not intact(inside, block)


def case_of(rule: str, dtype: DType = DType.F32) -> Case:
    return Case("Unary", (Operand(dtype, (4,)),), {"fn": "Exp"}, "", rule)


@pytest.mark.parametrize(
    ("rule", "got", "wanted", "good"),
    [
        ("exact", [1, 2], [1, 2], True),
        ("exact", [1, 2 + 1e-6], [1, 2], False),
        ("element", [1e-9, 1e3], [0, 1e3], True),
        ("element", [1.001, 1e3], [1, 1e3], False),
        ("max", [1.001, 1e3], [1, 1e3], True),
        ("max", [2, 1e3], [1, 1e3], False),
        ("max", [np.nan, 1], [np.nan, 1], True),
        ("max", [np.nan, 1], [1, 1], False),
        ("max", [np.inf, 1], [-np.inf, 1], False),
        ("element", [np.inf, 1], [np.inf, 1], True),
    ],
)
def test_judgement(rule: str, got: list[float], wanted: list[float], good: bool) -> None:
    problem, _, _ = judge(case_of(rule), [np.array(got, np.float32)], [np.array(wanted, np.float32)])
    assert (problem == "") is good, problem


def test_both_errors_are_reported() -> None:
    got, wanted = np.array([1.001, 1000], np.float32), np.array([1, 1000], np.float32)
    _, largest, element = judge(case_of("max"), [got], [wanted])
    assert largest == pytest.approx(1e-6, rel=1e-2)
    assert element == pytest.approx(1e-3, rel=1e-2)


def test_shape_and_dtype_are_judged() -> None:
    wanted = [np.zeros(3, np.float32)]
    assert "instead of" in judge(case_of("max"), [np.zeros(3)], wanted)[0]
    assert "instead of" in judge(case_of("max"), [np.zeros(4, np.float32)], wanted)[0]
    assert "outputs" in judge(case_of("max"), [], wanted)[0]


def test_an_unexpected_pass_fails() -> None:
    expect = Expectations((Expectation("never", "for good"),), (Expectation("soon", "for now"),))
    assert expect.unsupported("X[never]-cpu") == "for good"
    assert expect.applied("X[soon]-cpu", {"status": "passed"})["status"] == "xpassed"
    assert expect.applied("X[soon]-cpu", {"status": "failed", "reason": "r"})["status"] == "xfailed"
    assert expect.applied("X[other]-cpu", {"status": "failed"})["status"] == "failed"
    assert expect.applied("X[soon]-cpu", {"status": "unsupported"})["status"] == "unsupported"
    assert expect.stale() == []


@pytest.mark.parametrize(
    "text",
    ["[[skip]]\nmatch = 'a'", "[[xfail]]\nmatch = 'a'", "[[xfail]]\nmatch = 'a'\nreason = ''",
     "[[xfail]]\nmatch = '('\nreason = 'r'", "no toml"],
)  # fmt: skip
def test_bad_expectations(tmp_path: Path, text: str) -> None:
    path = tmp_path / "expect.toml"
    path.write_text(text)
    with pytest.raises(InputError):
        load_expectations(path)


@pytest.mark.parametrize(
    ("backend", "name", "facts", "label"),
    [
        ("cpu", "cpu", {}, "R"),
        ("opencl", "pthread-EPYC", {"platform": "Portable Computing Language (PoCL)"}, "R"),
        ("opencl", "Oclgrind Simulator", {}, "S"),
        ("opencl", "Some GPU", {"platform": "Vendor", "type": "GPU"}, "H"),
        ("opencl", "Some processor", {"platform": "Vendor", "type": "CPU"}, "R"),
        ("opencl", "llvmpipe", {"platform": "rusticl", "type": "ALL | GPU"}, "R"),
        ("opencl", "unknown", {}, "R"),
        ("vulkan", "unknown", {}, "R"),
        ("vulkan", "llvmpipe (LLVM 15)", {"type": 4}, "R"),
        ("vulkan", "Some GPU", {"type": 2}, "H"),
        ("cuda", "emulated", {"label": "E"}, "E"),
        ("cuda", "Some GPU", {}, "H"),
        ("metal", "Some GPU", {}, "H"),
    ],
)
def test_labels(backend: str, name: str, facts: dict[str, Any], label: str) -> None:
    assert label_of(DeviceInfo(backend, name, facts=facts)) == label


def test_unknown_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="labels are"):
        label_of(DeviceInfo("x", "x", facts={"label": "CUDA passed"}))


def test_every_atomic_op_is_covered() -> None:
    rows = covered()
    assert all(r.cases >= 12 for r in rows)
    assert {r.op for r in rows if not r.sample} == set()
    assert [(r.op, r.missing) for r in rows if r.missing] == []


def test_cases_are_the_same_every_time() -> None:
    for case in all_cases()[::50]:
        for a, b in zip(case.feeds(), case.feeds(), strict=True):
            assert a is None or (b is not None and a.tobytes() == b.tobytes())


def wrong_reference(monkeypatch: pytest.MonkeyPatch) -> Target:
    """The reference with Relu replaced by the identity."""
    target = open_target("reference")
    compiled = target.device.compile

    class Wrong:
        def __init__(self, segment: Any) -> None:
            self.inner = compiled(segment)

        def run(self, inputs: Any) -> list[Any]:
            inputs[0].setflags(write=True)
            inputs[0].reshape(-1)[:1] += 1
            return self.inner.run(inputs)

    monkeypatch.setattr(target.device, "compile", Wrong)
    return target


def test_a_changed_input_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = select(["Unary"], r"fn=Exp,f32,64\b")
    result = Runner(wrong_reference(monkeypatch)).run(case)
    assert result.status == "failed"
    assert "input 0 was changed" in result.reason
    assert result.label == "R"


def test_results_survive_a_file(tmp_path: Path) -> None:
    runner = Runner(open_target("reference"), Expectations((Expectation("fn=Exp,f32,64", "why not"),)))
    results = [runner.run(c) for c in select(["Unary"], r"fn=Exp,f32")]
    report = TargetReport({"target": "reference", **runner.target.facts()}, results)
    save_report([report], tmp_path / "r.json")
    (again,) = load_report(tmp_path / "r.json")
    assert list(again.results) == results
    text = markdown([report, replace(again, facts={**again.facts, "target": "copy", "label": "E"})])
    assert "| op | reference [R] | copy [E] |" in text
    assert "why not" in text
    assert f"{len(results) - 1} −1" in text
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match="no conformance results"):
        load_report(tmp_path / "bad.json")


def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page, data = tmp_path / "page.md", tmp_path / "data.json"
    words = ["conformance", "-b", "reference", "--suite", "atomic", "-o", "Select", "-q"]
    assert main([*words, "--md", str(page), "--json", str(data)]) == 0
    assert "reference [R] atomic: 22 passed of 22" in capsys.readouterr().out
    assert "| Select | 22 |" in page.read_text()
    assert {r["label"] for r in json.loads(data.read_text())[0]["results"]} == {"R"}
    expect = tmp_path / "expect.toml"
    expect.write_text("[[xfail]]\nmatch = 'Select'\nreason = 'not yet'\n")
    assert main([*words, "--expect", str(expect)]) == 1
    assert "take it off the list" in capsys.readouterr().out
    assert main([*words, "--mode", "support"]) == 0
    assert "22 supported" in capsys.readouterr().out
    assert main(["conformance", "-q", "--from", str(data), "--coverage"]) == 0
    assert "| Select | 22 |" in capsys.readouterr().out


def test_pytest_plugin(tmp_path: Path) -> None:
    expect = tmp_path / "expect.toml"
    expect.write_text(
        "[[unsupported]]\nmatch = 'of=f16'\nreason = 'why not'\n[[xfail]]\nmatch = 'of=i8'\nreason = 'soon'\n"
    )
    words = [
        "-p",
        "mnnpy.testing.plugin",
        "-p",
        "no:cacheprovider",
        "-q",
        "--mnnpy-backend",
        "reference",
        "-k",
        "Select",
    ]
    words += ["--mnnpy-suite", "atomic", "--mnnpy-expect", str(expect)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert "unsupported: why not" in done.stdout
    assert "[XPASS(strict)] soon" in done.stdout
    assert "passed wholly on the target: 20, with an op on the reference: 0" in done.stdout
    assert "1 failed, 20 passed, 1 skipped" in done.stdout


def test_modes_perf() -> None:
    case = next(c for c in perf_cases() if c.op == "Gather")
    timing = time_case(open_target("reference"), case, budget=0.01)
    assert timing.label == "R"
    assert 0 < timing.best <= timing.median
    assert timing.gbytes > 0
    declined = time_case(open_target("null"), case, budget=0.01)
    assert declined.reason
