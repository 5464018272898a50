"""Arrays that stay in device memory: results that are asked for there, inputs that are already there."""

from __future__ import annotations

import contextlib
from functools import partial
from math import prod
from typing import Any

import numpy as np

from mnnpy.backends.kernels.driver import Binding, Driver
from mnnpy.graph.ir import Array

__all__ = ["DeviceTensor", "device_view", "to_host"]


class DeviceTensor:
    """A dense row-major array in memory of one opened device; freed with its last reference.

    ``numpy()`` downloads. On CUDA it is exchanged without a copy by ``__cuda_array_interface__`` and DLPack.
    """

    def __init__(self, driver: Driver, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.driver = driver
        self._memory: Any = None
        with driver.turn:
            self._memory = driver.allocate(max(self.nbytes, 4))

    @property
    def nbytes(self) -> int:
        """Bytes of the contents."""
        return int(prod(self.shape) * self.dtype.itemsize)

    @property
    def binding(self) -> Binding:
        """Where it is."""
        return Binding(self._memory, 0, self.nbytes)

    def numpy(self) -> Array:
        """A copy in host memory."""
        array = np.empty(self.shape, self.dtype)
        if array.nbytes:
            with self.driver.turn:
                self.driver.download(self.binding, array)
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("an array in device memory cannot be read without a copy")
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        address = self.driver.address(self.binding)
        if address is None:
            raise AttributeError("only arrays in CUDA memory have __cuda_array_interface__; use numpy()")
        with self.driver.turn:
            self.driver.synchronize()  # so that any stream may read it
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (address, False), "version": 3, "strides": None}

    def __dlpack__(self, **options: Any) -> Any:
        exported = self.driver.export(self)
        if exported is None:
            raise BufferError("memory of this device cannot be exchanged by DLPack; use numpy()")
        return exported.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        exported = self.driver.export(self)
        if exported is None:
            raise BufferError("memory of this device cannot be exchanged by DLPack; use numpy()")
        kind, index = exported.__dlpack_device__()
        return int(kind), int(index)

    def __repr__(self) -> str:
        return f"DeviceTensor(shape={self.shape}, dtype={self.dtype})"

    def __del__(self) -> None:
        memory = self.__dict__.pop("_memory", None)
        if memory is not None:
            with contextlib.suppress(AttributeError):  # the interpreter is going down
                self.driver.retire(partial(self.driver.free, memory))


def device_view(value: Any) -> tuple[tuple[int, ...], Any] | None:
    """Shape and dtype of a value in device memory; None for one on the host."""
    if isinstance(value, DeviceTensor):
        return value.shape, value.dtype
    found = getattr(value, "__cuda_array_interface__", None)
    if found is not None:
        return tuple(found["shape"]), np.dtype(found["typestr"])
    return None


def to_host(value: Any) -> Array:
    """Any array as a dense one in host memory; CuPy and PyTorch only copy when told to."""
    if isinstance(value, DeviceTensor):
        return value.numpy()
    if hasattr(value, "__cuda_array_interface__"):
        for method in ("get", "cpu"):
            if hasattr(value, method):
                value = getattr(value, method)()
                break
    return np.ascontiguousarray(value)
