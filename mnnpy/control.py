"""Control flow at run time: If, Loop, Scan and SequenceMap over executables of their bodies.

The op's reference drives the iterations, here as in the interpreter; only what runs a body differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnnpy.decompose.registry import get_op
from mnnpy.errors import MnnpyError

if TYPE_CHECKING:
    from mnnpy.graph.ir import Graph, Node
    from mnnpy.runtime import Executable

__all__ = ["run_control"]


def run_control(node: Node | None, bodies: Mapping[str, Executable], given: Sequence[Any]) -> list[Any]:
    """Run one control-flow *node*; *given* holds its distinct inputs in order of first use."""
    assert node is not None
    values = dict(zip(dict.fromkeys(n for n in node.inputs if n), given, strict=True))
    args = [values[n] if n else None for n in node.inputs]
    drive = get_op(node.op).reference
    if drive is None:
        raise MnnpyError(f"node '{node.label}': control-flow op '{node.op}' has no reference to drive it")
    executables = {id(node.attrs[key]): body for key, body in bodies.items()}

    def run(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
        return executables[id(graph)].run([_contiguous(x) for x in inputs])

    try:
        return list(drive(run, *args, **node.attrs))
    except MnnpyError as error:
        raise type(error)(f"inside node '{node.label}' ({node.op}): {error}") from error


def _contiguous(x: Any) -> Any:
    return np.asarray(x, order="C") if isinstance(x, np.ndarray) else x
