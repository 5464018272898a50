"""ONNX's own node tests on each built-in backend, held against the bar of the project and a strict list of failures.

The kernel backends run every twelfth case, and all of them with ``-m full``.
"""

from __future__ import annotations

from functools import cache

import pytest

from mnnpy.conformance import UNSOUND, Report, load_cases, run_suite
from mnnpy.conformance.report import FAILING
from tests.conformance.targets import expectations, target

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


#: Backends of which every case is compiled anew: (backend, least number that must pass of all, least share as above).
KERNEL_BARS = [("opencl", 1870, 0.98), ("vulkan", 1870, 0.98)]


@cache
def kernel_report(backend: str, step: int) -> Report:
    """The device is opened once; ops that it does not take run on the reference, and count as such."""
    return run_suite(
        backend, cases=load_cases()[::step], target=target(backend), fallback=True, threads=1,
        expectations=expectations(), skip_unsound=True,
    )  # fmt: skip


def check(found: Report, share: float, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{found.summary()}")
    bad = [f"{r.name}: {r.status}: {r.reason}" for r in found.results if r.status in FAILING]
    assert not bad, "\n".join(bad)
    assert found.label in ("R", "S", "H")
    assert found.on_device >= share * (len(found.results) - found.host_cases)


@pytest.mark.parametrize(("backend", "share"), [(b[0], b[2]) for b in KERNEL_BARS])
def test_sample_on_kernels(backend: str, share: float, capsys: pytest.CaptureFixture[str]) -> None:
    check(kernel_report(backend, 12), share, capsys)


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("backend", "passed", "share"), KERNEL_BARS, ids=[b[0] for b in KERNEL_BARS])
def test_bar_on_kernels(backend: str, passed: int, share: float, capsys: pytest.CaptureFixture[str]) -> None:
    found = kernel_report(backend, 1)
    check(found, share, capsys)
    assert found.count("passed") >= passed
