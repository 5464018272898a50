"""Rules of reductions give what their NumPy references give, and those give the plain formulas."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.ops.reduce import LOG_REDUCTIONS, REDUCTIONS
from tests.rule_check import check_rule

_RNG = np.random.default_rng(3)
_SETTINGS = settings(max_examples=40, deadline=None)
_NAMES = sorted([*REDUCTIONS, *LOG_REDUCTIONS])


def _positive(*shape: int) -> Any:
    return (_RNG.random(shape) + 0.1).astype(np.float32)


@pytest.mark.parametrize("name", _NAMES)
@_SETTINGS
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_reductions(name: str, shape: list[int], data: st.DataObject) -> None:
    axes = data.draw(st.none() | st.lists(st.integers(0, len(shape) - 1), unique=True))
    if axes is not None:
        axes = [a - len(shape) if data.draw(st.booleans()) else a for a in axes]
    attrs = {"keepdims": data.draw(st.integers(0, 1)), "noop_with_empty_axes": data.draw(st.integers(0, 1))}
    operand = None if axes is None else np.array(axes, np.int64)
    check_rule(name, [_positive(*shape), operand], attrs, const=(1,))


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64, np.int8, np.uint8])
def test_integer_reductions(name: str, dtype: Any) -> None:
    x = _RNG.integers(0, 5, (3, 4)).astype(dtype)
    check_rule(name, [x, np.array([1])], const=(1,), max_nodes=1)


@pytest.mark.parametrize("name", ["ReduceMax", "ReduceMin"])
def test_extremes_of_bool_and_nothing(name: str) -> None:
    check_rule(name, [_RNG.random((3, 4)) > 0.5, np.array([1])], const=(1,), max_nodes=1)
    (got,) = evaluate(name, [np.zeros((2, 0), np.float32), np.array([1])], {})
    assert got.tolist() == [[-np.inf], [-np.inf]] if name == "ReduceMax" else [[np.inf], [np.inf]]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_types_round_once(dtype: Any) -> None:
    x = np.ones((1, 4096), dtype)
    for name in ("ReduceSum", "ReduceMean", "ReduceSumSquare"):
        check_rule(name, [x, np.array([1])], const=(1,), rtol=1e-3)
    check_rule("CumSum", [x, np.array(1)], const=(1,), rtol=1e-3)
    check_rule("Softmax", [x], rtol=1e-2)


def test_log_sum_exp_of_extremes() -> None:
    x = np.array([[1000, 1000], [-1000, -1000], [-np.inf, -np.inf], [np.inf, 1], [-np.inf, 0]], np.float32)
    check_rule("ReduceLogSumExp", [x, np.array([1])], {"keepdims": 0}, const=(1,))
    (got,) = evaluate("ReduceLogSumExp", [x, np.array([1])], {"keepdims": 0})
    np.testing.assert_allclose(got, [1000.6931, -999.30685, -np.inf, np.inf, 0], rtol=1e-6)


@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg(name: str, last: int, keepdims: int) -> None:
    for dtype in (np.float32, np.float16, np.int8, np.uint8):
        x = _RNG.integers(0, 3, (3, 5, 4)).astype(dtype)
        for axis in (-1, 0, 1):
            attrs = {"axis": axis, "keepdims": keepdims, "select_last_index": last}
            check_rule(name, [x], attrs, max_nodes=1)


@pytest.mark.parametrize("name", ["CumSum", "CumProd"])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running(name: str, exclusive: int, reverse: int) -> None:
    x = (_RNG.random((3, 4, 2)) + 0.5).astype(np.float32)
    attrs = {"exclusive": exclusive, "reverse": reverse}
    for axis in (-1, 0, 1):
        check_rule(name, [x, np.array(axis)], attrs, const=(1,), max_nodes=1)
        check_rule(name, [x.astype(np.int64), np.array([axis])], attrs, const=(1,), max_nodes=1)
    check_rule(name, [x[:, :0], np.array(1)], attrs, const=(1,))
    (got,) = evaluate(name, [x, np.array(1)], attrs)
    step = np.cumsum if name == "CumSum" else np.cumprod
    plain = np.flip(step(np.flip(x, 1), 1), 1) if reverse else step(x, 1)
    if exclusive:
        undo = plain - x if name == "CumSum" else plain / x
        plain = undo
    np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax(name: str, axis: int) -> None:
    x = (_RNG.standard_normal((3, 4, 5)) * 50).astype(np.float32)
    check_rule(name, [x], {"axis": axis}, max_nodes=6)
    check_rule(name, [x[:, :0]], {"axis": axis})
    check_rule(name, [x.astype(np.float64)], {"axis": axis})


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_det(n: int) -> None:
    x = _RNG.standard_normal((2, 3, n, n))
    check_rule("Det", [x], rtol=1e-9)
    singular = np.zeros((n, n), np.float32)
    check_rule("Det", [singular])
    swap = np.eye(n, dtype=np.float32)[::-1].copy()
    check_rule("Det", [swap])
