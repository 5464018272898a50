"""Collected by ``mnnpy.testing.plugin``: one test per case of the atomic table and target."""

from __future__ import annotations

from typing import Any

import pytest

from mnnpy.conformance.cases import Case, select
from mnnpy.conformance.run import Runner
from mnnpy.testing.plugin import parametrize, target_of

_RUNNERS: dict[str, Runner] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Cases of the table on every target."""
    sample = metafunc.config.getoption("--mnnpy-sample")
    parametrize(metafunc, [(c.name, c) for c in select(sample=sample)])


def test_atomic(backend: str, case: Case, request: pytest.FixtureRequest, record_property: Any) -> None:
    """One case of the atomic table, with guard bytes."""
    config = request.config
    if backend not in _RUNNERS:
        _RUNNERS[backend] = Runner(target_of(config, backend), guards=not config.getoption("--mnnpy-no-guards"))
    result = _RUNNERS[backend].run(case)
    for name in ("label", "where", "error", "element_error", "guards"):
        record_property(name, getattr(result, name))
    if result.status == "unsupported":
        pytest.skip(f"unsupported by {backend}: {result.reason}")
    assert result.status == "passed", f"[{result.label}] {result.reason}"
