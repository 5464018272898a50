"""What decisions and programs depend on: this machine and this build."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mnnpy.backends.cpu import _native

__all__ = ["fingerprint", "processor"]


@cache
def fingerprint() -> str:
    """The machine and the build that a decision holds for."""
    built = Path(_native.__file__).stat()
    return f"{processor()}; {','.join(_native.cpu_features())}; build {built.st_size}-{int(built.st_mtime)}"


@cache
def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine()
