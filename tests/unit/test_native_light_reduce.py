"""Native reductions, scans, softmax and normalisation against the NumPy references."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from mnnpy.decompose.ops.atomic import REDUCE
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array
from tests.unit.native_ops import ISAS, native, oracle, run_op

pytestmark = pytest.mark.parametrize("isa", ISAS)

INTS = (DType.I8, DType.I16, DType.I32, DType.I64, DType.U8, DType.U32, DType.U64, DType.I4)
SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), ()), ((5,), (0,)), ((5,), ()), ((1000,), (0,)), ((3, 7), (0,)), ((3, 7), (1,)), ((3, 7), (0, 1)),
    ((0, 3), (0,)), ((0, 3), (1,)), ((3, 0, 2), (1,)), ((2, 3, 4, 5), (1, 3)), ((2, 3, 4, 5), (0, 2)),
    ((2, 3, 4, 5), (1, 2)), ((4, 300), (0,)), ((300, 4), (0,)), ((2, 49, 70), (1,)), ((2, 70, 49), (2,)),
    ((1, 3, 1, 5), (0, 2)), ((6, 2, 1, 129), (0, 3)), ((2, 2, 2, 2, 2, 2, 2, 2), (0, 2, 4, 6)),
]  # fmt: skip


def values(dtype: DType, shape: tuple[int, ...], seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    if dtype.is_float:
        return rng.standard_normal(shape).astype(np.float32).astype(dtype.numpy)
    low, high = (-8, 8) if dtype.is_signed else (0, 16)
    return rng.integers(low, high, shape).astype(np.int8).astype(dtype.numpy)


def reduced(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    return tuple(1 if k in axes else d for k, d in enumerate(shape) if keepdims or k not in axes)


@pytest.mark.parametrize("fn", REDUCE)
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.F16, DType.BF16, *INTS], ids=str)
def test_reduce(fn: str, dtype: DType, isa: str) -> None:
    for k, (shape, axes) in enumerate(SHAPES):
        keepdims = k % 2 == 0
        x = values(dtype, shape, k)
        count = int(np.prod([shape[a] for a in axes]))
        if count == 0 and fn == "Mean" and not dtype.is_float:
            continue
        with np.errstate(all="ignore"):
            want = oracle("Reduce")(x, fn=fn, axes=axes, keepdims=keepdims)
        attrs = {"fn": fn, "axes": list(axes), "keepdims": keepdims}
        (got,) = run_op("Reduce", attrs, [x], [(dtype, reduced(shape, axes, keepdims))], isa=isa, threads=2)
        if dtype.is_float:
            tolerance = {DType.F32: 1e-6, DType.F64: 1e-13, DType.F16: 2e-3}.get(dtype, 1e-2)
            g, w = got.astype(np.float64), np.asarray(want).astype(np.float64)
            # relative to the sum of magnitudes, where terms cancel
            size = float(np.abs(x.astype(np.float64)).sum()) / max(g.size, 1) if fn in ("Sum", "Mean") else 1.0
            np.testing.assert_allclose(
                g, w, rtol=tolerance, atol=tolerance * max(size, 1.0), err_msg=str((shape, axes))
            )
        else:
            assert np.array_equal(got, want), (shape, axes)


def test_bool_and_nan(isa: str) -> None:
    x = np.random.default_rng(2).integers(0, 2, (5, 40)).astype(bool)
    for fn, axis in itertools.product(("Max", "Min"), (0, 1)):
        attrs = {"fn": fn, "axes": [axis], "keepdims": 0}
        (got,) = run_op("Reduce", attrs, [x], [(DType.BOOL, (40,) if axis == 0 else (5,))], isa=isa)
        assert np.array_equal(got, x.max(axis) if fn == "Max" else x.min(axis))
    for at in (0, 3, 38, 39):
        y = np.ones((40, 3), np.float32)
        y[at, 1] = np.nan
        for fn in ("Max", "Min"):
            (columns,) = run_op("Reduce", {"fn": fn, "axes": [0], "keepdims": 0}, [y], [(DType.F32, (3,))], isa=isa)
            rows_in = np.ascontiguousarray(y.T)
            (rows,) = run_op("Reduce", {"fn": fn, "axes": [1], "keepdims": 0}, [rows_in], [(DType.F32, (3,))], isa=isa)
            assert np.array_equal(np.isnan(columns), [False, True, False])
            assert np.array_equal(np.isnan(rows), [False, True, False])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_large_sums_are_accurate(threads: int, isa: str) -> None:
    """Positive numbers, where one float32 accumulator would lose digits; few results, so that threads share one."""
    x = np.random.default_rng(4).random((1, 700_001)).astype(np.float32)
    (got,) = run_op(
        "Reduce", {"fn": "Sum", "axes": [0, 1], "keepdims": 0}, [x], [(DType.F32, ())], isa=isa, threads=threads
    )
    assert abs(float(got) / x.astype(np.float64).sum() - 1) < 2e-7
    y = x[0, :700_000].reshape(70_000, 10)
    (got,) = run_op(
        "Reduce", {"fn": "Mean", "axes": [0], "keepdims": 1}, [y], [(DType.F32, (1, 10))], isa=isa, threads=threads
    )
    np.testing.assert_allclose(got, y.astype(np.float64).mean(0, keepdims=True), rtol=2e-7)
    z = x[0, :688_128].reshape(8, 3, 28672)
    (got,) = run_op(
        "Reduce", {"fn": "SumSquare", "axes": [0, 2], "keepdims": 0}, [z], [(DType.F32, (3,))], isa=isa, threads=threads
    )
    np.testing.assert_allclose(got, np.square(z.astype(np.float64)).sum((0, 2)), rtol=2e-7)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.F16, DType.I64, DType.U8, DType.BOOL, DType.I4], ids=str)
def test_arg_reduce(dtype: DType, isa: str) -> None:
    for shape, axis in (((7,), 0), ((3, 50), 1), ((3, 50), 0), ((2, 5, 300), 1), ((2, 0, 4), 2), ((4, 1), 1)):
        x = values(dtype, shape) if dtype is not DType.BOOL else values(DType.U8, shape) > 8
        if dtype is DType.F32 and x.size > 60:
            x.reshape(-1)[[17, 40]] = np.nan
        for fn, last, keep in itertools.product(("Max", "Min"), (False, True), (False, True)):
            attrs: dict[str, Any] = {"fn": fn, "axis": axis, "keepdims": keep, "select_last": last}
            want = oracle("ArgReduce")(x, **attrs)
            (got,) = run_op("ArgReduce", attrs, [x], [(DType.I64, want.shape)], isa=isa, threads=2)
            assert np.array_equal(got, want), (shape, axis, attrs)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.BF16, DType.I8, DType.I64, DType.U16], ids=str)
def test_prefix_scan(dtype: DType, isa: str) -> None:
    for shape, axis in (((9,), 0), ((3, 50), 1), ((3, 50), 0), ((2, 5, 300), 1), ((2, 0, 4), 1)):
        x = values(dtype, shape)
        for fn, exclusive, reverse in itertools.product(("Sum", "Prod"), (False, True), (False, True)):
            attrs = {"fn": fn, "axis": axis, "exclusive": exclusive, "reverse": reverse}
            with np.errstate(all="ignore"):
                want = oracle("PrefixScan")(x, **attrs)
            (got,) = run_op("PrefixScan", attrs, [x], [(dtype, shape)], isa=isa, threads=2)
            g, w = (v.astype(np.float64) for v in (got, want))
            if dtype.is_float:
                np.testing.assert_allclose(g, w, rtol=1e-2 if dtype is DType.BF16 else 1e-6, atol=1e-6)
            else:
                assert np.array_equal(got, want)


def softmax(x: Array, axis: int, log: bool) -> Array:
    with np.errstate(all="ignore"):
        shifted = x - x.max(axis, keepdims=True)
        total = np.exp(shifted).sum(axis, keepdims=True)
        return np.asarray(shifted - np.log(total) if log else np.exp(shifted) / total)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.F16, DType.BF16], ids=str)
def test_softmax(op: str, dtype: DType, isa: str) -> None:
    for shape, axis in (
        ((5,), 0),
        ((3, 77), -1),
        ((3, 77), 0),
        ((2, 12, 256), 2),
        ((2, 12, 70), 1),
        ((4, 1), 1),
        ((2, 0), 1),
        ((0, 5), 1),
    ):
        x = (np.random.default_rng(1).standard_normal(shape) * 8).astype(np.float32).astype(dtype.numpy)
        if x.size > 100:
            x.reshape(-1)[3] = -np.inf
        (got,) = run_op(op, {"axis": axis}, [x], [(dtype, shape)], isa=isa, threads=2)
        if x.size == 0:
            continue
        wide = x.astype(np.float32).astype(np.float64) if dtype is not DType.F64 else x
        want = softmax(wide, axis, op == "LogSoftmax")
        tolerance = {DType.F32: 2e-6, DType.F64: 1e-13, DType.F16: 2e-3}.get(dtype, 1e-2)
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=tolerance, atol=tolerance)


def test_softmax_of_infinities(isa: str) -> None:
    x = np.full((2, 40), -np.inf, np.float32)
    x[1, 7] = np.inf
    (got,) = run_op("Softmax", {"axis": 1}, [x], [(DType.F32, x.shape)], isa=isa)
    assert np.isnan(got[0]).all()
    assert np.isnan(got[1, 7])


@pytest.mark.parametrize("n", [1, 3, 16, 77, 768, 1030])
def test_row_norms(n: int, isa: str) -> None:
    rng = np.random.default_rng(6)
    x, r = (rng.standard_normal((6, 5, n)).astype(np.float32) + 3 for _ in range(2))
    scale, bias = (rng.standard_normal(n).astype(np.float32) for _ in range(2))

    def layer(v: Array) -> Array:
        w = v.astype(np.float64)
        return np.asarray((w - w.mean(-1, keepdims=True)) / np.sqrt(w.var(-1, keepdims=True) + 1e-5))

    out = [(DType.F32, x.shape)]
    (got,) = run_op("LayerNormalization", {"axis": -1, "epsilon": 1e-5}, [x, scale, bias], out, isa=isa, threads=2)
    np.testing.assert_allclose(got, layer(x) * scale + bias, rtol=1e-5, atol=1e-5)
    (got,) = run_op("LayerNormalization", {"axis": 2}, [x, scale], out, isa=isa)
    np.testing.assert_allclose(got, layer(x) * scale, rtol=1e-5, atol=1e-5)
    (got,) = run_op("RMSNormalization", {"axis": -1, "epsilon": 1e-5}, [x, scale], out, isa=isa)
    w = x.astype(np.float64)
    np.testing.assert_allclose(
        got, w / np.sqrt(np.square(w).mean(-1, keepdims=True) + 1e-5) * scale, rtol=1e-5, atol=1e-5
    )
    got, total = run_op("AddLayerNormalization", {"axis": -1}, [x, r, scale, bias], out * 2, isa=isa)
    assert np.array_equal(total, x + r)
    np.testing.assert_allclose(got, layer(x + r) * scale + bias, rtol=1e-5, atol=1e-5)
    (got,) = run_op("AddLayerNormalization", {"axis": -1}, [x, r, scale, bias], out, isa=isa)
    np.testing.assert_allclose(got, layer(x + r) * scale + bias, rtol=1e-5, atol=1e-5)


def test_norm_over_several_axes(isa: str) -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    scale, bias = (rng.standard_normal((3, 4, 5)).astype(np.float32) for _ in range(2))
    (got,) = run_op("LayerNormalization", {"axis": 1}, [x, scale, bias], [(DType.F32, x.shape)], isa=isa)
    w = x.astype(np.float64).reshape(2, -1)
    want = ((w - w.mean(1, keepdims=True)) / np.sqrt(w.var(1, keepdims=True) + 1e-5)).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    types = [("f32", (4, 4)), ("f32", (4, 1))]
    ok, why = native.supports("LayerNormalization", {"axis": -1}, types, [("f32", (4, 4))], isa=isa)
    assert not ok, "a scale that varies by row is no row of factors"
    assert "normalised shape" in why


def test_channel_norms(isa: str) -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 6, 5, 7)).astype(np.float32)
    scale, bias = (rng.standard_normal(6).astype(np.float32) for _ in range(2))
    for op, groups in (("InstanceNormalization", 6), ("GroupNormalization", 3), ("GroupNormalization", 1)):
        attrs = {"num_groups": groups} if op == "GroupNormalization" else {}
        (got,) = run_op(op, attrs, [x, scale, bias], [(DType.F32, x.shape)], isa=isa, threads=2)
        w = x.astype(np.float64).reshape(2, groups, -1)
        want = ((w - w.mean(2, keepdims=True)) / np.sqrt(w.var(2, keepdims=True) + 1e-5)).reshape(x.shape)
        np.testing.assert_allclose(got, want * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1), rtol=1e-5, atol=1e-5)
