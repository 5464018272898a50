"""The narrow interface between the shared device and an executor: memory, compiled kernels, recorded launches.

An executor (OpenCL, Vulkan, CUDA, Metal) implements ``Driver`` and nothing else; it knows no op and no template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

from mnnpy.backends.kernels.ir import Kernel
from mnnpy.graph.ir import Array

__all__ = ["Binding", "Caps", "Driver", "Gemm", "Launch"]


@dataclass(frozen=True, slots=True)
class Caps:
    """What a device has. *features*: see ``Kernel.features``, and ``special`` (NaN and infinities are kept where a
    kernel asks for it); sizes in bytes.
    """

    features: frozenset[str] = frozenset()
    max_group: int = 256
    local_memory: int = 32 << 10
    max_axes: tuple[int, int, int] = (1024, 1024, 64)  #: of the work group
    max_groups: tuple[int, int, int] = (1 << 31, 1 << 31, 1 << 31)  #: of a launch; a driver may split what is beyond
    max_bindings: int = 30  #: buffers of a kernel
    max_buffer: int = 128 << 20  #: largest range that one binding may cover
    max_allocation: int = 1 << 62
    alignment: int = 256  #: of offsets into the arena
    lanes: int = 1  #: widest vector that pays; above 4 the device is a CPU that wants explicit vectors
    cpu_like: bool = False  #: local memory and barriers cost more than they save
    unified: bool = False  #: host and device share memory
    subgroup: int = 0
    units: int = 1  #: compute units
    libraries: frozenset[str] = frozenset()  #: names of ``Gemm`` calls that the driver runs by the vendor's library
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Binding:
    """Bytes *offset* … *offset + size* of a device allocation."""

    memory: Any
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Gemm:
    """What a launch computes, for drivers that have a library for it: C = A·B, all three dense and row-major.

    *operands* are the positions of A [batch, m, k], B [batch or 1, k, n] and C [batch, m, n] among the buffers of the
    launch. A template attaches it where the kernel does just that, in
    strict f32 or f16; the kernel itself stays the meaning, and what every other driver runs.
    """

    name: str  #: ``gemm_f32`` or ``gemm_f16``: what ``Caps.libraries`` lists
    m: int
    n: int
    k: int
    batch: int = 1
    shared: bool = True  #: B has no batch
    operands: tuple[int, int, int] = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Launch:
    """A compiled kernel, its buffers in the kernel's order, scalars, and the number of work groups."""

    kernel: Any
    buffers: tuple[Binding, ...]
    scalars: tuple[int | float, ...]
    groups: tuple[int, int, int]
    library: Gemm | None = None


class Driver(Protocol):
    """An opened device. Methods raise BackendError with the driver's own words; nothing is printed.

    Callers hold *building* around ``compile`` and *turn* around everything else; ``retire`` needs neither.
    """

    caps: Caps
    building: Lock

    @property
    def turn(self) -> AbstractContextManager[None]: ...

    def allocate(self, size: int) -> Any:
        """Device memory of *size* bytes. Raises BackendError where there is none left."""
        ...

    def free(self, memory: Any) -> None:
        """Never raises."""
        ...

    def upload(self, target: Binding, array: Array) -> None:
        """Copy a contiguous array to the device (ordered before later submissions)."""
        ...

    def download(self, source: Binding, array: Array) -> None:
        """Copy into a contiguous array once everything submitted before is done."""
        ...

    def compile(self, kernels: Sequence[Kernel]) -> list[Any]:
        """Build kernels (cached in memory and, where the API can, on disk by source and driver version).

        Raises BackendError with source name and build log.
        """
        ...

    def record(self, launches: Sequence[Launch]) -> Any:
        """Prepare launches to be submitted many times, each seeing what the ones before wrote."""
        ...

    def submit(self, recording: Any) -> None:
        """Start a recording; returns at once."""
        ...

    def synchronize(self) -> None:
        """Wait until everything submitted is done; raises BackendError where the device was lost."""
        ...

    def time(self, recording: Any) -> list[float]:
        """Seconds of each launch of one submission, by the device's timer where there is one, in order."""
        ...

    def release(self, recording: Any) -> None:
        """Never raises."""
        ...

    def retire(self, discard: Callable[[], None]) -> None:
        """Call *discard*, which frees and releases, now or when whoever uses the queue leaves."""
        ...

    def copy(self, source: Binding, target: Binding) -> None:
        """Copy *source* to *target* on the device, in order with submissions."""
        ...

    def adopt(self, value: Any) -> Binding | None:
        """Where a foreign array is in this device's memory; None where it must come from the host."""
        ...

    def address(self, at: Binding) -> int | None:
        """The address that other libraries of the device know this memory by, if there is one."""
        ...

    def export(self, tensor: Any) -> Any:
        """An object that shares a DeviceTensor's memory by DLPack, or None."""
        ...

    @property
    def allocated(self) -> int:
        """Bytes allocated and not freed."""
        ...
