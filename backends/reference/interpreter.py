"""Interprets a graph node by node on the NumPy references and forgets values after their last use."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnnpy.decompose.registry import OpDef, get_op
from mnnpy.errors import BackendError, MnnpyError
from mnnpy.graph.ir import Graph, Node

__all__ = ["Instruction", "Interpreter", "call_reference", "run_graph"]


def call_reference(op: OpDef, values: Sequence[Any], node: Node) -> tuple[Any, ...]:
    """All results of one node. Raises BackendError naming the node, its op and its operands."""
    if op.reference is None:
        raise BackendError(
            f"node '{node.label}': op '{op.name}' has no reference; add @reference({op.name!r}) to "
            f"mnnpy/backends/reference/kernels/{op.family}.py"
        )
    try:
        with np.errstate(all="ignore"):
            if op.reference_options.get("evaluate"):
                result = op.reference(run_graph, *values, **node.attrs)
            else:
                result = op.reference(*values, **node.attrs)
    except MnnpyError as error:
        if getattr(error, "located", False):
            raise
        located = type(error)(f"node '{node.label}' ({op.name}) with ({_show(values)}): {error}")
        located.located = True  # type: ignore[attr-defined]
        raise located from error
    except Exception as error:  # numpy rejects the values: say which node
        found = BackendError(
            f"node '{node.label}' ({op.name}) with ({_show(values)}): {type(error).__name__}: {error}; "
            "check the operands and attributes"
        )
        found.located = True  # type: ignore[attr-defined]
        raise found from error
    return result if isinstance(result, tuple) else (result,)


def _show(values: Sequence[Any]) -> str:
    return ", ".join(_show_one(v) for v in values)


def _show_one(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


@dataclass(frozen=True, slots=True)
class Instruction:
    """A node, its definition, and the values that nothing reads after it."""

    node: Node
    op: OpDef
    dead: tuple[str, ...]


class Interpreter:
    """A graph prepared for interpretation: op definitions looked up, last uses known. Stateless between runs."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        kept = set(graph.output_names)
        seen: set[str] = set(kept)
        program: list[Instruction] = []
        for node in reversed(graph.nodes):
            names = dict.fromkeys(n for n in (*node.inputs, *node.outputs) if n)
            dead = tuple(n for n in names if n not in seen)
            seen.update(names)
            program.append(Instruction(node, get_op(node.op), dead))
        self.program = tuple(reversed(program))

    def run(self, inputs: Sequence[Any], trace: list[tuple[float, float]] | None = None) -> list[Any]:
        """Results for *inputs* in order; *trace* receives (start, duration) in seconds of each instruction."""
        graph = self.graph
        if len(inputs) > len(graph.inputs):
            raise BackendError(f"graph '{graph.name}' takes {len(graph.inputs)} inputs, got {len(inputs)}")
        values: dict[str, Any] = dict(graph.constants)
        values.update(zip(graph.input_names, inputs, strict=False))
        for name in graph.input_names[len(inputs) :]:
            if name not in values:
                raise BackendError(f"graph '{graph.name}': input '{name}' is missing")
        begin = time.perf_counter()
        for step in self.program:
            start = time.perf_counter() if trace is not None else 0.0
            args = [values[n] if n else None for n in step.node.inputs]
            results = call_reference(step.op, args, step.node)
            self._store(step, results, values)
            if trace is not None:
                trace.append((start - begin, time.perf_counter() - start))
        return [values[n] for n in graph.output_names]

    @staticmethod
    def _store(step: Instruction, results: tuple[Any, ...], values: dict[str, Any]) -> None:
        for k, name in enumerate(step.node.outputs):
            if not name:
                continue
            if k >= len(results):
                raise BackendError(
                    f"node '{step.node.label}' ({step.op.name}) has {len(results)} outputs, "
                    f"{len(step.node.outputs)} are used"
                )
            value = results[k]
            values[name] = np.asarray(value) if isinstance(value, np.generic) else value
        for name in step.dead:
            values.pop(name, None)


#: Bodies of loops are prepared once, not once per iteration.
_PREPARED: OrderedDict[int, Interpreter] = OrderedDict()
_PREPARED_LIMIT = 64
_lock = threading.Lock()


def run_graph(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """Interpret *graph* on *inputs*: arrays, lists for sequences, ``None`` for empty optionals."""
    with _lock:
        prepared = _PREPARED.get(id(graph))
        if prepared is None or prepared.graph is not graph:
            prepared = _PREPARED[id(graph)] = Interpreter(graph)
            while len(_PREPARED) > _PREPARED_LIMIT:
                _PREPARED.popitem(last=False)
    return prepared.run(inputs)
