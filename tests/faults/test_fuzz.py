"""Mutated model files: every one is refused with a MnnpyError or runs; nothing crashes, hangs or leaks other errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def fuzz(seed: int, count: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.faults.fuzz_worker", str(seed), str(count)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    last = done.stderr.strip().splitlines()[-3:]
    assert done.returncode == 0, f"exit {done.returncode} (negative: signal) in seed {seed}: {last}"
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(4))
def test_mutated_models_never_crash(seed: int) -> None:
    outcomes = fuzz(seed, 1300)
    bugs = {k: v for k, v in outcomes.items() if k.startswith("BUG")}
    assert not bugs, bugs
    assert sum(outcomes.values()) == 1300
    assert outcomes["refused"] > 100, "the mutations hardly change anything"
