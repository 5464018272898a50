"""Rules of normalisation against their references."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array
from tests.rule_check import check_rule

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
HALF = {"rtol": 2e-2, "atol": 2e-2}


def randn(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def tolerance(dtype: Any) -> dict[str, float]:
    return {"rtol": 1e-4, "atol": 1e-5} if dtype in (np.float32, np.float64) else HALF


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3), (4, 3, 6)])
@pytest.mark.parametrize("training", [0, 1])
def test_batch_normalization(dtype: Any, shape: tuple[int, ...], training: int) -> None:
    x, (s, b, m, v) = randn(0, *shape, dtype=dtype), (np.abs(randn(k, 3)) for k in range(1, 5))
    attrs = {"training_mode": training, "epsilon": 1e-3, "momentum": 0.8}
    check_rule("BatchNormalization", [x, s, b, m, v], attrs, outputs=3 if training else 1, **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_and_instance_normalization(dtype: Any, groups: int) -> None:
    x, s, b = randn(0, 2, 4, 3, 5, dtype=dtype), randn(1, 4, dtype=dtype), randn(2, 4, dtype=dtype)
    check_rule("GroupNormalization", [x, s, b], {"num_groups": groups}, **tolerance(dtype))
    check_rule("InstanceNormalization", [x, s, b], {}, **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_normalization(dtype: Any, axis: int, bias: bool) -> None:
    x = randn(0, 2, 3, 4, dtype=dtype)
    tail = x.shape[axis:] if axis >= 0 else x.shape[-1:]
    s, b = randn(1, *tail, dtype=dtype), randn(2, *tail, dtype=dtype) if bias else None
    check_rule("LayerNormalization", [x, s, b], {"axis": axis}, outputs=3, **tolerance(dtype))
    check_rule("RMSNormalization", [x, s], {"axis": axis}, **tolerance(dtype))


def test_stash_type() -> None:
    x, s = randn(0, 2, 8, dtype=np.float16), randn(1, 8, dtype=np.float16)
    for stash in (DType.BF16, 16, DType.F32, 1):
        check_rule("LayerNormalization", [x, s], {"stash_type": stash}, outputs=3, **HALF)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 5), (1, 5, 7)])
def test_lrn(size: int, shape: tuple[int, ...]) -> None:
    check_rule("LRN", [randn(0, *shape)], {"size": size, "alpha": 0.1, "beta": 0.6, "bias": 2.0})


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_lp_normalization(p: int, axis: int) -> None:
    x = randn(0, 3, 4, 5)
    x[:, 2] = 0
    x[0] = 0
    check_rule("LpNormalization", [x], {"p": p, "axis": axis})


@pytest.mark.parametrize("axes", [(0, 2, 3), (1,), (-1, 0)])
def test_mean_variance_normalization(axes: tuple[int, ...]) -> None:
    check_rule("MeanVarianceNormalization", [randn(0, 2, 3, 4, 5)], {"axes": axes}, rtol=1e-4, atol=1e-5)
