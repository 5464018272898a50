"""Compiles rendered kernels with the system's C++ compiler and runs them; fakes of the two narrow APIs on top.

Results of these are labelled E (emulated): they show that the text and the host code do what they should, not that a
GPU was there.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mnnpy.backends.base import DeviceInfo
from mnnpy.backends.cuda.driver import CudaDriver
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.kernels.driver import Gemm
from mnnpy.backends.metal.api import Dispatch, GemmCall, MetalError
from mnnpy.backends.metal.driver import MetalDriver

HERE = Path(__file__).resolve().parent
CACHE = Path(tempfile.gettempdir()) / f"mnnpy-emulation-{os.getuid()}"


class CompileError(RuntimeError):
    """The C++ compiler refused a kernel."""


def available() -> str:
    """Empty where kernels can be compiled, else the reason."""
    return "" if shutil.which(os.environ.get("CXX", "c++")) else "no C++ compiler"


def build(source: str, wrapper: str, prelude: str) -> ctypes.CDLL:
    """A library of the prelude, the unchanged kernel text and the wrapper that runs a grid."""
    text = f'#include "{prelude}"\n#line 1 "kernel"\n{source}\n#line 1 "wrapper"\n{wrapper}\n'
    headers = "".join((HERE / h).read_text() for h in ("simt.h", prelude))
    key = hashlib.sha256((text + headers).encode()).hexdigest()[:32]
    CACHE.mkdir(exist_ok=True)
    path = CACHE / f"{key}.so"
    if not path.is_file():
        part = CACHE / f"{key}.{os.getpid()}.so"
        _compile(["-shared", f"-I{_precompiled(prelude)}", "-o", str(part), "-x", "c++", "-"], text)
        part.replace(path)
    return ctypes.CDLL(str(path))


def _compile(arguments: Sequence[str], text: str = "") -> None:
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-w", "-fPIC", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(done.stderr)


@cache
def _precompiled(prelude: str) -> Path:
    """A folder with the headers and, for compilers that use it, the prelude precompiled: four times faster builds."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or ""
    texts = {h: (HERE / h).read_text() for h in ("simt.h", prelude)}
    stamp = f"{compiler} {Path(compiler).resolve()} {Path(compiler).stat().st_mtime if compiler else 0}"
    key = hashlib.sha256((stamp + "".join(texts.values())).encode()).hexdigest()[:16]
    folder = CACHE / f"headers-{key}"
    if not folder.is_dir():
        part = Path(tempfile.mkdtemp(dir=CACHE))
        for name, content in texts.items():
            (part / name).write_text(content)
        _compile(["-x", "c++-header", "-o", str(part / f"{prelude}.gch"), str(part / prelude)])
        try:
            part.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return folder


