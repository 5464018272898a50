"""Conformance: one table of cases for every backend, and ONNX's own node cases as a second suite."""

from __future__ import annotations

from mnnpy.conformance.onnx_nodes import (
    DATA_DEPENDENT,
    MAPS,
    UNSOUND,
    CaseResult,
    Report,
    _as_input,  # noqa: F401  (a test reads it)
    is_host_by_definition,
    load_cases,
    run_case,
    run_suite,
)

__all__ = [
    "DATA_DEPENDENT",
    "MAPS",
    "UNSOUND",
    "CaseResult",
    "Report",
    "is_host_by_definition",
    "load_cases",
    "run_case",
    "run_suite",
]
