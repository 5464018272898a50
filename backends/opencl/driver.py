"""Executor of kernels on OpenCL: one in-order queue, launches enqueued with arguments set once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl

from mnnpy.backends.base import DeviceInfo
from mnnpy.backends.kernels.driver import Binding, Caps, Launch
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.backends.kernels.render_opencl import OpenCLRenderer
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["OpenCLDriver"]

_SCALARS: dict[DType, Callable[[Any], Any]] = {DType.I32: np.int32, DType.U32: np.uint32, DType.F32: np.float32}


@dataclass(frozen=True, slots=True)
class _Built:
    """A kernel ready to be cloned per launch: kernel objects keep their arguments."""

    program: Any
    name: str
    local: tuple[int, int, int]
    scalars: tuple[DType, ...]


@dataclass(frozen=True, slots=True)
class _Ready:
    kernel: Any
    size: tuple[int, int, int]
    local: tuple[int, int, int]
    keep: tuple[Any, ...]  #: sub-buffers; the kernel does not own them


class OpenCLDriver:
    """``Driver`` on one OpenCL device."""

    def __init__(self, info: DeviceInfo) -> None:
        devices = [d for p in cl.get_platforms() for d in p.get_devices()]
        self._device = devices[info.index]
        self._context = cl.Context([self._device])
        self._queue = cl.CommandQueue(self._context)
        self._timed: Any = None
        self._cache: dict[str, Any] = {}
        self._allocated = 0
        self.caps = _caps(self._device)

    # -- memory --

    def allocate(self, size: int) -> Any:
        try:
            memory = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, size)
            cl.enqueue_fill_buffer(
                self._queue, memory, np.zeros(1, np.uint8), 0, 1
            )  # allocation is lazy: fail here, not later
        except cl.Error as error:
            raise BackendError(
                f"backend 'opencl': {size} bytes cannot be allocated on '{self._device.name}' ({error}); "
                "use smaller inputs or close other sessions"
            ) from error
        self._allocated += size
        return memory

    def free(self, memory: Any) -> None:
        self._allocated -= memory.size
        memory.release()

    @property
    def allocated(self) -> int:
        return self._allocated

    def upload(self, target: Binding, array: Array) -> None:
        self._try(lambda: cl.enqueue_copy(self._queue, target.memory, array, dst_offset=target.offset))

    def download(self, source: Binding, array: Array) -> None:
        self._try(lambda: cl.enqueue_copy(self._queue, array, source.memory, src_offset=source.offset))

    # -- kernels --

    def compile(self, kernels: Sequence[Kernel]) -> list[Any]:
        sources = [OpenCLRenderer(k).source() for k in kernels]
        for kernel, source in zip(kernels, sources, strict=True):
            if source not in self._cache:
                try:
                    self._cache[source] = cl.Program(self._context, source).build(options=["-cl-std=CL1.2"])
                except cl.Error as error:
                    where = f"kernel '{kernel.name}' on '{self._device.name}'"
                    raise BackendError(f"backend 'opencl': {where} does not build: {error}\n{source}") from error
        return [
            _Built(self._cache[s], k.name, k.local, tuple(t for _, t in k.scalars))
            for k, s in zip(kernels, sources, strict=True)
        ]

    def record(self, launches: Sequence[Launch]) -> Any:
        return [self._ready(launch) for launch in launches]

    def _ready(self, launch: Launch) -> _Ready:
        built: _Built = launch.kernel
        kernel = cl.Kernel(built.program, built.name)
        parts = tuple(
            b.memory.get_sub_region(b.offset, max(b.size, 1)) if b.offset or b.size < b.memory.size else b.memory
            for b in launch.buffers
        )
        scalars = (_SCALARS[t](v) for t, v in zip(built.scalars, launch.scalars, strict=True))
        kernel.set_args(*parts, *scalars)
        size = tuple(g * n for g, n in zip(launch.groups, built.local, strict=True))
        return _Ready(kernel, size, built.local, parts)  # type: ignore[arg-type]

    def submit(self, recording: Any) -> None:
        def enqueue() -> None:
            queue = self._queue
            for r in recording:
                cl.enqueue_nd_range_kernel(queue, r.kernel, r.size, r.local)

        self._try(enqueue)

    def synchronize(self) -> None:
        self._try(self._queue.finish)

    def time(self, recording: Any) -> list[float]:
        if self._timed is None:
            profiling = cl.command_queue_properties.PROFILING_ENABLE
            self._timed = cl.CommandQueue(self._context, properties=profiling)
        self._queue.finish()
        events = [cl.enqueue_nd_range_kernel(self._timed, r.kernel, r.size, r.local) for r in recording]
        self._try(self._timed.finish)
        return [1e-9 * (e.profile.end - e.profile.start) for e in events]

    def release(self, recording: Any) -> None:
        recording.clear()

    def _try(self, call: Any) -> Any:
        try:
            return call()
        except cl.Error as error:
            raise BackendError(f"backend 'opencl' on '{self._device.name}': {error}") from error


def _caps(device: Any) -> Caps:
    words = device.extensions.split()
    features = {"i64", "storage8", "storage16", "atomics"}
    features |= {"f64", "f64_math"} if "cl_khr_fp64" in words or device.double_fp_config else set()
    features |= {"f16"} if "cl_khr_fp16" in words else set()
    features |= {"subgroups"} if "cl_khr_subgroups" in words else set()
    cpu = bool(device.type & cl.device_type.CPU)
    return Caps(
        features=frozenset(features),
        max_group=device.max_work_group_size,
        local_memory=device.local_mem_size,
        max_buffer=device.max_mem_alloc_size,
        alignment=max(64, device.mem_base_addr_align // 8),
        lanes=min(16, device.native_vector_width_float) if cpu else 4,
        cpu_like=cpu,
        unified=bool(device.host_unified_memory),
        units=device.max_compute_units,
        facts={"name": device.name.strip(), "driver": device.driver_version},
    )
