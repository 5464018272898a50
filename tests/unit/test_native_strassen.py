"""Strassen's products against NumPy in double precision: cuts and remainders, epilogues, threads, accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnpy.backends.cpu import _native
from tests.unit.native_helpers import ISAS, THREADS, Array, assert_close, run_kernel
from tests.unit.test_native_matmul import ACTIVATIONS

LEVELS = (1, 2)
#: The bar of precision "normal".
BAR = 3e-5


def make(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def strassen(a: Array, b: Array, bias: Array | None, residual: Array | None, **given: Any) -> tuple[Array, str]:
    """The product of one native MatMul, and the name of the algorithm that it reports."""
    keys = ("isa", "threads", "constant")
    options = {k: given.pop(k) for k in keys if k in given}
    rows = a.shape[-1] if given.get("trans_a") else a.shape[-2]
    columns = b.shape[-2] if given.get("trans_b") else b.shape[-1]
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), rows, columns)
    program: list[Any] = []
    attrs = {"algorithm": "strassen", **given}
    [got] = run_kernel("MatMul", [a, b, bias, residual], [(shape, np.float32)], attrs, program=program, **options)
    return got, program[0].describe()[0]["algorithm"]


def exact(a: Array, b: Array) -> Array:
    return np.matmul(a.astype(np.float64), b.astype(np.float64))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("levels", LEVELS)
def test_sizes(isa: str, threads: int, levels: int) -> None:
    sizes = [
        (64, 256, 64),
        (4, 256, 4),
        (67, 301, 129),
        (197, 576, 193),
        (600, 256, 35),
        (131, 300, 1031),
        (6, 770, 70),
    ]
    for m, n, k in sizes:
        a, b, bias, residual = make(m, k), make(k, n), make(n), make(m, n)
        want = np.maximum(0.5 * exact(a, b) + bias + residual, 0)
        options: dict[str, Any] = {"isa": isa, "threads": threads, "levels": levels, "alpha": 0.5, "act": "Relu"}
        got, name = strassen(a, b, bias, residual, constant=(1, 2), **options)
        assert "strassen" in name
        assert name.endswith("-2") == (levels == 2)
        assert_close(got, want, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_random_shapes(isa: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(30):
        m, n, k = (int(rng.integers(low, high)) for low, high in ((4, 150), (256, 500), (4, 300)))
        trans_a, trans_b, constant = (int(v) for v in rng.integers(0, 2, 3))
        a, b, bias = make(m, k), make(k, n), make(n)
        left, right = (a.T.copy() if trans_a else a), (b.T.copy() if trans_b else b)
        options = {"trans_a": trans_a, "trans_b": trans_b, "threads": int(rng.integers(1, 4))}
        got, _ = strassen(left, right, bias, None, isa=isa, constant=(1,) if constant else (), **options)
        assert_close(got, exact(a, b) + bias, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("act", [*ACTIVATIONS, "Relu"])
@pytest.mark.parametrize("levels", LEVELS)
def test_activations(isa: str, act: str, levels: int) -> None:
    a, b, bias = make(37, 40) / 7, make(40, 300), make(300)
    value = exact(a, b) + bias
    want = np.maximum(value, 0) if act == "Relu" else ACTIVATIONS[act](value)
    options = {"act": act, "act_alpha": -0.5, "act_beta": 0.7, "levels": levels}
    got, _ = strassen(a, b, bias, None, isa=isa, constant=(1,), **options)
    assert_close(got, want, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", (1, 2))
def test_batches(isa: str, threads: int) -> None:
    for first, second in (((3, 70, 66), (3, 66, 300)), ((2, 3, 34, 50), (50, 280)), ((9, 20, 30), (9, 30, 256))):
        a, b = make(*first), make(*second)
        for constant in ((), (1,)):
            got, _ = strassen(a, b, None, None, isa=isa, threads=threads, constant=constant)
            assert_close(got, exact(a, b), 1e-5)


def in_place(m: int, n: int, k: int, levels: int, threads: int) -> tuple[Array, Array]:
    """Result and truth of x·w + r where the sum may lie in r's memory."""
    x, w, r = make(m, k), make(k, n), make(m, n)
    out = np.zeros((m, n), np.float32)
    tensors = [
        ("f32", x.shape, "input", 0),
        ("f32", w.shape, "constant", w),
        ("f32", r.shape, "input", 1),
        ("f32", r.shape, "arena", 0),
        ("f32", out.shape, "alias", (3, 0)),
        ("f32", out.shape, "output", 0),
    ]
    attrs = {"algorithm": "strassen", "levels": levels}
    steps = [
        ("Copy", "hold", {}, [2], [3]),
        ("MatMul", "product", attrs, [0, 1, -1, 3], [4]),
        ("Copy", "out", {}, [4], [5]),
    ]
    program = _native.Program(tensors, steps, 4 * m * n + 64, threads)
    program.run([x, r], [out])
    return out, exact(x, w) + r


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("levels", LEVELS)
def test_residual_in_place(levels: int, threads: int) -> None:
    got, want = in_place(133, 520, 256, levels, threads)
    assert_close(got, want, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("threads", THREADS)
def test_pointwise_convolution(isa: str, levels: int, threads: int) -> None:
    x, w, bias, residual = make(2, 9, 7, 70), make(300, 70, 1, 1), make(300), make(2, 9, 7, 300)
    attrs = {
        "strides": (1, 1),
        "pads": (0, 0, 0, 0),
        "dilations": (1, 1),
        "group": 1,
        "layout": "NHWC",
        "act": "Silu",
        "algorithm": "strassen",
        "levels": levels,
    }
    value = exact(x, w[:, :, 0, 0].T) + bias + residual
    want = value / (1 + np.exp(-value))
    for constant in ((1, 2), ()):
        program: list[Any] = []
        [got] = run_kernel(
            "Convolution", [x, w, bias, residual], [(want.shape, np.float32)], attrs,
            constant=constant, isa=isa, threads=threads, program=program,
        )  # fmt: skip
        assert program[0].describe()[0]["algorithm"].startswith("conv-1x1-strassen")
        assert_close(got, want, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("levels", LEVELS)
def test_accuracy(isa: str, levels: int) -> None:
    for k in (256, 1024, 4096):
        for shift in (0.0, 1.0):  # sums that cancel, and sums that grow
            a, b = make(64, k) + np.float32(shift), make(k, 256) + np.float32(shift)
            got, _ = strassen(a, b, None, None, isa=isa, constant=(1,), levels=levels)
            assert_close(got, exact(a, b), BAR / 3)


def supports(m: int, n: int, k: int, algorithm: str) -> tuple[bool, str]:
    return _native.supports("MatMul", {"algorithm": algorithm}, [("f32", (m, k)), ("f32", (k, n))], [("f32", (m, n))])


def test_reasons() -> None:
    assert supports(64, 256, 64, "strassen")[0]
    for m, n, k in ((1, 256, 64), (64, 256, 1), (64, 8, 64)):
        ok, why = supports(m, n, k, "strassen")
        assert not ok
        assert why


def test_who_decides() -> None:
    """``direct`` is the plain product, ``auto`` takes Strassen where it pays, and not for few rows."""
    names = {}
    for m, algorithm in ((256, "direct"), (256, "auto"), (8, "auto")):
        program: list[Any] = []
        a, w = make(m, 768), make(768, 768)
        attrs = {"algorithm": algorithm}
        run_kernel("MatMul", [a, w], [((m, 768), np.float32)], attrs, constant=(1,), program=program)
        names[m, algorithm] = program[0].describe()[0]["algorithm"]
    assert names == {(256, "direct"): "gemm-packed", (256, "auto"): "gemm-strassen-2", (8, "auto"): "gemm-packed"}
