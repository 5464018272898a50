"""Windows along lines by explicit vectors: pools and depthwise convolutions of CPU-like devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.kernels.driver import Caps
from tests.emulation.interpreter import interpreted
from tests.unit.kernel_ops import opencl, oracle, run_node

STORAGE = frozenset({"storage8", "storage16"})
ON = ("opencl", "cpu16", "cpu8")


def opened(name: str) -> KernelDevice:
    """PoCL where it has vectors, or the interpreter, which sees every access out of bounds and every double store."""
    if name != "opencl":
        return interpreted(Caps(STORAGE, lanes=int(name[3:]), cpu_like=True))
    found = opencl()
    if found.driver.caps.lanes < 8:
        pytest.skip("vectors of this processor have fewer than 8 lanes")
    return found


@dataclass(frozen=True)
class Case:
    """Sizes of input (with batch and channels), output and window."""

    x: tuple[int, int, int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    @property
    def attrs(self) -> dict[str, Any]:
        return {"strides": self.strides, "pads": self.pads, "dilations": self.dilations}

    def data(self, seed: int) -> Any:
        return np.random.default_rng(seed).standard_normal(self.x, dtype=np.float32)


CASES = {
    "3x3-stride2": Case((2, 2, 9, 37), (5, 19), (3, 3), (2, 2), (1, 1, 1, 1)),
    "2x2-stride2": Case((1, 3, 8, 40), (4, 20), (2, 2), (2, 2)),
    "3x3-valid": Case((1, 2, 6, 22), (4, 20), (3, 3)),
    "3x3-stride3": Case((1, 1, 10, 60), (3, 20), (3, 3), (3, 3), (1, 0, 0, 1)),
    "3x2-stride1x4": Case((1, 2, 5, 75), (3, 19), (3, 2), (1, 4)),
    "dilated": Case((1, 2, 9, 45), (9, 22), (3, 3), (1, 2), (2, 2, 2, 2), (2, 3)),
    "5x5-narrow": Case((2, 4, 9, 9), (5, 5), (5, 5), (2, 2), (2, 2, 2, 2)),
    "1x5": Case((1, 1, 3, 70), (3, 37), (1, 5), (1, 2), (0, 4, 0, 4)),
}
#: Where the last windows reach behind the padding, as they do where sizes are rounded up.
POOLS = {
    **CASES,
    "rounded-up": Case((1, 2, 8, 38), (4, 19), (3, 3), (2, 2)),
    "ends": Case((1, 1, 5, 33), (3, 17), (2, 2), (2, 2)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", ON)
def test_depthwise(name: str, case: Case) -> None:
    """Two output channels per input channel, with bias, residual and activation."""
    rng, x, channels = np.random.default_rng(3), case.data(2), case.x[1]
    w = rng.standard_normal((2 * channels, 1, *case.kernel), dtype=np.float32)
    bias = rng.standard_normal(2 * channels, dtype=np.float32)
    attrs = {**case.attrs, "group": channels}
    sums = oracle("Convolution", [a.astype(np.float64) for a in (x, w, bias)], attrs)
    residual = np.asarray(rng.standard_normal(sums.shape, dtype=np.float32))
    y, kernels = run_node(
        opened(name), "Convolution", [x, w, bias, residual], sums.shape, {**attrs, "act": "Relu"}, constants=(1, 2)
    )
    assert kernels == ["depthwise_lines"]
    np.testing.assert_allclose(y, np.maximum(sums + residual, 0), atol=2e-5)


@pytest.mark.parametrize("case", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("name", ON)
def test_max(name: str, case: Case) -> None:
    """NaN wins wherever it stands, and windows of -inf stay that."""
    x = case.data(4)
    x.reshape(-1)[::29] = np.nan
    x[..., -3:] = -np.inf
    attrs = {"fn": "Max", "kernel": case.kernel, "out": case.out, **case.attrs}
    want = oracle("Pool", [x], attrs)
    y, kernels = run_node(opened(name), "Pool", [x], want.shape, attrs)
    assert kernels == ["pool_lines"]
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("case", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("name", ON)
def test_average(name: str, case: Case, include: bool) -> None:
    x = case.data(5)
    attrs = {"fn": "Average", "kernel": case.kernel, "out": case.out, **case.attrs, "count_include_pad": include}
    want = oracle("Pool", [x.astype(np.float64)], attrs)
    y, kernels = run_node(opened(name), "Pool", [x], want.shape, attrs)
    assert kernels == ["pool_lines"]
    np.testing.assert_allclose(y, want, atol=2e-6)


def test_narrow_or_large_windows_are_left_to_items() -> None:
    device = opened("cpu16")
    for case in (Case((1, 8, 9, 5), (5, 3), (3, 3), (2, 2), (1, 1, 1, 1)), Case((1, 1, 20, 20), (14, 14), (7, 7))):
        attrs = {"fn": "Max", "kernel": case.kernel, "out": case.out, **case.attrs}
        want = oracle("Pool", [case.data(6)], attrs)
        y, kernels = run_node(device, "Pool", [case.data(6)], want.shape, attrs)
        assert kernels == ["pool_max"]
        np.testing.assert_array_equal(y, want)


GATHERED = {
    "7x7-stride2": Case((1, 2, 17, 70), (9, 35), (7, 7), (2, 2), (3, 3, 3, 3)),
    "3x3-two-images": Case((2, 3, 5, 33), (5, 33), (3, 3), (1, 1), (1, 1, 1, 1)),
    "1x1-stride2": Case((1, 4, 6, 65), (3, 33), (1, 1), (2, 2)),
    "dilated": Case((1, 2, 9, 75), (9, 37), (3, 3), (1, 2), (2, 2, 2, 2), (2, 3)),
    "padded-far": Case((1, 1, 4, 32), (10, 38), (3, 3), (1, 1), (4, 4, 4, 4)),
}


@pytest.mark.parametrize("case", GATHERED.values(), ids=GATHERED)
@pytest.mark.parametrize("name", ON)
def test_panels_are_gathered_by_lines(name: str, case: Case) -> None:
    rng, x = np.random.default_rng(7), case.data(8)
    w = rng.standard_normal((9, case.x[1], *case.kernel), dtype=np.float32)
    attrs = {**case.attrs, "group": 1}
    want = oracle("Convolution", [x.astype(np.float64), w.astype(np.float64)], attrs)
    y, kernels = run_node(opened(name), "Convolution", [x, w], want.shape, attrs, constants=(1,), algorithm="packed")
    assert kernels[0].startswith("gather_lines")
    np.testing.assert_allclose(y, want, atol=2e-5 * float(np.abs(want).max()))
