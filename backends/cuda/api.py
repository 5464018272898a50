"""What the CUDA executor asks of the driver, and its implementation by CuPy.

The interface is narrow so that tests can put an emulator behind the unchanged executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mnnpy.graph.ir import Array

__all__ = ["CudaApi", "CupyApi", "probe"]


class CudaApi(Protocol):
    """One device and one stream. Errors are raised as the library's own exceptions (``errors``)."""

    errors: tuple[type[Exception], ...]

    def facts(self) -> dict[str, Any]:
        """name, compute capability, multiprocessors, shared memory per block, memory, driver version."""
        ...

    def allocate(self, size: int) -> Any:
        """Device memory; the result has a ``ptr``."""
        ...

    def free(self, memory: Any) -> None: ...

    def to_device(self, memory: Any, offset: int, array: Array) -> None: ...

    def to_host(self, memory: Any, offset: int, array: Array) -> None:
        """Waits for the stream."""
        ...

    def compile(self, source: str, name: str) -> Any:
        """A function of the module that NVRTC makes of *source*."""
        ...

    def launch(self, function: Any, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any]) -> None:
        """Arguments are numpy scalars; pointers as uint64."""
        ...

    def capture(self) -> None:
        """Record what follows instead of running it."""
        ...

    def captured(self) -> Any:
        """End of the recording: a graph that can be replayed."""
        ...

    def replay(self, graph: Any) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed(self, call: Any) -> float:
        """Seconds of *call* between two events of the stream."""
        ...


def probe() -> list[dict[str, Any]]:
    """Facts of all devices. Raises ImportError or RuntimeError with the reason where CUDA cannot be used."""
    import cupy

    if not cupy.cuda.is_available():
        raise RuntimeError("no CUDA device or driver is available")
    return [CupyApi(k).facts() for k in range(cupy.cuda.runtime.getDeviceCount())]


class CupyApi:
    """``CudaApi`` by CuPy."""

    def __init__(self, index: int) -> None:
        import cupy

        self._cupy = cupy
        self._device = cupy.cuda.Device(index)
        with self._device:
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._pool = cupy.cuda.MemoryPool()
        self.errors: tuple[type[Exception], ...] = (
            cupy.cuda.runtime.CUDARuntimeError,
            cupy.cuda.driver.CUDADriverError,
            cupy.cuda.compiler.CompileException,
            cupy.cuda.memory.OutOfMemoryError,
        )

    def facts(self) -> dict[str, Any]:
        runtime = self._cupy.cuda.runtime
        found = runtime.getDeviceProperties(self._device.id)
        return {
            "name": found["name"].decode(),
            "capability": f"{found['major']}.{found['minor']}",
            "multiprocessors": found["multiProcessorCount"],
            "shared": found["sharedMemPerBlock"],
            "memory": found["totalGlobalMem"],
            "driver": runtime.driverGetVersion(),
        }

    def allocate(self, size: int) -> Any:
        with self._device:
            return self._pool.malloc(size)

    def free(self, memory: Any) -> None:
        del memory  # the pool takes it back with the last reference
        self._pool.free_all_blocks()

    def to_device(self, memory: Any, offset: int, array: Array) -> None:
        with self._device:
            self._cupy.cuda.runtime.memcpyAsync(
                memory.ptr + offset, array.ctypes.data, array.nbytes, 1, self._stream.ptr
            )
            self._stream.synchronize()  # the host array may change as soon as this returns

    def to_host(self, memory: Any, offset: int, array: Array) -> None:
        with self._device:
            self._cupy.cuda.runtime.memcpyAsync(
                array.ctypes.data, memory.ptr + offset, array.nbytes, 2, self._stream.ptr
            )
            self._stream.synchronize()

    def compile(self, source: str, name: str) -> Any:
        with self._device:
            module = self._cupy.RawModule(code=source, options=("--std=c++17",), backend="nvrtc")
            return module.get_function(name)

    def launch(self, function: Any, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any]) -> None:
        with self._device, self._stream:
            function(tuple(grid), tuple(block), tuple(arguments))

    def capture(self) -> None:
        with self._device:
            self._stream.begin_capture()

    def captured(self) -> Any:
        with self._device:
            return self._stream.end_capture()

    def replay(self, graph: Any) -> None:
        with self._device:
            graph.launch(self._stream)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def elapsed(self, call: Any) -> float:
        event = self._cupy.cuda.Event
        with self._device:
            begin, end = event(), event()
            begin.record(self._stream)
            call()
            end.record(self._stream)
            end.synchronize()
            return 1e-3 * float(self._cupy.cuda.get_elapsed_time(begin, end))


def pointer(memory: Any, offset: int) -> np.uint64:
    """A kernel argument."""
    return np.uint64(memory.ptr + offset)
