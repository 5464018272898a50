"""ONNX's own node tests on each built-in backend, held against the bar of the project and a strict list of failures."""

from __future__ import annotations

from functools import cache

import pytest

from mnnpy.conformance import UNSOUND, Report, run_suite

#: (backend, least number that must pass, least share of cases without host ops that runs wholly on it)
BARS = [("cpu", 1860, 0.85), ("reference", 1860, 0.99), ("reference:atomic", 1860, 0.95)]


@cache
def report(backend: str) -> Report:
    return run_suite(backend)


@pytest.mark.parametrize(("backend", "passed", "share"), BARS, ids=[b[0] for b in BARS])
def test_bar(backend: str, passed: int, share: float, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(backend)
    with capsys.disabled():
        print(f"\n{found.summary()}")
    assert found.count("passed") >= passed
    assert found.on_device >= share * (len(found.results) - found.host_cases)


@pytest.mark.parametrize("backend", [b[0] for b in BARS])
def test_failures_are_exactly_the_known_ones(backend: str) -> None:
    failed = {r.name: r.reason for r in report(backend).results if r.status == "failed"}
    unknown = {name: why for name, why in failed.items() if name not in UNSOUND}
    assert not unknown, "\n".join(f"{n}: {w}" for n, w in unknown.items())
    assert not set(UNSOUND) - set(failed), "these pass now; take them off the list"
