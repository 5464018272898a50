"""Reductions, scans, sorts, norms and scatters on the kernel devices, by one item per row and by work groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.kernels.driver import Caps
from mnnpy.decompose.registry import get_op
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array
from tests.emulation.interpreter import interpreted
from tests.unit.kernel_helpers import device, run_node

RNG = np.random.default_rng(11)
#: The OpenCL device as the CPU that it is, and taken for a GPU; a sample on Vulkan.
ON = ("opencl", "opencl-groups", "vulkan-groups")


@pytest.fixture(params=ON)
def on(request: pytest.FixtureRequest) -> KernelDevice:
    return device(request.param)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def check(on: KernelDevice, op: str, *inputs: Array, outputs: int = 1, tolerance: float = 2e-6, **attrs: Any) -> None:
    reference = get_op(op).reference
    assert reference is not None
    with np.errstate(invalid="ignore"):
        wanted = reference(*inputs, **attrs)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    got = run_node(on, op, *inputs, outputs=outputs, **attrs)
    for a, w in zip(got, wanted, strict=False):
        assert a.dtype == w.dtype
        assert a.shape == w.shape
        if w.dtype.kind == "f":
            scale = float(np.nanmax(np.abs(np.where(np.isfinite(w), w, 0)), initial=1.0))
            np.testing.assert_allclose(a, w, rtol=0, atol=tolerance * scale)
        else:
            np.testing.assert_array_equal(a, w)


@pytest.mark.parametrize("fn", ["Sum", "Mean", "Max", "L2"])
@pytest.mark.parametrize("axes", [(1,), (0, 2)])
def test_reduce(on: KernelDevice, fn: str, axes: tuple[int, ...]) -> None:
    check(on, "Reduce", normal(5, 300, 3), fn=fn, axes=axes, keepdims=False, tolerance=1e-5)


@pytest.mark.parametrize("length", [128, 129, 9600, 40000])
@pytest.mark.parametrize("fn", ["Sum", "Mean", "L1", "SumSquare"])
def test_long_sums_are_exact_enough(on: KernelDevice, fn: str, length: int) -> None:
    x = RNG.random((3, length), np.float32)  # one sign: added up one by one, 9600 of them are off by 7e-5
    check(on, "Reduce", x, fn=fn, axes=(1,), tolerance=2e-6)


def test_reduce_of_integers_and_bools(on: KernelDevice) -> None:
    x = RNG.integers(-50, 50, (7, 200)).astype(np.int8)
    check(on, "Reduce", x, fn="Sum", axes=(1,))
    check(on, "Reduce", x > 48, fn="Max", axes=(1,))


def test_reduce_propagates_nan(on: KernelDevice) -> None:
    x = normal(2, 500)
    x[0, 333] = np.nan
    check(on, "Reduce", x, fn="Min", axes=(1,))


@pytest.mark.parametrize("fn", ["Max", "Min"])
@pytest.mark.parametrize("last", [False, True])
def test_arg_reduce(on: KernelDevice, fn: str, last: bool) -> None:
    x = RNG.integers(0, 9, (4, 150)).astype(np.float32)  # full of ties; 150 leaves items of a group without elements
    check(on, "ArgReduce", x, fn=fn, axis=1, select_last=last)
    x[1, [70, 140]] = np.nan
    check(on, "ArgReduce", x, fn=fn, axis=1, select_last=last)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_prefix_scan(on: KernelDevice, exclusive: bool, reverse: bool) -> None:
    x = RNG.integers(-9, 9, (3, 515, 2)).astype(np.int32)
    check(on, "PrefixScan", x, fn="Sum", axis=1, exclusive=exclusive, reverse=reverse)
    check(on, "PrefixScan", normal(2, 129), fn="Sum", axis=1, exclusive=exclusive, reverse=reverse, tolerance=1e-5)


@pytest.mark.parametrize("length", [1, 2, 37, 300])
@pytest.mark.parametrize("descending", [False, True])
def test_sort(on: KernelDevice, length: int, descending: bool) -> None:
    x = RNG.integers(0, 20, (3, length, 2)).astype(np.float32)  # ties go by index
    x[1, length // 2] = np.nan
    check(on, "Sort", x, outputs=2, axis=1, k=min(length, 25), descending=descending)


def test_sort_of_long_lines(on: KernelDevice) -> None:
    check(on, "Sort", normal(2, 1500), outputs=2, axis=1, k=1500)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax(on: KernelDevice, op: str) -> None:
    x = normal(3, 200, 5) * 20
    for axis in (0, 1, -1):
        check(on, op, x, axis=axis)
    x[0, 3, 1], x[1, :, 2] = np.nan, -np.inf
    check(on, op, x, axis=1)
    half = (normal(4, 130) * 5).astype(np.float16)
    check(on, op, half, axis=1, tolerance=2e-3)


@pytest.mark.parametrize("shape", [(6, 40), (2, 3, 300)])
def test_layer_normalization(on: KernelDevice, shape: tuple[int, ...]) -> None:
    x = normal(*shape) + 30.0
    scale, shift = normal(*shape[1:]), normal(*shape[1:])
    check(on, "LayerNormalization", x, scale, shift, outputs=3, axis=1, tolerance=2e-5)
    check(on, "LayerNormalization", x, normal(shape[-1]), axis=-1, epsilon=1e-2, tolerance=2e-5)
    check(on, "RMSNormalization", x, normal(shape[-1]), axis=-1, tolerance=2e-5)


@pytest.mark.parametrize("fn", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("dtype", [DType.I32, DType.F32], ids=str)
def test_scatter_with_repeated_indices(on: KernelDevice, fn: str, dtype: DType) -> None:
    """Few updates go in order; 300 of them by atomics or last writers, where the result does not depend on order."""
    for many in (5, 300):
        data = RNG.integers(-5, 5, (7, 3)).astype(dtype.numpy)
        updates = RNG.integers(1, 3, (many, 3)).astype(dtype.numpy)
        if fn == "mul":
            updates[8:] = 1
        check(on, "Scatter", data, RNG.integers(-7, 7, many), updates, fn=fn)


def test_many_float_updates_are_added_by_atomics(on: KernelDevice) -> None:
    data, updates = np.zeros((10, 2), np.float32), RNG.random((5000, 2)).astype(np.float32)
    check(on, "Scatter", data, RNG.integers(0, 10, 5000), updates, fn="add", tolerance=1e-5)


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("length", [7, 16, 45])
def test_rows_by_vectors_interpreted(lanes: int, length: int) -> None:
    """No access out of bounds at the ends of rows and of tensors; more rows than items."""
    on = interpreted(Caps(frozenset({"storage8", "storage16"}), lanes=lanes, cpu_like=True))
    x = normal(35, length)
    for op in ("Softmax", "LogSoftmax"):
        check(on, op, x, axis=-1)
    check(on, "LayerNormalization", x, normal(length), normal(length), outputs=3, axis=-1, tolerance=1e-5)
    check(on, "RMSNormalization", x, normal(length), axis=-1, tolerance=1e-5)
    for fn in ("Sum", "Mean", "L1", "L2", "SumSquare"):
        check(on, "Reduce", x, fn=fn, axes=(1,), tolerance=1e-5)


@pytest.mark.parametrize("length", [16, 33, 2100, 40001])
def test_long_rows_of_softmax(on: KernelDevice, length: int) -> None:
    x = 3 * normal(3, length)
    x[1, length // 2] = np.nan
    x[2, 3:] = -np.inf
    check(on, "Softmax", x, axis=-1)
    check(on, "LogSoftmax", x[:2], axis=-1)
