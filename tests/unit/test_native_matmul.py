"""Native MatMul against NumPy: shapes, transposes, epilogues, types."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mnnpy.backends.cpu import _native
from tests.unit.native_helpers import ISAS, THREADS, Array, assert_close, run_kernel

SIZES = [
    (1, 1, 1),
    (1, 5, 3),
    (3, 1, 70),
    (7, 33, 17),
    (49, 100, 64),
    (13, 16, 130),
    (1, 700, 33),
    (50, 70, 1500),
    (9, 4, 0),
    (129, 2, 40),
]


def make(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def check(
    a: Array,
    b: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    constant: bool = True,
    isa: str,
    threads: int = 1,
    **attrs: Any,
) -> None:
    left = a.swapaxes(-1, -2) if attrs.get("trans_a") else a
    right = b.swapaxes(-1, -2) if attrs.get("trans_b") else b
    want = np.matmul(left.astype(np.float64), right.astype(np.float64)) * attrs.get("alpha", 1.0)
    if bias is not None:
        want = want + bias
    if residual is not None:
        want = want + residual
    if attrs.get("act") == "Relu":
        want = np.maximum(want, 0)
    weights = (1, 2) if constant else ()
    [got] = run_kernel(
        "MatMul", [a, b, bias, residual], [(want.shape, np.float32)], attrs, constant=weights, isa=isa, threads=threads
    )
    assert_close(got, want, 1e-6 * max(4.0, left.shape[-1] ** 0.5))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("constant", [True, False])
def test_sizes(isa: str, threads: int, constant: bool) -> None:
    for m, n, k in SIZES:
        common = {"constant": constant, "isa": isa, "threads": threads}
        check(make(m, k), make(k, n), **common)  # type: ignore[arg-type]
        check(make(m, k), make(n, k), bias=make(n), residual=make(m, n), trans_b=1, act="Relu", **common)  # type: ignore[arg-type]
        check(make(k, m), make(k, n), bias=make(n), trans_a=1, alpha=0.5, **common)  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("constant", [True, False])
def test_batches_and_vectors(isa: str, constant: bool) -> None:
    shapes = [
        ((2, 3, 5, 7), (2, 3, 7, 9)),
        ((4, 1, 5, 7), (3, 7, 9)),
        ((2, 3, 5, 7), (7,)),
        ((7,), (3, 7, 4)),
        ((7,), (7,)),
        ((1, 40, 20), (5, 20, 30)),
        ((6, 1, 20), (6, 20, 300)),
        ((0, 3, 4), (4, 5)),
    ]
    for a, b in shapes:
        for threads in (1, 2):
            check(make(*a), make(*b), constant=constant, isa=isa, threads=threads)
    check(make(2, 3, 64, 32), make(2, 3, 64, 32), constant=constant, isa=isa, trans_b=1, alpha=0.1, threads=2)
    check(make(2, 1, 7, 5), make(7, 9), constant=constant, isa=isa, trans_a=1)
    check(make(8, 70, 30), make(8, 30, 50), residual=make(8, 70, 50), constant=constant, isa=isa, threads=2)


ACTIVATIONS = {
    "Clip": lambda v: np.clip(v, -0.5, 0.7),
    "Sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "Tanh": np.tanh,
    "Silu": lambda v: v / (1 + np.exp(-v)),
    "HardSwish": lambda v: v * np.clip(v / 6 + 0.5, 0, 1),
    "LeakyRelu": lambda v: np.where(v < 0, -0.5 * v, v),
    "HardSigmoid": lambda v: np.clip(-0.5 * v + 0.7, 0, 1),
    "GeluTanh": lambda v: 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("act", list(ACTIVATIONS))
def test_activations(isa: str, act: str) -> None:
    for m, n, constant in ((7, 37, True), (1, 100, False), (5, 1, True)):
        a, b = make(m, 5), make(5, n)
        want = ACTIVATIONS[act](a.astype(np.float64) @ b)
        attrs = {"act": act, "act_alpha": -0.5, "act_beta": 0.7}
        [got] = run_kernel(
            "MatMul", [a, b], [(want.shape, np.float32)], attrs, constant=(1,) if constant else (), isa=isa
        )
        assert_close(got, want, 2e-6)


@pytest.mark.parametrize(
    "dtype", [np.float64, np.int8, np.uint8, np.int32, np.int64, np.uint32, np.uint64, np.float16, ml_dtypes.bfloat16]
)
def test_types(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, (2, 5, 7)).astype(dtype), rng.integers(0, 9, (7, 6)).astype(dtype)
    wide = np.float32 if np.dtype(dtype).itemsize == 2 else dtype
    want = np.matmul(a.astype(wide), b.astype(wide)).astype(dtype)
    for trans in (0, 1):
        [got] = run_kernel("MatMul", [a, b.T if trans else b], [(want.shape, dtype)], {"trans_b": trans}, threads=2)
        assert (got == want).all()


def test_packed_weights_are_released() -> None:
    w = make(64, 64)
    program: list[Any] = []
    run_kernel("MatMul", [make(3, 64), w], [((3, 64), np.float32)], constant=(1,), program=program)
    memory = program[0].memory
    assert memory["constants"] == 0
    assert memory["packed"] == w.nbytes
    assert program[0].describe()[0]["algorithm"] == "gemm-packed"


def test_reasons() -> None:
    ok, why = _native.supports("MatMul", {}, [("f32", (2, 3)), ("f32", (4, 5))], [("f32", (2, 5))])
    assert not ok
    assert "inner sizes differ" in why
