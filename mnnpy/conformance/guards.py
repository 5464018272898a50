"""Guard bytes around every buffer: for kernels by a driver that checks each launch, for others around operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnnpy.backends.kernels.driver import Binding, Driver, Launch
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.errors import BackendError
from mnnpy.graph.ir import Array

__all__ = ["GuardDriver", "GuardError", "fenced", "intact"]

#: What guard zones hold, and what memory holds before anybody wrote to it: read as a float of 16 or 32 bits it is NaN.
PATTERN = 0xFF


class GuardError(BackendError):
    """A kernel wrote where it must not."""


@dataclass(slots=True)
class _Recording:
    launches: list[Launch]


class GuardDriver:
    """A driver that runs launches one by one in a block with guard zones around each buffer, and looks at them after.

    Memory lives on the host and starts as NaN, so what a kernel leaves unwritten shows in the results. A write outside
    a binding, or into a buffer that the kernel declares as read only, raises GuardError naming kernel and buffer.
    Slow: one upload and one download per launch.
    """

    def __init__(self, inner: Driver) -> None:
        self.inner = inner
        self.caps = inner.caps
        self.launches = 0  #: checked so far
        self._zone = max(512, inner.caps.alignment)
        self._block: Any = None
        self._size = 0
        self._kernels: dict[int, tuple[Any, Kernel]] = {}  # keeps handles alive, so that ids stay theirs
        self._allocated = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    # -- memory: on the host --

    def allocate(self, size: int) -> Array:
        self._allocated += size
        return np.full(size, PATTERN, np.uint8)

    def free(self, memory: Array) -> None:
        self._allocated -= memory.nbytes

    @property
    def allocated(self) -> int:
        return self._allocated

    def upload(self, target: Binding, array: Array) -> None:
        target.memory[target.offset : target.offset + array.nbytes] = array.reshape(-1).view(np.uint8)

    def download(self, source: Binding, array: Array) -> None:
        array.reshape(-1).view(np.uint8)[:] = source.memory[source.offset : source.offset + array.nbytes]

    # -- kernels --

    def compile(self, kernels: Sequence[Kernel]) -> list[Any]:
        handles = self.inner.compile(kernels)
        self._kernels |= {id(h): (h, k) for h, k in zip(handles, kernels, strict=True)}
        return handles

    def record(self, launches: Sequence[Launch]) -> _Recording:
        return _Recording(list(launches))

    def submit(self, recording: _Recording) -> None:
        for launch in recording.launches:
            self._checked(launch)

    def time(self, recording: _Recording) -> list[float]:
        self.submit(recording)
        return [0.0] * len(recording.launches)

    def synchronize(self) -> None:
        self.inner.synchronize()

    def release(self, recording: _Recording) -> None:
        recording.launches.clear()

    def close(self) -> None:
        """Give the block back."""
        if self._block is not None:
            self.inner.free(self._block)
            self._block, self._size = None, 0

    def _checked(self, launch: Launch) -> None:
        kernel = self._kernels[id(launch.kernel)][1]
        spans = _spans(launch.buffers)
        places: list[int] = []
        at = self._zone
        for _, begin, end in spans:
            places.append(at)
            at += -(-(end - begin) // self._zone) * self._zone + self._zone
        before = np.full(at, PATTERN, np.uint8)
        for (memory, begin, end), place in zip(spans, places, strict=True):
            before[place : place + end - begin] = memory[begin:end]
        block = self._room(at)
        whole = Binding(block, 0, at)
        self.inner.upload(whole, before)
        bindings, owner = [], []
        for b in launch.buffers:
            k = next(
                k for k, s in enumerate(spans) if s[0] is b.memory and s[1] <= b.offset and b.offset + b.size <= s[2]
            )
            owner.append(k)
            bindings.append(Binding(block, places[k] + b.offset - spans[k][1], b.size))
        recording = self.inner.record([Launch(launch.kernel, tuple(bindings), launch.scalars, launch.groups)])
        self.inner.submit(recording)
        after = np.empty_like(before)
        self.inner.download(whole, after)
        self.inner.release(recording)
        self.launches += 1
        written = {k for k, b in zip(owner, kernel.buffers, strict=True) if "w" in b.access}
        allowed = np.zeros(at, bool)
        for k in written:
            allowed[places[k] : places[k] + spans[k][2] - spans[k][1]] = True
        wrong = np.flatnonzero((before != after) & ~allowed)
        if wrong.size:
            self._complain(kernel, launch, int(wrong[0]), wrong.size, places, spans, owner)
        for k in written:
            memory, begin, end = spans[k]
            memory[begin:end] = after[places[k] : places[k] + end - begin]

    def _room(self, size: int) -> Any:
        if self._size < size:
            self.close()
            self._block, self._size = self.inner.allocate(size), size
        return self._block

    @staticmethod
    def _complain(
        kernel: Kernel, launch: Launch, at: int, many: int, places: list[int], spans: list[Any], owner: list[int]
    ) -> None:
        # The nearest buffer: a stray write may lie before it or behind it.
        ends = [p + end - begin for p, (_, begin, end) in zip(places, spans, strict=True)]
        k = min(range(len(places)), key=lambda k: max(places[k] - at, at - ends[k] + 1, 0))
        names = [b.name for b, o in zip(kernel.buffers, owner, strict=True) if o == k]
        size = spans[k][2] - spans[k][1]
        offset = at - places[k]
        what = (
            f"reads only, but byte {offset} changed"
            if 0 <= offset < size
            else f"has {size} bytes, but byte {offset} changed"
        )
        raise GuardError(
            f"kernel '{kernel.name}' wrote where it must not: buffer '{'/'.join(names)}' {what} ({many} bytes in all; "
            f"scalars {launch.scalars}, groups {launch.groups})"
        )


def _spans(buffers: Sequence[Binding]) -> list[tuple[Any, int, int]]:
    """Ranges of memory, those that overlap merged: (memory, begin, end)."""
    found: list[tuple[Any, int, int]] = []
    for b in sorted(buffers, key=lambda b: (id(b.memory), b.offset)):
        end = b.offset + b.size
        if found and found[-1][0] is b.memory and b.offset < found[-1][2]:
            found[-1] = (b.memory, found[-1][1], max(end, found[-1][2]))
        else:
            found.append((b.memory, b.offset, end))
    return found


ZONE = 256


def fenced(array: Array) -> tuple[Array, Array]:
    """A copy of *array* in the middle of a block of guard bytes: (the copy, the block)."""
    block = np.full(array.nbytes + 2 * ZONE + 64, PATTERN, np.uint8)
    start = ZONE + (-(block.ctypes.data + ZONE)) % 64
    inside = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    inside[...] = array
    return inside, block


def intact(inside: Array, block: Array) -> bool:
    """Whether the guard bytes around the array still are what they were."""
    start = inside.ctypes.data - block.ctypes.data
    return bool((block[:start] == PATTERN).all() and (block[start + inside.nbytes :] == PATTERN).all())
