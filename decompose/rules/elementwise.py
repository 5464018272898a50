"""Rules of element-wise ops: aliases of atomic kinds and short compositions."""

from __future__ import annotations

import struct
from math import isnan
from typing import Any

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.infer import normalize_axis
from mnnpy.decompose.ops.element_types import ElementType, element_type
from mnnpy.decompose.ops.elementwise import BINARY_OPS, COMPARISONS, UNARY_OPS, VARIADIC_OPS
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.movement import broadcast
from mnnpy.graph.dtypes import DType

#: Types that atomic arithmetic is defined on; smaller ones are converted to f32 and back.
_WIDE = frozenset({DType.F16, DType.BF16, DType.F32, DType.F64})
_SUB_BYTE = frozenset({DType.I2, DType.U2, DType.I4, DType.U4})
_NUMERIC_FN = frozenset({"Abs", "Neg", "Sign", "Relu", "Not", "BitwiseNot"})
_UNSIGNED = {
    DType.I8: DType.U8, DType.I16: DType.U16, DType.I32: DType.U32, DType.I64: DType.U64,
}  # fmt: skip


def arithmetic(x: Var) -> DType | None:
    """The type to compute in instead of x's own, or None where that one will do."""
    if x.dtype.is_float:
        return None if x.dtype in _WIDE else DType.F32
    return DType.I32 if x.dtype in _SUB_BYTE else None


def seed_bits(seed: float | int | None) -> int | None:
    """ONNX's float seed as the integer key of the atomic generator: the bits of its binary32 form."""
    return None if seed is None else int(struct.unpack("<I", struct.pack("<f", float(seed)))[0])


def _unary_rule(name: str) -> None:
    @rule(name)
    def apply(g: Builder, x: Var) -> Var | None:
        if x.dtype is DType.STRING:
            return None
        through = arithmetic(x)
        if x.dtype.is_int and name not in _NUMERIC_FN:
            through = DType.F64 if x.dtype.itemsize > 2 else DType.F32
        if through is None:
            return g.unary(name, x)
        y = g.unary(name, g.cast(x, through))
        return y if name == "IsNaN" else g.cast(y, x.dtype)


def _binary_rule(name: str, fn: str) -> None:
    @rule(name)
    def apply(g: Builder, a: Var, b: Var) -> Var | None:
        return binary(g, fn, a, b, compares=name in COMPARISONS)


def binary(g: Builder, fn: str, a: Var, b: Var, *, compares: bool = False) -> Var | None:
    """One atomic Binary, through a wider type where the operands' own has no arithmetic."""
    if a.dtype is DType.STRING:
        return None
    through = arithmetic(a)
    if through is None:
        return g.binary(fn, a, b)
    y = g.binary(fn, g.cast(a, through), g.cast(b, through))
    return y if compares else g.cast(y, a.dtype)


def _variadic_rule(name: str) -> None:
    fn = {"Max": "Max", "Min": "Min", "Sum": "Add", "Mean": "Add"}[name]

    @rule(name)
    def apply(g: Builder, *xs: Var) -> Var:
        total = xs[0]
        for x in xs[1:]:
            total = g.binary(fn, total, x)
        return g.div(total, len(xs)) if name == "Mean" and len(xs) > 1 else total


for _name in UNARY_OPS:
    _unary_rule(_name)
for _name, (_fn, _) in BINARY_OPS.items():
    _binary_rule(_name, _fn)
for _name in VARIADIC_OPS:
    _variadic_rule(_name)


@rule("Mod")
def mod(g: Builder, a: Var, b: Var, *, fmod: int = 0) -> Var | None:
    return binary(g, "Fmod" if fmod else "Mod", a, b)


@rule("Pow")
def pow_(g: Builder, x: Var, y: Var) -> Var:
    if y.value is not None and y.value.size == 1 and len(np.broadcast_shapes(x.shape, y.shape)) == x.rank:
        exponent = float(y.value.reshape(-1)[0])
        if exponent == 1:
            return x
        if exponent == 2:
            return g.unary("Square", x)
    if x.dtype is y.dtype:
        return g.binary("Pow", x, y)
    if x.dtype.is_float:
        return g.binary("Pow", x, g.cast(y, x.dtype))
    if y.dtype.is_int:
        # Exponents beyond the base's range overflow (or stay 0 and ±1) all the same, unless they wrap around.
        wide = y.dtype.itemsize <= x.dtype.itemsize and y.dtype.is_signed
        common = x.dtype if wide else DType.I64
        return g.cast(g.binary("Pow", g.cast(x, common), g.cast(y, common)), x.dtype)
    return g.cast(g.binary("Pow", g.cast(x, DType.F64), g.cast(y, DType.F64)), x.dtype)