class Function:
    """A kernel of a library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library  # keeps it loaded
        self._run = library.simt_run
        self._run.restype = ctypes.c_char_p

    def __call__(self, groups: Sequence[int], local: Sequence[int], arguments: Sequence[int]) -> str:
        """Run with addresses of the arguments; returns what went wrong, or empty."""
        words = (ctypes.c_void_p * max(len(arguments), 1))(*arguments)
        shape = ctypes.c_uint * 3
        said = self._run(shape(*groups), shape(*local), words)
        return said.decode() if said else ""


def _parameters(source: str, name: str) -> list[str]:
    """The parameters of a kernel as written."""
    found = re.search(rf"void\s+(?:__launch_bounds__\(\d+\)\s*)?{name}\((.*?)\)\s*{{", source, re.S)
    assert found, f"no kernel {name} in\n{source}"
    return [p.strip() for p in found.group(1).split(",") if p.strip()]


def cuda_function(source: str, name: str) -> Function:
    """A CUDA kernel: arguments are addresses of values, as cuLaunchKernel takes them."""
    parameters = _parameters(source, name)
    kinds = [p.rsplit(None, 1)[0].replace("__restrict__", "").strip() for p in parameters]
    calls = ", ".join(f"*reinterpret_cast<{k.replace('const ', '', 1) if '*' not in k else k}*>(a[{i}])"
                      if "*" not in k else f"*reinterpret_cast<{k}*>(a[{i}])" for i, k in enumerate(kinds))  # fmt: skip
    fibers = "true" if "__syncthreads" in source else "false"
    wrapper = (
        'extern "C" const char* simt_run(const unsigned* groups, const unsigned* local, void** a) {\n'
        f"  return simt::run(groups, local, {fibers}, [&] {{ {name}({calls}); }});\n}}"
    )
    return Function(build(source, wrapper, "cuda_prelude.h"))


def metal_function(source: str, name: str) -> Function:
    """A Metal kernel: arguments are buffers by index, the structure of scalars last."""
    parameters = [re.sub(r"\[\[.*?\]\]", "", p).strip() for p in _parameters(source, name)]
    calls = []
    ids = [p.rsplit(None, 1)[1] for p in parameters if p.endswith("_id")]
    for k, p in enumerate(parameters[: -len(ids)]):
        kind = p.rsplit(None, 1)[0].replace("device ", "").replace("constant ", "const ")
        calls.append(
            f"*static_cast<{kind.replace('&', '')}*>(a[{k}])" if "&" in kind else f"static_cast<{kind}>(a[{k}])"
        )
    at = "uint3{{simt::{0}.x, simt::{0}.y, simt::{0}.z}}"
    whole = ", ".join(f"simt::group_id.{c} * simt::local_size.{c} + simt::local_id.{c}" for c in "xyz")
    item = "(simt::local_id.x + simt::local_size.x * (simt::local_id.y + simt::local_size.y * simt::local_id.z))"
    size = "simt::local_size.x * simt::local_size.y * simt::local_size.z"
    given = {
        "global_id": f"uint3{{{whole}}}", "local_id": at.format("local_id"), "group_id": at.format("group_id"),
        "lane_id": f"{item} % 32", "subgroup_id": f"{item} / 32", "subgroups_id": f"({size} + 31) / 32",
    }  # fmt: skip
    calls += [given[name] for name in ids]
    fibers = "true" if "threadgroup_barrier" in source else "false"
    wrapper = (
        'extern "C" const char* simt_run(const unsigned* groups, const unsigned* local, void** a) {\n'
        f"  return simt::run(groups, local, {fibers}, [&] {{ {name}({', '.join(calls)}); }});\n}}"
    )
    text = source.replace("#include <metal_stdlib>", "")
    return Function(build(text, wrapper, "metal_prelude.h"))


class FakeBlock:
    """Device memory on the host."""

    def __init__(self, size: int) -> None:
        self.array = np.full(size + 128, 0xA5, np.uint8)
        self.offset = -self.array.ctypes.data % 128
        self.ptr = self.array.ctypes.data + self.offset

    def bytes(self) -> Any:
        return self.array[self.offset :]


def _gemm(gemm: Gemm, a: int, b: int, c: int) -> None:
    """What the vendor's library computes, on addresses."""

    def view(address: int, *shape: int) -> Any:
        kind = ctypes.c_float * int(np.prod(shape))
        return np.frombuffer(kind.from_address(address), np.float32).reshape(shape)

    x = view(a, gemm.batch, gemm.m, gemm.k)
    y = view(b, 1 if gemm.shared else gemm.batch, gemm.k, gemm.n)
    view(c, gemm.batch, gemm.m, gemm.n)[:] = x @ y


class FakeCudaError(RuntimeError):
    """What the fake raises where CUDA would."""


