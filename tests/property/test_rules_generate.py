"""Generated tensors: rules against references, references against NumPy and against their distributions."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mnnpy.backends.reference.kernels.numeric import philox
from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.infer import Operand, infer
from mnnpy.errors import ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType
from tests.rule_check import check_rule


@pytest.mark.parametrize(
    ("start", "limit", "delta"), [(3, 9, 3), (10, 4, -2), (0, 0, 1), (5, 1, 1), (0, 7, 3), (-2, -9, -4)]
)
@pytest.mark.parametrize(
    "dtype", [np.int16, np.int32, np.int64, np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
)
def test_range(start: int, limit: int, delta: int, dtype: Any) -> None:
    operands = [np.array(v).astype(dtype) for v in (start, limit, delta)]
    check_rule("Range", operands, const=(0, 1, 2), max_nodes=0)
    (got,) = evaluate("Range", operands, {})
    assert got.astype(np.int64).tolist() == list(range(start, limit, delta))


def test_range_of_zero_steps() -> None:
    scalar = Operand(TensorType(DType.I64, ()), np.array(0))
    with pytest.raises(ShapeError, match="step of a range is 0"):
        infer("Range", [scalar, scalar, scalar], {}, 1)


@pytest.mark.parametrize("k", [-4, -1, 0, 2, 9])
def test_eye_and_fill(k: int) -> None:
    for shape in [(3, 5), (5, 3), (0, 2)]:
        check_rule("EyeLike", [np.zeros(shape, np.int32)], {"k": k}, max_nodes=1)
        check_rule("EyeLike", [np.zeros(shape, np.int32)], {"k": k, "dtype": DType.BF16}, max_nodes=1)
    for value in (None, np.array([7], np.int8), np.array([True])):
        check_rule("ConstantOfShape", [np.array([2, 0, 3])], {"value": value}, const=(0,), max_nodes=1)
        check_rule("ConstantOfShape", [np.array([2, 3])], {"value": value}, const=(0,), max_nodes=1)
    check_rule("ConstantOfShape", [np.array([], np.int64)], {}, const=(0,))


@pytest.mark.parametrize("name", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
def test_windows(name: str, periodic: int) -> None:
    for n in (0, 1, 2, 10):
        check_rule(name, [np.array(n)], {"periodic": periodic}, const=(0,), max_nodes=0)
    (got,) = evaluate(name, [np.array(12)], {"periodic": periodic, "output_datatype": DType.F64})
    assert got.dtype == np.float64
    if name != "HammingWindow":  # ONNX fixes other Hamming coefficients than NumPy
        numpy_window = np.hanning if name == "HannWindow" else np.blackman
        np.testing.assert_allclose(got, numpy_window(12 + periodic)[:12], atol=1e-12)


def test_philox_known_answers() -> None:
    # Published test vectors of Philox-4x32-10: all-zero counter and key.
    assert [hex(w) for w in philox(4, 0)] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    assert philox(0, 5).size == 0
    assert (philox(7, 9) == philox(8, 9)[:7]).all()


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.F16, DType.BF16])
def test_random_numbers(dtype: DType) -> None:
    shape = (40, 501)
    uniform = {"shape": shape, "dtype": dtype, "low": -1.0, "high": 3.0, "seed": 4.0}
    check_rule("RandomUniform", [], uniform, max_nodes=1)
    (u,) = evaluate("RandomUniform", [], uniform)
    v = u.astype(np.float64)
    assert v.min() >= -1
    assert v.max() < 3
    assert abs(v.mean() - 1) < 0.05
    assert abs(v.std() - 4 / 12**0.5) < 0.05
    normal = {"shape": shape, "dtype": dtype, "mean": 2.0, "scale": 0.5, "seed": 4.0}
    check_rule("RandomNormal", [], normal, max_nodes=1)
    (n,) = evaluate("RandomNormal", [], normal)
    w = n.astype(np.float64)
    assert abs(w.mean() - 2) < 0.02
    assert abs(w.std() - 0.5) < 0.02
    like = np.zeros((3, 5), dtype.numpy)
    for name in ("RandomUniformLike", "RandomNormalLike"):
        check_rule(name, [like], {"seed": 1.5}, max_nodes=1)
        check_rule(name, [like], {"seed": 1.5, "dtype": DType.F64}, max_nodes=1)


def test_streams_differ_without_a_seed() -> None:
    a, b = (evaluate("RandomUniform", [], {"shape": (8,)})[0] for _ in range(2))
    assert (a != b).any()
    c, d = (evaluate("RandomUniform", [], {"shape": (8,), "seed": s})[0] for s in (1.0, 1.0))
    assert (c == d).all()


def test_bernoulli() -> None:
    p = np.linspace(0, 1, 20000, dtype=np.float32)
    check_rule("Bernoulli", [p], {"seed": 2.0})
    check_rule("Bernoulli", [p], {"seed": 2.0, "dtype": DType.BOOL})
    (got,) = evaluate("Bernoulli", [p], {"seed": 2.0, "dtype": DType.I32})
    assert abs(got[:10000].mean() - 0.25) < 0.02
    assert abs(got[10000:].mean() - 0.75) < 0.02


def test_multinomial() -> None:
    p = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])
    logits = np.log(p + 1e-30).astype(np.float32)
    attrs = {"seed": 6.0, "sample_size": 20000}
    check_rule("Multinomial", [logits], attrs)
    check_rule("Multinomial", [logits], {**attrs, "dtype": DType.I64})
    (got,) = evaluate("Multinomial", [logits], attrs)
    assert got.dtype == np.int32
    for row, want in zip(got, p, strict=True):
        np.testing.assert_allclose(np.bincount(row, minlength=3) / 20000, want, atol=0.015)
    check_rule("Multinomial", [np.zeros((2, 1), np.float32)], {"seed": 1.0, "sample_size": 4})