@rule("BitShift")
def bit_shift(g: Builder, x: Var, y: Var, *, direction: str) -> Var:
    fn = "ShiftLeft" if direction == "LEFT" else "ShiftRight"
    unsigned = _UNSIGNED.get(x.dtype)
    if unsigned is None:
        return g.binary(fn, x, y)
    # A negative amount becomes a huge unsigned one, which shifts everything out: what the specification asks.
    amount = g.op("Reinterpret", y, to=unsigned)
    bits = g.op("Reinterpret", x, to=unsigned)
    if direction == "LEFT":
        return g.op("Reinterpret", g.binary(fn, bits, amount), to=x.dtype)  # type: ignore[no-any-return]
    # Arithmetic right shift: shift the complement of negative values, and complement again.
    negative = g.binary("Less", x, 0)
    shifted = g.binary(fn, g.select(negative, g.unary("BitwiseNot", bits), bits), amount)
    result = g.select(negative, g.unary("BitwiseNot", shifted), shifted)
    return g.op("Reinterpret", result, to=x.dtype)  # type: ignore[no-any-return]


@rule("PRelu")
def prelu(g: Builder, x: Var, slope: Var) -> Var:
    if x.dtype.is_int and not x.dtype.is_signed:
        return x
    if slope.value is not None and slope.value.size and x.dtype.is_float:
        flat = slope.value.reshape(-1)
        if (flat == flat[0]).all():
            return g.unary("LeakyRelu", x, alpha=float(flat[0]))
    return g.select(g.binary("Less", x, 0), g.mul(slope, x), x)


@rule("SwiGLU")
def swiglu(g: Builder, a: Var, b: Var, *, alpha: float = 1.0) -> Var:
    return g.mul(swish(g, a, alpha=alpha), b)


@rule("Where")
def where(g: Builder, condition: Var, x: Var, y: Var) -> Var | None:
    return None if x.dtype is DType.STRING else g.select(condition, x, y)


def _bound(v: Var | None, default: float) -> float | None:
    """The value of a clipping bound where it is known and a number."""
    if v is None:
        return default
    if v.value is None:
        return None
    value = float(v.value.reshape(-1)[0])
    return None if isnan(value) else value


@rule("Clip")
def clip(g: Builder, x: Var, min: Var | None = None, max: Var | None = None) -> Var:
    low, high = _bound(min, -np.inf), _bound(max, np.inf)
    if x.dtype.is_float and low is not None and high is not None:
        if low == 0 and high == np.inf:
            return g.unary("Relu", x)
        return g.unary("Clip", x, alpha=low, beta=high)
    for fn, bound in (("Max", min), ("Min", max)):
        if bound is not None:
            scalar = bound if bound.rank == 0 else g.reshape(bound, ())
            x = g.binary(fn, x, scalar)
    return x


@rule("Celu")
def celu(g: Builder, x: Var, *, alpha: float = 1.0) -> Var:
    if alpha == 1:
        return g.unary("Elu", x, alpha=1.0)
    if alpha > 0:
        return g.mul(g.unary("Elu", g.div(x, alpha), alpha=1.0), alpha)
    low = g.mul(g.unary("Expm1", g.div(x, alpha)), alpha)
    return g.add(g.unary("Relu", x), g.binary("Min", low, 0))


@rule("Elu")
def elu(g: Builder, x: Var, *, alpha: float = 1.0) -> Var:
    return g.unary("Elu", x, alpha=alpha)


@rule("Selu")
def selu(g: Builder, x: Var, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323) -> Var:
    return g.mul(g.unary("Elu", x, alpha=alpha), gamma)


@rule("Gelu")
def gelu(g: Builder, x: Var, *, approximate: str = "none") -> Var:
    return g.unary("GeluTanh" if approximate == "tanh" else "Gelu", x)


@rule("HardSigmoid")
def hard_sigmoid(g: Builder, x: Var, *, alpha: float = 0.20000000298023224, beta: float = 0.5) -> Var:
    return g.unary("HardSigmoid", x, alpha=alpha, beta=beta)


@rule("LeakyRelu")
def leaky_relu(g: Builder, x: Var, *, alpha: float = 0.009999999776482582) -> Var:
    return g.unary("LeakyRelu", x, alpha=alpha)


