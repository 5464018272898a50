"""Runs single native kernels on arrays; shared by the kernel tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from mnnpy.decompose.registry import get_op
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

native = pytest.importorskip("mnnpy.backends.cpu._native")

ISAS: tuple[str, ...] = tuple(native.available_isas())


def oracle(op: str) -> Callable[..., Any]:
    """The NumPy reference of *op*."""
    reference = get_op(op).reference
    assert reference is not None
    return reference


def run_op(
    op: str,
    attrs: Mapping[str, Any],
    inputs: Sequence[Array],
    outputs: Sequence[tuple[DType, tuple[int, ...]]],
    *,
    isa: str | None = None,
    threads: int = 1,
    constants: Sequence[int] = (),
) -> list[Array]:
    """Outputs of one kernel; inputs whose index is in *constants* are known when it is built."""
    tensors: list[tuple[str, tuple[int, ...], str, Any]] = []
    fed: list[Array] = []
    for k, array in enumerate(inputs):
        dense = np.array(array, order="C")
        dtype = str(DType.of(dense.dtype))
        if k in constants:
            tensors.append((dtype, dense.shape, "constant", dense))
        else:
            tensors.append((dtype, dense.shape, "input", len(fed)))
            fed.append(dense)
    for k, (out_dtype, shape) in enumerate(outputs):
        tensors.append((str(out_dtype), tuple(shape), "output", k))
    ids = list(range(len(tensors)))
    step = (op, "test", dict(attrs), ids[: len(inputs)], ids[len(inputs) :])
    program = native.Program(tensors=tensors, steps=[step], arena_bytes=0, threads=threads, isa=isa)
    results = [np.empty(shape, d.numpy) for d, shape in outputs]
    program.run(fed, results)
    return results
