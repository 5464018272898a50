"""A segment on a device: memory planned once, launches recorded once, submitted many times."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from mnnpy.backends.kernels.driver import Binding, Driver, Launch
from mnnpy.backends.kernels.lowering import Lowering, Step
from mnnpy.backends.kernels.tensor import DeviceTensor, to_host
from mnnpy.backends.memory import Interval, place
from mnnpy.graph.ir import Array, Graph, TensorType

__all__ = ["KernelProgram"]


class KernelProgram:
    """Steps with their memory. Inputs are uploaded, outputs downloaded; everything between stays on the device.

    Memory: one allocation for constants, one arena for inputs, intermediates and outputs; more of them where a device
    limits the size of one. Programs of a driver take turns.
    """

    def __init__(self, driver: Driver, graph: Graph, work: Lowering) -> None:
        self._driver = driver
        self._graph = graph
        self._steps = work.steps
        self._types = work.types
        self._memory: list[Any] = []
        self._recording: Any = None
        self._closed = False
        constants = {**{n: graph.constants[n] for n in _read(work.steps, graph) if n in graph.constants}, **work.added}
        constants |= {name: make() for name, make in work.late.items()}
        self._aliases = work.views  # value → the value whose memory it is
        try:
            with driver.building:
                handles = _compile(driver, work.steps)
            with driver.turn:
                self._weights, places = self._place_constants(constants)
                self._arena, more = self._place_arena(set(constants))
                places.update(more)
                self._places = places
                launches = [self._launch(s, h, places) for s, h in zip(work.steps, handles, strict=True)]
                self._recording = driver.record(launches)
        except BaseException:
            self.close()
            raise

    # -- memory --

    def _allocate(self, size: int) -> Any:
        memory = self._driver.allocate(max(size, self._driver.caps.alignment))
        self._memory.append(memory)
        return memory

    def _place_constants(self, constants: Mapping[str, Array]) -> tuple[int, dict[str, Binding]]:
        align = self._driver.caps.alignment
        sizes = {n: _round(a.nbytes, align) for n, a in constants.items() if n not in self._aliases}
        places: dict[str, Binding] = {}
        for names in _chunks(sizes, self._driver.caps.max_allocation):
            memory, offset = self._allocate(sum(sizes[n] for n in names)), 0
            for name in names:
                array = constants[name]
                places[name] = Binding(memory, offset, array.nbytes)
                offset += sizes[name]
                if array.nbytes:
                    self._driver.upload(places[name], np.ascontiguousarray(array))
        return sum(sizes.values()), places

    def _place_arena(self, constants: set[str]) -> tuple[int, dict[str, Binding]]:
        """Inputs live from the start, outputs to the end, others from first write to last use."""
        last = len(self._steps)
        first_use: dict[str, int] = {self._root(n): -1 for n in self._graph.input_names}
        last_use: dict[str, int] = {self._root(n): -1 for n in self._graph.input_names}
        for k, step in enumerate(self._steps):
            for name in step.buffers:
                root = self._root(name)
                if root in constants:
                    continue
                first_use.setdefault(root, k)
                last_use[root] = k
        for name in self._graph.output_names:
            root = self._root(name)
            if root not in constants:
                first_use.setdefault(root, last)
                last_use[root] = last
        align = self._driver.caps.alignment
        intervals = [Interval(n, _round(self._bytes(n), align), first_use[n], last_use[n]) for n in first_use]
        places: dict[str, Binding] = {}
        arena = 0
        for offsets, total in _arenas(intervals, self._driver.caps.max_allocation):
            memory = self._allocate(total)
            places |= {n: Binding(memory, at, self._bytes(n)) for n, at in offsets.items()}
            arena += total
        return arena, places

    def _root(self, name: str) -> str:
        while name in self._aliases:
            name = self._aliases[name]
        return name

    def _bytes(self, name: str) -> int:
        t = self._types[name]
        return prod(_static(t)) * t.dtype.itemsize

    def _launch(self, step: Step, handle: Any, places: Mapping[str, Binding]) -> Launch:
        buffers = tuple(places[self._root(n)] for n in step.buffers)
        return Launch(handle, buffers, step.scalars, step.groups, step.library)

    # -- running --

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run on arrays; returns new arrays. One call at a time uses the device memory of a program."""
        return self.run_bound(inputs, [None] * len(self._graph.outputs))

    def run_into(self, inputs: Sequence[Any], outputs: Sequence[Array]) -> None:
        """Run and download into the caller's arrays."""
        self.run_bound(inputs, outputs)

    def run_bound(self, inputs: Sequence[Any], targets: Sequence[Any]) -> list[Any]:
        """Run with inputs and outputs on either side.

        Inputs are arrays, DeviceTensors, or what the device can adopt. Targets, one an output: None (a new array), an
        array or DeviceTensor to be filled, or ``...`` (not wanted: None in the results).
        """
        # A tensor of another driver is read in that one's turn: before ours, or two programs could wait for each other.
        ready = [v.numpy() if isinstance(v, DeviceTensor) and v.driver is not self._driver else v for v in inputs]
        with self._driver.turn:
            self._feed(ready)
            self._driver.submit(self._recording)
            return self._fetch(targets)

    def new_output(self, k: int) -> DeviceTensor:
        """Device memory for output *k*."""
        t = self._types[self._graph.output_names[k]]
        return DeviceTensor(self._driver, _static(t), t.dtype.numpy)

    def _feed(self, inputs: Sequence[Any]) -> None:
        foreign = False
        for name, value in zip(self._graph.input_names, inputs, strict=True):
            place_ = self._places.get(self._root(name))
            if place_ is None or not place_.size:
                continue
            source = None if isinstance(value, np.ndarray) else self._driver.adopt(value)
            if source is not None:
                self._driver.copy(source, place_)
                foreign = foreign or not isinstance(value, DeviceTensor)
            else:
                self._driver.upload(place_, to_host(value))
        if foreign:  # its owner may write to it as soon as we return
            self._driver.synchronize()

    def _fetch(self, targets: Sequence[Any]) -> list[Any]:
        results: list[Any] = []
        for name, target in zip(self._graph.output_names, targets, strict=True):
            t = self._types[name]
            into = np.empty(_static(t), t.dtype.numpy) if target is None else target
            results.append(None if target is ... else into)
            if target is ... or not into.nbytes:
                continue
            if isinstance(into, DeviceTensor):
                self._driver.copy(self._places[self._root(name)], into.binding)
            else:
                self._driver.download(self._places[self._root(name)], into)
        return results

    def time(self, inputs: Sequence[Any]) -> float:
        """Wall seconds of one run without transfers."""
        with self._driver.turn:
            self._feed(inputs)
            self._driver.synchronize()
            begin = time.perf_counter()
            self._driver.submit(self._recording)
            self._driver.synchronize()
            return time.perf_counter() - begin

    def profile(self, inputs: Sequence[Any]) -> list[tuple[str, str, str, float, float]]:
        """One run, launch by launch: (op, node, kernel, start seconds, duration seconds)."""
        with self._driver.turn:
            self._feed(inputs)
            found, at = [], 0.0
            for step, seconds in zip(self._steps, self._driver.time(self._recording), strict=True):
                found.append((step.node.op, step.node.label, step.kernel.name, at, seconds))
                at += seconds
            return found

    def describe(self) -> list[dict[str, Any]]:
        """One row per launch."""
        rows = []
        for step in self._steps:
            t = self._types.get(step.writes[0]) if step.writes else None
            shape = t.shape if isinstance(t, TensorType) else None
            rows.append({"op": step.node.op, "node": step.node.label, "algorithm": step.kernel.name, "shape": shape})
        return rows

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes by purpose."""
        return {"arena": self._arena, "weights": self._weights, "scratch": 0}

    def close(self) -> None:
        """Give the device memory back."""
        if self._closed:
            return
        self._closed = True
        recording, memory = self._recording, self._memory
        self._recording, self._memory = None, []
        if recording is not None or memory:
            self._driver.retire(partial(_discard, self._driver, recording, memory))

    def __del__(self) -> None:
        if not self.__dict__.get("_closed", True):
            self.close()


def _discard(driver: Driver, recording: Any, memory: Sequence[Any]) -> None:
    if recording is not None:
        driver.release(recording)
    for m in memory:
        driver.free(m)


def _static(t: TensorType) -> tuple[int, ...]:
    assert t.is_static
    return tuple(t.shape or ())  # type: ignore[arg-type]


def _round(size: int, align: int) -> int:
    return (size + align - 1) // align * align


def _chunks(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, in groups whose sizes sum up to *limit* at most (a larger one stays alone)."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def _arenas(intervals: Sequence[Interval], limit: int) -> list[tuple[Mapping[str, int], int]]:
    """Offsets and size of one arena, or of several where one would exceed *limit*."""
    offsets, total = place(intervals)
    if total <= limit or len(intervals) < 2:
        return [(offsets, total)]
    half = len(intervals) // 2
    return _arenas(intervals[:half], limit) + _arenas(intervals[half:], limit)


def _read(steps: Sequence[Step], graph: Graph) -> set[str]:
    return {n for s in steps for n in s.buffers} | set(graph.output_names)


def _compile(driver: Driver, steps: Sequence[Step]) -> list[Any]:
    """Handles in step order; kernels that are the same object are compiled once."""
    distinct = list({id(s.kernel): s.kernel for s in steps}.values())
    built = dict(zip(map(id, distinct), driver.compile(distinct), strict=True))
    return [built[id(s.kernel)] for s in steps]
