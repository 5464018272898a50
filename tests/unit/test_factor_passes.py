"""What the passes that shrink products make of small models, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import mnnpy
from tests.models import MODELS, Feeds, Net


def rows(made: tuple[onnx.ModelProto, Feeds], **options: object) -> list[tuple[str, str]]:
    model, feeds = made
    session = mnnpy.Session(model, threads=1, **options)  # type: ignore[arg-type]
    session.run(None, feeds)
    return [(r["op"], r["shape"]) for r in session.explain().rows]


def test_dependent_columns_are_multiplied_once() -> None:
    found = rows(MODELS["attention_unit"]())
    assert ("Raster", "f32[1,20,16]") in found  # two of four operands are left to join
    assert ("Raster", "f32[1,20,32]") not in found
    assert ("MatMul", "f32[1,12]") in found
    assert ("MatMul", "f32[1,1,8]") in found  # the weighted sum
    assert "Reduce" not in {op for op, _ in found}


def test_strict_precision_keeps_the_concatenation() -> None:
    assert ("Raster", "f32[1,20,32]") in rows(MODELS["attention_unit"](), precision="high")


def test_differences_stay_where_their_operands_are_no_columns() -> None:
    n = Net(1)
    a, b, c = n.input(30, 8), n.input(30, 8), n.input(30, 8)
    y = n.op("Concat", n.op("Sub", a, b), n.op("Sub", b, a), c, axis=1)
    found = rows(n.finish(n.op("MatMul", y, n.w(24, 5))))
    assert ("Raster", "f32[30,24]") in found


def _one_hot(steps: np.ndarray, weights: np.ndarray) -> tuple[onnx.ModelProto, Feeds]:
    n = Net(2)
    x = n.op("Cast", n.op("Mul", n.input(3, 40), n.const(4.0)), to=TensorProto.INT64)
    hot = n.op("Cast", n.op("Equal", n.op("Unsqueeze", x, n.ints(2)), n.const(steps, np.int64)), to=TensorProto.FLOAT)
    return n.finish(n.op("MatMul", hot, n.const(weights)))


def test_one_hot_rows_are_gathered() -> None:
    model, feeds = _one_hot(np.arange(7), np.arange(35.0).reshape(7, 5))
    ops = {op for op, _ in rows((model, feeds))}
    assert "Gather" in ops
    assert "MatMul" not in ops
    [got] = mnnpy.Session(model).run(None, feeds)
    [want] = mnnpy.Session(model, "reference").run(None, feeds)
    np.testing.assert_array_equal(got, want)
    picked = np.trunc(next(iter(feeds.values())) * 4)
    assert picked.min() < 0  # rows of zeros on both sides are part of the test
    assert picked.max() > 6


@pytest.mark.parametrize(
    "change", [lambda s, w: (s[::-1], w), lambda s, w: (s + 1, w), lambda s, w: (s, np.where(w == 3, np.inf, w))]
)
def test_other_comparisons_stay_products(change: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    steps, weights = change(np.arange(7), np.arange(35.0).reshape(7, 5))
    assert "MatMul" in {op for op, _ in rows(_one_hot(steps, weights))}


def test_epilogues_reach_through_changes_of_shape() -> None:
    n = Net(3)
    y = n.op("Conv", n.input(2, 6, 30), n.w(10, 6, 3), pads=[1, 1])
    y = n.op("Conv", n.op("Unsqueeze", n.op("Relu", n.bn(y, 10)), n.ints(3)), n.w(12, 10, 5, 1), n.w(12))
    y = n.op("Sigmoid", n.op("Add", n.op("Squeeze", y, n.ints(3)), n.w(1, 12, 1)))
    found = rows(n.finish(n.op("ReduceMax", y, axes=[2], keepdims=1)))
    assert [op for op, _ in found] == ["Raster", "Convolution", "Convolution", "Reduce"]
