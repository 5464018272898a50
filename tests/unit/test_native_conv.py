"""Native Convolution, both layouts, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnpy.backends.cpu import _native
from tests.unit.native_helpers import ISAS, Array, assert_close, oracle, run_kernel

# x, w, attributes (defaults: stride 1, no padding), fused activation
CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], str]] = [
    ((2, 7, 9, 11), (5, 7, 3, 3), {"pads": (1, 1, 1, 1)}, ""),
    ((1, 64, 14, 14), (70, 64, 1, 1), {}, "Relu"),
    ((1, 20, 13, 12), (33, 20, 1, 1), {"strides": (2, 2)}, ""),
    ((1, 3, 33, 35), (64, 3, 7, 7), {"strides": (2, 2), "pads": (3, 3, 3, 3)}, "Relu"),
    ((2, 3, 10, 9), (6, 3, 3, 3), {"strides": (2, 1), "pads": (0, 1, 2, 3)}, ""),
    ((1, 24, 10, 9), (36, 24, 3, 5), {"strides": (2, 1), "pads": (0, 1, 2, 3), "dilations": (2, 1)}, "Silu"),
    ((2, 8, 12, 9), (12, 4, 3, 3), {"group": 2, "pads": (1, 1, 1, 1)}, "Clip"),
    ((1, 40, 9, 13), (40, 1, 3, 3), {"group": 40, "pads": (1, 1, 1, 1)}, "Clip"),
    ((2, 33, 9, 14), (33, 1, 5, 5), {"group": 33, "pads": (2, 2, 2, 2), "strides": (2, 2)}, "HardSwish"),
    ((1, 16, 9, 14), (16, 1, 3, 3), {"group": 16, "pads": (2, 2, 2, 2), "dilations": (2, 2)}, ""),
    ((1, 16, 2, 1), (16, 1, 3, 3), {"group": 16, "pads": (1, 1, 1, 1)}, ""),
    ((1, 6, 9, 14), (12, 1, 3, 3), {"group": 6, "pads": (1, 1, 1, 1)}, ""),
    ((1, 5, 9, 14), (12, 5, 3, 3), {"pads": (-1, 1, -2, -1)}, ""),
    ((1, 16, 9, 14), (16, 1, 3, 3), {"group": 16, "pads": (-1, -2, 1, -1)}, ""),
    ((2, 20, 31), (10, 20, 5), {"pads": (2, 2)}, ""),
    ((1, 3, 31), (10, 3, 5), {"pads": (4, 0)}, ""),
    ((1, 5, 6, 7, 8), (9, 5, 3, 3, 3), {"pads": (1,) * 6}, ""),
    ((1, 16, 6, 7, 8), (9, 16, 3, 3, 3), {"pads": (1,) * 6, "strides": (2, 2, 2)}, ""),
    ((2, 16, 6, 7, 8), (16, 1, 3, 3, 3), {"pads": (1,) * 6, "group": 16}, ""),
    ((1, 700, 5, 5), (33, 700, 3, 3), {"pads": (1, 1, 1, 1)}, "Relu"),
    ((1, 3000, 3, 3), (33, 3000, 1, 1), {}, "Relu"),
    ((1, 16, 2, 2), (16, 16, 7, 7), {"pads": (3, 3, 3, 3)}, ""),
    ((0, 16, 2, 2), (16, 16, 1, 1), {}, ""),
]
ACTIVATIONS: dict[str, Any] = {
    "": lambda v: v,
    "Relu": lambda v: np.maximum(v, 0),
    "Clip": lambda v: np.clip(v, -0.5, 0.7),
    "Silu": lambda v: v / (1 + np.exp(-v)),
    "HardSwish": lambda v: v * np.clip(v / 6 + 0.5, 0, 1),
}


def attributes(w: tuple[int, ...], given: dict[str, Any]) -> dict[str, Any]:
    n = len(w) - 2
    return {"strides": (1,) * n, "pads": (0,) * 2 * n, "dilations": (1,) * n, "group": 1, **given}


def last(a: Array) -> Array:
    return np.moveaxis(a, 1, -1)


def check(
    case: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], str], isa: str, threads: int, **extra: Any
) -> None:
    x_shape, w_shape, given, act = case
    rng = np.random.default_rng(sum(x_shape))
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in (x_shape, w_shape, w_shape[:1]))
    attrs = attributes(w_shape, given)
    plain = oracle("Convolution")(x.astype(np.float64), w.astype(np.float64), b.astype(np.float64), **attrs)
    residual = rng.standard_normal(plain.shape).astype(np.float32)
    tolerance = extra.pop("tolerance", 6e-6)
    fused = {**attrs, "layout": "NHWC", **extra}
    if act:
        fused.update(act=act, act_alpha=-0.5, act_beta=0.7)
    for constant in ((1, 2), ()):
        for more in (None, residual):
            want = last(ACTIVATIONS[act](plain if more is None else plain + more))
            inputs = [last(x), w, b, None if more is None else last(more)]
            [got] = run_kernel(
                "Convolution", inputs, [(want.shape, np.float32)], fused, constant=constant, isa=isa, threads=threads
            )
            assert_close(got, want, tolerance)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_channels_last(isa: str, case: Any) -> None:
    for threads in (1, 2, 7):
        check(case, isa, threads)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_channels_first(isa: str, case: Any) -> None:
    x_shape, w_shape, given, _ = case
    rng = np.random.default_rng(3)
    for dtype in (np.float32, np.float64, np.int32):
        x, w, b = (rng.integers(-9, 9, s).astype(dtype) for s in (x_shape, w_shape, w_shape[:1]))
        attrs = attributes(w_shape, given)
        want = oracle("Convolution")(x, w, b, **attrs)
        for threads in (1, 2):
            [got] = run_kernel("Convolution", [x, w, b], [(want.shape, dtype)], attrs, isa=isa, threads=threads)
            assert (got == want).all()


WINOGRADS = ("winograd2", "winograd4x2", "winograd4", "winograd5", "winograd6")
WINOGRAD: list[Any] = [
    ((2, 40, 9, 13), (37, 40, 3, 3), {"pads": (1, 1, 1, 1)}, "Relu"),
    ((1, 33, 14, 14), (70, 33, 3, 3), {"pads": (1, 1, 1, 1)}, "Silu"),
    ((1, 64, 30, 31), (64, 64, 3, 3), {"pads": (0, 2, 1, 0)}, "HardSwish"),
    ((1, 8, 3, 3), (5, 8, 3, 3), {}, ""),
    ((1, 16, 2, 1), (5, 16, 3, 3), {"pads": (1, 1, 1, 1)}, ""),
    ((1, 24, 12, 17), (16, 24, 3, 3), {"pads": (-1, 1, 2, -2)}, "Relu"),
    ((3, 16, 25, 26), (48, 16, 3, 3), {"pads": (1, 1, 1, 1)}, "Relu"),
    ((1, 200, 7, 7), (130, 200, 3, 3), {"pads": (1, 1, 1, 1)}, "Relu"),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("algorithm", WINOGRADS)
@pytest.mark.parametrize("case", WINOGRAD, ids=str)
def test_winograd(isa: str, algorithm: str, case: Any) -> None:
    x_shape, w_shape, given, act = case
    rng = np.random.default_rng(5)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in (x_shape, w_shape, w_shape[:1]))
    attrs = attributes(w_shape, given)
    plain = oracle("Convolution")(x.astype(np.float64), w.astype(np.float64), b.astype(np.float64), **attrs)
    residual = rng.standard_normal(plain.shape).astype(np.float32)
    for threads in (1, 2, 7):
        for more in (None, residual):
            want = last(ACTIVATIONS[act](plain if more is None else plain + more))
            inputs = [last(x), w, b, None if more is None else last(more)]
            fused = {**attrs, "layout": "NHWC", "algorithm": algorithm, "act": act, "act_alpha": -0.5, "act_beta": 0.7}
            program: list[Any] = []
            [got] = run_kernel(
                "Convolution",
                inputs,
                [(want.shape, np.float32)],
                fused,
                constant=(1, 2),
                isa=isa,
                threads=threads,
                program=program,
            )
            assert program[0].describe()[0]["algorithm"] == f"conv-{algorithm}"
            assert_close(got, want, 3e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [16, 128, 1024])
@pytest.mark.parametrize("positive", [False, True])
def test_winograd_error_does_not_grow(isa: str, channels: int, positive: bool) -> None:
    """Within the bar of precision ``normal`` up to 1024 channels, for centred and for positive inputs."""
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((1, channels, 14, 14)).astype(np.float32)
    x = np.maximum(x, 0) if positive else x
    w = rng.standard_normal((24, channels, 3, 3)).astype(np.float32)
    attrs = attributes(w.shape, {"pads": (1, 1, 1, 1)})
    want = last(oracle("Convolution")(x.astype(np.float64), w.astype(np.float64), None, **attrs))
    for algorithm, bar in zip(WINOGRADS, (2e-6, 2e-5, 2e-5, 2e-5, 3e-5), strict=True):
        fused = {**attrs, "layout": "NHWC", "algorithm": algorithm}
        [got] = run_kernel("Convolution", [last(x), w], [(want.shape, np.float32)], fused, constant=(1,), isa=isa)
        assert_close(got, want, bar)


@pytest.mark.parametrize("algorithm", ["direct", *WINOGRADS])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_residual_in_place(algorithm: str, threads: int) -> None:
    """The residual's buffer becomes the output's."""
    rng = np.random.default_rng(11)
    x, w, r = (rng.standard_normal(s).astype(np.float32) for s in ((1, 13, 20, 24), (24, 24, 3, 3), (1, 13, 20, 24)))
    attrs = {**attributes(w.shape, {"pads": (1, 1, 1, 1)}), "layout": "NHWC", "algorithm": algorithm, "act": "Relu"}
    plain = oracle("Convolution")(
        np.moveaxis(x, -1, 1).astype(np.float64), w, None, **attributes(w.shape, {"pads": (1,) * 4})
    )
    tensors = [
        ("f32", x.shape, "input", 0),
        ("f32", w.shape, "constant", w),
        ("f32", r.shape, "input", 1),
        ("f32", r.shape, "arena", 0),
        ("f32", r.shape, "alias", (3, 0)),
        ("f32", r.shape, "output", 0),
    ]
    steps = [
        ("Copy", "in", {}, [2], [3]),
        ("Convolution", "conv", attrs, [0, 1, -1, 3], [4]),
        ("Copy", "out", {}, [4], [5]),
    ]
    y = np.empty_like(r)
    _native.Program(tensors, steps, r.nbytes, threads, None).run([x, r], [y])
    assert_close(y, np.maximum(last(plain) + r, 0), 3e-5)
