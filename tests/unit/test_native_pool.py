"""Native Pool, both layouts, against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from mnnpy.decompose.ops.atomic import window_size
from tests.unit.native_helpers import ISAS, assert_close, oracle, run_kernel

CASES = [
    # spatial, channels, kernel, strides, pads, dilations
    ((9, 11), 37, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((8, 8), 64, (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((7, 6), 3, (3, 2), (1, 2), (2, 0, 1, 1), (2, 1)),
    ((13,), 20, (4,), (3,), (1, 2), (1,)),
    ((12, 15), 24, (2, 2), (1, 1), (0, 0, 1, 1), (1, 1)),  # windows inside are one stretch
    ((11, 20), 70, (3, 3), (1, 1), (1, 1, 1, 1), (2, 3)),
    ((20, 21), 6, (9, 9), (2, 1), (4, 4, 4, 4), (1, 1)),  # more taps than a list holds
    ((6, 3), 9, (2, 5), (1, 1), (0, 2, 0, 2), (1, 1)),  # no window is inside
    ((4, 9), 17, (1, 2), (1, 3), (0, 3, 0, 3), (1, 4)),
    ((5, 6, 7), 5, (2, 3, 2), (1, 2, 2), (0, 1, 1, 1, 1, 0), (1, 1, 1)),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fn", ["Max", "Average", "Lp"])
def test_f32(isa: str, case: tuple[tuple[int, ...], ...], fn: str) -> None:
    spatial, channels, kernel, strides, pads, dilations = case
    n = len(spatial)
    x = np.random.default_rng(1).standard_normal((2, channels, *spatial)).astype(np.float32)  # type: ignore[arg-type]
    x[0, 0] = np.where(np.arange(x[0, 0].size).reshape(spatial) == 5, np.nan, x[0, 0])
    out = tuple(
        int(window_size(spatial[k], kernel[k], strides[k], dilations[k], pads[k], pads[n + k])) for k in range(n)
    )  # type: ignore[call-overload]
    for count_pad in (False, True):
        attrs = {
            "fn": fn,
            "kernel": kernel,
            "strides": strides,
            "pads": pads,
            "dilations": dilations,
            "out": out,
            "count_include_pad": count_pad,
        }
        [want] = oracle("Pool")(x, **attrs)
        for threads in (1, 2):
            [got] = run_kernel("Pool", [x], [(want.shape, np.float32)], attrs, isa=isa, threads=threads)
            last = np.moveaxis(x, 1, -1)
            [fast] = run_kernel(
                "Pool",
                [last],
                [(np.moveaxis(want, 1, -1).shape, np.float32)],
                {**attrs, "layout": "NHWC"},
                isa=isa,
                threads=threads,
            )
            for result in (got, np.moveaxis(fast, -1, 1)):
                assert (np.isnan(result) == np.isnan(want)).all()
                assert_close(np.nan_to_num(result), np.nan_to_num(want))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16, np.float64, np.int32])
def test_other_types_and_indices(dtype: type) -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(0, 100, (2, 3, 7, 8)).astype(dtype)
    for column_major in (False, True):
        attrs = {
            "fn": "Max",
            "kernel": (3, 2),
            "strides": (2, 2),
            "pads": (1, 1, 1, 1),
            "dilations": (1, 1),
            "out": (4, 5),
            "indices": True,
            "column_major": column_major,
        }
        want, where = oracle("Pool")(x, **attrs)
        got, index = run_kernel("Pool", [x], [(want.shape, dtype), (where.shape, np.int64)], attrs)
        assert (got == want).all()
        assert (index == where).all()
