"""Control flow at run time: If, Loop, Scan and SequenceMap over executables of their bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnnpy.errors import InputError, MnnpyError

if TYPE_CHECKING:
    from mnnpy.graph.ir import Node
    from mnnpy.runtime import Executable

__all__ = ["run_control"]


def run_control(node: Node | None, bodies: Mapping[str, Executable], given: Sequence[Any]) -> list[Any]:
    """Run one control-flow *node*; *given* holds its distinct inputs in order of first use."""
    assert node is not None
    values = dict(zip(dict.fromkeys(n for n in node.inputs if n), given, strict=True))
    args = [values[n] if n else None for n in node.inputs]
    runner = _RUNNERS.get(node.op)
    if runner is None:
        raise MnnpyError(f"node '{node.label}': control-flow op '{node.op}' has no runner")
    try:
        return runner(node, bodies, args)
    except MnnpyError as error:
        raise type(error)(f"inside node '{node.label}' ({node.op}): {error}") from error


def _truth(value: Any, what: str) -> bool:
    array = np.asarray(value)
    if array.size != 1:
        raise InputError(f"{what} has {array.size} elements, not 1")
    return bool(array.reshape(-1)[0])


def _if(node: Node, bodies: Mapping[str, Executable], args: list[Any]) -> list[Any]:
    branch = "then_branch" if _truth(args[0], "the condition") else "else_branch"
    return bodies[branch].run(args[1:])


def _loop(node: Node, bodies: Mapping[str, Executable], args: list[Any]) -> list[Any]:
    body = bodies["body"]
    captured = node.attrs.get("captures", 0)
    end = len(args) - captured
    trip = None if args[0] is None else int(np.asarray(args[0]).reshape(-1)[0])
    going = True if args[1] is None else _truth(args[1], "the condition")
    carried, captures = list(args[2:end]), args[end:]
    n_scans = len(body.graph.outputs) - 1 - len(carried)
    scans: list[list[Any]] = [[] for _ in range(n_scans)]
    step = 0
    while going and (trip is None or step < trip):
        condition, *results = body.run([np.asarray(step, np.int64), np.asarray(True), *carried, *captures])
        going = args[1] is None or _truth(condition, "the body's condition")  # ONNX Loop, table of modes
        carried = results[: len(carried)]
        for scan, value in zip(scans, results[len(carried) :], strict=True):
            scan.append(value)
        step += 1
    return [*carried, *(_stack(s, body, 1 + len(carried) + k) for k, s in enumerate(scans))]


def _stack(items: list[Any], body: Executable, output: int, axis: int = 0) -> Any:
    if items:
        return np.stack(items, axis)
    from mnnpy.graph.ir import TensorType

    declared = body.graph.outputs[output].type
    if not isinstance(declared, TensorType):
        declared = next(
            (t for t in (body.graph.types.get(body.graph.output_names[output]),) if isinstance(t, TensorType)), None
        )
    if declared is None:
        return np.zeros((0,), np.float32)
    shape = tuple(d if isinstance(d, int) else 0 for d in declared.shape or ())
    return np.zeros((0, *shape), declared.dtype.numpy)


def _scan(node: Node, bodies: Mapping[str, Executable], args: list[Any]) -> list[Any]:
    body, attrs = bodies["body"], node.attrs
    captured = attrs.get("captures", 0)
    end = len(args) - captured
    n_inputs = attrs["num_scan_inputs"]
    n_states = end - n_inputs
    states, inputs, captures = list(args[:n_states]), args[n_states:end], args[end:]
    n_outputs = len(body.graph.outputs) - n_states
    in_axes = attrs.get("scan_input_axes") or (0,) * n_inputs
    in_reversed = attrs.get("scan_input_directions") or (0,) * n_inputs
    out_axes = attrs.get("scan_output_axes") or (0,) * n_outputs
    out_reversed = attrs.get("scan_output_directions") or (0,) * n_outputs
    rows = []
    for x, axis, backwards in zip(inputs, in_axes, in_reversed, strict=True):
        moved = np.moveaxis(x, axis, 0)
        rows.append(moved[::-1] if backwards else moved)
    lengths = {len(r) for r in rows}
    if len(lengths) > 1:
        raise InputError(f"scan inputs have different lengths {sorted(lengths)}")
    scans: list[list[Any]] = [[] for _ in range(n_outputs)]
    for k in range(lengths.pop() if lengths else 0):
        results = body.run([*states, *(np.asarray(r[k], order="C") for r in rows), *captures])
        states = results[:n_states]
        for scan, value in zip(scans, results[n_states:], strict=True):
            scan.append(value)
    outputs = []
    for k, scan in enumerate(scans):
        outputs.append(_stack(scan[::-1] if out_reversed[k] else scan, body, n_states + k, out_axes[k]))
    return [*states, *outputs]


def _sequence_map(node: Node, bodies: Mapping[str, Executable], args: list[Any]) -> list[Any]:
    body = bodies["body"]
    captured = node.attrs.get("captures", 0)
    end = len(args) - captured
    sequence, extra, captures = args[0], args[1:end], args[end:]
    results: list[list[Any]] = [[] for _ in body.graph.outputs]
    for k, item in enumerate(sequence):
        more = [x[k] if isinstance(x, list) else x for x in extra]
        for collected, value in zip(results, body.run([item, *more, *captures]), strict=True):
            collected.append(value)
    return list(results)


_RUNNERS = {"If": _if, "Loop": _loop, "Scan": _scan, "SequenceMap": _sequence_map}
