"""Concatenations that convolutions and pools write in place."""

from __future__ import annotations

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.cpu import _native
from mnnpy.options import OPTIMIZATIONS
from tests.models import MODELS, Net
from tests.unit.native_helpers import ISAS, assert_close


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("precision", ["high", "normal"])
def test_results_are_the_same(isa: str, threads: int, precision: str) -> None:
    model, feeds = MODELS["concatenations_in_place"]()
    got = mnnpy.Session(model, threads=threads, precision=precision, isa=isa).run(None, feeds)
    off = OPTIMIZATIONS - {"in_place"}
    want = mnnpy.Session(model, threads=threads, precision=precision, isa=isa, optimize=off).run(None, feeds)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, 3e-5)


def test_only_what_cannot_be_written_is_copied() -> None:
    model, feeds = MODELS["concatenations_in_place"]()
    session = mnnpy.Session(model, threads=1)
    session.run(None, feeds)
    copied = [
        r for r in session.explain().rows if r["op"] == "Raster" and r["shape"] in ("f32[2,14,13,116]", "f32[2,6,6,39]")
    ]
    # The negated input is element-wise work; a grouped convolution and one with two readers keep their own memory.
    assert len(copied) == 2

    n = Net(5)
    x = n.input(1, 16, 20, 20)
    a = n.op("Relu", n.op("Conv", x, n.w(24, 16, 1, 1)))
    b = n.op("Relu", n.op("Conv", x, n.w(24, 16, 3, 3), pads=[1, 1, 1, 1]))
    model, feeds = n.finish(n.op("Conv", n.op("Concat", a, b, axis=1), n.w(8, 48, 1, 1)))
    session = mnnpy.Session(model, threads=1)
    session.run(None, feeds)
    assert [r["op"] for r in session.explain().rows].count("Convolution") == 3
    assert "f32[1,20,20,48]" not in {r["shape"] for r in session.explain().rows}


@pytest.mark.parametrize("op", ["Convolution", "Pool"])
def test_pitch_leaves_the_gaps_alone(op: str) -> None:
    """What lies between the written columns is not touched."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 9, 20)).astype(np.float32)
    window = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "layout": "NHWC"}
    for threads in (1, 2):
        for algorithm in ("direct", "winograd2", "winograd4") if op == "Convolution" else ("",):
            attrs: dict[str, object] = {**window, "group": 1, "algorithm": algorithm, "pitch": 50}
            weights = [("f32", (20, 20, 3, 3), "constant", rng.standard_normal((20, 20, 3, 3)).astype(np.float32))]
            if op == "Pool":
                attrs = {**window, "fn": "Max", "kernel": (3, 3), "out": (6, 9), "pitch": 50}
                weights = []
            out, narrow = len(weights) + 1, len(weights) + 2
            tensors = [("f32", x.shape, "input", 0), *weights, ("f32", (1, 6, 9, 50), "output", 0),
                       ("f32", (1, 6, 9, 20), "alias", (out, 4 * 13)), ("f32", (1, 6, 9, 20), "output", 1)]  # fmt: skip
            ins = list(range(len(weights) + 1))
            dense = {k: v for k, v in attrs.items() if k != "pitch"}
            steps = [(op, "pitched", attrs, ins, [narrow]), (op, "dense", dense, ins, [narrow + 1])]
            wide, own = np.full((1, 6, 9, 50), 7.0, np.float32), np.empty((1, 6, 9, 20), np.float32)
            _native.Program(tensors, steps, 0, threads).run([x], [wide, own])
            np.testing.assert_array_equal(wide[..., 13:33], own)
            assert (wide[..., :13] == 7).all()
            assert (wide[..., 33:] == 7).all()


def test_pitch_in_strassens_algorithm() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 32, 32, 512)).astype(np.float32)
    w = rng.standard_normal((512, 512, 1, 1)).astype(np.float32)
    attrs = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "layout": "NHWC", "algorithm": "strassen",
             "group": 1}  # fmt: skip
    tensors = [("f32", x.shape, "input", 0), ("f32", w.shape, "constant", w), ("f32", (1, 32, 32, 600), "output", 0),
               ("f32", x.shape, "alias", (2, 4 * 44)), ("f32", x.shape, "output", 1)]  # fmt: skip
    steps = [("Convolution", "p", {**attrs, "pitch": 600}, [0, 1], [3]), ("Convolution", "d", attrs, [0, 1], [4])]
    wide, own = np.full((1, 32, 32, 600), 7.0, np.float32), np.empty(x.shape, np.float32)
    _native.Program(tensors, steps, 0, 2).run([x], [wide, own])
    np.testing.assert_array_equal(wide[..., 44:556], own)
    assert (wide[..., :44] == 7).all()
    assert (wide[..., 556:] == 7).all()


def test_a_pitch_needs_a_kernel_that_knows_it() -> None:
    window = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "layout": "NHWC", "pitch": 64}
    x, y = ("f32", (1, 8, 8, 32)), ("f32", (1, 8, 8, 32))
    assert _native.supports("Convolution", {**window, "group": 1}, [x, ("f32", (32, 32, 3, 3))], [y])[0]
    residual = [x, ("f32", (32, 32, 3, 3)), None, y]
    assert not _native.supports("Convolution", {**window, "group": 1}, residual, [y])[0]
    assert not _native.supports("Convolution", {**window, "group": 1, "pitch": 31}, [x, ("f32", (32, 32, 3, 3))], [y])[
        0
    ]
