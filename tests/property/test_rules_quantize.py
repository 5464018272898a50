"""Rules of quantisation against their references: bit by bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array
from tests.rule_check import check_rule

INTS = [DType.I2, DType.U2, DType.I4, DType.U4, DType.I8, DType.U8, DType.I16, DType.U16]
FLOATS = [DType.F8E4M3FN, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ, DType.F4E2M1]
SCALES = [np.float32, np.float16, ml_dtypes.bfloat16]


def scales(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    return np.random.default_rng(1).uniform(0.01, 0.2, shape).astype(dtype)


def values(dtype: DType, shape: tuple[int, ...]) -> Array:
    if not dtype.is_int:
        return np.random.default_rng(2).uniform(-4, 4, shape).astype(np.float32).astype(dtype.numpy)
    info = ml_dtypes.iinfo(dtype.numpy)
    return np.random.default_rng(2).integers(int(info.min), int(info.max) + 1, shape).astype(dtype.numpy)


LAYOUTS: list[tuple[tuple[int, ...], dict[str, int]]] = [
    ((), {}),
    ((1,), {}),
    ((6,), {"axis": 1}),
    ((4,), {"axis": -2}),
    ((4, 2), {"axis": 1, "block_size": 3}),
    ((4, 2), {"axis": 1, "block_size": 4}),
    ((2, 6), {"axis": 0, "block_size": 2}),
    ((4, 6), {"axis": 0, "block_size": 1}),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", INTS + FLOATS)
def test_dequantize(layout: tuple[tuple[int, ...], dict[str, int]], dtype: DType) -> None:
    shape, attrs = layout
    x = values(dtype, (4, 6))
    check_rule("DequantizeLinear", [x, scales(shape)], attrs, rtol=1e-7)
    check_rule("DequantizeLinear", [x, scales(shape), values(dtype, shape)], attrs, rtol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", INTS + FLOATS)
def test_quantize(layout: tuple[tuple[int, ...], dict[str, int]], dtype: DType) -> None:
    shape, attrs = layout
    x = np.random.default_rng(3).standard_normal((4, 6)).astype(np.float32) * 20
    check_rule("QuantizeLinear", [x, scales(shape)], {**attrs, "output_dtype": dtype})
    zero = values(dtype, shape) if dtype.is_int else np.zeros(shape, np.float32).astype(dtype.numpy)
    check_rule("QuantizeLinear", [x, scales(shape), zero], attrs)


@pytest.mark.parametrize("x_type", [np.float32, np.float16, ml_dtypes.bfloat16, np.int32])
@pytest.mark.parametrize("scale_type", SCALES)
def test_precisions(x_type: Any, scale_type: Any) -> None:
    x = (np.random.default_rng(3).standard_normal((4, 6)) * 100).astype(np.float32).astype(x_type)
    scale = scales((6,), scale_type)
    check_rule("QuantizeLinear", [x, scale, np.zeros(6, np.int8)])
    for precision in (DType.F32, DType.F16, DType.BF16, 1):
        check_rule("QuantizeLinear", [x, scale], {"precision": precision})
    for to in (DType.F32, DType.F16, 16):
        check_rule("DequantizeLinear", [x.astype(np.float32).astype(np.int8), scale], {"output_dtype": to}, rtol=1e-7)


def test_power_of_two_scales_and_saturation() -> None:
    scale = np.asarray([0.25, 2.0], np.float32).astype(ml_dtypes.float8_e8m0fnu)
    x = np.asarray([[1e6, -1.0], [0.3, 700.0]], np.float32)
    for saturate in (0, 1):
        attrs = {"output_dtype": DType.F8E4M3FN, "saturate": saturate}
        check_rule("QuantizeLinear", [x, scale], attrs)
    check_rule("DequantizeLinear", [np.asarray([[1, 2], [3, 4]], np.int8), scale])


def test_dequantize_i32() -> None:
    x = np.asarray([2**30, -(2**31), 5], np.int32)
    check_rule("DequantizeLinear", [x, np.float32(0.5).reshape(())], rtol=1e-7)


@pytest.mark.parametrize("low,high", [(-3, 5), (1, 9), (-9, -2), (0, 0)])
def test_dynamic_quantize(low: float, high: float) -> None:
    x = np.random.default_rng(0).uniform(low, high, (3, 7)).astype(np.float32)
    check_rule("DynamicQuantizeLinear", [x], outputs=3)
