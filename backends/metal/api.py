"""What the Metal executor asks of the framework, and its implementation by pyobjc.

The interface is narrow so that tests can put an emulator behind the unchanged executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mnnpy.graph.ir import Array

__all__ = ["MetalApi", "MetalError", "PyobjcApi", "probe"]

#: buffers with offsets, bytes of the scalars, groups, work items per group
Dispatch = tuple[Any, Sequence[tuple[Any, int]], bytes, tuple[int, int, int], tuple[int, int, int]]


class MetalError(RuntimeError):
    """The framework refused; carries its words."""


class MetalApi(Protocol):
    """One device and one command queue. Raises MetalError."""

    def facts(self) -> dict[str, Any]:
        """name, threads per group, threadgroup memory, largest buffer, unified."""
        ...

    def new_buffer(self, size: int) -> Any: ...

    def free(self, buffer: Any) -> None: ...

    def contents(self, buffer: Any, size: int) -> Array:
        """The bytes of a shared buffer as an array of uint8."""
        ...

    def compile(self, source: str, name: str) -> Any:
        """A compute pipeline."""
        ...

    def encode(self, dispatches: Sequence[Dispatch]) -> Any:
        """A command buffer with one encoder; dispatches run in order."""
        ...

    def commit(self, command: Any) -> None: ...

    def wait(self, command: Any) -> float:
        """Seconds on the GPU; raises MetalError where the command buffer failed."""
        ...


def probe() -> list[dict[str, Any]]:
    """Facts of all devices. Raises ImportError or MetalError with the reason where Metal cannot be used."""
    import Metal

    devices = Metal.MTLCopyAllDevices()
    if not devices:
        raise MetalError("this system has no Metal device")
    return [PyobjcApi(k).facts() for k in range(len(devices))]


class PyobjcApi:
    """``MetalApi`` by pyobjc. Buffers are in shared storage: Apple GPUs use the processor's memory."""

    def __init__(self, index: int) -> None:
        import Metal

        self._metal = Metal
        self._device = Metal.MTLCopyAllDevices()[index]
        self._queue = self._device.newCommandQueue()

    def facts(self) -> dict[str, Any]:
        return {
            "name": str(self._device.name()),
            "group": int(self._device.maxThreadsPerThreadgroup().width),
            "shared": int(self._device.maxThreadgroupMemoryLength()),
            "buffer": int(self._device.maxBufferLength()),
            "unified": bool(self._device.hasUnifiedMemory()),
        }

    def new_buffer(self, size: int) -> Any:
        buffer = self._device.newBufferWithLength_options_(size, self._metal.MTLResourceStorageModeShared)
        if buffer is None:
            raise MetalError(f"no buffer of {size} bytes")
        return buffer

    def free(self, buffer: Any) -> None:
        del buffer  # reference counted

    def contents(self, buffer: Any, size: int) -> Array:
        return np.frombuffer(buffer.contents().as_buffer(size), np.uint8)

    def compile(self, source: str, name: str) -> Any:
        options = self._metal.MTLCompileOptions.new()
        options.setFastMathEnabled_(False)
        library, error = self._device.newLibraryWithSource_options_error_(source, options, None)
        if library is None:
            raise MetalError(str(error))
        function = library.newFunctionWithName_(name)
        pipeline, error = self._device.newComputePipelineStateWithFunction_error_(function, None)
        if pipeline is None:
            raise MetalError(str(error))
        return pipeline

    def encode(self, dispatches: Sequence[Dispatch]) -> Any:
        command = self._queue.commandBuffer()
        encoder = command.computeCommandEncoder()
        for pipeline, buffers, scalars, groups, local in dispatches:
            encoder.setComputePipelineState_(pipeline)
            for k, (buffer, offset) in enumerate(buffers):
                encoder.setBuffer_offset_atIndex_(buffer, offset, k)
            if scalars:
                encoder.setBytes_length_atIndex_(scalars, len(scalars), len(buffers))
            size = self._metal.MTLSizeMake
            encoder.dispatchThreadgroups_threadsPerThreadgroup_(size(*groups), size(*local))
        encoder.endEncoding()
        return command

    def commit(self, command: Any) -> None:
        command.commit()

    def wait(self, command: Any) -> float:
        command.waitUntilCompleted()
        if command.error() is not None:
            raise MetalError(str(command.error()))
        return float(command.GPUEndTime() - command.GPUStartTime())
