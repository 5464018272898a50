"""Executor of kernels on Metal. Command buffers are used once, so a recording is encoded anew for each submission."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnnpy.backends.kernels.driver import Binding, Caps, Launch
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.backends.kernels.render_metal import MetalRenderer
from mnnpy.backends.metal.api import Dispatch, MetalApi, MetalError
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["MetalDriver"]

_SCALARS: dict[DType, Callable[[Any], Any]] = {DType.I32: np.int32, DType.U32: np.uint32, DType.F32: np.float32}


@dataclass(frozen=True, slots=True)
class _Built:
    pipeline: Any
    kernel: Kernel


@dataclass(frozen=True, slots=True)
class _Memory:
    buffer: Any
    size: int


class MetalDriver:
    """``Driver`` on one Metal device."""

    def __init__(self, api: MetalApi) -> None:
        self._api = api
        facts = api.facts()
        self.name = str(facts["name"])
        self._built: dict[str, Any] = {}
        self._allocated = 0
        self._running: list[Any] = []
        self.caps = Caps(
            features=frozenset({"i64", "storage8", "storage16", "atomics"}),
            max_group=int(facts["group"]),
            local_memory=int(facts["shared"]),
            max_buffer=min(int(facts["buffer"]), 2**31 - 1),  # indices are 32-bit
            alignment=256,
            unified=bool(facts["unified"]),
            subgroup=32,
            facts=facts,
        )

    def allocate(self, size: int) -> _Memory:
        try:
            buffer = self._api.new_buffer(size)
        except MetalError as error:
            raise BackendError(
                f"backend 'metal': {size} bytes cannot be allocated on '{self.name}' ({error}); "
                "use smaller inputs or close other sessions"
            ) from error
        self._allocated += size
        return _Memory(buffer, size)

    def free(self, memory: _Memory) -> None:
        self.synchronize()
        self._allocated -= memory.size
        self._api.free(memory.buffer)

    @property
    def allocated(self) -> int:
        return self._allocated

    def upload(self, target: Binding, array: Array) -> None:
        self.synchronize()
        view = self._api.contents(target.memory.buffer, target.memory.size)
        view[target.offset : target.offset + array.nbytes] = array.reshape(-1).view(np.uint8)

    def download(self, source: Binding, array: Array) -> None:
        self.synchronize()
        view = self._api.contents(source.memory.buffer, source.memory.size)
        array.reshape(-1).view(np.uint8)[:] = view[source.offset : source.offset + array.nbytes]

    def compile(self, kernels: Sequence[Kernel]) -> list[_Built]:
        found = []
        for kernel in kernels:
            source = MetalRenderer(kernel).source()
            if source not in self._built:
                try:
                    self._built[source] = self._api.compile(source, kernel.name)
                except MetalError as error:
                    raise BackendError(
                        f"backend 'metal': kernel '{kernel.name}' does not compile for '{self.name}': {error}\n{source}"
                    ) from error
            found.append(_Built(self._built[source], kernel))
        return found

    def record(self, launches: Sequence[Launch]) -> list[Dispatch]:
        return [self._dispatch(launch) for launch in launches]

    def _dispatch(self, launch: Launch) -> Dispatch:
        built: _Built = launch.kernel
        kinds = [t for _, t in built.kernel.scalars]
        scalars = b"".join(_SCALARS[t](v).tobytes() for t, v in zip(kinds, launch.scalars, strict=True))
        buffers = [(b.memory.buffer, b.offset) for b in launch.buffers]
        return built.pipeline, buffers, scalars, launch.groups, built.kernel.local

    def submit(self, recording: Sequence[Dispatch]) -> None:
        if recording:
            command = self._api.encode(recording)
            self._api.commit(command)
            self._running.append(command)

    def synchronize(self) -> None:
        while self._running:
            try:
                self._api.wait(self._running.pop(0))
            except MetalError as error:
                raise BackendError(f"backend 'metal' on '{self.name}': {error}") from error

    def time(self, recording: Sequence[Dispatch]) -> list[float]:
        self.synchronize()
        found = []
        for dispatch in recording:
            command = self._api.encode([dispatch])
            self._api.commit(command)
            found.append(self._api.wait(command))
        return found

    def release(self, recording: list[Dispatch]) -> None:
        self.synchronize()
        recording.clear()