@rule("Shrink")
def shrink(g: Builder, x: Var, *, bias: float = 0.0, lambd: float = 0.5) -> Var:
    # The bounds are no integers, so integers are compared as floats.
    v = g.cast(x, DType.F64 if x.dtype.itemsize > 2 else DType.F32) if x.dtype.is_int else x
    above = g.select(g.binary("Greater", v, lambd), g.sub(v, bias), 0)
    return g.cast(g.select(g.binary("Less", v, -lambd), g.add(v, bias), above), x.dtype)


@rule("Softsign")
def softsign(g: Builder, x: Var) -> Var:
    return g.div(x, g.add(g.unary("Abs", x), 1))


@rule("Swish")
def swish(g: Builder, x: Var, *, alpha: float = 1.0) -> Var:
    return g.unary("Silu", x) if alpha == 1 else g.mul(x, g.unary("Sigmoid", g.mul(x, alpha)))


@rule("ThresholdedRelu")
def thresholded_relu(g: Builder, x: Var, *, alpha: float = 1.0) -> Var:
    return g.select(g.binary("Greater", x, alpha), x, 0)


@rule("IsInf")
def is_inf(g: Builder, x: Var, *, detect_negative: int = 1, detect_positive: int = 1) -> Var:
    x = g.cast(x, arithmetic(x) or x.dtype)
    if detect_negative and detect_positive:
        return g.unary("IsInf", x)
    if not detect_negative and not detect_positive:
        return broadcast(g, g.const(False), x.shape)
    return g.binary("Equal", x, -np.inf if detect_negative else np.inf)


def convert(g: Builder, x: Var, to: DType, saturate: int, round_mode: str) -> Var | None:
    """One atomic Convert; None where strings take part, nothing where the type is right already."""
    if DType.STRING in (x.dtype, to):
        return x if x.dtype is to else None
    if x.dtype is to:
        return x
    options: dict[str, Any] = (
        {} if saturate and round_mode == "up" else {"saturate": bool(saturate), "round_mode": round_mode}
    )
    return g.op("Convert", x, to=to, **options)  # type: ignore[no-any-return]


@rule("Cast")
def cast(g: Builder, x: Var, *, to: ElementType, saturate: int = 1, round_mode: str = "up") -> Var | None:
    return convert(g, x, element_type(to), saturate, round_mode)


@rule("CastLike")
def cast_like(g: Builder, x: Var, target_type: Var, *, saturate: int = 1, round_mode: str = "up") -> Var | None:
    return convert(g, x, target_type.dtype, saturate, round_mode)


@rule("BitCast")
def bit_cast(g: Builder, x: Var, *, to: ElementType) -> Var:
    target = element_type(to)
    return x if target is x.dtype else g.op("Reinterpret", x, to=target)


@rule("Hardmax")
def hardmax(g: Builder, x: Var, *, axis: int = -1) -> Var:
    axis = normalize_axis(axis, x.rank)
    n = x.shape[axis]
    if 0 in x.shape:
        return x
    place = [n if k == axis else 1 for k in range(x.rank)]
    best = g.op("ArgReduce", x, fn="Max", axis=axis, keepdims=True)
    return g.cast(g.binary("Equal", best, g.const(np.arange(n).reshape(place), np.int64)), x.dtype)


@rule("Dropout")
def dropout(
    g: Builder, x: Var, ratio: Var | None = None, training_mode: Var | None = None, *, seed: float | None = None
) -> tuple[Var, Var]:
    training = training_mode is not None and bool(training_mode.require_value().reshape(-1)[0])
    known = 0.5 if ratio is None else None if ratio.value is None else float(ratio.value.reshape(-1)[0])
    if not training or known == 0:
        return x, broadcast(g, g.const(True), x.shape)
    noise = g.op("Random", fn="Uniform", shape=x.shape, dtype=DType.F32, a=0.0, b=1.0, seed=seed_bits(seed))
    rate = g.const(0.5, np.float32) if ratio is None else g.cast(g.reshape(ratio, ()), DType.F32)
    mask = g.binary("GreaterEqual", noise, rate)
    wide = g.cast(x, DType.F32 if x.dtype is not DType.F64 else DType.F64)
    scale = g.cast(g.div(g.const(1, np.float32), g.sub(g.const(1, np.float32), rate)), wide.dtype)
    return g.cast(g.select(mask, g.mul(wide, scale), 0), x.dtype), mask
