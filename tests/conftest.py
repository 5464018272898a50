"""Markers, and a summary of what was skipped and why, grouped by reason."""

from __future__ import annotations

import os
import tempfile
from collections import Counter

import pytest

# Tuning records of tests stay out of the user's cache; workers of one run share a folder by inheritance.
os.environ.setdefault("MNNPY_CACHE_DIR", tempfile.mkdtemp(prefix="mnnpy-tests-"))

MARKERS = {
    "slow": "takes more than about ten seconds on two cores",
    "peers": "needs another inference engine installed (onnxruntime, openvino, MNN, torch)",
    "models": "needs the trained models that the rapidocr, magika and silero-vad wheels ship",
    "gpu": "needs real GPU hardware",
    "full": "the whole conformance suites of the kernel backends: minutes to half an hour; run with -m full",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "full" not in config.option.markexpr:
        reason = pytest.mark.skip(reason="the whole conformance suite runs with -m full; a sample of it was run")
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[text.removeprefix("Skipped: ")] += 1
    for report in terminalreporter.stats.get("xfailed", []):
        reasons[f"expected failure: {getattr(report, 'wasxfail', '')}"] += 1
    if reasons:
        terminalreporter.section("not run, and why")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:6d}  {reason}")
