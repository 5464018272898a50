"""Executor of kernels on CUDA: launches are captured into a graph and replayed with one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mnnpy.backends.cuda.api import CudaApi, pointer
from mnnpy.backends.kernels.driver import Binding, Caps, Gemm, Launch
from mnnpy.backends.kernels.executor import Executor
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.backends.kernels.render_cuda import CudaRenderer
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["CudaDriver"]

_SCALARS: dict[DType, Callable[[Any], Any]] = {DType.I32: np.int32, DType.U32: np.uint32, DType.F32: np.float32}
#: Errors after which a context is unusable: a kernel crashed, or the device fell off the bus.
_LOST = (
    "cudaErrorIllegalAddress", "cudaErrorLaunchFailure", "cudaErrorDevicesUnavailable", "cudaErrorECCUncorrectable",
    "cudaErrorHardwareStackError", "cudaErrorIllegalInstruction", "cudaErrorMisalignedAddress", "cudaErrorContained",
    "cudaErrorLaunchTimeout", "cudaErrorAssert", "cudaErrorInvalidPc", "cudaErrorInvalidAddressSpace",
    "cudaErrorNvlinkUncorrectable", "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT", "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA_ERROR_ECC_UNCORRECTABLE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Built:
    function: Any
    kernel: Kernel


@dataclass(eq=False, slots=True)
class _Memory:
    """An allocation; the library's own object does not tell its size."""

    block: Any
    size: int


@dataclass(slots=True)
class _Recording:
    """Calls in order; *parts* are graphs of several kernel launches, and calls of a library between them."""

    calls: list[Callable[[], None]]
    parts: list[Callable[[], None]]


class CudaDriver(Executor):
    """``Driver`` on one CUDA device."""

    backend = "cuda"

    def __init__(self, api: CudaApi) -> None:
        self._api = api
        facts = api.facts()
        super().__init__(str(facts["name"]), api.errors)
        self._built: dict[str, Any] = {}
        self.caps = Caps(
            features=frozenset({"f64", "f64_math", "i64", "storage8", "storage16", "atomics", "subgroups"}),
            max_group=1024,
            local_memory=int(facts["shared"]),
            max_bindings=200,  # 4 KiB of parameters
            max_groups=(2**31 - 1, 65535, 65535),
            max_buffer=min(int(facts["memory"]), 2**31 - 1),  # indices are 32-bit
            max_allocation=int(facts["memory"]),
            alignment=256,
            units=int(facts["multiprocessors"]),
            subgroup=32,
            libraries=api.libraries,
            facts=facts,
        )

    def _allocate(self, size: int) -> _Memory:
        return _Memory(self._api.allocate(size), size)

    def _free(self, memory: _Memory) -> None:
        block, memory.block = memory.block, None
        self._api.free(block)

    def upload(self, target: Binding, array: Array) -> None:
        self._try("upload", lambda: self._api.to_device(target.memory.block, target.offset, array))

    def download(self, source: Binding, array: Array) -> None:
        self._try("download", lambda: self._api.to_host(source.memory.block, source.offset, array))

    def copy(self, source: Binding, target: Binding) -> None:
        size = min(source.size, target.size)
        to, at = (int(pointer(b.memory.block, b.offset)) for b in (target, source))
        self._try("copying", lambda: self._api.copy(to, at, size))

    def adopt(self, value: Any) -> Binding | None:
        """Arrays of other CUDA libraries, by ``__cuda_array_interface__`` or DLPack."""
        found = super().adopt(value)
        if found is None:
            block = self._try("adopting an array", lambda: self._api.adopt(value))
            found = None if block is None else Binding(_Memory(block, block.size), 0, block.size)
        return found

    def address(self, at: Binding) -> int | None:
        return int(pointer(at.memory.block, at.offset))

    def export(self, tensor: Any) -> Any:
        return self._api.export(tensor)

    def compile(self, kernels: Sequence[Kernel]) -> list[_Built]:
        self.check()
        found = []
        for kernel in kernels:
            source = CudaRenderer(kernel).source()
            if source not in self._built:
                try:
                    self._built[source] = self._api.compile(source, kernel.name)
                except self._api.errors as error:
                    self._raise_if_lost(error)
                    raise BackendError(
                        f"backend 'cuda': kernel '{kernel.name}' does not compile for '{self.name}': {error}\n{source}"
                    ) from error
            found.append(_Built(self._built[source], kernel))
        return found

    def record(self, launches: Sequence[Launch]) -> _Recording:
        """Runs of launches become graphs; libraries cannot be captured and stay calls between them."""
        recording = _Recording([], [])
        run: list[Callable[[], None]] = []
        for launch in launches:
            if launch.library is not None and launch.library.name in self.caps.libraries:
                self._close_run(recording, run)
                call = self._library(launch, launch.library)
                recording.parts.append(call)
            else:
                call = self._call(launch)
                run.append(call)
            recording.calls.append(call)
        self._close_run(recording, run)
        return recording

    def _close_run(self, recording: _Recording, run: list[Callable[[], None]]) -> None:
        if not run:
            return
        self._try("capturing launches", self._api.capture)
        try:
            for call in run:
                self._try("capturing launches", call)
        except BaseException:
            with contextlib.suppress(*self._errors):
                self._api.captured()
            raise
        graph = self._try("capturing launches", self._api.captured)
        recording.parts.append(partial(self._api.replay, graph))
        run.clear()

    def _call(self, launch: Launch) -> Callable[[], None]:
        built: _Built = launch.kernel
        kinds = [t for _, t in built.kernel.scalars]
        arguments = [pointer(b.memory.block, b.offset) for b in launch.buffers]
        arguments += [_SCALARS[t](v) for t, v in zip(kinds, launch.scalars, strict=True)]
        return partial(self._api.launch, built.function, launch.groups, built.kernel.local, tuple(arguments))

    def _library(self, launch: Launch, gemm: Gemm) -> Callable[[], None]:
        a, b, c = (int(pointer(launch.buffers[k].memory.block, launch.buffers[k].offset)) for k in gemm.operands)
        return partial(self._api.gemm, gemm, a, b, c)

    def submit(self, recording: _Recording) -> None:
        def replay() -> None:
            for part in recording.parts:
                part()

        self._try("launching", replay)

    def synchronize(self) -> None:
        self._try("waiting", self._api.synchronize)

    def time(self, recording: _Recording) -> list[float]:
        return [float(self._try("timing", partial(self._api.elapsed, call))) for call in recording.calls]

    def _release(self, recording: _Recording) -> None:
        try:
            self._api.synchronize()
        finally:
            recording.calls.clear()
            recording.parts.clear()

    def _shutdown(self) -> None:
        self._built.clear()

    def _is_loss(self, error: Exception) -> bool:
        return any(word in str(error) for word in _LOST)
