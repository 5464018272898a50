"""The atomic references against loops and NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.raster import Region, full_region
from mnnpy.errors import BackendError, ShapeError

_RNG = np.random.default_rng(5)


def _run(op: str, *values: Any, **attrs: Any) -> Any:
    (first, *_) = evaluate(op, values, attrs)
    return first


def _convolution(x: Any, w: Any, strides: Any, pads: Any, dilations: Any, group: int) -> Any:
    """Sum over every tap, one output element at a time."""
    k = len(strides)
    spatial, kernel = x.shape[2:], w.shape[2:]
    out = [
        (spatial[i] + pads[i] + pads[k + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(k)
    ]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    per_group = w.shape[0] // group
    for n, m, *place in np.ndindex(y.shape):
        for c, *tap in np.ndindex(w.shape[1:]):
            at = [place[i] * strides[i] - pads[i] + tap[i] * dilations[i] for i in range(k)]
            if all(0 <= a < s for a, s in zip(at, spatial, strict=True)):
                channel = m // per_group * w.shape[1] + c
                y[(n, m, *place)] += float(x[(n, channel, *at)]) * float(w[(m, c, *tap)])
    return y


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_convolution(rank: int, group: int) -> None:
    x = _RNG.standard_normal((2, 4, *(5, 4, 3, 3)[:rank])).astype(np.float32)
    w = _RNG.standard_normal((4, 4 // group, *(3, 2, 1, 2)[:rank])).astype(np.float32)
    attrs = {"strides": (2, 1, 1, 1)[:rank], "pads": (1, 0, 0, 1)[:rank] * 2, "dilations": (1, 2, 1, 1)[:rank]}
    want = _convolution(x, w, group=group, **attrs)
    np.testing.assert_allclose(_run("Convolution", x, w, None, group=group, **attrs), want, rtol=1e-5, atol=1e-5)
    bias = np.arange(4, dtype=np.float32)
    got = _run("Convolution", x, w, bias, group=group, **attrs)
    np.testing.assert_allclose(got, want + bias.reshape(1, 4, *[1] * rank), rtol=1e-5, atol=1e-5)


def test_convolution_of_half_rounds_once() -> None:
    x = np.ones((1, 64, 4, 4), ml_dtypes.bfloat16)
    w = np.ones((1, 64, 3, 3), ml_dtypes.bfloat16)
    got = _run("Convolution", x, w, None, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1))
    assert got.dtype == ml_dtypes.bfloat16
    assert (got.astype(np.float32) == 576).all()


@pytest.mark.parametrize("fn", ["Max", "Average", "Lp"])
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_pool(fn: str, include: bool, rank: int) -> None:
    x = _RNG.standard_normal((2, 3, *(5, 6, 4)[:rank])).astype(np.float32)
    kernel, strides, dilations = (3, 2, 2)[:rank], (2, 1, 3)[:rank], (1, 2, 1)[:rank]
    pads, out = (1, 0, 1)[:rank] * 2, (3, 4, 2)[:rank]
    got = _run(
        "Pool", x, fn=fn, kernel=kernel, strides=strides, pads=pads, dilations=dilations, out=out,
        count_include_pad=include, p=3,
    )  # fmt: skip
    for n, c, *place in np.ndindex(got.shape):
        inside, counted = [], 0
        for tap in itertools.product(*map(range, kernel)):
            at = [place[i] * strides[i] - pads[i] + tap[i] * dilations[i] for i in range(rank)]
            if all(0 <= a < s for a, s in zip(at, x.shape[2:], strict=True)):
                inside.append(float(x[(n, c, *at)]))
            counted += all(a < s + pads[rank + i] for i, (a, s) in enumerate(zip(at, x.shape[2:], strict=True)))
        want = {
            "Max": max(inside),
            "Average": sum(inside) / (counted if include else len(inside)),
            "Lp": sum(abs(v) ** 3 for v in inside) ** (1 / 3),
        }[fn]
        assert got[(n, c, *place)] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("column_major", [False, True])
def test_pool_indices(column_major: bool) -> None:
    x = _RNG.permutation(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(np.float32)
    values, where = evaluate(
        "Pool",
        [x],
        {
            "fn": "Max", "kernel": (2, 2), "strides": (1, 2), "pads": (0, 1, 0, 0), "dilations": (1, 1), "out": (3, 3),
            "indices": True, "column_major": column_major,
        },
    )  # fmt: skip
    flat = x.transpose(0, 1, 3, 2).reshape(-1) if column_major else x.reshape(-1)
    np.testing.assert_array_equal(flat[where], values)


def test_raster_checks_cover_and_bounds() -> None:
    x = np.arange(6, dtype=np.float32)
    with pytest.raises(ShapeError, match="no fill"):
        _run("Raster", x, regions=(Region(0, (3,), 0, (1,), 0, (1,)),), shape=(6,))
    with pytest.raises(ShapeError, match="source covers"):
        _run("Raster", x, regions=(Region(0, (3,), 4, (1,), 0, (1,)),), shape=(3,))
    with pytest.raises(ShapeError, match="destination covers"):
        _run("Raster", x, regions=(Region(0, (3,), 0, (1,), 2, (-2,)),), shape=(3,))
    assert _run("Raster", x, regions=(), shape=(2, 0)).shape == (2, 0)
    assert _run("Raster", x, regions=(full_region((6,)),), shape=(2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert _run("Raster", x, regions=(), shape=(2,), fill=7).tolist() == [7, 7]


def test_gather_and_scatter() -> None:
    x = np.arange(12).reshape(3, 4)
    assert _run("Gather", x, np.array([[-1, 0]]), axis=1).tolist() == [[[3, 0]], [[7, 4]], [[11, 8]]]
    with pytest.raises(BackendError, match="out of range"):
        _run("Gather", x, np.array([3]))
    rows, index = np.zeros((2, 1), np.int32), np.array([0, 0, -1])
    updates = np.array([[1], [2], [3]], np.int32)
    assert _run("Scatter", rows, index, updates).tolist() == [[2], [3]]
    assert _run("Scatter", rows, index, updates, fn="add").tolist() == [[3], [3]]
    assert _run("Scatter", rows + 5, index, updates, fn="min").tolist() == [[1], [3]]


@pytest.mark.parametrize("descending", [False, True])
def test_sort_is_stable_and_nan_is_largest(descending: bool) -> None:
    x = np.array([2, np.nan, 1, 2, np.inf, np.nan, 1], np.float32)
    values, index = evaluate("Sort", [x], {"axis": 0, "k": 7, "descending": descending})
    assert index.tolist() == ([1, 5, 4, 0, 3, 2, 6] if descending else [2, 6, 0, 3, 4, 1, 5])
    np.testing.assert_array_equal(values, x[index])


def test_integer_arithmetic() -> None:
    a, b = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    assert _run("Binary", a, b, fn="Div").tolist() == [3, -3, -3, 3]
    assert _run("Binary", a, b, fn="Mod").tolist() == [1, 1, -1, -1]
    assert _run("Binary", a, b, fn="Fmod").tolist() == [1, -1, 1, -1]
    assert _run("Reduce", np.array([[200, 100]], np.uint8), fn="Sum", axes=(1,)).tolist() == [[44]]
    assert _run("Reduce", np.array([[-3, 0]], np.int32), fn="Mean", axes=(1,)).tolist() == [[-1]]
    assert _run("Reduce", np.zeros((0, 2), np.int8), fn="Max", axes=(0,), keepdims=False).tolist() == [-128, -128]
    assert _run("Unary", np.array([2**62, -5], np.int64), fn="Clip", alpha=-3.0, beta=np.inf).tolist() == [2**62, -3]


def test_infinities_of_gates() -> None:
    x = np.array([-np.inf, np.inf], np.float32)
    for fn in ("Silu", "Gelu", "GeluTanh", "Mish"):
        assert _run("Unary", x, fn=fn).tolist() == [0, np.inf]
    assert _run("Unary", x, fn="Sigmoid").tolist() == [0, 1]
    assert _run("Unary", x, fn="Softplus").tolist() == [0, np.inf]
