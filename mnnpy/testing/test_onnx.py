"""Collected by ``mnnpy.testing.plugin``: one test per node case of ONNX and target."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from mnnpy.conformance.onnx_nodes import UNSOUND, case_op, load_cases, run_case
from mnnpy.testing.plugin import parametrize, target_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """ONNX's node cases on every target; their own arithmetic overflows and divides by zero on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_cases()
    step = 5 if metafunc.config.getoption("--mnnpy-sample") else 1
    parametrize(metafunc, [(f"{case_op(c)}[{c.name}]", c) for c in cases[::step]])


def test_onnx(backend: str, case: Any, request: pytest.FixtureRequest, record_property: Any) -> None:
    """One node case of ONNX; ops that the backend does not take run on the reference, and are named."""
    if case.name in UNSOUND:
        pytest.skip(UNSOUND[case.name])
    target = target_of(request.config, backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run_case(case, target.device, fallback=True)
    for name, value in (("label", target.label), ("where", result.where), ("host_ops", ", ".join(result.host_ops))):
        record_property(name, value)
    if result.status == "skipped":
        pytest.skip(result.reason)
    assert result.status == "passed", f"[{target.label}] {result.reason}"
