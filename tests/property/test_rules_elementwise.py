"""Rules of element-wise ops give what their NumPy references give; conversion against its own definition."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.infer import Operand, infer
from mnnpy.decompose.ops.elementwise import BINARY_OPS, UNARY_OPS
from mnnpy.errors import ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType
from tests.rule_check import check_rule

_RNG = np.random.default_rng(7)
_FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
_INTS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
_SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.5, 30.0, -30.0, np.inf, -np.inf, np.nan]
_ON_INTS = {"Abs", "Neg", "Sign", "Relu", "BitwiseNot"}
_LOGICAL = {"And", "Or", "Xor"}


def _floats(dtype: Any, *shape: int) -> Any:
    return (_RNG.standard_normal(shape) * 3).astype(dtype)


def _integers(dtype: Any, *shape: int, low: int | None = None) -> Any:
    info = np.iinfo(dtype)
    return _RNG.integers(max(info.min, -9) if low is None else low, 9, shape).astype(dtype)


def _tolerance(dtype: Any) -> dict[str, float]:
    eps = float(ml_dtypes.finfo(dtype).eps)
    return {"rtol": 8 * eps, "atol": 8 * eps}


@pytest.mark.parametrize("dtype", _FLOATS)
@pytest.mark.parametrize("name", sorted(set(UNARY_OPS) - {"Not", "BitwiseNot"}))
def test_unary(name: str, dtype: Any) -> None:
    x = np.concatenate([_floats(dtype, 40), np.array(_SPECIAL).astype(dtype)])
    check_rule(name, [x], max_nodes=1, **_tolerance(dtype))
    check_rule(name, [x[:0].reshape(0, 3)], max_nodes=1)


@pytest.mark.parametrize("dtype", _INTS)
def test_unary_of_integers(dtype: Any) -> None:
    for name in _ON_INTS:
        if name != "Neg" or np.dtype(dtype).kind == "i":
            check_rule(name, [_integers(dtype, 3, 4)], max_nodes=1)
    check_rule("Not", [_integers(dtype, 5) > 2], max_nodes=1)


@pytest.mark.parametrize("name", sorted(BINARY_OPS))
def test_binary(name: str) -> None:
    if name in _LOGICAL:
        check_rule(name, [_RNG.random((3, 1)) > 0.5, _RNG.random((2, 1, 4)) > 0.5], max_nodes=1)
        return
    bitwise = name.startswith("Bitwise")
    for dtype in [*_INTS, *([] if bitwise else _FLOATS)]:
        make = _integers if np.dtype(dtype).kind in "iu" else _floats
        b = make(dtype, 2, 1, 4)
        if name == "Div" and make is _integers:
            b[b == 0] = 1
        check_rule(name, [make(dtype, 3, 1), b], max_nodes=1, **({} if make is _integers else _tolerance(dtype)))


@pytest.mark.parametrize("name", ["Max", "Min", "Sum", "Mean"])
def test_variadic(name: str) -> None:
    operands = [_floats(np.float32, 3, 1), _floats(np.float32, 1, 4), _floats(np.float32, 4)]
    for n in (1, 2, 3):
        check_rule(name, operands[:n])


@pytest.mark.parametrize("fmod", [0, 1])
def test_mod(fmod: int) -> None:
    for dtype in _INTS:
        b = _integers(dtype, 40)
        b[b == 0] = 3
        check_rule("Mod", [_integers(dtype, 40), b], {"fmod": fmod}, max_nodes=1)
    a, b = (v.ravel() for v in np.meshgrid(np.float32([*_SPECIAL, 7.3]), np.float32([*_SPECIAL, -2.2])))
    check_rule("Mod", [a, b], {"fmod": fmod}, max_nodes=1)


@pytest.mark.parametrize("base", [np.float32, np.float16, np.int32, np.int64])
@pytest.mark.parametrize("exponent", [np.float32, np.int32, np.int64, np.uint8, np.uint64])
def test_pow(base: Any, exponent: Any) -> None:
    x = np.array([1, 2, 3, -2, -1, 5]).astype(base)
    y = np.array([3, 0, 2, 3, 2, 1]).astype(exponent)
    check_rule("Pow", [x, y], rtol=1e-3)
    check_rule("Pow", [x, np.array(2, exponent)], const=(1,), rtol=1e-3, max_nodes=1)
    check_rule("Pow", [x, np.full((2, 1), 2, exponent)], const=(1,), rtol=1e-3)


@pytest.mark.parametrize("dtype", _INTS)
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bit_shift(dtype: Any, direction: str) -> None:
    info = np.iinfo(dtype)
    x = np.array([info.min, info.max, 1, 5, info.max - 1] + ([-1, -7] if info.min < 0 else [0, 7]), dtype)
    amounts = [0, 1, 3, info.bits - 1, info.bits, 100] + ([-1] if info.min < 0 else [])
    for amount in amounts:
        check_rule("BitShift", [x, np.array(amount, dtype)], {"direction": direction})
    want = [int(v) >> min(3, 63) if direction == "RIGHT" else int(v) << 3 for v in x]
    (got,) = evaluate("BitShift", [x, np.array(3, dtype)], {"direction": direction})
    assert got.tolist() == np.array([w & (2**info.bits - 1) for w in want], np.uint64).astype(dtype).tolist()


_PARAMETRIC: list[tuple[str, dict[str, Any]]] = [
    ("Celu", {}), ("Celu", {"alpha": 2.5}), ("Celu", {"alpha": -0.7}), ("Elu", {"alpha": 0.3}), ("Selu", {}),
    ("Gelu", {}), ("Gelu", {"approximate": "tanh"}), ("HardSigmoid", {"alpha": 0.4, "beta": 0.3}),
    ("LeakyRelu", {"alpha": 0.2}), ("Shrink", {"bias": 0.25, "lambd": 1.5}), ("Softsign", {}), ("Swish", {}),
    ("Swish", {"alpha": 0.5}), ("ThresholdedRelu", {"alpha": 0.75}), ("IsInf", {}), ("IsInf", {"detect_negative": 0}),
    ("IsInf", {"detect_positive": 0}), ("IsInf", {"detect_positive": 0, "detect_negative": 0}),
    ("Hardmax", {"axis": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "attrs"), _PARAMETRIC)
@pytest.mark.parametrize("dtype", _FLOATS)
def test_parametric(name: str, attrs: dict[str, Any], dtype: Any) -> None:
    x = _floats(dtype, 5, 6)
    if name == "IsInf":
        x[0, 0], x[1, 1], x[2, 2] = np.inf, -np.inf, np.nan
    check_rule(name, [x], attrs, **_tolerance(dtype))


def test_small_types_go_through_wider_ones() -> None:
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        x = np.array([1, -2, np.nan, np.inf], np.float32).astype(dtype)
        check_rule("IsNaN", [x])
        check_rule("IsInf", [x])
        check_rule("IsInf", [x], {"detect_negative": 0})


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_shrink_of_integers(dtype: Any) -> None:
    check_rule("Shrink", [_integers(dtype, 20)], {"bias": 1.0, "lambd": 1.5})


@pytest.mark.parametrize("known", [(1, 2), ()])
def test_clip(known: tuple[int, ...]) -> None:
    for dtype in (np.float32, np.float16, np.int8, np.int64, np.uint32):
        x = (_RNG.standard_normal(20) * 5).astype(np.float32)
        x = np.abs(x).astype(dtype) if np.dtype(dtype).kind == "u" else x.astype(dtype)
        low, high = np.array(1, dtype), np.array(3, dtype)
        for bounds in ([low, high], [low, None], [None, high], [None, None], [high, low]):
            check_rule("Clip", [x, *bounds], const=known, max_nodes=2)


def test_prelu_and_gates() -> None:
    x = _floats(np.float32, 2, 3, 4)
    check_rule("PRelu", [x, _floats(np.float32, 3, 1)])
    check_rule("PRelu", [x, np.full((3, 1), 0.25, np.float32)], const=(1,), max_nodes=1)
    check_rule("PRelu", [_integers(np.int32, 4), _integers(np.int32, 4)])
    check_rule("PRelu", [_integers(np.uint32, 4), _integers(np.uint32, 4)], max_nodes=0)
    check_rule("SwiGLU", [x, _floats(np.float32, 2, 3, 4)], {"alpha": 1.5})
    check_rule("Where", [x > 0, x, x[:, :1]], max_nodes=1)


def test_dropout() -> None:
    x = _floats(np.float32, 50, 60)
    ratio, yes = np.array(0.3, np.float32), np.array(True)
    check_rule("Dropout", [x], outputs=2)
    check_rule("Dropout", [x, ratio, yes], {"seed": 3.0}, outputs=2, const=(2,))
    y, mask = evaluate("Dropout", [x, ratio, yes], {"seed": 3.0})
    assert 0.66 < mask.mean() < 0.74
    np.testing.assert_allclose(y[mask], x[mask] / 0.7, rtol=1e-5)
    assert not y[~mask].any()


_ALL = [t for t in DType if not t.is_complex and t is not DType.STRING]


@pytest.mark.parametrize("source", _ALL, ids=str)
@pytest.mark.parametrize("target", _ALL, ids=str)
def test_cast(source: DType, target: DType) -> None:
    values = np.array([0, 1, 2, 3, 1, 0, 2, 1], np.float32)
    if source.is_signed and target.is_signed and source is not DType.F8E8M0 and target is not DType.F8E8M0:
        values[4:] *= -1
    if DType.I2 in (source, target):
        values = np.where(np.abs(values) > 1, 1, values).astype(np.float32)
    if DType.F8E8M0 in (source, target):
        values = np.array([1, 2, 1, 1], np.float32) if DType.I2 not in (source, target) else np.ones(4, np.float32)
    x = values.astype(source.numpy)
    check_rule("Cast", [x], {"to": target})
    check_rule("CastLike", [x, np.zeros(1, target.numpy)], {})
    (got,) = evaluate("Cast", [x], {"to": target})
    want = (values != 0) if DType.BOOL in (source, target) else values
    np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize("target", [DType.F8E4M3FN, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ], ids=str)
def test_cast_saturates(target: DType) -> None:
    largest = float(ml_dtypes.finfo(target.numpy).max)
    x = np.array([1e6, -1e6, np.inf, -np.inf, np.nan, largest, -largest], np.float32)
    (got,) = evaluate("Cast", [x], {"to": target})
    np.testing.assert_array_equal(
        got.astype(np.float32), [largest, -largest, largest, -largest, np.nan, largest, -largest]
    )
    (raw,) = evaluate("Cast", [x], {"to": target, "saturate": 0})
    overflow = np.inf if target is DType.F8E5M2 else np.nan
    np.testing.assert_array_equal(raw.astype(np.float32)[:2], [overflow, -overflow])
    check_rule("Cast", [x], {"to": target, "saturate": 0}, max_nodes=1)


@pytest.mark.parametrize(
    ("mode", "want"), [("up", [1, 2, 2, 2, 4]), ("down", [1, 1, 1, 1, 2]), ("nearest", [1, 1, 2, 2, 4])]
)
def test_cast_to_powers_of_two(mode: str, want: list[float]) -> None:
    x = np.array([1, 1.25, 1.5, 1.75, 3], np.float32)
    (got,) = evaluate("Cast", [x], {"to": DType.F8E8M0, "round_mode": mode})
    assert got.astype(np.float32).tolist() == want
    check_rule("Cast", [x], {"to": DType.F8E8M0, "round_mode": mode}, max_nodes=1)
    special = np.array([0, np.inf, np.nan], np.float64)
    (full,) = evaluate("Cast", [special], {"to": DType.F8E8M0})
    np.testing.assert_array_equal(full.view(np.uint8), [0, 254, 255])
    (raw,) = evaluate("Cast", [special], {"to": DType.F8E8M0, "saturate": 0, "round_mode": mode})
    assert raw.view(np.uint8).tolist() == [255, 255, 255]


def test_cast_of_integers_keeps_low_bits() -> None:
    x = np.array([200, -129, 257, 15, 16], np.int16)
    for target in (DType.I8, DType.U8, DType.I4, DType.U4, DType.U2):
        bits = {DType.I4: 4, DType.U4: 4, DType.U2: 2}.get(target, 8)
        (got,) = evaluate("Cast", [x], {"to": target})
        low = [int(v) % 2**bits for v in x]
        want = [v - 2**bits if target.is_signed and v >= 2 ** (bits - 1) else v for v in low]
        assert [int(v) for v in got] == want


def test_cast_of_strings() -> None:
    texts = np.array(["3.14", "1e-5", "+INF", "-inf", "NaN", "1000"], object)
    (got,) = evaluate("Cast", [texts], {"to": DType.F32})
    np.testing.assert_allclose(got, [3.14, 1e-5, np.inf, -np.inf, np.nan, 1000], rtol=1e-6)
    (ints,) = evaluate("Cast", [np.array(["7", "100.5", "9223372036854775807"], object)], {"to": DType.I64})
    assert ints.tolist() == [7, 100, 2**63 - 1]
    (back,) = evaluate("Cast", [np.float32([0.1, 3, -np.inf])], {"to": DType.STRING})
    assert back.tolist() == ["0.1", "3.0", "-INF"]
    with pytest.raises(ShapeError, match="spells no number"):
        evaluate("Cast", [np.array(["Hello"], object)], {"to": DType.F32})


def test_bit_cast() -> None:
    for dtype, target in [
        (np.float32, DType.I32),
        (np.int64, DType.F64),
        (np.float16, DType.BF16),
        (np.int8, DType.U8),
    ]:
        check_rule("BitCast", [np.arange(6).reshape(2, 3).astype(dtype)], {"to": target}, max_nodes=1)
    with pytest.raises(ShapeError, match="cannot be reinterpreted"):
        infer("BitCast", [Operand(TensorType(DType.F32, (2,)))], {"to": DType.F64}, 1)


def test_erf_is_exact() -> None:
    x = np.linspace(-7, 7, 1001)
    (got,) = evaluate("Erf", [x], {})
    assert got.tolist() == [math.erf(v) for v in x]