class FakeCuda:
    """``CudaApi`` on the emulator; *fail_at* makes the Nth allocation fail, *lost* every call after it is set."""

    errors: tuple[type[Exception], ...] = (FakeCudaError, CompileError)
    libraries = frozenset({"gemm_f32"})

    def __init__(self, fail_at: int = 0) -> None:
        self.products = 0
        self.fail_at, self.lost = fail_at, False
        self.live = 0
        self._count = 0
        self._graph: list[Any] | None = None

    def facts(self) -> dict[str, Any]:
        return {
            "name": "emulated", "capability": "8.0", "multiprocessors": 2, "shared": 48 << 10, "memory": 1 << 30,
            "driver": 0,
        }  # fmt: skip

    def _check(self) -> None:
        if self.lost:
            raise FakeCudaError("cudaErrorDevicesUnavailable: the device was lost")

    def allocate(self, size: int) -> FakeBlock:
        self._check()
        self._count += 1
        if self._count == self.fail_at:
            raise FakeCudaError("cudaErrorMemoryAllocation: out of memory")
        self.live += 1
        return FakeBlock(size)

    def free(self, memory: FakeBlock) -> None:
        self.live -= 1

    def to_device(self, memory: FakeBlock, offset: int, array: Any) -> None:
        self._check()
        memory.bytes()[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)

    def to_host(self, memory: FakeBlock, offset: int, array: Any) -> None:
        self._check()
        array.reshape(-1).view(np.uint8)[:] = memory.bytes()[offset : offset + array.nbytes]

    def copy(self, to: int, at: int, size: int) -> None:
        self._check()
        ctypes.memmove(to, at, size)

    def adopt(self, value: Any) -> Any:
        self._check()
        found = getattr(value, "__cuda_array_interface__", None)
        if found is None:
            return None
        assert found["strides"] is None
        size = int(np.prod(found["shape"])) * np.dtype(found["typestr"]).itemsize
        return SimpleNamespace(ptr=found["data"][0], size=size, owner=value)

    def export(self, tensor: Any) -> Any:
        found = tensor.__cuda_array_interface__
        kind = ctypes.c_char * tensor.nbytes
        return np.frombuffer(kind.from_address(found["data"][0]), found["typestr"]).reshape(found["shape"])

    def compile(self, source: str, name: str) -> Function:
        self._check()
        return cuda_function(source, name)

    def launch(self, function: Function, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any]) -> None:
        self._check()
        if self._graph is not None:
            self._graph.append((function, grid, block, arguments))
            return
        held = [np.asarray(a) for a in arguments]
        said = function(grid, block, [h.ctypes.data for h in held])
        if said:
            raise FakeCudaError(said)

    def gemm(self, gemm: Gemm, a: int, b: int, c: int) -> None:
        self._check()
        if self._graph is not None:
            raise FakeCudaError("cuBLAS cannot be captured")
        _gemm(gemm, a, b, c)
        self.products += 1

    def capture(self) -> None:
        self._check()
        self._graph = []

    def captured(self) -> list[Any]:
        graph, self._graph = self._graph, None
        assert graph is not None
        return graph

    def replay(self, graph: list[Any]) -> None:
        for call in graph:
            self.launch(*call)

    def synchronize(self) -> None:
        self._check()

    def elapsed(self, call: Any) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin


class FakeMetal:
    """``MetalApi`` on the emulator."""

    libraries = frozenset({"gemm_f32"})

    def __init__(self, fail_at: int = 0) -> None:
        self.products = 0
        self.fail_at, self.lost = fail_at, False
        self.live = 0
        self._count = 0

    def facts(self) -> dict[str, Any]:
        return {"name": "emulated", "group": 1024, "shared": 32 << 10, "buffer": 1 << 30, "unified": True}

    def new_buffer(self, size: int) -> FakeBlock:
        self._count += 1
        if self.lost:
            raise MetalError("the device was removed")
        if self._count == self.fail_at:
            raise MetalError(f"no buffer of {size} bytes")
        self.live += 1
        return FakeBlock(size)

    def free(self, buffer: FakeBlock) -> None:
        self.live -= 1

    def contents(self, buffer: FakeBlock, size: int) -> Any:
        return buffer.bytes()[:size]

    def compile(self, source: str, name: str, items: int) -> Function:
        try:
            return metal_function(source, name)
        except CompileError as error:
            raise MetalError(str(error)) from error

    def encode(self, dispatches: Sequence[Dispatch | GemmCall]) -> list[Dispatch | GemmCall]:
        return list(dispatches)

    def commit(self, command: list[Dispatch | GemmCall]) -> None:
        del command

    def wait(self, command: list[Dispatch | GemmCall]) -> float:
        if self.lost:
            raise MetalError("the device was removed")
        begin = time.perf_counter()
        for item in command:
            if len(item) == 4:
                gemm, *operands = item
                _gemm(gemm, *(b.ptr + offset for b, offset in operands))
                self.products += 1
                continue
            function, buffers, scalars, groups, local = item
            held = ctypes.create_string_buffer(scalars, max(len(scalars), 1))
            addresses = [b.ptr + offset for b, offset in buffers]
            said = function(groups, local, [*addresses, *([ctypes.addressof(held)] if scalars else [])])
            if said:
                raise MetalError(said)
        return time.perf_counter() - begin


def emulated_cuda(**options: Any) -> KernelDevice:
    """The ``cuda`` device with the emulator behind it."""
    return KernelDevice(DeviceInfo("cuda", "emulated", facts={"label": "E"}), CudaDriver(FakeCuda(**options)))


def emulated_metal(**options: Any) -> KernelDevice:
    """The ``metal`` device with the emulator behind it."""
    return KernelDevice(DeviceInfo("metal", "emulated", facts={"label": "E"}), MetalDriver(FakeMetal(**options)))
