"""Executor of kernels on CUDA: launches are captured into a graph and replayed with one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnnpy.backends.cuda.api import CudaApi, pointer
from mnnpy.backends.kernels.driver import Binding, Caps, Launch
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.backends.kernels.render_cuda import CudaRenderer
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["CudaDriver"]

_SCALARS: dict[DType, Callable[[Any], Any]] = {DType.I32: np.int32, DType.U32: np.uint32, DType.F32: np.float32}
#: Blocks along y and z; x reaches 2^31.
_MAX_YZ = 65535


@dataclass(frozen=True, slots=True)
class _Built:
    function: Any
    kernel: Kernel


@dataclass(frozen=True, slots=True)
class _Memory:
    """An allocation; the library's own object does not tell its size."""

    block: Any
    size: int


@dataclass(slots=True)
class _Recording:
    calls: list[tuple[Any, tuple[int, int, int], tuple[int, int, int], tuple[Any, ...]]]
    graph: Any = None


class CudaDriver:
    """``Driver`` on one CUDA device."""

    def __init__(self, api: CudaApi) -> None:
        self._api = api
        facts = api.facts()
        self.name = str(facts["name"])
        self._built: dict[str, Any] = {}
        self._allocated = 0
        self.caps = Caps(
            features=frozenset({"f64", "f64_math", "i64", "storage8", "storage16", "atomics"}),
            max_group=1024,
            local_memory=int(facts["shared"]),
            max_buffer=min(int(facts["memory"]), 2**31 - 1),  # indices are 32-bit
            alignment=256,
            units=int(facts["multiprocessors"]),
            subgroup=32,
            facts=facts,
        )

    def allocate(self, size: int) -> _Memory:
        try:
            block = self._api.allocate(size)
        except self._api.errors as error:
            raise BackendError(
                f"backend 'cuda': {size} bytes cannot be allocated on '{self.name}' ({error}); "
                "use smaller inputs or close other sessions"
            ) from error
        self._allocated += size
        return _Memory(block, size)

    def free(self, memory: _Memory) -> None:
        self._allocated -= memory.size
        self._api.free(memory.block)

    @property
    def allocated(self) -> int:
        return self._allocated

    def upload(self, target: Binding, array: Array) -> None:
        self._try("upload", lambda: self._api.to_device(target.memory.block, target.offset, array))

    def download(self, source: Binding, array: Array) -> None:
        self._try("download", lambda: self._api.to_host(source.memory.block, source.offset, array))

    def compile(self, kernels: Sequence[Kernel]) -> list[_Built]:
        found = []
        for kernel in kernels:
            source = CudaRenderer(kernel).source()
            if source not in self._built:
                try:
                    self._built[source] = self._api.compile(source, kernel.name)
                except self._api.errors as error:
                    raise BackendError(
                        f"backend 'cuda': kernel '{kernel.name}' does not compile for '{self.name}': {error}\n{source}"
                    ) from error
            found.append(_Built(self._built[source], kernel))
        return found

    def record(self, launches: Sequence[Launch]) -> _Recording:
        calls = [self._call(launch) for launch in launches]
        recording = _Recording(calls)
        if calls:
            self._api.capture()
            try:
                for call in calls:
                    self._api.launch(*call)
            finally:
                recording.graph = self._try("capturing launches", self._api.captured)
        return recording

    def _call(self, launch: Launch) -> tuple[Any, tuple[int, int, int], tuple[int, int, int], tuple[Any, ...]]:
        built: _Built = launch.kernel
        kinds = [t for _, t in built.kernel.scalars]
        arguments = [pointer(b.memory.block, b.offset) for b in launch.buffers]
        arguments += [_SCALARS[t](v) for t, v in zip(kinds, launch.scalars, strict=True)]
        if max(launch.groups[1:]) > _MAX_YZ:
            raise BackendError(f"backend 'cuda': kernel '{built.kernel.name}' wants a grid of {launch.groups} blocks")
        return built.function, launch.groups, built.kernel.local, tuple(arguments)

    def submit(self, recording: _Recording) -> None:
        if recording.graph is not None:
            self._try("replaying a graph", lambda: self._api.replay(recording.graph))

    def synchronize(self) -> None:
        self._try("waiting", self._api.synchronize)

    def time(self, recording: _Recording) -> list[float]:
        return [self._api.elapsed(lambda c=call: self._api.launch(*c)) for call in recording.calls]

    def release(self, recording: _Recording) -> None:
        self.synchronize()
        recording.calls.clear()
        recording.graph = None

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._api.errors as error:
            raise BackendError(f"backend 'cuda' on '{self.name}', {what}: {error}") from error
