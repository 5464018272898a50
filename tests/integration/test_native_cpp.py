"""The kernels without Python (tests/native): every instruction set, other processors in an emulator, sanitizers.

Each test builds through tools/native_tests.py; objects stay in build/, so that only the first run takes minutes.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mnnpy.backends.cpu import _native

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "native_tests.py"
MISSING = 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the C++ tests are built with the flags of Linux"),
]
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates other x86-64 processors")


def run(*arguments: str) -> str:
    """Output of a successful run; skips where a compiler or emulator is missing."""
    command = [sys.executable, str(TOOL), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=580, check=False, cwd=ROOT, env={**os.environ}
    )
    if done.returncode == MISSING:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    [(runs, isas)] = re.findall(r"^(\d+) runs on (.*): 0 failed$", done.stdout, re.MULTILINE)
    assert int(runs) > 50
    return str(isas)


def test_every_instruction_set() -> None:
    assert run() == ", ".join(_native.available_isas())


@x86
def test_without_avx() -> None:
    """The emulator stops at instructions that its CPU lacks. (Not so for AVX2: qemu 7 faults on masked-out loads.)"""
    assert run("--cpu", "Nehalem", "--threads", "2") == "generic"


def test_neon() -> None:
    assert run("--target", "aarch64") == "generic"


def test_addresses_and_undefined_behaviour() -> None:
    """Generic vectors, with leak detection; ``make sanitize`` does the same for every instruction set."""
    assert run("--sanitize", "address,undefined", "--isa", "generic") == "generic"


def test_failures_are_seen() -> None:
    command = [sys.executable, str(TOOL), "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "unknown group 'nothing'" in done.stderr
