"""The kernel language: simplification, names, features, and what templates refuse."""

from __future__ import annotations

import pytest

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import const, eq, select
from mnnpy.backends.kernels.render_opencl import OpenCLRenderer
from mnnpy.backends.kernels.templates.elementwise import collapse
from mnnpy.graph.dtypes import DType


def test_integer_constants_are_folded() -> None:
    b = KernelBuilder("k")
    i = b.global_id()
    assert (i * 1 + 0) is i
    assert (i * 0).number == 0
    assert (const(7) % 4).number == 3
    assert (const(-7) // 2).number == -3  # truncated, as C does
    assert (eq(const(2), 2)).number is True
    assert select(const(True, DType.BOOL), i, 5) is i


def test_types_must_agree() -> None:
    b = KernelBuilder("k")
    with pytest.raises(TypeError, match="cast one of them"):
        b.global_id() + const(1.0, DType.F32)
    with pytest.raises(TypeError, match="no truth value"):
        bool(b.global_id() < 3)


def test_statements_land_in_their_blocks() -> None:
    b = KernelBuilder("k", (8, 1, 1))
    x, y = b.buffer("x", DType.F16), b.buffer("y", DType.BOOL, "w")
    total = b.mutable(const(0.0, DType.F32))
    with b.loop(0, b.scalar("n")) as k:
        b.assign(total, total + b.load(x, k))
    with b.when(total > 1.0):
        b.store(y, 0, total > 2.0)
    with b.otherwise():
        b.store(y, 0, False)
    kernel = b.build()
    assert kernel.features() == {"storage16", "storage8"}
    text = OpenCLRenderer(kernel).source()
    assert "vload_half" in text
    assert text.count("{") == text.count("}")
    assert "} else {" in text


def test_dims_that_step_alike_are_merged() -> None:
    assert collapse((2, 3, 4), [(2, 3, 4), (2, 3, 4)]) == ([24], [[1], [1]])
    assert collapse((2, 3, 4), [(2, 3, 4), (4,)]) == ([6, 4], [[4, 1], [0, 1]])
    assert collapse((2, 3, 4), [(2, 3, 4), (2, 1, 1)]) == ([2, 12], [[12, 1], [1, 0]])
    assert collapse((2, 1, 4), [(2, 1, 4), ()]) == ([8], [[1], [0]])
