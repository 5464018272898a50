"""Rules of pooling against their references, and references against independent truths."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.decompose.builder import evaluate
from mnnpy.graph.ir import Array
from tests.rule_check import check_rule

CALM = settings(max_examples=25, deadline=None)


def randn(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, Any]]:
    k = draw(st.integers(1, 3))
    pick = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(k))  # noqa: E731
    kernel = pick(2, 3)
    attrs: dict[str, Any] = {"strides": pick(1, 3), "dilations": pick(1, 2), "kernel_shape": kernel}
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":
        attrs["pads"] = (*pick(0, 1), *pick(0, 1))
        attrs["ceil_mode"] = draw(st.integers(0, 1))
    else:
        attrs["auto_pad"] = auto
    return pick(5, 8), attrs


@CALM
@given(windows(), st.booleans())
def test_average_pool(window: tuple[tuple[int, ...], dict[str, Any]], include: bool) -> None:
    spatial, attrs = window
    check_rule("AveragePool", [randn(0, 2, 3, *spatial)], {**attrs, "count_include_pad": int(include)}, max_nodes=1)


@CALM
@given(windows(), st.sampled_from([np.float32, np.int8, np.uint8]), st.integers(0, 1))
def test_max_pool(window: tuple[tuple[int, ...], dict[str, Any]], dtype: Any, order: int) -> None:
    spatial, attrs = window
    x = np.random.default_rng(0).integers(0, 100, (2, 3, *spatial)).astype(dtype)
    check_rule("MaxPool", [x], {**attrs, "storage_order": order}, outputs=2)


def test_max_pool_of_smallest_values_points_into_the_input() -> None:
    x = np.full((1, 1, 3, 3), -np.inf, np.float32)
    attrs = {"kernel_shape": (2, 2), "pads": (1, 1, 1, 1)}
    y, indices = evaluate("MaxPool", [x], attrs)
    assert np.all(np.isneginf(y))
    assert indices.min() >= 0
    check_rule("MaxPool", [x], attrs, outputs=2)


@CALM
@given(windows(), st.integers(1, 4))
def test_lp_pool(window: tuple[tuple[int, ...], dict[str, Any]], p: int) -> None:
    spatial, attrs = window
    check_rule("LpPool", [randn(0, 2, 3, *spatial)], {**attrs, "p": p}, max_nodes=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4), (0, 3, 4, 5)])
def test_global_pools(dtype: Any, shape: tuple[int, ...]) -> None:
    x = randn(0, *shape, dtype=dtype)
    for name in ("GlobalAveragePool", "GlobalMaxPool"):
        check_rule(name, [x], rtol=1e-2, atol=1e-2, max_nodes=1)
    for p in (1, 2, 3):
        check_rule("GlobalLpPool", [x], {"p": p}, rtol=1e-2, atol=1e-2)


def test_global_lp_pool_truth() -> None:
    x = randn(0, 2, 3, 4, 5)
    want = (np.abs(x) ** 3).sum(axis=(2, 3), keepdims=True) ** (1 / 3)
    check_rule("GlobalLpPool", [x], {"p": 3}, expect=[want.astype(np.float32)])


@pytest.mark.parametrize("output_shape", [None, (1, 2, 6, 6), (1, 2, 7, 8), (1, 2, 5, 5)])
def test_max_unpool_inverts_max_pool(output_shape: tuple[int, ...] | None) -> None:
    x = randn(0, 1, 2, 6, 6)
    attrs = {"kernel_shape": (2, 2), "strides": (2, 2)}
    y, indices = evaluate("MaxPool", [x], attrs)
    size = None if output_shape is None else np.asarray(output_shape, np.int64)
    check_rule("MaxUnpool", [y, indices, size], attrs, const=(2,))
    if output_shape is None:
        restored = evaluate("MaxUnpool", [y, indices], attrs)[0]
        assert np.array_equal(restored != 0, np.isin(np.arange(x.size), indices).reshape(x.shape))


def test_max_roi_pool_truth() -> None:
    x = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    rois = np.asarray([[0, 0, 0, 3, 3], [0, 1, 1, 2, 2], [0, 6, 6, 9, 9]], np.float32)
    y = evaluate("MaxRoiPool", [x, rois], {"pooled_shape": (2, 2)})[0]
    assert y[0, 0].tolist() == [[5, 7], [13, 15]]
    assert y[1, 1].tolist() == [[21, 22], [25, 26]]
    assert not y[2].any()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([(1, 1), (3, 5), (8, 7), (1, 16), (13, 4)]), st.integers(0, 6),
    st.sampled_from([(1, 1), (2, 3), (7, 7)]), st.sampled_from([1.0, 0.0625, 0.3]),
    st.sampled_from([np.float32, np.float64, np.float16]),
)  # fmt: skip
def test_max_roi_pool(seed: int, size: Any, count: int, pooled: Any, scale: float, dtype: Any) -> None:
    r = np.random.default_rng(seed)
    x = r.normal(size=(2, 3, *size)).astype(dtype)
    corners = r.uniform(-2, max(size) + 2, (count, 4)) / scale  # some outside, some turned over
    rois = np.concatenate([r.integers(0, 2, (count, 1)), corners], axis=1).astype(dtype)
    check_rule("MaxRoiPool", [x, rois], {"pooled_shape": pooled, "spatial_scale": scale})
    check_rule("MaxRoiPool", [x[:, :0], rois], {"pooled_shape": pooled})
    check_rule("MaxRoiPool", [x[:, :, :0], rois], {"pooled_shape": pooled})
