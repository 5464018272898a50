"""Executor of kernels on Metal.

Command buffers are used once, so a recording is encoded anew for each submission; that is done right after the one
before was committed, while the device works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np

from mnnpy.backends.kernels.driver import Binding, Caps, Launch
from mnnpy.backends.kernels.executor import Executor
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.backends.kernels.render_metal import MetalRenderer
from mnnpy.backends.metal.api import Dispatch, GemmCall, MetalApi, MetalError
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["MetalDriver"]

_SCALARS: dict[DType, Callable[[Any], Any]] = {DType.I32: np.int32, DType.U32: np.uint32, DType.F32: np.float32}


@dataclass(frozen=True, slots=True)
class _Built:
    pipeline: Any
    kernel: Kernel


@dataclass(eq=False, slots=True)
class _Memory:
    buffer: Any
    size: int


@dataclass(eq=False, slots=True)
class _Recording:
    dispatches: list[Dispatch | GemmCall]


class MetalDriver(Executor):
    """``Driver`` on one Metal device."""

    backend = "metal"

    def __init__(self, api: MetalApi) -> None:
        self._api = api
        facts = api.facts()
        super().__init__(str(facts["name"]), (MetalError,))
        self._built: dict[str, Any] = {}
        self._running: list[Any] = []
        self._next: tuple[_Recording, Any] | None = None  #: what was submitted last, encoded once more ahead of time
        group = int(facts["group"])
        self.caps = Caps(
            features=frozenset({"i64", "storage8", "storage16", "atomics", "subgroups"}),
            max_group=group,
            max_axes=(group, group, min(group, 1024)),
            local_memory=int(facts["shared"]),
            max_bindings=30,  # of 31, the last of which holds the scalars
            max_buffer=min(int(facts["buffer"]), 2**31 - 1),  # indices are 32-bit
            max_allocation=int(facts["buffer"]),
            alignment=256,
            unified=bool(facts["unified"]),
            subgroup=32,
            units=16,  # Metal does not tell
            libraries=api.libraries,
            facts=facts,
        )

    def _allocate(self, size: int) -> _Memory:
        return _Memory(self._api.new_buffer(size), size)

    def _free(self, memory: _Memory) -> None:
        buffer, memory.buffer = memory.buffer, None
        try:
            self._settle()
        finally:
            self._api.free(buffer)

    def upload(self, target: Binding, array: Array) -> None:
        self.synchronize()
        self._bytes(target)[: array.nbytes] = array.reshape(-1).view(np.uint8)

    def download(self, source: Binding, array: Array) -> None:
        self.synchronize()
        array.reshape(-1).view(np.uint8)[:] = self._bytes(source)[: array.nbytes]

    def copy(self, source: Binding, target: Binding) -> None:
        """By the processor: memory is shared."""
        self.synchronize()
        size = min(source.size, target.size)
        self._bytes(target)[:size] = self._bytes(source)[:size]

    def _bytes(self, at: Binding) -> Array:
        """The memory as the host sees it."""
        view = self._try("access to memory", lambda: self._api.contents(at.memory.buffer, at.memory.size))
        found: Array = view[at.offset : at.offset + at.size]
        return found

    def compile(self, kernels: Sequence[Kernel]) -> list[_Built]:
        self.check()
        found = []
        for kernel in kernels:
            source = MetalRenderer(kernel).source()
            if source not in self._built:
                try:
                    self._built[source] = self._api.compile(source, kernel.name, prod(kernel.local))
                except MetalError as error:
                    raise BackendError(
                        f"backend 'metal': kernel '{kernel.name}' does not compile for '{self.name}': {error}\n{source}"
                    ) from error
            found.append(_Built(self._built[source], kernel))
        return found

    def record(self, launches: Sequence[Launch]) -> _Recording:
        return _Recording([self._dispatch(launch) for launch in launches])

    def _dispatch(self, launch: Launch) -> Dispatch | GemmCall:
        buffers = [(b.memory.buffer, b.offset) for b in launch.buffers]
        if launch.library is not None and launch.library.name in self.caps.libraries:
            a, b, c = (buffers[k] for k in launch.library.operands)
            return launch.library, a, b, c
        built: _Built = launch.kernel
        kinds = [t for _, t in built.kernel.scalars]
        scalars = b"".join(_SCALARS[t](v).tobytes() for t, v in zip(kinds, launch.scalars, strict=True))
        return built.pipeline, buffers, scalars, launch.groups, built.kernel.local

    def submit(self, recording: _Recording) -> None:
        if recording.dispatches:
            self._try("launching", lambda: self._submit(recording))

    def _submit(self, recording: _Recording) -> None:
        ahead, self._next = self._next, None
        mine = ahead is not None and ahead[0] is recording
        command = ahead[1] if ahead is not None and mine else self._api.encode(recording.dispatches)
        self._api.commit(command)
        self._running.append(command)
        self._next = recording, self._api.encode(recording.dispatches)  # while the device is busy

    def synchronize(self) -> None:
        self._try("waiting", self._settle)

    def _settle(self) -> None:
        while self._running:
            self._api.wait(self._running.pop(0))

    def time(self, recording: _Recording) -> list[float]:
        self.synchronize()
        return cast("list[float]", self._try("timing", lambda: [self._alone(d) for d in recording.dispatches]))

    def _alone(self, dispatch: Dispatch | GemmCall) -> float:
        command = self._api.encode([dispatch])
        self._api.commit(command)
        return self._api.wait(command)

    def _release(self, recording: _Recording) -> None:
        if self._next is not None and self._next[0] is recording:
            self._next = None
        try:
            self._settle()
        finally:
            recording.dispatches.clear()

    def _shutdown(self) -> None:
        self._next = None
        self._built.clear()

    def _is_loss(self, error: Exception) -> bool:
        return any(word in str(error) for word in ("device was removed", "MTLCommandBufferErrorDeviceRemoved"))
