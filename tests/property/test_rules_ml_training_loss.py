"""Rules of the numeric ops of ai.onnx.ml, of optimiser steps and of losses, against their references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.infer import infer, operand_of
from mnnpy.errors import MnnpyError, ShapeError, UnsupportedOpError
from tests.rule_check import check_rule

DTYPES = [np.float32, np.float64, np.int64, np.int32]


def matrix(dtype: Any, shape: tuple[int, ...] = (4, 3)) -> Any:
    return np.random.default_rng(0).normal(scale=3, size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ml_rules(dtype: Any) -> None:
    x = matrix(dtype)
    x[1] = 0
    check_rule("ml.Binarizer", [x], {"threshold": 0.5})
    check_rule("ml.Binarizer", [x], {"threshold": -0.5})
    check_rule("ml.Scaler", [x], {"offset": (1.0, 2.0, 3.0), "scale": (0.5, 0.25, 2.0)})
    check_rule("ml.Scaler", [x], {"scale": (2.0,)})
    for norm in ("MAX", "L1", "L2"):
        check_rule("ml.Normalizer", [x], {"norm": norm})
    linear = {"coefficients": tuple(np.arange(6) / 8), "intercepts": (1.0, 2.0), "targets": 2}
    for post in ("NONE", "LOGISTIC", "SOFTMAX"):
        check_rule("ml.LinearRegressor", [x], linear | {"post_transform": post}, rtol=1e-4)
    check_rule("ml.ArrayFeatureExtractor", [x, np.asarray([[2, 0]])])
    check_rule("ml.ArrayFeatureExtractor", [x[0], np.asarray([1])])
    check_rule("ml.FeatureVectorizer", [x, x[:, :1]], {"inputdimensions": (2, 3)})
    check_rule("ml.FeatureVectorizer", [x, x])


def test_imputer() -> None:
    x = matrix(np.float32)
    x[0, 0] = np.nan
    check_rule("ml.Imputer", [x], {"imputed_value_floats": (1.0, 2.0, 3.0), "replaced_value_float": float("nan")})
    check_rule("ml.Imputer", [matrix(np.int64)], {"imputed_value_int64s": (7,), "replaced_value_int64": 1})


@pytest.mark.parametrize("t", [0, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", [0.0, 0.01])
def test_optimisers(t: int, dtype: Any, norm: float) -> None:
    rate, step = np.asarray(0.1, dtype), np.asarray(t)
    a = [abs(matrix(dtype, s)) for s in ((2, 2), (3,)) * 4]
    tolerance = 1e-5 if dtype is np.float32 else 1e-12
    same = {"norm_coefficient": norm}
    common: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
    check_rule("training.Adagrad", [rate, step, *a[:6]], {**same, "decay_factor": 0.1}, outputs=4, **common)
    check_rule(
        "training.Adam", [rate, step, *a], {**same, "norm_coefficient_post": 0.1}, outputs=6, rtol=1e-4, atol=1e-4
    )
    for mode in ("standard", "nesterov"):
        attrs = {**same, "alpha": 0.9, "beta": 0.5, "mode": mode}
        check_rule("training.Momentum", [rate, step, *a[:6]], attrs, outputs=4, **common)


def test_optimiser_errors() -> None:
    xs = [operand_of(np.float32(0.1)), operand_of(np.asarray(0)), operand_of(np.zeros(3, np.float32))]
    with pytest.raises(ShapeError, match="1 tensors do not divide into 4 lists"):
        infer("training.Adam", xs, {}, 1)


def test_gradient_says_why_it_does_not_run() -> None:
    with pytest.raises(UnsupportedOpError, match=r"differentiates the graph around it.*export the backward pass"):
        infer("training.Gradient", [], {"xs": ("x",), "y": "y"}, 1)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore", [None, 1, -5])
@pytest.mark.parametrize("rest", [(), (2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_losses(reduction: str, weighted: bool, ignore: int | None, rest: tuple[int, ...], dtype: Any) -> None:
    r = np.random.default_rng(0)
    x = r.normal(size=(4, 5, *rest)).astype(dtype)
    target = r.integers(0, 5, (4, *rest)).astype(np.int32)
    if ignore is not None:
        target.reshape(-1)[:2] = ignore
    xs = [x, target, abs(r.normal(size=5)).astype(dtype) if weighted else None]
    attrs = {"reduction": reduction, "ignore_index": ignore}
    tolerance = 1e-5 if dtype is np.float32 else 2e-3
    check_rule("NegativeLogLikelihoodLoss", xs, attrs, rtol=tolerance, atol=tolerance)
    check_rule("SoftmaxCrossEntropyLoss", xs, attrs, outputs=2, rtol=tolerance, atol=tolerance)


def test_loss_errors() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(MnnpyError, match="a label lies outside"):
        evaluate("NegativeLogLikelihoodLoss", [x, np.asarray([0, 3])], {})
    with pytest.raises(ShapeError, match="reduction 'avg'"):
        infer("NegativeLogLikelihoodLoss", [operand_of(x), operand_of(np.asarray([0, 1]))], {"reduction": "avg"}, 1)
    with pytest.raises(ShapeError, match=r"the labels have shape \(3,\)"):
        infer("SoftmaxCrossEntropyLoss", [operand_of(x), operand_of(np.asarray([0, 1, 2]))], {}, 1)
