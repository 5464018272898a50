"""bf16 products (``precision="low"``): rounding, shapes, epilogues, and that other tiers stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mnnpy
from mnnpy.backends.cpu import _native
from tests.models import MODELS
from tests.unit.native_helpers import ISAS, THREADS, Array, assert_close, oracle, run_kernel

HAS_BF16 = "avx512bf16" in _native.cpu_features() and "avx512" in ISAS
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this CPU has no AVX512_BF16")

EXACT, LOOSE = 1e-5, 2e-2


def rounded(a: Array) -> Array:
    """To bf16 and back, in f64."""
    return a.astype(ml_dtypes.bfloat16).astype(np.float64)


def make(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def finish(product: Array, bias: Array | None, residual: Array | None, act: str, alpha: float = 1.0) -> Array:
    y = product * alpha
    y = y if bias is None else y + bias
    y = y if residual is None else y + residual
    if act == "Relu":
        return np.maximum(y, 0)
    return y / (1 + np.exp(-y)) if act == "Silu" else y


def matmul(
    a: Array,
    b: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    *,
    constant: bool = True,
    threads: int = 1,
    **attrs: Any,
) -> str:
    """Compare with NumPy; the name of the algorithm that ran."""
    left = a.swapaxes(-1, -2) if attrs.get("trans_a") else a
    right = b.swapaxes(-1, -2) if attrs.get("trans_b") else b
    rest = (bias, residual, attrs.get("act", ""), attrs.get("alpha", 1.0))
    want = finish(np.matmul(rounded(left), rounded(right)), *rest)
    made: list[Any] = []
    [got] = run_kernel(
        "MatMul",
        [a, b, bias, residual],
        [(want.shape, np.float32)],
        {"precision": "low", **attrs},
        constant=(1, 2) if constant else (),
        threads=threads,
        program=made,
    )
    name: str = made[0].describe()[0]["algorithm"]
    if "bf16" in name:
        assert_close(got, want, EXACT)
    assert_close(got, finish(np.matmul(left.astype(np.float64), right.astype(np.float64)), *rest), LOOSE)
    return name


SIZES = [
    (7, 33, 17),
    (49, 100, 64),
    (13, 16, 131),
    (1, 700, 33),
    (50, 70, 1501),
    (6, 9, 8),
    (129, 8, 40),
    (200, 65, 1024),
    (3, 200, 4097),
    (97, 257, 511),
]


@needs_bf16
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("constant", [True, False])
def test_matmul_sizes(threads: int, constant: bool) -> None:
    for m, n, k in SIZES:
        for name in (
            matmul(make(m, k), make(k, n), constant=constant, threads=threads),
            matmul(
                make(m, k), make(n, k), make(n), make(m, n), trans_b=1, act="Relu", constant=constant, threads=threads
            ),
            matmul(
                make(k, m), make(k, n), make(n), trans_a=1, alpha=0.5, act="Silu", constant=constant, threads=threads
            ),
        ):
            assert "bf16" in name or (m == 1 and not constant)


@needs_bf16
@pytest.mark.parametrize("constant", [True, False])
def test_matmul_batches(constant: bool) -> None:
    for a, b in [
        ((2, 3, 5, 17), (2, 3, 17, 9)),
        ((4, 1, 5, 8), (3, 8, 9)),
        ((1, 40, 21), (5, 21, 30)),
        ((7, 6, 21), (21, 30)),
    ]:
        for threads in THREADS:
            assert "bf16" in matmul(make(*a), make(*b), constant=constant, threads=threads)


def test_small_products_stay_f32() -> None:
    for m, n, k in [(5, 3, 100), (5, 100, 3), (4, 4, 0)]:
        assert "bf16" not in matmul(make(m, k), make(k, n))


@needs_bf16
def test_what_lies_behind_a_row_has_no_effect() -> None:
    a = make(3, 9)
    a[1] = np.inf
    b = np.abs(make(9, 16)) + 0.5
    [got] = run_kernel("MatMul", [a, b], [((3, 16), np.float32)], {"precision": "low"}, constant=(1,))
    assert np.isfinite(got[[0, 2]]).all()
    assert (got[1] == np.inf).all()
    x = make(1, 6, 6, 3)
    x[0, 3, 3] = np.nan
    attrs = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1, "layout": "NHWC"}
    [got] = run_kernel(
        "Convolution", [x, make(8, 3, 3, 3)], [((1, 4, 4, 8), np.float32)], {**attrs, "precision": "low"}, constant=(1,)
    )
    assert np.array_equal(np.isnan(got[0, :, :, 0]), [[False] * 4, *[[False, True, True, True]] * 3])


@needs_bf16
def test_rounding_is_to_nearest_even() -> None:
    halves = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 3e38, 1e-3, 2**-100, -0.0], np.float32)
    a = np.tile(halves, (8, 1)) * np.eye(8, dtype=np.float32)
    for constant in (True, False):
        for left, right in ((a, np.eye(8, dtype=np.float32)), (np.eye(8, dtype=np.float32), a)):
            [got] = run_kernel(
                "MatMul", [left, right], [((8, 8), np.float32)], {"precision": "low"}, constant=(1,) if constant else ()
            )
            assert np.array_equal(np.diag(got), halves.astype(ml_dtypes.bfloat16).astype(np.float32))


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], str]] = [
    ((2, 7, 9, 11), (9, 7, 3, 3), {"pads": (1, 1, 1, 1)}, ""),
    ((1, 64, 14, 14), (70, 64, 1, 1), {}, "Relu"),
    ((1, 21, 13, 12), (33, 21, 1, 1), {"strides": (2, 2)}, ""),
    ((1, 20, 5, 6), (33, 20, 1, 1), {"pads": (1, 0, 2, 1)}, "Silu"),
    ((1, 3, 33, 35), (64, 3, 7, 7), {"strides": (2, 2), "pads": (3, 3, 3, 3)}, "Relu"),
    ((2, 3, 10, 9), (8, 3, 3, 3), {"strides": (2, 1), "pads": (0, 1, 2, 3)}, ""),
    ((1, 25, 10, 9), (36, 25, 3, 5), {"strides": (2, 1), "pads": (0, 1, 2, 3), "dilations": (2, 1)}, "Silu"),
    ((1, 5, 9, 14), (12, 5, 3, 3), {"pads": (-1, 1, -2, -1)}, ""),
    ((2, 20, 31), (10, 20, 5), {"pads": (2, 2)}, ""),
    ((1, 3, 31), (10, 3, 5), {"pads": (4, 0)}, ""),
    ((1, 5, 6, 7, 8), (9, 5, 3, 3, 3), {"pads": (1,) * 6}, ""),
    ((1, 16, 6, 7, 8), (9, 16, 3, 3, 3), {"pads": (1,) * 6, "strides": (2, 2, 2)}, ""),
    ((1, 701, 5, 5), (33, 701, 3, 3), {"pads": (1, 1, 1, 1)}, "Relu"),
    ((1, 3000, 3, 3), (33, 3000, 1, 1), {}, "Relu"),
    ((0, 16, 2, 2), (16, 16, 1, 1), {}, ""),
]


def convolve(x: Array, w: Array, bias: Array, residual: bool, attrs: Mapping[str, Any], act: str, **how: Any) -> str:
    n = w.ndim - 2
    attrs = {"strides": (1,) * n, "pads": (0,) * 2 * n, "dilations": (1,) * n, "group": 1, **attrs}
    results = []
    for left, right in ((rounded(x), rounded(w)), (x.astype(np.float64), w.astype(np.float64))):
        plain = np.moveaxis(oracle("Convolution")(left, right, **attrs), 1, -1)
        more = make(*plain.shape, seed=1) if residual else None
        results.append(finish(plain, bias, more, act))
    made: list[Any] = []
    fused = {**attrs, "layout": "NHWC", "precision": "low", "act": act, "algorithm": how.pop("algorithm", "auto")}
    operands = [np.moveaxis(x, 1, -1), w, bias, more]
    [got] = run_kernel(
        "Convolution", operands, [(results[0].shape, np.float32)], fused, constant=(1, 2), program=made, **how
    )
    name: str = made[0].describe()[0]["algorithm"]
    if "bf16" in name and "winograd" not in name:
        assert_close(got, results[0], EXACT)
    assert_close(got, results[1], LOOSE)
    return name


@needs_bf16
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], str]) -> None:
    x_shape, w_shape, attrs, act = case
    x, w, bias = make(*x_shape), make(*w_shape), make(w_shape[0])
    for threads in THREADS:
        for residual in (False, True):
            assert "bf16" in convolve(x, w, bias, residual, attrs, act, threads=threads, algorithm="bf16")


def test_convolutions_without_bf16_kernel_run_in_f32() -> None:
    pads = {"pads": (1, 1, 1, 1)}
    grouped = convolve(make(2, 8, 12, 9), make(12, 4, 3, 3), make(12), True, {"group": 2, **pads}, "")
    depthwise = convolve(make(1, 16, 12, 9), make(16, 1, 3, 3), make(16), False, {"group": 16, **pads}, "Relu")
    assert "bf16" not in grouped + depthwise


@needs_bf16
def test_winograd_stays_where_it_is_faster() -> None:
    plain = {"strides": (1, 1), "dilations": (1, 1), "group": 1, "layout": "NHWC", "precision": "low"}
    w, pads = make(64, 64, 3, 3), (1, 1, 1, 1)
    for size, want in ((56, "winograd"), (3, "bf16")):
        made: list[Any] = []
        x = make(1, size, size, 64)
        run_kernel("Convolution", [x, w], [(x.shape, np.float32)], {**plain, "pads": pads}, constant=(1,), program=made)
        assert want in made[0].describe()[0]["algorithm"]


@pytest.mark.parametrize("isa", [i for i in ISAS if i != "avx512"])
def test_variants_without_bf16_run_the_f32_kernels(isa: str) -> None:
    a, b = make(20, 40), make(40, 30)
    results = []
    for precision in ("low", "normal"):
        made: list[Any] = []
        [got] = run_kernel(
            "MatMul", [a, b], [((20, 30), np.float32)], {"precision": precision}, constant=(1,), isa=isa, program=made
        )
        assert "bf16" not in made[0].describe()[0]["algorithm"]
        results.append(got)
    assert np.array_equal(results[0], results[1])


@needs_bf16
def test_packed_weights_take_half_the_memory() -> None:
    sizes = []
    for precision in ("low", "normal"):
        made: list[Any] = []
        run_kernel(
            "MatMul",
            [make(4, 512), make(512, 256)],
            [((4, 256), np.float32)],
            {"precision": precision},
            constant=(1,),
            program=made,
        )
        sizes.append(made[0].memory["packed"])
    assert sizes[0] * 2 == sizes[1]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_sessions(name: str) -> None:
    model, feeds = MODELS[name]()
    want = mnnpy.Session(model, "reference").run(None, feeds)
    for precision, bar in (("low", LOOSE), ("normal", 3e-5), ("high", 3e-5)):
        for threads in (1, 2):
            forced = {"MatMul": "bf16", "Convolution": "bf16"} if precision == "low" else {}  # else by what is faster
            session = mnnpy.Session(model, precision=precision, threads=threads, algorithms=forced)
            for got, right in zip(session.run(None, feeds), want, strict=True):
                assert_close(got, right, bar)
            shown = [r["algorithm"] for r in session.explain().rows if r["op"] in ("MatMul", "Convolution")]
            used = any("bf16" in a for a in shown)
            assert used == (precision == "low" and HAS_BF16 and bool(shown))
            head = str(session.explain()).partition(";")[0]
            assert head.startswith(f"precision {precision}")
            assert ("in bf16" in head) == (precision == "low")


def attention_attrs(q: Array, k: Array, v: Array, **more: Any) -> dict[str, Any]:
    """Attributes of dense operands [heads, length, features]."""
    views = {n: [0, a.shape[1] * a.shape[2], a.shape[2]] for n, a in (("q", q), ("k", k), ("v", v))}
    h, s, d = q.shape
    t, dv = v.shape[1:]
    sizes = {"batch": [h], "q_len": s, "k_len": t, "dim": d, "v_dim": dv, "scale": d**-0.5}
    return {**sizes, **views, "out": [0, s * dv, dv], "precision": "low", **more}


@needs_bf16
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("masked", [False, True])
def test_attention(threads: int, masked: bool) -> None:
    """Lengths and sizes that are odd, one block of keys or several, few and many queries."""
    for h, s, t, d, dv in [
        (3, 7, 7, 8, 8),
        (2, 65, 130, 64, 64),
        (2, 33, 257, 31, 100),
        (1, 197, 197, 64, 9),
        (2, 20, 1, 9, 33),
    ]:
        q, k, v = make(h, s, d), make(h, t, d, seed=1), make(h, t, dv, seed=2)
        mask = np.where(make(h, s, t, seed=3) > 1, np.float32(-1e4), make(h, s, t, seed=4)) if masked else None
        scores = (rounded(q * np.float32(d**-0.5)) @ rounded(k).swapaxes(1, 2)) + (0 if mask is None else mask)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        want = weights @ rounded(v) / weights.sum(-1, keepdims=True)
        exact = (q.astype(np.float64) * d**-0.5) @ k.swapaxes(1, 2) + (0 if mask is None else mask)
        exact = np.exp(exact - exact.max(-1, keepdims=True))
        exact = exact @ v.astype(np.float64) / exact.sum(-1, keepdims=True)
        attrs = attention_attrs(q, k, v)
        if masked:
            attrs["mask"] = [0, s * t, t, 1]
        made: list[Any] = []
        operands = [q, k, v, mask] if masked else [q, k, v]
        [got] = run_kernel("FusedAttention", operands, [(want.shape, np.float32)], attrs, threads=threads, program=made)
        assert made[0].describe()[0]["algorithm"] == "blocks-bf16"
        assert_close(got, want, 4e-3)  # the weights are rounded as well: 2^-9 of each
        assert_close(got, exact, LOOSE)


@needs_bf16
def test_attention_ignores_what_lies_behind() -> None:
    """An odd number of features: the next element in memory is infinite."""
    packed = make(1, 20, 10)
    packed[..., 9] = np.inf
    view = [0, 200, 10]
    attrs = {**attention_attrs(*(packed[..., :9],) * 3), "q": view, "k": view, "v": view}
    [got] = run_kernel("FusedAttention", [packed] * 3, [((1, 20, 9), np.float32)], attrs)
    assert np.isfinite(got).all()


def test_few_queries_and_other_tiers_stay_f32() -> None:
    for s, precision in ((2, "low"), (20, "normal"), (20, "")):
        q = make(1, s, 16)
        made: list[Any] = []
        attrs = attention_attrs(q, q, q, precision=precision)
        run_kernel("FusedAttention", [q] * 3, [(q.shape, np.float32)], attrs, program=made)
        assert "bf16" not in made[0].describe()[0]["algorithm"]


@needs_bf16
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrent(op: str, direction: str) -> None:
    gates, directions = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1
    for steps, batch, size, hidden, threads in (
        (5, 3, 7, 19, 1),
        (60, 1, 16, 32, 2),
        (4, 2, 3, 8, 7),
        (3, 1, 64, 400, 2),
    ):
        weights = [make(directions, gates * hidden, k) / np.float32(2 * k**0.5) for k in (size, hidden)]
        inputs = [make(steps, batch, size), *weights, make(directions, 2 * gates * hidden)]
        for extra in [{"linear_before_reset": 0}, {"linear_before_reset": 1}] if op == "GRU" else [{}]:
            want = oracle(op)(*inputs, direction=direction, **extra)
            for constant in ((1, 2), ()):
                made: list[Any] = []
                attrs = {"direction": direction, "precision": "low", **extra}
                shapes = [(w.shape, np.float32) for w in want]
                got = run_kernel(op, inputs, shapes, attrs, constant=constant, threads=threads, program=made)
                assert made[0].describe()[0]["algorithm"] == "recurrent-bf16"
                for g, w in zip(got, want, strict=True):
                    assert_close(g, w, LOOSE)
                    assert not np.array_equal(g, w)


@needs_bf16
@pytest.mark.parametrize("act", ["", "Silu"])
def test_winograd(act: str) -> None:
    """Uneven edges, odd channels, more than one slice of channels and panel of outputs."""
    for x_shape, m, pads in [
        ((1, 16, 8, 8), 16, (1, 1, 1, 1)),
        ((2, 9, 7, 13), 33, (1, 0, 2, 1)),
        ((1, 131, 14, 15), 70, (1, 1, 1, 1)),
        ((1, 64, 3, 40), 8, (0, 0, 0, 0)),
    ]:
        x, w, bias = make(*x_shape), make(m, x_shape[1], 3, 3), make(m)
        for threads in THREADS:
            for residual in (False, True):
                name = convolve(x, w, bias, residual, {"pads": pads}, act, threads=threads, algorithm="winograd2bf16")
                assert name == "conv-winograd2bf16"


@needs_bf16
@pytest.mark.parametrize("algorithm", ["bf16", "winograd2bf16"])
def test_convolutions_write_columns_of_a_wider_tensor(algorithm: str) -> None:
    x, w = make(1, 6, 9, 20), make(20, 20, 3, 3)
    attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1, "layout": "NHWC",
             "precision": "low", "algorithm": algorithm}  # fmt: skip
    tensors = [("f32", x.shape, "input", 0), ("f32", w.shape, "constant", w), ("f32", (1, 6, 9, 50), "output", 0),
               ("f32", x.shape, "alias", (2, 4 * 13)), ("f32", x.shape, "output", 1)]  # fmt: skip
    steps = [("Convolution", "p", {**attrs, "pitch": 50}, [0, 1], [3]), ("Convolution", "d", attrs, [0, 1], [4])]
    for threads in THREADS:
        wide, own = np.full((1, 6, 9, 50), 7.0, np.float32), np.empty(x.shape, np.float32)
        made = _native.Program(tensors, steps, 0, threads)
        made.run([x], [wide, own])
        assert all(algorithm in step["algorithm"] for step in made.describe())
        np.testing.assert_array_equal(wide[..., 13:33], own)
        assert (np.delete(wide, np.s_[13:33], -1) == 7).all()
