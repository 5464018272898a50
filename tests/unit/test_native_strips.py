"""Native ConvChain: 1×1 and depthwise convolutions in a row, against the reference and one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnpy.backends.cpu import _native
from tests.unit.native_helpers import ISAS, THREADS, Array, assert_close, oracle, run_kernel
from tests.unit.test_native_conv import ACTIVATIONS, last

# Stages: (output channels, activation) of a 1×1; (kernel, strides, pads, activation) of a depthwise one.
POINT = tuple[int, str]
DEPTH = tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], str]
SAME = (1, 1, 1, 1)
CASES: list[tuple[tuple[int, ...], tuple[Any, ...]]] = [
    ((1, 12, 19, 17), ((40, "Clip"), ((3, 3), (1, 1), SAME, "Clip"), (12, ""))),
    ((2, 16, 23, 30), ((96, "Relu"), ((3, 3), (2, 2), SAME, "Relu"), (24, ""))),
    ((1, 24, 14, 13), ((50, "Silu"), ((5, 5), (1, 1), (2, 2, 2, 2), "HardSwish"), (33, "Silu"))),
    ((1, 8, 21, 22), ((20, "Relu"), ((5, 5), (2, 2), (1, 2, 2, 1), ""), (9, "Relu"))),
    ((3, 33, 9, 11), (((3, 3), (1, 1), SAME, "Relu"), (70, "Relu"))),
    ((1, 5, 9, 11), (((3, 3), (2, 1), (0, 1, 2, 0), ""), (17, ""))),
    ((1, 24, 10, 12), ((58, "Relu"), ((3, 3), (2, 2), SAME, ""))),
    ((1, 6, 8, 9), ((3, "Relu"), ((3, 3), (1, 1), SAME, "Silu"))),
    ((2, 48, 6, 40), ((96, "Silu"), (48, ""))),
    ((1, 7, 31, 3), (((3, 1), (1, 1), (1, 0, 1, 0), ""), (9, "Clip"), ((7, 7), (1, 1), (3,) * 4, ""), (20, "Relu"))),
    ((1, 18, 12, 10), (((4, 3), (3, 3), (0, 0, 0, 0), "Relu"), ((3, 3), (1, 1), SAME, ""), (4, ""), (30, ""))),
    ((1, 16, 40, 1), ((16, ""), ((3, 3), (1, 1), SAME, ""))),
    ((0, 16, 4, 4), ((16, ""), ((3, 3), (1, 1), SAME, ""))),
]  # fmt: skip


class Chain:
    """Random operands of a case, its attributes, and what the reference makes of it in double precision."""

    def __init__(self, case: tuple[tuple[int, ...], tuple[Any, ...]], bias: bool = True) -> None:
        shape, stages = case
        rng = np.random.default_rng(sum(shape) + len(stages))
        self.x = rng.standard_normal(shape).astype(np.float32)
        self.operands: list[Array | None] = []
        self.nodes: list[dict[str, Any]] = []
        self.shapes: list[tuple[int, ...]] = []
        want, channels = self.x.astype(np.float64), shape[1]
        for stage in stages:
            if len(stage) == 2:
                m, act = stage
                w = rng.standard_normal((m, channels, 1, 1)) / np.sqrt(channels)
                given = {"strides": (1, 1), "pads": (0,) * 4, "group": 1}
            else:
                kernel, strides, pads, act = stage
                m = channels
                w = rng.standard_normal((m, 1, *kernel)) / 3
                given = {"strides": strides, "pads": pads, "group": m}
            b = rng.standard_normal(m).astype(np.float32)
            w = w.astype(np.float32)
            given["dilations"] = (1, 1)
            full = b.astype(np.float64) if bias else None
            want = ACTIVATIONS[act](oracle("Convolution")(want, w.astype(np.float64), full, **given))
            self.operands += [w, b if bias else None]
            self.nodes.append({**given, "act": act, "act_alpha": -0.5, "act_beta": 0.7})
            self.shapes.append(last(want).shape)
            channels = m
        self.want = last(want)

    def attrs(self) -> dict[str, Any]:
        n = self.nodes
        flat = {k: tuple(v for a in n for v in a[k]) for k in ("strides", "pads", "dilations")}
        lists = {k: tuple(a["act" + k[3:-1]] for a in n) for k in ("acts", "act_alphas", "act_betas")}
        return {**flat, **lists, "groups": tuple(a["group"] for a in n), "alphas": (1.0,) * len(n)}

    def fused(self, isa: str, threads: int, residual: Array | None = None, constant: bool = True) -> Array:
        inputs = [last(self.x), *self.operands, residual]
        weights = range(1, 1 + len(self.operands)) if constant else ()
        out = [(self.want.shape, np.float32)]
        [got] = run_kernel("ConvChain", inputs, out, self.attrs(), constant=weights, isa=isa, threads=threads)
        return got

    def apart(self, isa: str, residual: Array | None = None) -> Array:
        """The same by one Convolution after the other."""
        value = last(self.x)
        for k, (attrs, shape) in enumerate(zip(self.nodes, self.shapes, strict=True)):
            more = residual if k == len(self.nodes) - 1 else None
            inputs = [value, self.operands[2 * k], self.operands[2 * k + 1], more]
            fused = {**attrs, "layout": "NHWC", "algorithm": "direct"}
            [value] = run_kernel("Convolution", inputs, [(shape, np.float32)], fused, constant=(1, 2), isa=isa)
        return value


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_chain(isa: str, case: Any) -> None:
    chain = Chain(case)
    same = chain.apart(isa)
    for threads in THREADS:
        got = chain.fused(isa, threads)
        assert_close(got, chain.want, 6e-6)
        np.testing.assert_array_equal(got, same)  # the same arithmetic in the same order


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_residual_and_weights_at_run_time(isa: str, case: Any) -> None:
    chain = Chain(case, bias=False)
    residual = np.random.default_rng(1).standard_normal(chain.want.shape).astype(np.float32)
    want = chain.apart(isa, residual)
    for threads in THREADS:
        np.testing.assert_array_equal(chain.fused(isa, threads, residual), want)
        np.testing.assert_array_equal(chain.fused(isa, threads, residual, constant=False), want)


@pytest.mark.parametrize("isa", ISAS)
def test_many_runs_share_the_work_differently(isa: str) -> None:
    """Ranges are cut anew in each run; a line lost or done in the wrong place would show."""
    chain = Chain(((2, 8, 61, 9), ((24, "Relu"), ((3, 3), (1, 1), SAME, "Relu"), (8, ""))))
    want = chain.apart(isa)
    for _ in range(50):
        np.testing.assert_array_equal(chain.fused(isa, 5), want)


def refusal(shapes: list[tuple[int, ...]], output: tuple[int, ...], attrs: dict[str, Any]) -> str:
    fits, why = _native.supports("ConvChain", attrs, [("f32", s) for s in shapes], [("f32", output)])
    assert not fits
    return str(why)


def test_what_is_no_chain_is_declined() -> None:
    chain = Chain(((1, 8, 9, 9), ((16, "Relu"), ((3, 3), (1, 1), SAME, ""))))
    shapes = [(1, 9, 9, 8), *(a.shape for a in chain.operands if a is not None)]
    attrs = chain.attrs()
    assert _native.supports("ConvChain", attrs, [("f32", s) for s in shapes], [("f32", (1, 9, 9, 16))])[0]
    assert "another size" in refusal(shapes, (1, 9, 8, 16), attrs)
    assert "two to eight" in refusal(shapes, (1, 9, 9, 16), {**attrs, "acts": ("",)})
    assert "unknown act" in refusal(shapes, (1, 9, 9, 16), {**attrs, "acts": ("Relu", "Softplus")})
    assert "plain 1x1" in refusal(shapes, (1, 9, 9, 16), {**attrs, "pads": (1,) * 8})
    assert "negative" in refusal(shapes, (1, 7, 7, 16), {**attrs, "pads": (0, 0, 0, 0, 1, 1, -1, -1)})
    assert "takes weights" in refusal(shapes[:-1], (1, 9, 9, 16), attrs)
