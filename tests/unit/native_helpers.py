"""Runs one native kernel on arrays; shared by the tests of the native extension."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mnnpy.backends.cpu import _native
from mnnpy.decompose.registry import ops
from mnnpy.graph.dtypes import DType

Array = np.ndarray[Any, Any]

ISAS: list[str] = list(_native.available_isas())
THREADS = (1, 2, 7)


def oracle(op: str) -> Callable[..., Any]:
    """The NumPy reference of an op."""
    found = ops()[op].reference
    assert found is not None
    return found


def run_kernel(
    op: str,
    inputs: Sequence[Array | None],
    outputs: Sequence[tuple[tuple[int, ...], Any] | None],
    attrs: Mapping[str, Any] | None = None,
    *,
    constant: Sequence[int] = (),
    isa: str | None = None,
    threads: int = 1,
    program: list[Any] | None = None,
) -> list[Array]:
    """Results of one step. *outputs* are (shape, numpy dtype); inputs listed in *constant* are weights."""
    tensors: list[tuple[str, tuple[int, ...], str, Any]] = []
    arrays: list[Array] = []
    refs: list[int] = []
    for k, a in enumerate(inputs):
        if a is None:
            refs.append(-1)
            continue
        refs.append(len(tensors))
        if k in constant:
            tensors.append((str(DType.of(a.dtype)), a.shape, "constant", np.ascontiguousarray(a)))
        else:
            tensors.append((str(DType.of(a.dtype)), a.shape, "input", len(arrays)))
            arrays.append(np.ascontiguousarray(a))
    results: list[Array] = []
    out_refs: list[int] = []
    for spec in outputs:
        if spec is None:
            out_refs.append(-1)
            continue
        out_refs.append(len(tensors))
        tensors.append((str(DType.of(spec[1])), spec[0], "output", len(results)))
        results.append(np.full(spec[0], 77, spec[1]))
    made = _native.Program(tensors, [(op, "node", dict(attrs or {}), refs, out_refs)], 0, threads, isa)
    made.run(arrays, results)
    if program is not None:
        program.append(made)
    return results


def assert_close(got: Array, want: Array, tolerance: float = 2e-6) -> None:
    """Largest difference at most *tolerance* of the largest magnitude."""
    assert got.shape == want.shape
    if not want.size:
        return
    scale = max(1e-3, float(np.abs(want).max()))
    assert float(np.abs(got - want).max()) <= tolerance * scale
