"""The ``reference`` backend: claims every op and interprets it on NumPy. Slow on purpose, the oracle of all others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnnpy.backends.analytic import moved_bytes, node_flops
from mnnpy.backends.base import API_VERSION, Candidate, DeviceInfo, NodeView, Segment, Support
from mnnpy.backends.reference.interpreter import Interpreter
from mnnpy.decompose.registry import OpClass, get_op, has_op
from mnnpy.graph.ir import Array, TensorType

__all__ = ["ReferenceBackend", "ReferenceDevice", "ReferenceProgram"]


class ReferenceBackend:
    """Provider of two devices: ``numpy`` takes every op whole; ``atomic`` only atomic ops (a proof of rules)."""

    api_version = API_VERSION
    name = "reference"

    def devices(self) -> list[DeviceInfo]:
        facts = {"numpy": np.__version__}
        return [
            DeviceInfo(self.name, "numpy", 0, facts=facts),
            DeviceInfo(self.name, "atomic", 1, facts={**facts, "atomic_only": True}),
        ]

    def open(
        self, info: DeviceInfo, *, threads: int = 0, isa: str | None = None, atomic_only: bool | None = None
    ) -> ReferenceDevice:
        """Open a device; *threads* and *isa* are accepted and have no effect (NumPy has its own)."""
        if atomic_only is None:
            atomic_only = bool(info.facts.get("atomic_only", False))
        return ReferenceDevice(info, atomic_only)


class ReferenceDevice:
    """NumPy arrays are its buffers."""

    def __init__(self, info: DeviceInfo, atomic_only: bool = False) -> None:
        self.info = info
        self.atomic_only = atomic_only

    def supports(self, view: NodeView) -> Support:
        name = view.node.op
        if not has_op(name):
            return Support(False, f"op '{name}' is not known")
        op = get_op(name)
        if self.atomic_only and op.op_class is not OpClass.ATOMIC:
            return Support(False, f"'{name}' is {op.op_class.value}, this device takes atomic ops only")
        if op.reference is None:
            return Support(False, f"'{name}' has no reference")
        return Support(True)

    def candidates(self, view: NodeView) -> list[Candidate]:
        return [Candidate("numpy", node_flops(view), moved_bytes(view))]

    def compile(self, segment: Segment) -> ReferenceProgram:
        return ReferenceProgram(segment)

    def upload(self, array: Array) -> Array:
        return array

    def download(self, buffer: Any) -> Array:
        return np.asarray(buffer)

    def synchronize(self) -> None:
        return None


class ReferenceProgram:
    """An interpreted segment."""

    def __init__(self, segment: Segment) -> None:
        self._interpreter = Interpreter(segment.graph)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        graph = self._interpreter.graph
        foreign = {id(v) for v in (*inputs, *graph.constants.values())}
        results = []
        for value in self._interpreter.run(inputs):
            # NumPy hands out views: what leaves a program belongs to the caller alone.
            if isinstance(value, np.ndarray) and (value.base is not None or id(value) in foreign):
                value = value.copy()
            foreign.add(id(value))
            results.append(value)
        return results

    def time(self, inputs: Sequence[Any]) -> float:
        start = time.perf_counter()
        self._interpreter.run(inputs)
        return time.perf_counter() - start

    def profile(self, inputs: Sequence[Any]) -> list[tuple[str, str, str, float, float]]:
        trace: list[tuple[float, float]] = []
        self._interpreter.run(inputs, trace)
        steps = self._interpreter.program
        return [(s.node.op, s.node.label, "numpy", *t) for s, t in zip(steps, trace, strict=True)]

    def describe(self) -> list[dict[str, Any]]:
        types = self._interpreter.graph.types
        rows = []
        for step in self._interpreter.program:
            t = types.get(step.node.outputs[0]) if step.node.outputs else None
            shape = t.shape if isinstance(t, TensorType) else None
            rows.append({"op": step.node.op, "node": step.node.label, "algorithm": "numpy", "shape": shape})
        return rows

    @property
    def memory(self) -> Mapping[str, int]:
        """Intermediate arrays come and go with the interpreter, so only the constants are known in advance."""
        constants = self._interpreter.graph.constants.values()
        return {"arena": 0, "weights": sum(a.nbytes for a in constants), "scratch": 0}
