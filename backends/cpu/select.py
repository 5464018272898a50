"""Chooses an algorithm for every channels-last convolution: from records, by measuring, or by the kernels' own model.

What is measured is the real kernel on random data of the real shape, once per distinct layer; decisions are kept
on disk per machine and build. With ``precision="high"`` there is nothing to choose: direct algorithms only. With
``precision="low"`` products and convolutions carry that attribute: where the CPU has bf16 products and a kernel fits,
they round their operands to bf16; Winograd stays a candidate, as it may be faster in f32.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mnnpy.backends.cpu import _native
from mnnpy.graph.ir import Graph, Node, TensorType
from mnnpy.search.measure import measure
from mnnpy.search.records import Record, Records, cache_folder

__all__ = ["ALGORITHMS", "Tuner", "records", "select_algorithms"]

ALGORITHMS = ("direct", "winograd2", "winograd4")
LOW_ALGORITHMS = ("bf16", *ALGORITHMS)


@cache
def fingerprint() -> str:
    """The machine and the build that a decision holds for."""
    built = Path(_native.__file__).stat()
    return f"{_cpu_name()}; {','.join(_native.cpu_features())}; build {built.st_size}-{int(built.st_mtime)}"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def records() -> Records:
    """The records of this machine's CPU."""
    return Records(fingerprint(), cache_folder() / "cpu.jsonl")


@dataclass(slots=True)
class Tuner:
    """Budget and records of one compilation."""

    threads: int
    budget: float  #: seconds that may still be spent on measuring
    records: Records
    measured: int = 0
    cached: int = 0
    seen: dict[str, str] = field(default_factory=dict)

    def choose(self, node: Node, types: list[TensorType]) -> str | None:
        """The algorithm for *node*, or None to leave it to the kernels' own model."""
        key = self._key(node, types)
        found = self.seen.get(key)
        if found is not None:
            return found
        record = self.records.get(key)
        if record is not None:
            self.cached += 1
            self.seen[key] = record.decision
            return record.decision
        if self.budget <= 0:
            return None
        begin = time.perf_counter()
        runs = _candidates(node, types, self.threads)
        if len(runs) < 2:
            self.seen[key] = next(iter(runs), "direct")
            return self.seen[key]
        best, samples = measure(runs, self.budget / 4)
        self.budget -= time.perf_counter() - begin
        self.measured += 1
        self.records.add(Record(key, self.records.fingerprint, samples, best, "fastest measured"))
        self.seen[key] = best
        return best

    def _key(self, node: Node, types: list[TensorType]) -> str:
        attrs = {k: v for k, v in sorted(node.attrs.items()) if k != "algorithm"}
        shapes = [str(t) for t in types]
        return json.dumps([node.op, attrs, shapes, self.threads, _native.isa()], separators=(",", ":"))


def select_algorithms(graph: Graph, precision: str, tuner: Tuner | None) -> Graph:
    """*graph* with ``algorithm`` on convolutions where there is something to decide, and ``precision`` where low."""
    nodes = []
    for node in graph.nodes:
        if precision == "low" and node.op in ("MatMul", "Convolution"):
            node = node.replace(attrs={**node.attrs, "precision": "low"})
        if node.op == "Convolution" and node.attrs.get("layout") == "NHWC":
            algorithm = "direct" if precision == "high" else None
            if algorithm is None and tuner is not None and _has_choice(node, graph):
                algorithm = tuner.choose(node, _types(node, graph))
            if algorithm is not None:
                node = node.replace(attrs={**node.attrs, "algorithm": algorithm})
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes))


def _types(node: Node, graph: Graph) -> list[TensorType]:
    found = [graph.types[n] for n in (*node.inputs, *node.outputs) if n]
    return [t for t in found if isinstance(t, TensorType)]


def _has_choice(node: Node, graph: Graph) -> bool:
    """3×3 kernels of stride 1 without groups, with constant weights and enough channels to matter."""
    w = graph.constants.get(node.inputs[1])
    square = w is not None and w.shape[2:] == (3, 3) and w.shape[0] >= 8 and w.shape[1] >= 8
    plain = tuple(node.attrs["strides"]) == (1, 1) == tuple(node.attrs["dilations"])
    return square and plain and node.attrs.get("group", 1) == 1


def _candidates(node: Node, types: list[TensorType], threads: int) -> dict[str, Callable[[], float]]:
    """One timed call per algorithm that the native side accepts, on random operands."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(t.shape, dtype=np.float32) for t in types]  # type: ignore[arg-type]
    runs: dict[str, Callable[[], float]] = {}
    for algorithm in LOW_ALGORITHMS if node.attrs.get("precision") == "low" else ALGORITHMS:
        if algorithm == "direct" and "bf16" in runs:
            continue  # the same work at half the speed
        try:
            program, inputs = _single(node, algorithm, arrays, threads)
        except (ValueError, RuntimeError):
            continue  # declined: not a candidate for this layer
        runs[algorithm] = _timed(program, inputs, arrays[-1])
    return runs


def _single(node: Node, algorithm: str, arrays: list[Any], threads: int) -> tuple[Any, list[Any]]:
    """A program of this one node, and the arrays that it takes as inputs."""
    tensors: list[tuple[str, tuple[int, ...], str, Any]] = []
    index: list[int] = []
    inputs: list[Any] = []
    present = iter(arrays)
    for operand, name in enumerate(node.inputs):
        if not name:
            index.append(-1)
            continue
        array = next(present)
        index.append(len(tensors))
        if operand in (1, 2):  # weights and bias
            tensors.append(("f32", array.shape, "constant", array))
        else:
            tensors.append(("f32", array.shape, "input", len(inputs)))
            inputs.append(array)
    tensors.append(("f32", arrays[-1].shape, "output", 0))
    steps = [(node.op, "candidate", {**node.attrs, "algorithm": algorithm}, index, [len(tensors) - 1])]
    return _native.Program(tensors, steps, 0, threads), inputs


def _timed(program: Any, inputs: list[Any], output: Any) -> Callable[[], float]:
    def run() -> float:
        begin = time.perf_counter()
        program.run(inputs, [output])
        return time.perf_counter() - begin

    return run
