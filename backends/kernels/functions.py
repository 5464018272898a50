"""Element-wise functions as kernel expressions: the Unary, Binary and Convert of the atomic vocabulary.

Expressions are of register types; narrow integers are brought back to their width by ``wrap`` where arithmetic may
leave it. Functions that some dialect lacks (erf, expm1, log1p, …) are built here from those that all have.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Expr, const, eq, ne, register_type, select
from mnnpy.backends.kernels.lowering import Declined
from mnnpy.graph.dtypes import DType

__all__ = ["binary", "unary", "wrap"]

_FLOATS = frozenset({DType.F16, DType.F32, DType.F64})
_SIGNED = frozenset({DType.I2, DType.I4, DType.I8, DType.I16, DType.I32, DType.I64})


def width(dtype: DType) -> int:
    """Bits of an integer type."""
    return int(dtype.value[1:])


def wrap(x: Expr, dtype: DType) -> Expr:
    """The value as *dtype* stores it: integers narrower than their register wrap around."""
    if dtype.is_int and register_type(dtype) is not dtype:
        bits = width(dtype)
        if dtype in _SIGNED:
            return (x << (32 - bits)) >> (32 - bits)
        return x & ((1 << bits) - 1)
    return x


def _nan_aware(b: KernelBuilder, x: Expr, y: Expr, *, largest: bool) -> Expr:
    """Max or Min that propagate NaN."""
    if x.dtype in _FLOATS:
        first, second = b.let(x), b.let(y)
        better = (first > second) if largest else (first < second)
        return select(first.call("isnan"), first, select(better, first, second))
    return x.max(y) if largest else x.min(y)


Unary = Callable[[KernelBuilder, Expr, float, float], Expr]


def unary(b: KernelBuilder, fn: str, x: Expr, dtype: DType, alpha: float = 0.0, beta: float = 0.0) -> Expr:
    """``fn(x)`` for an element of *dtype*; raises Declined where there is no such kernel."""
    x = b.let(x)
    if fn == "Not":
        return ~x
    real = x.dtype in _FLOATS
    if fn in ("IsNaN", "IsInf"):
        return x.call(fn.lower()) if real else const(False, DType.BOOL)
    if not real:
        return wrap(_unary_integer(b, fn, x, dtype, alpha, beta), dtype)
    if fn in _CALLS:
        return x.call(_CALLS[fn])
    if fn in _ARITHMETIC:
        return _ARITHMETIC[fn](x)
    if fn in _EXACT:
        return _EXACT[fn](b, x, alpha, beta)
    if fn in _PLAIN or (x.dtype is DType.F64 and fn in _LIBRARY):
        return x.call(fn.lower())
    if fn in _BUILT:
        return _BUILT[fn](b, x, alpha, beta)
    raise Declined(f"{fn} has no kernel")


def _unary_integer(b: KernelBuilder, fn: str, x: Expr, dtype: DType, alpha: float, beta: float) -> Expr:
    signed = dtype in _SIGNED
    zero, one = const(0, x.type), const(1, x.type)
    if fn in ("Floor", "Ceil", "Round", "Trunc"):
        return x
    if fn == "Abs":
        return select(x < 0, -x, x) if signed else x
    if fn == "Neg":
        return zero - x
    if fn == "Sign":
        positive = select(x > 0, one, zero)
        return select(x < 0, zero - one, positive) if signed else positive
    if fn == "Square":
        return x * x
    if fn == "BitwiseNot":
        return ~x
    if fn == "Relu":
        return x.max(0) if signed else x
    if fn == "Clip":
        low = -math.inf if math.isnan(alpha) else alpha
        if low > (-(2.0 ** (width(dtype) - 1)) if signed else 0.0):
            x = b.let(x.max(int(low)))
        if beta < 2.0 ** (width(dtype) - signed) - 1:
            x = x.min(int(beta))
        return x
    raise Declined(f"{fn} of {dtype} has no kernel")


def _clip(b: KernelBuilder, x: Expr, low: float, high: float) -> Expr:
    """NaN stays NaN: both comparisons are false for it."""
    raised = b.let(select(x < low, const(low, x.type), x)) if low > -math.inf else x
    return select(raised > high, const(high, x.type), raised) if high < math.inf else raised


def _sign(x: Expr) -> Expr:
    one = const(1.0, x.type)
    return select(x > 0.0, one, select(x < 0.0, -one, x))


#: Exact in every float type: built from arithmetic, comparison and rounding only.
_CALLS = {"Abs": "abs", "Floor": "floor", "Ceil": "ceil", "Round": "rint", "Trunc": "trunc", "Sqrt": "sqrt"}
_ARITHMETIC: dict[str, Callable[[Expr], Expr]] = {
    "Neg": lambda x: -x,
    "Sign": _sign,
    "Rsqrt": lambda x: 1.0 / x.call("sqrt"),
    "Reciprocal": lambda x: 1.0 / x,
    "Square": lambda x: x * x,
    "Relu": lambda x: select(x < 0.0, const(0.0, x.type), x),
}
_EXACT: dict[str, Unary] = {
    "LeakyRelu": lambda _, x, alpha, __: select(x < 0.0, x * alpha, x),
    "HardSigmoid": lambda b, x, alpha, beta: _clip(b, b.let(x * alpha + beta), 0.0, 1.0),
    "HardSwish": lambda b, x, *_: x * _clip(b, b.let(x * (1.0 / 6.0) + 0.5), 0.0, 1.0),
    "Clip": _clip,
}

#: Functions that every dialect has for f32 (and not all for f64).
_PLAIN = frozenset({"Exp", "Tan"})
#: What is built below with the precision of f32; in f64 the dialect's own function is taken (feature ``f64_math``).
_LIBRARY = frozenset(
    {
        "Log",
        "Sin",
        "Cos",
        "Expm1",
        "Log1p",
        "Erf",
        "Tanh",
        "Sinh",
        "Cosh",
        "Asinh",
        "Acosh",
        "Atanh",
        "Asin",
        "Acos",
        "Atan",
    }
)


def _expm1(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    """exp(x) − 1 without cancellation: a Taylor polynomial near 0."""
    if x.dtype is DType.F64:
        return x.call("expm1")
    near = x * (1.0 + x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120 + x * (1.0 / 720 + x * (1.0 / 5040)))))))
    return select(x.call("abs") < 0.5, near, x.call("exp") - 1.0)


def _log1p(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    """log(1 + x); a series near 0, where 1 + x would be rounded and Vulkan's own logarithm is off by 5e-7."""
    if x.dtype is DType.F64:
        return x.call("log1p")
    near = b.let(x.call("abs") < 0.5)
    return select(near, _log_series(b, b.let(select(near, x, const(0.0, x.type)))), (1.0 + x).call("log"))


