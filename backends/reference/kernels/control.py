"""References of If, Loop, Scan and SequenceMap (ONNX operator specification); *run* evaluates a sub-graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mnnpy.decompose.infer import Operand
from mnnpy.decompose.ops.control import empty_scan_outputs
from mnnpy.decompose.registry import reference
from mnnpy.errors import InputError, ShapeError
from mnnpy.graph.ir import Array, Graph, TensorType, tensor_type_of

Run = Callable[[Graph, Sequence[Any]], list[Any]]


def truth(value: Any, what: str = "the condition") -> bool:
    """A one-element boolean tensor as a bool."""
    array = np.asarray(value)
    if array.size != 1:
        raise ShapeError(f"{what} has {array.size} elements, not 1")
    return bool(array.reshape(-1)[0])


@reference("If", evaluate=True)
def if_(run: Run, cond: Array, *captures: Any, then_branch: Graph, else_branch: Graph) -> tuple[Any, ...]:
    return tuple(run(then_branch if truth(cond) else else_branch, captures))


@reference("Loop", evaluate=True)
def loop(
    run: Run, trip_count: Array | None = None, cond: Array | None = None, *values: Any, body: Graph, captures: int = 0
) -> tuple[Any, ...]:
    n_carried = len(values) - captures
    carried, captured = list(values[:n_carried]), values[n_carried:]
    trips = None if trip_count is None else int(np.asarray(trip_count).reshape(-1)[0])
    going = cond is None or truth(cond)
    rows: list[list[Any]] = [[] for _ in body.outputs[1 + n_carried :]]
    step = 0
    while going and (trips is None or step < trips):
        condition, *results = run(body, [np.asarray(step, np.int64), np.asarray(True), *carried, *captured])
        carried = results[:n_carried]
        for row, value in zip(rows, results[n_carried:], strict=True):
            row.append(value)
        # Without a first condition the body's one is ignored (ONNX Loop: input ("", "") and (trip_count, "")).
        going = cond is None or truth(condition, "the body's condition")
        step += 1
    if step == 0 and rows:
        lead = [Operand(tensor_type_of(np.asarray(0, np.int64))), Operand(tensor_type_of(np.asarray(True)))]
        return (*carried, *empty_scan_outputs(body, [*lead, *map(_operand, values)], 1 + n_carried, [0] * len(rows)))
    return (*carried, *(_stack(row, 0) for row in rows))


def _operand(value: Any) -> Operand | None:
    return Operand(tensor_type_of(value)) if isinstance(value, np.ndarray) else None


def _stack(row: list[Any], axis: int) -> Array:
    shapes = {np.shape(v) for v in row}
    if len(shapes) > 1:
        raise InputError(f"a scan output changes its shape between iterations: {', '.join(map(str, sorted(shapes)))}")
    return np.stack(row, axis)


@reference("Scan", evaluate=True)
def scan(
    run: Run,
    *values: Any,
    body: Graph,
    num_scan_inputs: int,
    captures: int = 0,
    scan_input_axes: tuple[int, ...] | None = None,
    scan_input_directions: tuple[int, ...] | None = None,
    scan_output_axes: tuple[int, ...] | None = None,
    scan_output_directions: tuple[int, ...] | None = None,
) -> tuple[Any, ...]:
    end = len(values) - captures
    n_states = end - num_scan_inputs
    states, captured = list(values[:n_states]), values[end:]
    n_scans = len(body.outputs) - n_states
    in_axes = scan_input_axes or (0,) * num_scan_inputs
    backwards = scan_input_directions or (0,) * num_scan_inputs
    out_axes = scan_output_axes or (0,) * n_scans
    prepend = scan_output_directions or (0,) * n_scans
    moved = [np.moveaxis(x, a, 0) for x, a in zip(values[n_states:end], in_axes, strict=True)]
    slices = [m[::-1] if b else m for m, b in zip(moved, backwards, strict=True)]
    if len({len(s) for s in slices}) != 1:
        raise InputError(f"scan inputs have different lengths {[len(s) for s in slices]}")
    rows: list[list[Any]] = [[] for _ in range(n_scans)]
    for items in zip(*slices, strict=True):
        results = run(body, [*states, *map(np.asarray, items), *captured])
        states = results[:n_states]
        for row, value in zip(rows, results[n_states:], strict=True):
            row.append(value)
    if not len(slices[0]):
        parts = [Operand(TensorType(tensor_type_of(s).dtype, s.shape[1:])) for s in slices]
        operands = [*map(_operand, values[:n_states]), *parts, *map(_operand, captured)]
        return (*states, *empty_scan_outputs(body, operands, n_states, out_axes))
    return (*states, *(_stack(r[::-1] if p else r, a) for r, p, a in zip(rows, prepend, out_axes, strict=True)))


@reference("SequenceMap", evaluate=True)
def sequence_map(
    run: Run, input_sequence: list[Any], *additional: Any, body: Graph, captures: int = 0
) -> tuple[Any, ...]:
    end = len(additional) - captures
    rows: list[list[Any]] = [[] for _ in body.outputs]
    for k, item in enumerate(input_sequence):
        extra = []
        for x in additional[:end]:
            if isinstance(x, list) and len(x) != len(input_sequence):
                raise InputError(f"sequences have {len(input_sequence)} and {len(x)} elements")
            extra.append(x[k] if isinstance(x, list) else x)
        for row, value in zip(rows, run(body, [item, *extra, *additional[end:]]), strict=True):
            row.append(value)
    return tuple(rows)
