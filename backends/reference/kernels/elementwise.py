"""NumPy references of element-wise ops. Aliases use the reference of their atomic op."""

from __future__ import annotations

import functools

import numpy as np

from mnnpy.backends.reference.kernels.atomic import binary, random, shift, sigmoid, unary
from mnnpy.backends.reference.kernels.conversion import convert_array
from mnnpy.backends.reference.kernels.numeric import elementwise, narrow, wide
from mnnpy.decompose.ops.element_types import ElementType, element_type
from mnnpy.decompose.ops.elementwise import BINARY_OPS, UNARY_OPS
from mnnpy.decompose.registry import reference
from mnnpy.decompose.rules.elementwise import seed_bits
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

for _name in UNARY_OPS:
    reference(_name)(functools.partial(unary, fn=_name))
for _name, (_fn, _) in BINARY_OPS.items():
    reference(_name)(functools.partial(binary, fn=_fn))


@reference("Max")
def maximum(*xs: Array) -> Array:
    """NaN wins."""
    return narrow(functools.reduce(np.maximum, [wide(x) for x in xs]), xs[0].dtype)


@reference("Min")
def minimum(*xs: Array) -> Array:
    """NaN wins."""
    return narrow(functools.reduce(np.minimum, [wide(x) for x in xs]), xs[0].dtype)


@reference("Sum")
def sum_(*xs: Array) -> Array:
    """Added widely, rounded once."""
    return narrow(functools.reduce(np.add, [wide(x) for x in xs]), xs[0].dtype)


@reference("Mean")
def mean(*xs: Array) -> Array:
    """Added widely, divided, rounded once."""
    return narrow(functools.reduce(np.add, [wide(x) for x in xs]) / len(xs), xs[0].dtype)


@reference("Mod")
def mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    """``numpy.mod`` or ``numpy.fmod``."""
    return binary(a, b, fn="Fmod" if fmod else "Mod")


@reference("Pow")
def pow_(x: Array, y: Array) -> Array:
    """Integers to integer powers exactly (modulo the width), everything else through float64."""
    if x.dtype.kind in "iu" and y.dtype.kind in "iu":
        base, exponent = np.broadcast_arrays(x, y)
        out = binary(base.astype(np.int64), exponent.astype(np.int64), fn="Pow")
        return narrow(out, x.dtype)
    out = np.power(wide(x).astype(np.float64), wide(y).astype(np.float64))
    return narrow(np.trunc(out) if x.dtype.kind in "iu" else out, x.dtype)


@reference("BitShift")
def bit_shift(x: Array, y: Array, *, direction: str) -> Array:
    """See ``atomic.shift``."""
    return shift(x, y, left=direction == "LEFT")


@reference("PRelu")
def prelu(x: Array, slope: Array) -> Array:
    """By sign."""
    return elementwise(lambda v, s: np.where(v < 0, s * v, v), x, slope)


@reference("SwiGLU")
def swiglu(a: Array, b: Array, *, alpha: float = 1.0) -> Array:
    """Swish of the gate times the value."""
    return elementwise(lambda u, v: u * sigmoid(alpha * u) * v, a, b)


@reference("Where")
def where(condition: Array, x: Array, y: Array) -> Array:
    """``numpy.where``."""
    return np.asarray(np.where(condition, x, y))


@reference("Clip")
def clip(x: Array, min: Array | None = None, max: Array | None = None) -> Array:
    """First the lower bound, then the upper one."""
    w = wide(x)
    if min is not None:
        w = np.maximum(w, wide(min).reshape(()))
    if max is not None:
        w = np.minimum(w, wide(max).reshape(()))
    return narrow(w, x.dtype)


@reference("Celu")
def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """The formula of the specification."""
    return elementwise(lambda v: np.maximum(0, v) + np.minimum(0, alpha * np.expm1(v / alpha)), x)


@reference("Elu")
def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """The atomic function."""
    return unary(x, fn="Elu", alpha=alpha)


@reference("Selu")
def selu(x: Array, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323) -> Array:
    """Scaled Elu."""
    return elementwise(lambda v: gamma * np.where(v > 0, v, alpha * np.expm1(np.minimum(v, 0))), x)


@reference("Gelu")
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """The atomic function."""
    return unary(x, fn="GeluTanh" if approximate == "tanh" else "Gelu")


@reference("HardSigmoid")
def hard_sigmoid(x: Array, *, alpha: float = 0.20000000298023224, beta: float = 0.5) -> Array:
    """The atomic function."""
    return unary(x, fn="HardSigmoid", alpha=alpha, beta=beta)


@reference("LeakyRelu")
def leaky_relu(x: Array, *, alpha: float = 0.009999999776482582) -> Array:
    """The atomic function."""
    return unary(x, fn="LeakyRelu", alpha=alpha)


@reference("Shrink")
def shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Array:
    """In float64, integers too."""
    v = wide(x).astype(np.float64)
    return convert_array(np.where(v < -lambd, v + bias, np.where(v > lambd, v - bias, 0)), DType.of(x.dtype))


@reference("Softsign")
def softsign(x: Array) -> Array:
    """The formula of the specification."""
    return elementwise(lambda v: v / (1 + np.abs(v)), x)


@reference("Swish")
def swish(x: Array, *, alpha: float = 1.0) -> Array:
    """The formula of the specification."""
    return elementwise(lambda v: np.where(alpha * v == -np.inf, 0.0, v * sigmoid(alpha * v)), x)


@reference("ThresholdedRelu")
def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """Zero up to alpha."""
    return elementwise(lambda v: np.where(v > alpha, v, 0), x)


@reference("IsInf")
def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """By sign."""
    v = wide(x)
    return (np.isneginf(v) & bool(detect_negative)) | (np.isposinf(v) & bool(detect_positive))


@reference("Cast")
def cast(x: Array, *, to: ElementType, saturate: int = 1, round_mode: str = "up") -> Array:
    """See ``conversion.convert_array``."""
    return convert_array(x, element_type(to), bool(saturate), round_mode)


@reference("CastLike")
def cast_like(x: Array, target_type: Array, *, saturate: int = 1, round_mode: str = "up") -> Array:
    """See ``conversion.convert_array``."""
    return convert_array(x, DType.of(target_type.dtype), bool(saturate), round_mode)


@reference("BitCast")
def bit_cast(x: Array, *, to: ElementType) -> Array:
    """The same bytes."""
    return np.ascontiguousarray(x).view(element_type(to).numpy).reshape(x.shape)


@reference("Hardmax")
def hardmax(x: Array, *, axis: int = -1) -> Array:
    """One at the first maximum."""
    if not x.size:
        return x
    best = np.expand_dims(np.argmax(wide(x), axis=axis), axis)
    out = np.zeros(x.shape, np.float32)
    np.put_along_axis(out, best, 1, axis)
    return narrow(out, x.dtype)


@reference("Dropout")
def dropout(
    x: Array, ratio: Array | None = None, training_mode: Array | None = None, *, seed: float | None = None
) -> tuple[Array, Array]:
    """Keeps an element where a uniform number is at least *ratio*."""
    rate = 0.5 if ratio is None else float(np.asarray(ratio).reshape(-1)[0])
    if training_mode is None or not training_mode.reshape(-1)[0] or rate == 0:
        return x, np.ones(x.shape, bool)
    noise = random(fn="Uniform", shape=x.shape, dtype=DType.F32, seed=seed_bits(seed))
    mask = noise >= np.float32(rate)
    return narrow(np.where(mask, wide(x) / (1 - rate), 0), x.dtype), mask
