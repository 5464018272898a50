"""The table of atomic ops on every backend: guard bytes around every buffer, strict expectations, labels."""

from __future__ import annotations

import pytest

from mnnpy.conformance.cases import all_cases, select
from mnnpy.conformance.report import FAILING
from mnnpy.conformance.run import Result
from tests.conformance.targets import TARGETS, expectations, runner, target

OPS = tuple(dict.fromkeys(c.op for c in all_cases()))
#: Backends on which the whole table takes seconds; the others run a sample unless ``-m full``.
QUICK = ("cpu", "reference")
KERNELS = ("opencl", "opencl_as_gpu", "vulkan", "cuda", "metal")
#: (backends, words of the reason): what kernel backends may decline. Everything else they must take.
DECLINES = (
    (KERNELS, "64 to f8e8m0fnu"),  # integers of 8 bytes
    (("metal",), "lacks f64"),  # neither has Metal doubles
)


def check(name: str, op: str, *, sample: bool) -> None:
    found = runner(name)
    results = [found.run(c) for c in select([op], sample=sample)]
    assert results
    assert {r.label for r in results} == {target(name).label}
    bad = [f"{r.name} [{r.label}] {r.status}: {r.reason}" for r in results if r.status in FAILING]
    assert not bad, f"{len(bad)} of {len(results)}:\n" + "\n".join(bad)
    odd = [r for r in results if r.status == "unsupported" and not _declines(name, r)]
    assert not odd, "\n".join(f"{r.name}: declined: {r.reason}" for r in odd)
    guarded = {r.guards for r in results if r.status == "passed"}
    assert guarded <= {"every buffer" if name not in QUICK else "operands" if name == "cpu" else "inputs"}


def _declines(name: str, result: Result) -> bool:
    return any(name in backends and words in result.reason for backends, words in DECLINES)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", QUICK)
def test_table(name: str, op: str) -> None:
    check(name, op, sample=False)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", [n for n in TARGETS if n not in QUICK])
def test_sample(name: str, op: str) -> None:
    check(name, op, sample=True)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", [n for n in TARGETS if n not in QUICK])
def test_whole_table(name: str, op: str) -> None:
    check(name, op, sample=False)


def test_capabilities_of_a_gpu_make_no_gpu() -> None:
    assert target("opencl_as_gpu").label == target("opencl").label


def test_every_expectation_fits_a_case() -> None:
    names = [f"{c.name}-{t}" for c in all_cases() for t in TARGETS]
    listed = (*expectations().never, *expectations().not_yet)
    assert not [e.match for e in listed if not any(e.fits(n) for n in names)]
