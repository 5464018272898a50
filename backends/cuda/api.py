"""What the CUDA executor asks of the driver, and its implementation by CuPy.

The interface is narrow so that tests can put an emulator behind the unchanged executor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mnnpy.backends.kernels.driver import Gemm
from mnnpy.graph.ir import Array

__all__ = ["CudaApi", "CupyApi", "probe"]


class CudaApi(Protocol):
    """One device and one stream. Errors are raised as the library's own exceptions (``errors``)."""

    errors: tuple[type[Exception], ...]
    libraries: frozenset[str]  #: which ``Gemm`` calls it runs by cuBLAS

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

    def copy(self, to: int, at: int, size: int) -> None:
        """Between addresses of the device, in order with the launches."""
        ...

    def adopt(self, value: Any) -> Any:
        """The memory of a dense array of another library with ``ptr`` and ``size``, once what was written to it before
        is there; None for anything else. Lives as long as the result does.
        """
        ...

    def export(self, tensor: Any) -> Any:
        """An array of the library that shares the memory of an object with ``__cuda_array_interface__``."""
        ...

    def compile(self, source: str, name: str) -> Any:
        """A function of the module that NVRTC makes of *source*."""
        ...

    def launch(self, function: Any, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any]) -> None:
        """Arguments are numpy scalars; pointers as uint64."""
        ...

    def gemm(self, gemm: Gemm, a: int, b: int, c: int) -> None:
        """A library product on addresses, in order with the launches; not while capturing."""
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
    return [_facts(cupy, k) for k in range(cupy.cuda.runtime.getDeviceCount())]


def _facts(cupy: Any, index: int) -> dict[str, Any]:
    """What the driver tells without a context on the device; ``unavailable`` with the reason where it does not."""
    try:
        found = cupy.cuda.runtime.getDeviceProperties(index)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return {"name": f"device {index}", "unavailable": str(error)}
    return {
        "name": found["name"].decode(),
        "capability": f"{found['major']}.{found['minor']}",
        "multiprocessors": found["multiProcessorCount"],
        "shared": found["sharedMemPerBlock"],
        "memory": found["totalGlobalMem"],
        "driver": cupy.cuda.runtime.driverGetVersion(),
    }


class CupyApi:
    """``CudaApi`` by CuPy. One stream; memory from a pool of its own, given back to the system when a program ends."""

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
        self.libraries: frozenset[str] = frozenset()
        try:  # CuPy loads cuBLAS at the first product; without it our own kernels do them
            from cupy_backends.cuda.libs import cublas
        except ImportError:
            pass
        else:  # in full f32 (CuPy leaves TF32 off), and in f16 with f32 sums
            self.libraries = frozenset({"gemm_f32", "gemm_f16"})
            self.errors = (*self.errors, cublas.CUBLASError)

    def facts(self) -> dict[str, Any]:
        return _facts(self._cupy, int(self._device.id))

    def allocate(self, size: int) -> Any:
        with self._device, self._stream:
            return self._pool.malloc(size)

    def free(self, memory: Any) -> None:
        with self._device:
            self._stream.synchronize()
            memory.mem.free()  # to the pool, then to the system
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

    def copy(self, to: int, at: int, size: int) -> None:
        with self._device:
            self._cupy.cuda.runtime.memcpyAsync(to, at, size, 3, self._stream.ptr)

    def adopt(self, value: Any) -> Any:
        with self._device, self._stream:
            # What wrote the array may still run on a stream that nobody names (CuPy's own arrays, version 2).
            self._cupy.cuda.runtime.deviceSynchronize()
            if not hasattr(value, "__cuda_array_interface__"):
                return None
            array = self._cupy.ascontiguousarray(self._cupy.asarray(value))
            return _Adopted(int(array.data.ptr), int(array.nbytes), array)

    def export(self, tensor: Any) -> Any:
        with self._device:
            return self._cupy.asarray(tensor)  # keeps a reference to the tensor

    def compile(self, source: str, name: str) -> Any:
        with self._device:
            # NVRTC builds for the device's own capability, and CuPy keeps cubins on disk by source and versions.
            module = self._cupy.RawModule(code=source, options=("--std=c++17",), backend="nvrtc")
            return module.get_function(name)

    def launch(self, function: Any, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any]) -> None:
        with self._device, self._stream:
            function(tuple(grid), tuple(block), tuple(arguments))

    def gemm(self, gemm: Gemm, a: int, b: int, c: int) -> None:
        dtype = np.float16 if gemm.name == "gemm_f16" else np.float32
        size = np.dtype(dtype).itemsize
        with self._device, self._stream:
            x = self._array(a, (gemm.batch, gemm.m, gemm.k), dtype, size)
            y = self._array(b, (1 if gemm.shared else gemm.batch, gemm.k, gemm.n), dtype, size)
            out = self._array(c, (gemm.batch, gemm.m, gemm.n), dtype, size)
            if gemm.shared:  # one product of all rows
                x, y, out = x.reshape(-1, gemm.k), y[0], out.reshape(-1, gemm.n)
            self._cupy.matmul(x, y, out=out)

    def _array(self, address: int, shape: tuple[int, ...], dtype: Any, size: int) -> Any:
        """A view of device memory that belongs to a program."""
        memory = self._cupy.cuda.UnownedMemory(address, size * math.prod(shape), self, self._device.id)
        return self._cupy.ndarray(shape, dtype, self._cupy.cuda.MemoryPointer(memory, 0))

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


@dataclass(frozen=True, slots=True)
class _Adopted:
    ptr: int
    size: int
    owner: Any


def pointer(memory: Any, offset: int) -> np.uint64:
    """A kernel argument."""
    return np.uint64(memory.ptr + offset)
