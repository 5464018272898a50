"""NVRTC by ctypes: compiles CUDA C++ to machine code of any architecture, without a GPU or its driver."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

__all__ = ["compile_cubin", "library"]


@functools.cache
def library() -> Any:
    """The library of the wheel nvidia-cuda-nvrtc (also of a folder MNNPY_NVRTC that it was unpacked to), or None."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(p) for p in (spec.submodule_search_locations or ()) if spec] if spec else []
    given = os.environ.get("MNNPY_NVRTC")
    folders += [Path(given)] if given else []
    for folder in folders:
        for path in sorted(folder.rglob("libnvrtc.so.*")):
            if "alt" not in path.name:
                return ctypes.CDLL(str(path))
    return None


def compile_cubin(source: str, architecture: int) -> str:
    """Compile for ``sm_<architecture>``; returns the compiler's words where it refuses, else an empty string."""
    lib = library()
    program = ctypes.c_void_p()
    made = lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    assert made == 0, made
    options = [f"--gpu-architecture=sm_{architecture}".encode(), b"--std=c++17"]
    status = lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    try:
        size = ctypes.c_size_t()
        if status:
            lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            lib.nvrtcGetProgramLog(program, log)
            return log.value.decode() or f"status {status}"
        lib.nvrtcGetCUBINSize(program, ctypes.byref(size))
        assert size.value > 0, "no machine code"
        return ""
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))
