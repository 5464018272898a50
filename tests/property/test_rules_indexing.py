"""Rules of indexed reads and writes give what their NumPy references give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.decompose.builder import evaluate
from mnnpy.errors import BackendError
from tests.rule_check import check_rule, run_rule

_RNG = np.random.default_rng(11)
_SETTINGS = settings(max_examples=40, deadline=None)
_SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def _data(shape: tuple[int, ...]) -> Any:
    return _RNG.standard_normal(shape).astype(np.float32)


def _indices(size: int, shape: tuple[int, ...], dtype: Any = np.int64) -> Any:
    return _RNG.integers(-size, size, shape).astype(dtype)


@_SETTINGS
@given(_SHAPES, st.data())
def test_gather_elements(shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    at = axis % len(shape)
    want = tuple(data.draw(st.integers(0, 5)) if k == at else data.draw(st.integers(1, d)) for k, d in enumerate(shape))
    for dtype in (np.int64, np.int32):
        check_rule("GatherElements", [_data(shape), _indices(shape[at], want, dtype)], {"axis": axis})


@_SETTINGS
@given(_SHAPES, st.data())
def test_gather_nd(shape: tuple[int, ...], data: st.DataObject) -> None:
    batch = data.draw(st.integers(0, len(shape) - 1))
    width = data.draw(st.integers(1, len(shape) - batch))
    lead = (*shape[:batch], *data.draw(st.lists(st.integers(0, 3), max_size=2)))
    index = np.stack([_indices(n, lead) for n in shape[batch : batch + width]], -1)
    check_rule("GatherND", [_data(shape), index], {"batch_dims": batch})


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@_SETTINGS
@given(_SHAPES, st.data())
def test_scatter_elements(reduction: str, shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    at = axis % len(shape)
    want = tuple(data.draw(st.integers(1, d)) for d in shape)
    index = _indices(shape[at], want)  # repeated ones too: both sides take the updates in order
    check_rule("ScatterElements", [_data(shape), index, _data(want)], {"axis": axis, "reduction": reduction})


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@_SETTINGS
@given(_SHAPES, st.data())
def test_scatter_nd(reduction: str, shape: tuple[int, ...], data: st.DataObject) -> None:
    width = data.draw(st.integers(1, len(shape)))
    lead = tuple(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=2)))
    index = np.stack([_indices(n, lead) for n in shape[:width]], -1)
    updates = _data((*lead, *shape[width:]))
    check_rule("ScatterND", [_data(shape), index, updates], {"reduction": reduction})


def test_indices_out_of_range_raise() -> None:
    x = _data((2, 3))
    bad = np.array([[3, 0, 0]])
    for name, operands in [
        ("GatherElements", [x, bad]),
        ("GatherND", [x, np.array([[0, -4]])]),
        ("ScatterElements", [x, bad, _data((1, 3))]),
        ("ScatterND", [x, np.array([[2]]), _data((1, 3))]),
    ]:
        with pytest.raises(BackendError, match="out of range"):
            run_rule(name, operands)
        with pytest.raises(BackendError, match="out of range"):
            evaluate(name, operands, {})


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int) -> None:
    for index in (np.array([[0, 2, -1], [5, -3, 1]]), np.array([[0.0, 2.7, -1.0]]), np.array([[1]], np.uint8)):
        check_rule("OneHot", [index, np.array(3), np.array([2, 5], np.int8)], {"axis": axis}, const=(1,))
    check_rule("OneHot", [np.array(2), np.array([4.0]), np.array([0, 1], np.float32)], const=(1,))


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [-1, 0])
def test_top_k(largest: int, axis: int) -> None:
    for dtype in (np.float32, np.int64, np.uint8, np.float16):
        x = _RNG.integers(0, 6, (4, 7)).astype(dtype)
        for k in (0, 1, 3, x.shape[axis]):
            attrs = {"axis": axis, "largest": largest}
            check_rule("TopK", [x, np.array([k])], attrs, outputs=2, const=(1,), max_nodes=1)
    x = np.array([[2, 3, 3, 2, 3]], np.float32)
    values, index = evaluate("TopK", [x, np.array([4])], {"largest": largest})
    assert index.tolist() == ([[1, 2, 4, 0]] if largest else [[0, 3, 1, 2]])
    assert values.tolist() == ([[3, 3, 3, 2]] if largest else [[2, 2, 3, 3]])


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [-2, 1, 2])
def test_tensor_scatter(mode: str, axis: int) -> None:
    cache, at = _data((2, 5, 6, 3)), axis % 4
    update = _data(tuple(2 if k == at else d for k, d in enumerate(cache.shape)))
    starts = np.array([3, 1]) if mode == "linear" else np.array([4, 9])
    check_rule("TensorScatter", [cache, update, starts], {"axis": axis, "mode": mode})
    check_rule("TensorScatter", [cache, update], {"axis": axis, "mode": mode}, max_nodes=1)


def test_host_ops() -> None:
    x = np.array([[3, 1], [2, 2]], np.float32)
    assert evaluate("NonZero", [np.array([[0, 1], [1, 0]])], {})[0].tolist() == [[0, 1], [1, 0]]
    assert evaluate("Compress", [x, np.array([False, True])], {"axis": 1})[0].tolist() == [[1], [2]]
    assert evaluate("Compress", [x, np.array([False, True, True])], {})[0].tolist() == [1, 2]
    values, first, back, counts = evaluate("Unique", [x], {"sorted": 0})
    assert (values.tolist(), first.tolist(), back.tolist(), counts.tolist()) == (
        [3, 1, 2], [0, 1, 2], [0, 1, 2, 2], [1, 1, 2]
    )  # fmt: skip
    texts = np.array(["b", "a", "b"], object)
    assert evaluate("Unique", [texts], {})[0].tolist() == ["a", "b"]
