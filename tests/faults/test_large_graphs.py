"""Graphs of very many nodes: every pass is linear."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def measure(count: int, kind: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.faults.large_graph", str(count), kind],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["chain", "mixed", "wide"])
def test_planning_is_linear_in_the_number_of_nodes(kind: str) -> None:
    small, large = measure(4000, kind), measure(16000, kind)
    assert large["finite"]
    # Four times the nodes; quadratic work would take sixteen times as long. Half a second is start-up.
    assert large["load"] + large["plan"] < 8 * max(small["load"] + small["plan"], 0.5), (small, large)


def test_a_hundred_thousand_nodes() -> None:
    got = measure(100_000, "chain")
    assert got["finite"]
    assert got["cpu_seconds"] < 120, got
