"""Rules of resampling against their references, and detection against small truths."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.decompose.builder import evaluate
from mnnpy.graph.ir import Array
from tests.rule_check import check_rule

CALM = settings(max_examples=40, deadline=None)


def randn(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


TRANSFORMS = [
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
]


@CALM
@given(
    st.sampled_from(["nearest", "linear", "cubic"]), st.sampled_from(TRANSFORMS), st.booleans(), st.booleans(),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
)  # fmt: skip
def test_resize_to_sizes(
    mode: str, transform: str, antialias: bool, exclude: bool, sizes: tuple[int, int], rounding: str
) -> None:
    attrs: dict[str, Any] = {
        "mode": mode, "coordinate_transformation_mode": transform, "nearest_mode": rounding, "axes": (2, 3),
        "antialias": int(antialias), "exclude_outside": int(exclude), "extrapolation_value": 7.0,
    }  # fmt: skip
    roi = np.asarray([0.1, -0.2, 0.8, 1.2], np.float32) if transform == "tf_crop_and_resize" else None
    inputs = [randn(0, 1, 2, 5, 6), roi, None, np.asarray(sizes, np.int64)]
    check_rule("Resize", inputs, attrs, const=(1, 2, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.float16, np.float64])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_dtypes(dtype: Any, mode: str) -> None:
    x = np.random.default_rng(0).integers(0, 127, (1, 2, 6, 5)).astype(dtype)
    scales = np.asarray([1, 1, 2, 1.6], np.float32)
    # powers of two keep f32 and f64 arithmetic alike, so that truncation agrees
    if np.dtype(dtype).kind in "iu":
        scales = np.asarray([1, 1, 2, 2], np.float32)
    check_rule("Resize", [x, None, scales], {"mode": mode}, const=(2,), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("factor", [2, 3])
def test_nearest_by_an_integer_factor_is_one_raster(factor: int) -> None:
    x = randn(0, 1, 2, 4, 5)
    want = x.repeat(factor, axis=2).repeat(factor, axis=3)
    scales = np.asarray([1, 1, factor, factor], np.float32)
    for transform, rounding in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")):
        attrs = {"coordinate_transformation_mode": transform, "nearest_mode": rounding}
        check_rule("Resize", [x, None, scales], attrs, const=(2,), expect=[want], max_nodes=1)
    third = np.asarray([1, 1, 1 / factor, 1 / factor], np.float32)
    attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    check_rule("Resize", [want, None, third], attrs, const=(2,), expect=[x], max_nodes=1)


@pytest.mark.peers
@pytest.mark.parametrize(
    "mode,antialias", [("bilinear", False), ("bicubic", False), ("bilinear", True), ("bicubic", True)]
)
@pytest.mark.parametrize("size", [(4, 5), (14, 11)])
def test_resize_against_torch(mode: str, antialias: bool, size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = randn(0, 1, 2, 9, 8)
    want = torch.nn.functional.interpolate(torch.from_numpy(x), size=size, mode=mode, antialias=antialias).numpy()
    attrs = {
        "mode": mode.removeprefix("bi"), "antialias": int(antialias), "axes": (2, 3),
        "cubic_coeff_a": -0.5 if antialias else -0.75, "exclude_outside": int(antialias),
    }  # fmt: skip
    inputs = [x, None, None, np.asarray(size, np.int64)]
    check_rule("Resize", inputs, attrs, const=(3,), expect=[want], rtol=1e-4, atol=1e-4)


GRID = list(itertools.product(["linear", "nearest", "cubic"], ["zeros", "border", "reflection"], [0, 1]))


@pytest.mark.parametrize("mode,padding,align", GRID)
@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 5), (6,)])
def test_grid_sample(mode: str, padding: str, align: int, spatial: tuple[int, ...]) -> None:
    r = len(spatial)
    x = randn(0, 2, 3, *spatial)
    grid = np.random.default_rng(1).uniform(-1.8, 1.8, (2, *(4, 3, 2)[:r], r)).astype(np.float32)
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": align}
    check_rule("GridSample", [x, grid], attrs, rtol=1e-3, atol=1e-3)


@pytest.mark.peers
@pytest.mark.parametrize("mode,padding,align", [g for g in GRID if g[:2] != ("cubic", "border")])
def test_grid_sample_against_torch(mode: str, padding: str, align: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = randn(0, 2, 3, 5, 4)
    grid = np.random.default_rng(1).uniform(-1.8, 1.8, (2, 4, 3, 2)).astype(np.float32)
    name = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}[mode]
    want = torch.nn.functional.grid_sample(
        torch.from_numpy(x), torch.from_numpy(grid), mode=name, padding_mode=padding, align_corners=bool(align)
    ).numpy()
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": align}
    check_rule("GridSample", [x, grid], attrs, expect=[want], rtol=1e-3, atol=1e-3)


def test_grid_sample_survives_nan_and_infinite_positions() -> None:
    x = randn(0, 1, 1, 3, 3)
    grid = np.asarray([np.nan, np.inf, -np.inf, 1e30, 0, 0], np.float32).reshape(1, 3, 1, 2)
    for padding in ("zeros", "border"):
        got = evaluate("GridSample", [x, grid], {"padding_mode": padding, "mode": "nearest"})[0]
        assert np.isfinite(got).all()
        check_rule("GridSample", [x, grid], {"padding_mode": padding, "mode": "nearest"})


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float16, np.bool_])
def test_grid_sample_dtypes(dtype: Any) -> None:
    x = np.random.default_rng(0).integers(0, 2, (1, 2, 4, 4)).astype(dtype)
    grid = np.random.default_rng(1).uniform(-1.2, 1.2, (1, 3, 3, 2)).astype(np.float32)
    check_rule("GridSample", [x, grid], {"mode": "nearest"})


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 1, 3, 4, 2), (1, 1, 1, 1)])
def test_affine_grid(align: int, size: tuple[int, ...]) -> None:
    r = len(size) - 2
    theta = randn(0, size[0], r, r + 1)
    check_rule("AffineGrid", [theta, np.asarray(size, np.int64)], {"align_corners": align}, const=(1,), atol=1e-5)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("transform", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_roi_align(mode: str, transform: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnnpy.decompose.rules import image

    rois = np.asarray([[0, 0, 8, 6], [-3, 2, 20, 19], [4.2, 3.1, 4.3, 3.2], [30, 30, 40, 40]], np.float32)
    inputs = [randn(0, 2, 3, 8, 9), rois, np.asarray([0, 1, 1, 0], np.int64)]
    attrs = {
        "mode": mode, "coordinate_transformation_mode": transform, "sampling_ratio": samples, "output_height": 3,
        "output_width": 2, "spatial_scale": 0.5,
    }  # fmt: skip
    check_rule("RoiAlign", inputs, attrs, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(image, "_ROI_BLOCK", 1)
    check_rule("RoiAlign", inputs, attrs, rtol=1e-4, atol=1e-4)


def test_non_max_suppression_keeps_the_best_of_overlapping_boxes() -> None:
    boxes = np.asarray([[[0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6], [2, 2, 0, 0]]], np.float32)
    scores = np.asarray([[[0.6, 0.9, 0.5, 0.1]]], np.float32)
    one = lambda v, t: np.asarray([v], t)  # noqa: E731
    found = evaluate("NonMaxSuppression", [boxes, scores, one(9, np.int64), one(0.5, np.float32)], {})[0]
    assert found.tolist() == [[0, 0, 1], [0, 0, 2]]
    limited = evaluate("NonMaxSuppression", [boxes, scores, one(1, np.int64), one(0.5, np.float32)], {})[0]
    assert limited.tolist() == [[0, 0, 1]]
    assert evaluate("NonMaxSuppression", [boxes, scores], {})[0].shape == (0, 3)


def test_image_decoder() -> None:
    pil = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    stream = io.BytesIO()
    pil.fromarray(pixels).save(stream, "PNG")
    encoded = np.frombuffer(stream.getvalue(), np.uint8)
    assert np.array_equal(evaluate("ImageDecoder", [encoded], {})[0], pixels)
    assert np.array_equal(evaluate("ImageDecoder", [encoded], {"pixel_format": "BGR"})[0], pixels[:, :, ::-1])
    assert evaluate("ImageDecoder", [encoded], {"pixel_format": "Grayscale"})[0].shape == (4, 5, 1)
    assert evaluate("ImageDecoder", [encoded[:20]], {})[0].size == 0
