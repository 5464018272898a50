"""What the Metal executor asks of the framework, and its implementation by pyobjc.

The interface is narrow so that tests can put an emulator behind the unchanged executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mnnpy.backends.kernels.driver import Gemm
from mnnpy.graph.ir import Array

__all__ = ["Dispatch", "GemmCall", "MetalApi", "MetalError", "PyobjcApi", "probe"]

#: buffers with offsets, bytes of the scalars, groups, work items per group
Dispatch = tuple[Any, Sequence[tuple[Any, int]], bytes, tuple[int, int, int], tuple[int, int, int]]
#: a product by the library; A, B and C as buffers with offsets
GemmCall = tuple[Gemm, tuple[Any, int], tuple[Any, int], tuple[Any, int]]


class MetalError(RuntimeError):
    """The framework refused; carries its words."""


class MetalApi(Protocol):
    """One device and one command queue. Raises MetalError."""

    libraries: frozenset[str]  #: which ``Gemm`` calls it runs by Metal Performance Shaders

    def facts(self) -> dict[str, Any]:
        """name, threads per group, threadgroup memory, largest buffer, unified."""
        ...

    def new_buffer(self, size: int) -> Any: ...

    def free(self, buffer: Any) -> None: ...

    def contents(self, buffer: Any, size: int) -> Array:
        """The bytes of a shared buffer as an array of uint8."""
        ...

    def compile(self, source: str, name: str, items: int) -> Any:
        """A compute pipeline for groups of *items*."""
        ...

    def encode(self, dispatches: Sequence[Dispatch | GemmCall]) -> Any:
        """A command buffer; dispatches run in order."""
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
    """``MetalApi`` by pyobjc. Each call has an autorelease pool: Python threads have none, and would leak.

    Buffers are in shared storage: Apple GPUs use the processor's memory. On cards of Intel Macs that is slow, correct.
    """

    def __init__(self, index: int) -> None:
        import Metal
        import objc

        self._metal = Metal
        self._pool = objc.autorelease_pool
        self._device = Metal.MTLCopyAllDevices()[index]
        self._queue = self._device.newCommandQueue()
        try:
            import MetalPerformanceShaders as Shaders

            self._shaders: Any = Shaders
        except ImportError:
            self._shaders = None
        usable = self._shaders is not None and self._shaders.MPSSupportsMTLDevice(self._device)
        self.libraries = frozenset({"gemm_f32", "gemm_f16"}) if usable else frozenset()
        self._products: dict[Gemm, Any] = {}

    def facts(self) -> dict[str, Any]:
        return {
            "name": str(self._device.name()),
            "group": int(self._device.maxThreadsPerThreadgroup().width),
            "shared": int(self._device.maxThreadgroupMemoryLength()),
            "buffer": int(self._device.maxBufferLength()),
            "unified": bool(self._device.hasUnifiedMemory()),
        }

    def new_buffer(self, size: int) -> Any:
        with self._pool():
            buffer = self._device.newBufferWithLength_options_(size, self._metal.MTLResourceStorageModeShared)
        if buffer is None:
            raise MetalError(f"no buffer of {size} bytes")
        return buffer

    def free(self, buffer: Any) -> None:
        del buffer  # reference counted

    def contents(self, buffer: Any, size: int) -> Array:
        return np.frombuffer(buffer.contents().as_buffer(size), np.uint8)

    def compile(self, source: str, name: str, items: int) -> Any:
        with self._pool():
            options = self._metal.MTLCompileOptions.new()
            options.setFastMathEnabled_(False)
            library, error = self._device.newLibraryWithSource_options_error_(source, options, None)
            if library is None:
                raise MetalError(str(error))
            function = library.newFunctionWithName_(name)
            pipeline, error = self._device.newComputePipelineStateWithFunction_error_(function, None)
            if pipeline is None:
                raise MetalError(str(error))
            most = int(pipeline.maxTotalThreadsPerThreadgroup())
            if most < items:
                raise MetalError(f"its registers leave room for {most} threads a group, it is written for {items}")
            return pipeline

    def encode(self, dispatches: Sequence[Dispatch | GemmCall]) -> Any:
        with self._pool():
            command = self._queue.commandBuffer()
            encoder: Any = None
            try:
                for item in dispatches:
                    if len(item) == 4:  # a library makes encoders of its own
                        if encoder is not None:
                            encoder.endEncoding()
                            encoder = None
                        self._product(command, item)
                        continue
                    encoder = encoder or command.computeCommandEncoder()
                    self._dispatch(encoder, item)
            finally:  # an encoder that is released open aborts the process
                if encoder is not None:
                    encoder.endEncoding()
            return command

    def _dispatch(self, encoder: Any, item: Dispatch) -> None:
        size = self._metal.MTLSizeMake
        pipeline, buffers, scalars, groups, local = item
        encoder.setComputePipelineState_(pipeline)
        for k, (buffer, offset) in enumerate(buffers):
            encoder.setBuffer_offset_atIndex_(buffer, offset, k)
        if scalars:
            encoder.setBytes_length_atIndex_(scalars, len(scalars), len(buffers))
        encoder.dispatchThreadgroups_threadsPerThreadgroup_(size(*groups), size(*local))

    def _product(self, command: Any, call: GemmCall) -> None:
        """Row-major products by MPSMatrixMultiplication; a B without batch makes one product of all rows."""
        gemm, a, b, c = call
        rows, batch = (gemm.m * gemm.batch, 1) if gemm.shared else (gemm.m, gemm.batch)
        product = self._products.get(gemm)
        if product is None:
            make = self._shaders.MPSMatrixMultiplication.alloc()
            make = make.initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta_
            product = make(self._device, False, False, rows, gemm.n, gemm.k, 1.0, 0.0)
            self._products[gemm] = product
        item = 2 if gemm.name == "gemm_f16" else 4
        kind = self._shaders.MPSDataTypeFloat16 if item == 2 else self._shaders.MPSDataTypeFloat32
        for k in range(batch):
            matrices = [
                self._matrix(buffer, offset + k * r * n * item, r, n, item, kind)
                for (buffer, offset), (r, n) in ((a, (rows, gemm.k)), (b, (gemm.k, gemm.n)), (c, (rows, gemm.n)))
            ]
            product.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix_(command, *matrices)

    def _matrix(self, buffer: Any, offset: int, rows: int, columns: int, item: int, kind: int) -> Any:
        describe = self._shaders.MPSMatrixDescriptor.matrixDescriptorWithRows_columns_rowBytes_dataType_
        shape = describe(rows, columns, columns * item, kind)
        return self._shaders.MPSMatrix.alloc().initWithBuffer_offset_descriptor_(buffer, offset, shape)

    def commit(self, command: Any) -> None:
        command.commit()

    def wait(self, command: Any) -> float:
        with self._pool():
            command.waitUntilCompleted()
            error = command.error()
            if error is not None:
                removed = error.code() == self._metal.MTLCommandBufferErrorDeviceRemoved
                raise MetalError(f"{'MTLCommandBufferErrorDeviceRemoved: ' * removed}{error}")
            return float(command.GPUEndTime() - command.GPUStartTime())
