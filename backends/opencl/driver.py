"""Executor of kernels on OpenCL: one in-order queue, launches enqueued with arguments set once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyopencl as cl
from pyopencl.characterize import has_src_build_cache

from mnnpy.backends.base import DeviceInfo
from mnnpy.backends.kernels.cache import KernelCache
from mnnpy.backends.kernels.driver import Binding, Caps, Launch
from mnnpy.backends.kernels.executor import Executor
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.backends.kernels.render_opencl import OpenCLRenderer
from mnnpy.backends.opencl.platforms import find
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["OpenCLDriver"]

#: Not available; invalid queue (what some drivers say after a crash of a kernel); illegal access (NVIDIA).
_LOST = frozenset({-2, -36, -9999})
enqueue_kernel = cl.enqueue_nd_range_kernel

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


class OpenCLDriver(Executor):
    """``Driver`` on one OpenCL device."""

    backend = "opencl"

    def __init__(self, info: DeviceInfo) -> None:
        self._device = find(info)
        super().__init__(self._device.name.strip(), (cl.Error,))
        self._programs: dict[str, Any] = {}
        self._context = self._try("opening the device", lambda: cl.Context([self._device]))
        self._queue = self._try("opening a queue", lambda: cl.CommandQueue(self._context))
        self._timed: Any = None
        self.caps = _caps(self._device)
        self._newest = _standard(self._device)
        if self._reduces_subgroups():
            self.caps = replace(self.caps, features=self.caps.features | {"subgroups"})
        platform = self._device.platform
        identity = f"{platform.name}, {platform.version}, {self.name}, {self._device.driver_version}, {self._newest}"
        #: PoCL and NVIDIA keep what they build from source on disk themselves.
        self.binaries = None if has_src_build_cache(self._device) else KernelCache("opencl", identity)

    def _options(self, source: str) -> str:
        """Built-ins of subgroups want a newer language; everything else is written in the one that all drivers know."""
        return f"-cl-std={self._newest if 'sub_group_' in source else 'CL1.2'}"

    def _reduces_subgroups(self) -> bool:
        """Whether a kernel that reduces over subgroups builds: drivers list the extension that do not have it all."""
        if "cl_khr_subgroups" not in self._device.extensions.split() or self._newest == "CL1.2":
            return False
        source = "__kernel void probe(__global float* x) { x[0] = sub_group_reduce_add(x[get_sub_group_local_id()]); }"
        try:
            cl.Program(self._context, source).build(options=self._options(source), cache_dir=False)
        except cl.Error:
            return False
        return True

    # -- memory --

    def _allocate(self, size: int) -> Any:
        memory = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, size)
        # Drivers allocate at first use: fail here, not in the middle of a run.
        cl.enqueue_fill_buffer(self._queue, memory, np.zeros(1, np.uint8), 0, 1)
        return memory

    def _free(self, memory: Any) -> None:
        memory.release()

    def upload(self, target: Binding, array: Array) -> None:
        self._try("upload", lambda: cl.enqueue_copy(self._queue, target.memory, array, dst_offset=target.offset))

    def download(self, source: Binding, array: Array) -> None:
        self._try("download", lambda: cl.enqueue_copy(self._queue, array, source.memory, src_offset=source.offset))

    def copy(self, source: Binding, target: Binding) -> None:
        at, to = source.offset, target.offset
        size = min(source.size, target.size)
        self._try(
            "copying",
            lambda: cl.enqueue_copy(
                self._queue, target.memory, source.memory, src_offset=at, dst_offset=to, byte_count=size
            ),
        )

    # -- kernels --

    def compile(self, kernels: Sequence[Kernel]) -> list[_Built]:
        self.check()
        return [self._compile(k) for k in kernels]

    def _compile(self, kernel: Kernel) -> _Built:
        source = OpenCLRenderer(kernel).source()
        program = self._programs.get(source)
        if program is None:
            program = self._cached(source)
            if program is None:
                try:
                    program = cl.Program(self._context, source).build(options=self._options(source), cache_dir=False)
                except cl.Error as error:
                    raise BackendError(
                        f"backend 'opencl': kernel '{kernel.name}' does not build on '{self.name}': {error}\n{source}"
                    ) from error
                if self.binaries is not None:
                    self.binaries.write(source, program.get_info(cl.program_info.BINARIES)[0])
            self._programs[source] = program
        return _Built(program, kernel.name, kernel.local, tuple(t for _, t in kernel.scalars))

    def _cached(self, source: str) -> Any:
        """The program from its binary on disk, if the driver takes it."""
        binary = self.binaries.read(source) if self.binaries is not None else None
        if binary is None:
            return None
        try:
            return cl.Program(self._context, [self._device], [binary]).build(options=self._options(source))
        except cl.Error:
            return None  # a driver may refuse its own binaries after an update that kept the version: build anew

    def record(self, launches: Sequence[Launch]) -> list[_Ready]:
        return cast("list[_Ready]", self._try("setting arguments", lambda: [self._ready(x) for x in launches]))

    def _ready(self, launch: Launch) -> _Ready:
        built: _Built = launch.kernel
        kernel = cl.Kernel(built.program, built.name)
        parts = tuple(
            b.memory.get_sub_region(b.offset, max(b.size, 1)) if b.offset or b.size < b.memory.size else b.memory
            for b in launch.buffers
        )
        scalars = (_SCALARS[t](v) for t, v in zip(built.scalars, launch.scalars, strict=True))
        kernel.set_args(*parts, *scalars)
        gx, gy, gz = launch.groups
        x, y, z = built.local
        return _Ready(kernel, (gx * x, gy * y, gz * z), built.local, parts)

    def submit(self, recording: Sequence[_Ready]) -> None:
        def enqueue() -> None:
            queue = self._queue
            for r in recording:
                enqueue_kernel(queue, r.kernel, r.size, r.local)
            queue.flush()

        self._try("launching", enqueue)

    def synchronize(self) -> None:
        self._try("waiting", self._queue.finish)

    def time(self, recording: Sequence[_Ready]) -> list[float]:
        return cast("list[float]", self._try("timing", lambda: self._time(recording)))

    def _time(self, recording: Sequence[_Ready]) -> list[float]:
        """On a queue of its own: time stamps cost something."""
        if self._timed is None:
            profiling = cl.command_queue_properties.PROFILING_ENABLE
            self._timed = cl.CommandQueue(self._context, properties=profiling)
        self._queue.finish()
        events = [enqueue_kernel(self._timed, r.kernel, r.size, r.local) for r in recording]
        self._timed.finish()
        return [1e-9 * (e.profile.end - e.profile.start) for e in events]

    def _release(self, recording: list[_Ready]) -> None:
        self._queue.finish()
        recording.clear()

    def _shutdown(self) -> None:
        self._programs.clear()

    def _is_loss(self, error: Exception) -> bool:
        return getattr(error, "code", 0) in _LOST


def _standard(device: Any) -> str:
    """The newest OpenCL C that we write: device versions read "OpenCL 3.0 and what the vendor adds"."""
    major = int(device.version.split()[1].partition(".")[0])
    return "CL3.0" if major >= 3 else "CL2.0" if major == 2 else "CL1.2"


def _caps(device: Any) -> Caps:
    words = device.extensions.split()
    features = {"i64", "storage8", "storage16", "atomics"}
    features |= {"f64", "f64_math"} if "cl_khr_fp64" in words or device.double_fp_config else set()
    features |= {"f16"} if "cl_khr_fp16" in words else set()
    cpu = bool(device.type & cl.device_type.CPU)
    return Caps(
        features=frozenset(features),
        max_group=device.max_work_group_size,
        local_memory=device.local_mem_size,
        max_axes=tuple(device.max_work_item_sizes[:3]),
        max_buffer=min(device.max_mem_alloc_size, 2**31 - 1),  # indices are 32-bit
        max_allocation=device.max_mem_alloc_size,
        alignment=max(64, device.mem_base_addr_align // 8),
        lanes=min(16, device.native_vector_width_float) if cpu else 4,
        cpu_like=cpu,
        unified=bool(device.host_unified_memory),
        units=device.max_compute_units,
        facts={"name": device.name.strip(), "driver": device.driver_version},
    )