def _log_series(b: KernelBuilder, x: Expr) -> Expr:
    """log(1 + x) = 2 artanh(x / (2 + x)) for |x| ≤ 1/2, to the last bit or so."""
    s = b.let(x / (2.0 + x))
    t = b.let(s * s)
    total: Expr = const(1.0 / 13, x.type)
    for n in (11, 9, 7, 5, 3, 1):
        total = total * t + 1.0 / n
    return 2.0 * s * total


def _log(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    """log(x), near 1 by the series: Vulkan bounds the error of its own there by 5e-7, not by digits."""
    if x.dtype is DType.F64:
        return x.call("log")
    d = b.let(x - 1.0)
    near = b.let(d.call("abs") < 0.5)
    return select(near, _log_series(b, b.let(select(near, d, const(0.0, x.type)))), x.call("log"))


#: π/2 in three parts (Cephes): whole multiples of the first two are exact in f32 up to the limit below.
_HALF_PI = (1.5703125, 4.837512969970703125e-4, 7.549789948768648e-8)
#: Arguments beyond it are left to the dialect's own function.
_REDUCED = 8192.0


def _sine(b: KernelBuilder, x: Expr, quarter: int) -> Expr:
    """sin(x + quarter·π/2) by reduction to a quarter turn; Vulkan promises 5e-4 within ±π and nothing beyond."""
    own = "cos" if quarter else "sin"
    if x.dtype is DType.F64:
        return x.call(own)
    near = b.let(x.call("abs") < _REDUCED)
    given = b.let(select(near, x, const(0.0, x.type)))
    turns = b.let((given * (2.0 / math.pi)).call("rint"))
    rest = given
    for part in _HALF_PI:
        rest = rest - turns * part
    r = b.let(rest)
    s = b.let(r * r)
    odd = r + r * s * (-1.6666654611e-1 + s * (8.3321608736e-3 + s * -1.9515295891e-4))
    even = 1.0 - 0.5 * s + s * s * (4.166664568298827e-2 + s * (-1.388731625493765e-3 + s * 2.443315711809948e-5))
    place = b.let((turns.cast(DType.I32) + quarter) & 3)
    value = b.let(select(eq(place & 1, 1), even, odd))
    return select(near, select(place > 1, -value, value), x.call(own))


def _erf(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    """Abramowitz and Stegun 7.1.26 is too coarse; a Taylor series below 1.5, an exponential above: 4e-7."""
    if x.dtype is DType.F64:
        return x.call("erf")
    a = b.let(x.call("abs"))
    s = b.let(x * x)
    series: Expr = const(0.0, x.type)
    for n in range(12, -1, -1):
        coefficient = (-1.0) ** n / (math.factorial(n) * (2 * n + 1))
        series = series * s + coefficient
    small = x * (series * (2.0 / math.sqrt(math.pi)))
    # erfc(a) = t·exp(−a² + P(t)), t = 1/(1 + a/2) (Numerical Recipes, erfcc).
    t = b.let(1.0 / (1.0 + 0.5 * a))
    poly: Expr = const(0.17087277, x.type)
    for c in (
        -0.82215223,
        1.48851587,
        -1.13520398,
        0.27886807,
        -0.18628806,
        0.09678418,
        0.37409196,
        1.00002368,
        -1.26551223,
    ):
        poly = poly * t + c
    large = 1.0 - t * (poly - a * a).call("exp")
    return select(a < 1.5, small, select(x < 0.0, -large, large))


def _tanh(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    """Odd; by expm1 so that small arguments keep their digits, saturated so that nothing overflows."""
    if x.dtype is DType.F64:
        return x.call("tanh")
    a = b.let(x.call("abs").min(15.0))
    e = b.let(_expm1(b, b.let(2.0 * a)))
    t = e / (e + 2.0)
    signed = select(x < 0.0, -t, t)
    return select(x.call("isnan"), x, signed)


def _sigmoid(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    return 1.0 / (1.0 + (-x).call("exp"))


def _softplus(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    rest = _log1p(b, b.let((-x.call("abs")).call("exp")))
    return rest + select(x > 0.0, x, const(0.0, x.type))


def _gelu(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    return _vanishing(b, x, 0.5 * x * (1.0 + _erf(b, b.let(x * math.sqrt(0.5)))))


def _gelu_tanh(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    return _vanishing(b, x, 0.5 * x * (1.0 + _tanh(b, b.let(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))))


def _sinh(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    a = b.let(x.call("abs"))
    e = b.let(_expm1(b, a))
    h = select(a < 20.0, 0.5 * (e + e / (e + 1.0)), (a - math.log(2.0)).call("exp"))
    return select(x < 0.0, -h, h)


def _cosh(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    e = b.let((x.call("abs") - math.log(2.0)).call("exp"))
    return e + 0.25 / e


def _asinh(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    a = b.let(x.call("abs"))
    s = b.let(a * a)
    inside = b.let(a + s / (1.0 + (s + 1.0).call("sqrt")))
    h = b.let(select(a > 1e15, a.call("log") + math.log(2.0), _log1p(b, inside)))
    return select(x < 0.0, -h, h)


def _acosh(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    t = b.let(x - 1.0)
    return select(x > 1e15, x.call("log") + math.log(2.0), _log1p(b, b.let(t + (t * (t + 2.0)).call("sqrt"))))


def _atanh(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    return 0.5 * _log1p(b, b.let(2.0 * x / (1.0 - x)))


def _polynomial(z: Expr, coefficients: tuple[float, ...]) -> Expr:
    """Σ coefficients[k]·z^k by Horner's rule."""
    total: Expr = const(coefficients[-1], z.type)
    for c in reversed(coefficients[:-1]):
        total = total * z + c
    return total


#: (atan(t)/t − 1)/t² and (asin(t)/t − 1)/t² as polynomials of t² up to tan²(π/8) and 1/4: Chebyshev interpolation.
_ATAN = (-0.333333313, 0.199995503, -0.142642319, 0.107462928, -0.0645936206)
_ASIN = (0.166666657, 0.0750009865, 0.0445980318, 0.0311161522, 0.0170778725, 0.033805728)


def _atan(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    """Arguments above tan(π/8) are reduced; 2 units in the last place. Drivers' own lose NaN or digits."""
    a = b.let(x.call("abs"))
    zero = const(0.0, x.type)
    large, middle = b.let(a > 2.414213562), b.let(a > 0.4142135624)
    t = b.let(select(large, -1.0 / a, select(middle, (a - 1.0) / (a + 1.0), a)))
    z = b.let(t * t)
    base = select(large, const(math.pi / 2, x.type), select(middle, const(math.pi / 4, x.type), zero))
    found = b.let(base + (t + t * z * _polynomial(z, _ATAN)))
    return select(x < 0.0, -found, found)


def _arcs(b: KernelBuilder, x: Expr) -> tuple[Expr, Expr]:
    """(|x| > 1/2, arc sine of |x|, or of the square root of (1 − |x|)/2 where it is)."""
    a = b.let(x.call("abs"))
    large = b.let(a > 0.5)
    z = b.let(select(large, (1.0 - a) * 0.5, a * a))
    t = b.let(select(large, z.call("sqrt"), a))
    return large, b.let(t + t * z * _polynomial(z, _ASIN))


def _asin(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    large, part = _arcs(b, x)
    found = b.let(select(large, math.pi / 2 - 2.0 * part, part))
    return select(x < 0.0, -found, found)


def _acos(b: KernelBuilder, x: Expr, *_: float) -> Expr:
    large, part = _arcs(b, x)
    twice = b.let(2.0 * part)
    far = select(x < 0.0, math.pi - twice, twice)
    return select(large, far, math.pi / 2 - select(x < 0.0, -part, part))


def _vanishing(b: KernelBuilder, x: Expr, value: Expr) -> Expr:
    """*value* but 0 at minus infinity, where it would be −∞·0."""
    return select(eq(x, -math.inf), const(0.0, x.type), value)


_BUILT: dict[str, Unary] = {
    "Atan": _atan,
    "Asin": _asin,
    "Acos": _acos,
    "Expm1": _expm1,
    "Log": _log,
    "Log1p": _log1p,
    "Sin": lambda b, x, *_: _sine(b, x, 0),
    "Cos": lambda b, x, *_: _sine(b, x, 1),
    "Erf": _erf,
    "Tanh": _tanh,
    "Sinh": _sinh,
    "Cosh": _cosh,
    "Asinh": _asinh,
    "Acosh": _acosh,
    "Atanh": _atanh,
    "Sigmoid": _sigmoid,
    "Softplus": _softplus,
    "Silu": lambda b, x, *_: _vanishing(b, x, x * _sigmoid(b, x)),
    "Gelu": _gelu,
    "GeluTanh": _gelu_tanh,
    "Mish": lambda b, x, *_: _vanishing(b, x, x * _tanh(b, b.let(_softplus(b, x)))),
    "Elu": lambda b, x, alpha, _: select(x < 0.0, alpha * _expm1(b, x), x),
}


# -- two operands --


def binary(b: KernelBuilder, fn: str, x: Expr, y: Expr, dtype: DType) -> Expr:
    """``fn(x, y)`` for elements of *dtype*; raises Declined where there is no such kernel."""
    x, y = b.let(x), b.let(y)
    if fn in _COMPARE:
        return _COMPARE[fn](x, y)
    if fn in ("And", "Or", "Xor"):
        return x & y if fn == "And" else x | y if fn == "Or" else ne(x, y)
    if x.dtype in _FLOATS:
        return _binary_real(b, fn, x, y)
    if x.dtype is DType.BOOL:
        raise Declined(f"{fn} of bool has no kernel")
    return wrap(_binary_integer(b, fn, x, y, dtype), dtype)


_COMPARE: dict[str, Callable[[Expr, Expr], Expr]] = {
    "Equal": eq,
    "NotEqual": ne,
    "Less": lambda x, y: x < y,
    "LessEqual": lambda x, y: x <= y,
    "Greater": lambda x, y: x > y,
    "GreaterEqual": lambda x, y: x >= y,
}


def _fmod(b: KernelBuilder, x: Expr, y: Expr) -> Expr:
    """C's fmod by a truncated quotient; exact while the quotient fits the mantissa.

    The quotient may be rounded up to the next whole number, or divided with an error: the rest is then off by one
    divisor, and corrected.
    """
    size, step = b.let(x.call("abs")), b.let(y.call("abs"))
    rest = b.let((-(size / step).call("trunc")).call("fma", step, size))
    rest = b.let(select(rest < 0.0, rest + step, rest))
    rest = b.let(select(rest >= step, rest - step, rest))
    rest = b.let(select(x < 0.0, -rest, rest))
    return select(y.call("isinf") & ~x.call("isinf"), x, rest)


def _pow(b: KernelBuilder, x: Expr, y: Expr) -> Expr:
    """As IEEE 754 pow; infinities, zeros and signs are settled here, because drivers differ in them."""
    one, zero, infinity = const(1.0, x.type), const(0.0, x.type), const(math.inf, x.type)
    size = b.let(x.call("abs"))
    plain = b.let(~eq(size, 0.0) & ~eq(size, math.inf) & ~y.call("isinf"))
    power = select(plain, size, one).call("pow", select(plain, y, one))
    grows = b.let((size > 1.0) & (y > 0.0) | (size < 1.0) & (y < 0.0))
    limit = select(eq(size, 1.0), one, select(grows, infinity, zero))
    value = b.let(select(plain, power, limit))
    whole = eq(y.call("floor"), y)
    half = b.let(y * 0.5)
    odd = b.let(whole & ne(half.call("floor"), half) & (y.call("abs") < (2.0**53 if x.dtype is DType.F64 else 2.0**24)))
    minus = (x < 0.0) | (eq(x, 0.0) & (1.0 / x < 0.0))
    value = b.let(select(minus & odd, -value, value))
    value = b.let(select((x < 0.0) & ~eq(size, math.inf) & ~whole, const(math.nan, x.type), value))
    value = b.let(select(x.call("isnan"), x, select(y.call("isnan"), y, value)))
    return select(eq(y, 0.0) | eq(x, 1.0), one, value)


def _atan2(b: KernelBuilder, y: Expr, x: Expr) -> Expr:
    return y.call("atan2", x)


def _binary_real(b: KernelBuilder, fn: str, x: Expr, y: Expr) -> Expr:
    if fn == "Add":
        return x + y
    if fn == "Sub":
        return x - y
    if fn == "Mul":
        return x * y
    if fn == "Div":
        return x / y
    if fn in ("Max", "Min"):
        return _nan_aware(b, x, y, largest=fn == "Max")
    if fn == "SquaredDifference":
        d = b.let(x - y)
        return d * d
    if fn == "Fmod":
        return _fmod(b, x, y)
    if fn == "Mod":
        rest = b.let(_fmod(b, x, y))
        return select(ne(rest, 0.0) & ne(rest < 0.0, y < 0.0), rest + y, rest)
    if fn == "Pow":
        return _pow(b, x, y)
    if fn == "Atan2":
        return _atan2(b, x, y)
    raise Declined(f"{fn} of floats has no kernel")


def _binary_integer(b: KernelBuilder, fn: str, x: Expr, y: Expr, dtype: DType) -> Expr:
    signed = dtype in _SIGNED
    zero = const(0, x.type)
    if fn in ("Add", "Sub", "Mul"):
        return x + y if fn == "Add" else x - y if fn == "Sub" else x * y
    if fn in ("Max", "Min"):
        return x.max(y) if fn == "Max" else x.min(y)
    if fn == "SquaredDifference":
        d = b.let(x - y)
        return d * d
    if fn in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        return x & y if fn == "BitwiseAnd" else x | y if fn == "BitwiseOr" else x ^ y
    if fn in ("ShiftLeft", "ShiftRight"):
        bits = width(dtype)
        amount = b.let(select(y < bits, y, zero))
        return select(y < bits, x << amount if fn == "ShiftLeft" else x >> amount, zero)
    if fn in ("Div", "Mod", "Fmod"):
        # Division by zero has no defined value; it must not trap.
        divisor = b.let(select(eq(y, 0), const(1, x.type), y))
        if fn == "Div":
            return x / divisor
        rest = b.let(x - (x / divisor) * divisor)
        if fn == "Fmod" or not signed:
            return rest
        return select(ne(rest, 0) & ne(rest < 0, divisor < 0), rest + divisor, rest)
    if fn == "Pow":
        return _pow_integer(b, x, y)
    raise Declined(f"{fn} of {dtype} has no kernel")


def _pow_integer(b: KernelBuilder, x: Expr, y: Expr) -> Expr:
    """By squaring; negative exponents give 0 but for bases 1 and −1."""
    result = b.mutable(const(1, x.type))
    base = b.mutable(x)
    left = b.mutable(y)
    with b.repeat(left > 0):
        with b.when(ne(left & 1, 0)):
            b.assign(result, result * base)
        b.assign(base, base * base)
        b.assign(left, left >> 1)
    one = const(1, x.type)
    negative = select(eq(x, 1), one, const(0, x.type))
    if x.dtype in (DType.I32, DType.I64):
        minus = select(eq(y & 1, 0), one, const(-1, x.type))
        return select(y < 0, select(eq(x, -1), minus, negative), result)
    return result
