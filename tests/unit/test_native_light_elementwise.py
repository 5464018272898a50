"""Native element-wise kernels against the NumPy references, for every instruction set."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mnnpy.decompose.ops.atomic import BINARY, BINARY_TO_BOOL, UNARY, UNARY_TO_BOOL
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array
from tests.unit.native_ops import ISAS, native, oracle, run_op

pytestmark = pytest.mark.parametrize("isa", ISAS)

PARAMETERS = {"LeakyRelu": (0.1, 0.0), "Elu": (1.3, 0.0), "HardSigmoid": (0.2, 0.5), "Clip": (-1.5, 2.0)}
INTS = (DType.I8, DType.I16, DType.I32, DType.I64, DType.U8, DType.U16, DType.U32, DType.U64)
SMALL_INTS = (DType.I4, DType.U4, DType.I2, DType.U2)
INT_UNARY = ("Abs", "Neg", "Sign", "Square", "Relu", "BitwiseNot", "Clip", "Round")
FLOAT_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "Fmod", "Atan2", "SquaredDifference")
INT_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "Fmod", "SquaredDifference", "BitwiseAnd",
              "BitwiseOr", "BitwiseXor", "ShiftLeft", "ShiftRight")  # fmt: skip
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1e-20, -1e-20, 1.0, -1.0, 0.5, -0.5, 3.4e38, -3.4e38]


def float_values(fn: str, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    if fn in ("Asin", "Acos", "Atanh"):
        body = rng.uniform(-1, 1, 4000)
    elif fn in ("Sin", "Cos", "Tan"):
        body = np.concatenate([rng.uniform(-10, 10, 2000), rng.uniform(-9e5, 9e5, 2000)])
    else:
        body = np.concatenate([rng.standard_normal(1500), rng.uniform(-95, 95, 1500), rng.standard_normal(1000) * 1e-3])
    return np.concatenate([body, np.asarray(SPECIAL)]).astype(np.float32)


def ulps(got: Array, want: Array) -> float:
    """Largest distance in units of the last place of the expected float32 value; NaN and inf must agree."""
    truth = want.astype(np.float64)
    with np.errstate(all="ignore"):
        rounded = truth.astype(np.float32)
        special = ~np.isfinite(rounded)
        assert np.array_equal(np.isnan(got), np.isnan(rounded))
        # at the edge of the range one neighbour more is allowed
        edge = special & (np.abs(got.astype(np.float64)) > 3.402e38)
        assert np.array_equal(got[special & ~edge], rounded[special & ~edge], equal_nan=True)
        keep = ~special & np.isfinite(got)
        assert (keep | special | (np.abs(truth) > 3.402e38)).all()
        unit = np.maximum(np.spacing(np.abs(rounded[keep])).astype(np.float64), 2.0**-149)
        error = np.abs(got[keep].astype(np.float64) - truth[keep]) / unit
    return float(error.max(initial=0))


def truth_of(fn: str, x: Array) -> Array:
    alpha, beta = PARAMETERS.get(fn, (0.0, 0.0))
    with np.errstate(all="ignore"):
        return np.asarray(oracle("Unary")(x.astype(np.float64), fn=fn, alpha=alpha, beta=beta))


@pytest.mark.parametrize("fn", [f for f in UNARY if f not in ("Not", "BitwiseNot")])
def test_unary_f32(fn: str, isa: str) -> None:
    x = float_values(fn)
    alpha, beta = PARAMETERS.get(fn, (0.0, 0.0))
    out = DType.BOOL if fn in UNARY_TO_BOOL else DType.F32
    (got,) = run_op("Unary", {"fn": fn, "alpha": alpha, "beta": beta}, [x], [(out, x.shape)], isa=isa)
    if out is DType.BOOL:
        assert np.array_equal(got, truth_of(fn, x).astype(bool))
        return
    want = truth_of(fn, x)
    if fn in ("Gelu", "GeluTanh", "Mish", "Silu", "HardSwish", "Clip", "HardSigmoid", "LeakyRelu"):
        keep = np.isfinite(want)  # compositions: absolute accuracy at their scale
        np.testing.assert_allclose(got[keep], want[keep], rtol=2e-6, atol=2e-7)
        assert np.array_equal(np.isnan(got), np.isnan(want))
        return
    keep = np.abs(want) >= 1.2e-38 if fn in ("Exp", "Sigmoid") else np.ones(x.shape, bool)
    keep |= ~np.isfinite(want) | (want == 0)
    assert ulps(got[keep], want[keep]) <= 4.0
    if fn in ("Sin", "Tan", "Tanh", "Erf", "Expm1", "Log1p", "Sinh", "Neg", "Sqrt", "Asinh", "Atan", "Round", "Ceil"):
        zero = want == 0
        assert np.array_equal(np.signbit(got[zero]), np.signbit(want[zero]))


def test_large_angles(isa: str) -> None:
    x = np.asarray([1e7, -3e15, 1e30, 12345678.0, np.inf], np.float32)
    for fn in ("Sin", "Cos", "Tan"):
        (got,) = run_op("Unary", {"fn": fn}, [x], [(DType.F32, x.shape)], isa=isa)
        assert ulps(got, truth_of(fn, x)) <= 2


@pytest.mark.parametrize("dtype", [DType.F64, DType.F16, DType.BF16, DType.F8E4M3FN, DType.F8E5M2])
@pytest.mark.parametrize(
    "fn", ["Exp", "Gelu", "Abs", "Tanh", "Sqrt", "HardSigmoid", "IsNaN", "Mish", "Softplus", "Square"]
)
def test_unary_other_floats(fn: str, dtype: DType, isa: str) -> None:
    rng = np.random.default_rng(3)
    with np.errstate(all="ignore"):
        x = np.concatenate([rng.standard_normal(500) * 3, [np.inf, np.nan, 0.0]]).astype(np.float32).astype(dtype.numpy)
    alpha, beta = PARAMETERS.get(fn, (0.0, 0.0))
    out = DType.BOOL if fn in UNARY_TO_BOOL else dtype
    with np.errstate(all="ignore"):
        want = oracle("Unary")(x, fn=fn, alpha=alpha, beta=beta)
    (got,) = run_op("Unary", {"fn": fn, "alpha": alpha, "beta": beta}, [x], [(out, x.shape)], isa=isa)
    if out is DType.BOOL:
        assert np.array_equal(got, want)
        return
    tolerance = {DType.F64: 1e-14, DType.F16: 1e-3, DType.BF16: 8e-3}.get(dtype, 0.26)
    g, w = (v.astype(np.float32) if dtype is not DType.F64 else v for v in (got, want))
    finite = np.isfinite(w) & np.isfinite(g)  # narrow floats saturate here and overflow in ml_dtypes
    np.testing.assert_allclose(g[finite], w[finite], rtol=tolerance, atol=1e-6)
    assert np.array_equal(np.isnan(g), np.isnan(w)) or dtype is DType.F8E4M3FN


def int_values(dtype: DType, n: int, seed: int) -> Array:
    info = ml_dtypes.iinfo(dtype.numpy)  # type: ignore[no-untyped-call]
    rng = np.random.default_rng(seed)
    wide = rng.integers(info.min, info.max, n, dtype=np.int64 if dtype.is_signed else np.uint64, endpoint=True)
    small = rng.integers(max(-3, info.min), min(4, info.max), n // 2, endpoint=True).astype(wide.dtype)
    edges = np.asarray([info.min, info.max, 0, 1, info.min, info.min], wide.dtype)
    return (
        np.concatenate([wide, small, edges]).astype(np.int8 if dtype in SMALL_INTS else dtype.numpy).astype(dtype.numpy)
    )


@pytest.mark.parametrize("dtype", INTS + SMALL_INTS, ids=str)
def test_unary_ints(dtype: DType, isa: str) -> None:
    x = int_values(dtype, 77, 1)
    for fn in INT_UNARY:
        alpha, beta = (-5.0, 1e30) if fn == "Clip" else (0.0, 0.0)
        with np.errstate(all="ignore"):
            want = oracle("Unary")(x, fn=fn, alpha=alpha, beta=beta)
        (got,) = run_op("Unary", {"fn": fn, "alpha": alpha, "beta": beta}, [x], [(dtype, x.shape)], isa=isa)
        assert np.array_equal(got, want), fn


@pytest.mark.parametrize("fn", [f for f in BINARY if f not in ("And", "Or", "Xor")])
@pytest.mark.parametrize("dtype", INTS + SMALL_INTS, ids=str)
def test_binary_ints(fn: str, dtype: DType, isa: str) -> None:
    if fn not in INT_BINARY and fn not in BINARY_TO_BOOL:
        pytest.skip(f"{fn} is a function of floats")
    a, b = int_values(dtype, 77, 1), np.roll(int_values(dtype, 77, 2), 1)
    if fn == "Pow":
        a, b = (
            int_values(dtype, 77, 1),
            (int_values(dtype, 77, 2).astype(np.int64) % 5).astype(np.int8).astype(dtype.numpy),
        )
    out = DType.BOOL if fn in BINARY_TO_BOOL else dtype
    with np.errstate(all="ignore"):
        want = oracle("Binary")(a, b, fn=fn)
    (got,) = run_op("Binary", {"fn": fn}, [a, b], [(out, a.shape)], isa=isa)
    if dtype in SMALL_INTS and fn.startswith("Shift"):
        return  # shifts are of ONNX's whole-byte types
    assert np.array_equal(got, want), (a[got != want], b[got != want], got[got != want], want[got != want])


@pytest.mark.parametrize("fn", FLOAT_BINARY + tuple(sorted(BINARY_TO_BOOL)))
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.F16, DType.BF16], ids=str)
def test_binary_floats(fn: str, dtype: DType, isa: str) -> None:
    rng = np.random.default_rng(5)
    special = np.asarray([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -2.5], np.float32)
    a = np.concatenate([rng.standard_normal(131) * 4, np.repeat(special, 7)]).astype(dtype.numpy)
    b = np.concatenate([rng.standard_normal(131) * 4, np.tile(special, 7)]).astype(dtype.numpy)
    out = DType.BOOL if fn in BINARY_TO_BOOL else dtype
    with np.errstate(all="ignore"):
        want = oracle("Binary")(a, b, fn=fn)
    (got,) = run_op("Binary", {"fn": fn}, [a, b], [(out, a.shape)], isa=isa)
    if out is DType.BOOL:
        assert np.array_equal(got, want)
        return
    g, w = got.astype(np.float64), want.astype(np.float64)
    if fn in ("Mod", "Fmod") and dtype is not DType.F64:
        # the remainder of a rounded quotient may be a whole divisor off only when computed in another precision
        g, w = g[:131], w[:131]
    np.testing.assert_allclose(g, w, rtol={DType.F32: 3e-7, DType.F64: 1e-15}.get(dtype, 1e-2), atol=1e-7)


def test_logic(isa: str) -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.integers(0, 2, 100).astype(bool) for _ in range(2))
    for fn in ("And", "Or", "Xor", "Equal", "NotEqual", "Max", "Min"):
        (got,) = run_op("Binary", {"fn": fn}, [a, b], [(DType.BOOL, a.shape)], isa=isa)
        assert np.array_equal(got, oracle("Binary")(a, b, fn=fn)), fn
    assert np.array_equal(run_op("Unary", {"fn": "Not"}, [a], [(DType.BOOL, a.shape)], isa=isa)[0], ~a)


SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), ()), ((), (3,)), ((0,), (1,)), ((4, 0, 3), (3,)), ((1,), (1, 1)), ((5, 7), (7,)), ((5, 7), (5, 1)),
    ((5, 1), (1, 7)), ((3000,), ()), ((30, 400), (400,)), ((30, 400), (30, 1)), ((40, 300), (300,)),
    ((2, 8, 49), (8, 1)), ((2, 8, 7, 7), (1, 8, 1, 1)), ((3, 1, 5, 1), (1, 4, 1, 6)), ((700, 3), (3,)),
    ((700, 3), (700, 1)), ((2, 3, 600), (3, 1)), ((33, 64), (64,)), ((2, 1, 2, 1, 2, 1, 2), (1, 3, 1, 3, 1, 3, 1)),
    ((9, 130), (9, 130)), ((2, 5, 1030), (2, 1, 1030)), ((7, 600), (600,)), ((1025,), (1025,)), ((3, 2100), (3, 1)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [DType.F32, DType.I64, DType.F16, DType.U8], ids=str)
def test_broadcast(dtype: DType, isa: str) -> None:
    rng = np.random.default_rng(7)
    for sa, sb in SHAPES:
        a, b = (rng.integers(0, 9, s).astype(dtype.numpy) for s in (sa, sb))
        out = np.broadcast_shapes(sa, sb)
        for x, y in ((a, b), (b, a)):
            (got,) = run_op("Binary", {"fn": "Sub"}, [x, y], [(dtype, out)], isa=isa, threads=2)
            assert np.array_equal(got, x - y), (x.shape, y.shape)


def test_select_broadcast(isa: str) -> None:
    rng = np.random.default_rng(8)
    for dtype in (DType.F64, DType.I32, DType.BF16, DType.I8, DType.BOOL):
        c = rng.integers(0, 2, (4, 1, 33)).astype(bool)
        a = rng.integers(0, 2, (5, 1)).astype(dtype.numpy)
        b = rng.integers(0, 2, (4, 5, 33)).astype(dtype.numpy)
        (got,) = run_op("Select", {}, [c, a, b], [(dtype, (4, 5, 33))], isa=isa)
        assert np.array_equal(got, np.where(c, a, b))


def program(ops: list[tuple[str, tuple[int, ...], str, tuple[float, float]]], results: list[int]) -> dict[str, Any]:
    return {
        "ops": [o[0] for o in ops],
        "args": [v for o in ops for v in (*o[1], *([-1] * (3 - len(o[1]))))],
        "dtypes": [o[2] for o in ops],
        "params": [v for o in ops for v in o[3]],
        "results": results,
    }


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(5,), (3, 1000), (64, 300), (200, 7), (1, 1), (0, 4)])
def test_chain(shape: tuple[int, ...], threads: int, isa: str) -> None:
    """Mixed dtypes, a reused register, row and column operands, and two results."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal(shape).astype(np.float32)
    row = rng.standard_normal(shape[-1:]).astype(np.float32)
    column = rng.standard_normal((*shape[:-1], 1)).astype(np.float32)
    none = (0.0, 0.0)
    attrs = program(
        [
            ("Add", (0, 1), "f32", none),  # 3
            ("Mul", (3, 2), "f32", none),  # 4
            ("Greater", (4, 3), "bool", none),  # 5
            ("Convert", (5,), "f32", none),  # 6
            ("Select", (5, 4, 0), "f32", none),  # 7
            ("Sub", (7, 6), "f32", none),  # 8
            ("Clip", (8,), "f32", (-1.0, 1.0)),  # 9
        ],
        [9, 5],
    )
    s3 = x + row
    s4 = s3 * column
    s5 = s4 > s3
    want = np.clip(np.where(s5, s4, x) - s5.astype(np.float32), -1, 1)
    got, flags = run_op(
        "Elementwise", attrs, [x, row, column], [(DType.F32, shape), (DType.BOOL, shape)], isa=isa, threads=threads
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert np.array_equal(flags, s5)


def test_half_rounds_after_every_operation(isa: str) -> None:
    x = np.asarray([1.0, 0.1, 3.3], np.float16)
    none = (0.0, 0.0)
    attrs = program([("Add", (0, 1), "f16", none), ("Sub", (2, 1), "f16", none)], [3])
    big = np.asarray([2048.0], np.float16)
    (got,) = run_op("Elementwise", attrs, [x, big], [(DType.F16, (3,))], isa=isa)
    assert np.array_equal(got, (x + big) - big)


def test_in_place(isa: str) -> None:
    """The output may be the buffer of an input that is read until the end."""
    rng = np.random.default_rng(9)
    none = (0.0, 0.0)
    attrs = program([("Exp", (0,), "f32", none), ("Add", (2, 1), "f32", none), ("Mul", (3, 0), "f32", none)], [4])
    for shape in ((7,), (5000,), (30, 500)):
        x, row = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape[-1:]).astype(np.float32)
        want = (np.exp(x) + row) * x
        step = ("Elementwise", "test", attrs, [0, 1], [2])
        tensors = [("f32", shape, "input", 0), ("f32", row.shape, "input", 1), ("f32", shape, "output", 0)]
        native.Program(tensors=tensors, steps=[step], threads=2, isa=isa).run([x, row], [x])
        np.testing.assert_allclose(x, want, rtol=1e-6, atol=1e-6)


def test_constant_exponents(isa: str) -> None:
    x = np.abs(np.random.default_rng(1).standard_normal(100)).astype(np.float32)
    for e in (2.0, 0.5, 3.0, -1.0, 1.7):
        y = np.asarray(e, np.float32)
        (got,) = run_op("Binary", {"fn": "Pow"}, [x, y], [(DType.F32, x.shape)], isa=isa, constants=(1,))
        np.testing.assert_allclose(got, np.power(x.astype(np.float64), np.float64(y)), rtol=3e-7)


def test_refusals(isa: str) -> None:
    """What has no kernel is refused with the reason."""
    ok, why = native.supports("Unary", {"fn": "Exp"}, [("i32", (3,))], [("i32", (3,))], isa=isa)
    assert not ok
    assert "Exp is not defined for i32" in why
    ok, why = native.supports("Binary", {"fn": "Add"}, [("f32", (3,)), ("f32", (4,))], [("f32", (3,))], isa=isa)
    assert not ok
    assert "broadcast" in why
