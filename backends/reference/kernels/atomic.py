"""NumPy references of the atomic ops: the contract of ``decompose/ops/atomic.py``, as plainly as possible."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from mnnpy.backends.reference.kernels.conversion import convert_array
from mnnpy.backends.reference.kernels.numeric import elementwise, erf, extreme, is_narrow, narrow, philox, prod, wide
from mnnpy.decompose.raster import Region
from mnnpy.decompose.registry import reference
from mnnpy.errors import BackendError, ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

_SQRT_HALF = 0.7071067811865476
_SQRT_2_OVER_PI = 0.7978845608028654


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(−x))`` without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def softplus(x: Array) -> Array:
    """``log(1 + exp(x))`` without overflow."""
    return np.logaddexp(x, 0)


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * x**3))))


def _round(x: Array) -> Array:
    return np.rint(x) if x.dtype.kind == "f" else x


def _unsigned_abs(x: Array) -> Array:
    return np.abs(x) if x.dtype.kind != "u" else x


_UNARY: dict[str, Callable[[Array], Array]] = {
    "Abs": _unsigned_abs,
    "Neg": np.negative,
    "Sign": np.sign,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": _round,
    "Trunc": np.trunc,
    "Sqrt": np.sqrt,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Reciprocal": lambda x: 1 / x,
    "Square": np.square,
    "Exp": np.exp,
    "Expm1": np.expm1,
    "Log": np.log,
    "Log1p": np.log1p,
    "Sin": np.sin,
    "Cos": np.cos,
    "Tan": np.tan,
    "Asin": np.arcsin,
    "Acos": np.arccos,
    "Atan": np.arctan,
    "Sinh": np.sinh,
    "Cosh": np.cosh,
    "Tanh": np.tanh,
    "Asinh": np.arcsinh,
    "Acosh": np.arccosh,
    "Atanh": np.arctanh,
    "Erf": erf,
    "Sigmoid": sigmoid,
    "Softplus": softplus,
    "Relu": lambda x: np.maximum(x, x.dtype.type(0)),
    # The products with a vanishing factor tend to 0, but inf · 0 is NaN.
    "Silu": lambda x: np.where(x == -np.inf, 0.0, x * sigmoid(x)),
    "Gelu": lambda x: np.where(x == -np.inf, 0.0, 0.5 * x * (1 + erf(x * _SQRT_HALF))),
    "GeluTanh": lambda x: np.where(x == -np.inf, 0.0, _gelu_tanh(x)),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Mish": lambda x: np.where(x == -np.inf, 0.0, x * np.tanh(softplus(x))),
    "BitwiseNot": np.bitwise_not,
}

_PARAMETRIC: dict[str, Callable[[Array, float, float], Array]] = {
    "LeakyRelu": lambda x, a, _: np.where(x < 0, a * x, x),
    "Elu": lambda x, a, _: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x),
    "HardSigmoid": lambda x, a, b: np.maximum(0, np.minimum(1, a * x + b)),
    "Clip": lambda x, a, b: np.minimum(np.maximum(x, a), b),
}


@reference("Unary")
def unary(x: Array, *, fn: str, alpha: float = 0.0, beta: float = 0.0) -> Array:
    """One table entry on the widened operand, rounded once."""
    if fn == "Not":
        return np.logical_not(x)
    if fn == "IsNaN":
        return np.isnan(wide(x))
    if fn == "IsInf":
        return np.isinf(wide(x))
    if fn in _PARAMETRIC:
        if fn == "Clip" and x.dtype.kind in "iu":
            low, high = extreme(x.dtype, largest=False), extreme(x.dtype, largest=True)
            bounds = [low if v <= low else high if v >= high else x.dtype.type(v) for v in (alpha, beta)]
            return np.asarray(np.minimum(np.maximum(x, bounds[0]), bounds[1]))
        return elementwise(lambda v: _PARAMETRIC[fn](v, alpha, beta), x)
    return elementwise(_UNARY[fn], x)


def divide(a: Array, b: Array) -> Array:
    """True division of floats, truncating division of integers (0 where the divisor is 0)."""
    if a.dtype.kind == "f":
        return np.asarray(np.divide(a, b))
    quotient: Array = np.asarray(np.floor_divide(a, b))
    if a.dtype.kind == "u":
        return quotient
    inexact = (b != 0) & (quotient * b != a) & ((a < 0) != (b < 0))
    return np.asarray(np.add(quotient, inexact.astype(a.dtype)))


def power(a: Array, b: Array) -> Array:
    """``a ** b``; a negative exponent of an integer base truncates the fraction to 0."""
    if a.dtype.kind == "f":
        return np.asarray(np.power(a, b))
    safe: Array = np.asarray(np.power(a, np.maximum(b, b.dtype.type(0))))
    if b.dtype.kind == "u":
        return safe
    odd = (b & 1).astype(bool)
    unit = np.where(a == 1, 1, np.where(a == -1, np.where(odd, -1, 1), 0))
    return np.asarray(np.where(b < 0, unit, safe), a.dtype)


def shift(a: Array, b: Array, *, left: bool) -> Array:
    """Logical shift; by the width or more (or a negative amount) gives 0, or −1 right of a negative signed value."""
    bits = a.dtype.itemsize * 8
    out_of_range = (b >= bits) | (b < 0)
    amount = np.where(out_of_range, 0, b).astype(a.dtype)
    if left:
        return np.asarray(np.where(out_of_range, a.dtype.type(0), np.left_shift(a, amount)))
    fill = np.where(a < 0, -1, 0).astype(a.dtype) if a.dtype.kind == "i" else a.dtype.type(0)
    return np.asarray(np.where(out_of_range, fill, np.right_shift(a, amount)))


_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": divide,
    "Pow": power,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mod": np.mod,
    "Fmod": np.fmod,
    "Atan2": np.arctan2,
    "SquaredDifference": lambda a, b: np.square(a - b),
    "Equal": np.equal,
    "NotEqual": np.not_equal,
    "Less": np.less,
    "LessEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
    "ShiftLeft": lambda a, b: shift(a, b, left=True),
    "ShiftRight": lambda a, b: shift(a, b, left=False),
}
_BOOL_RESULT = frozenset({"Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual", "And", "Or", "Xor"})


@reference("Binary")
def binary(a: Array, b: Array, *, fn: str) -> Array:
    """One table entry on the widened operands, rounded once."""
    if a.dtype == object:
        return np.asarray(_BINARY[fn](a, b)).astype(bool if fn in _BOOL_RESULT else object)
    if a.dtype.kind == "c":
        return np.asarray(_BINARY[fn](a, b))
    out = _BINARY[fn](wide(a), wide(b))
    return np.asarray(out, bool) if fn in _BOOL_RESULT else narrow(out, a.dtype)


@reference("Select")
def select(condition: Array, a: Array, b: Array) -> Array:
    """``numpy.where``."""
    return np.asarray(np.where(condition, a, b))


@reference("Convert")
def convert(x: Array, *, to: DType, saturate: bool = True, round_mode: str = "up") -> Array:
    """See ``conversion.convert_array``."""
    return convert_array(x, to, saturate, round_mode)


@reference("Reinterpret")
def reinterpret(x: Array, *, to: DType) -> Array:
    """The same bytes."""
    return np.ascontiguousarray(x).view(to.numpy).reshape(x.shape)


def reduce_array(x: Array, fn: str, axes: Sequence[int], keepdims: bool) -> Array:
    """Reduce widely, round once; integer sums wrap in the type, integer means and norms truncate."""
    axes = tuple(axes)
    if not axes and fn in ("Sum", "Mean", "Max", "Min", "Prod"):
        return x
    w = wide(x)
    # NumPy widens small integers of its own accord; the final rounding wraps them again.
    if fn == "Sum":
        out = np.sum(w, axis=axes, keepdims=keepdims)
    elif fn == "Prod":
        out = np.prod(w, axis=axes, keepdims=keepdims)
    elif fn in ("Max", "Min"):
        op = np.max if fn == "Max" else np.min
        out = op(w, axis=axes, keepdims=keepdims, initial=extreme(w.dtype, largest=fn == "Min"))
        if is_narrow(x.dtype) and out.dtype.kind != "f":
            low, high = (int(extreme(x.dtype, largest=v)) for v in (False, True))
            out = np.clip(out, low, high)
    elif fn == "Mean":
        out = np.sum(w, axis=axes, keepdims=keepdims)
        count = prod([x.shape[a] for a in axes])
        out = out / count if out.dtype.kind in "fc" else divide(out, np.asarray(count, out.dtype))
    elif fn == "L1":
        out = np.sum(_unsigned_abs(w), axis=axes, keepdims=keepdims)
    else:
        out = np.sum(np.square(w), axis=axes, keepdims=keepdims)
        if fn == "L2":
            out = np.sqrt(out.astype(np.float64))
    return narrow(out, x.dtype)


@reference("Reduce")
def reduce(x: Array, *, fn: str, axes: tuple[int, ...], keepdims: bool = True) -> Array:
    """See ``reduce_array``."""
    return reduce_array(x, fn, axes, keepdims)


@reference("ArgReduce")
def arg_reduce(x: Array, *, fn: str, axis: int, keepdims: bool = True, select_last: bool = False) -> Array:
    """First (or last) position of the extreme element; NaN counts as extreme, as in NumPy."""
    w = wide(x)
    if select_last:
        w = np.flip(w, axis)
    index = (np.argmax if fn == "Max" else np.argmin)(w, axis=axis)
    if select_last:
        index = x.shape[axis] - 1 - index
    index = np.asarray(index, np.int64)
    return np.expand_dims(index, axis) if keepdims else index


@reference("PrefixScan")
def prefix_scan(x: Array, *, fn: str, axis: int, exclusive: bool = False, reverse: bool = False) -> Array:
    """Running sum or product, computed widely and rounded once."""
    w = wide(x)
    if reverse:
        w = np.flip(w, axis)
    run = np.cumsum if fn == "Sum" else np.cumprod
    if exclusive and x.shape[axis]:
        neutral = np.full_like(w.take([0], axis), 0 if fn == "Sum" else 1)
        w = np.concatenate([neutral, w.take(range(x.shape[axis] - 1), axis)], axis)
    out = run(w, axis=axis, dtype=w.dtype)
    return narrow(np.flip(out, axis) if reverse else out, x.dtype)


@reference("MatMul")
def matmul(a: Array, b: Array) -> Array:
    """``numpy.matmul`` in float64 (integers in their own type, wrapping)."""
    return elementwise(np.matmul, a, b)


def pad_or_crop(x: Array, begins: Sequence[int], ends: Sequence[int], value: Any = 0) -> Array:
    """Constant padding of every dim; negative sizes crop."""
    crop = tuple(slice(max(0, -b), d - max(0, -e)) for d, b, e in zip(x.shape, begins, ends, strict=True))
    return np.pad(x[crop], [(max(0, b), max(0, e)) for b, e in zip(begins, ends, strict=True)], constant_values=value)


@reference("Convolution")
def convolution(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
) -> Array:
    """One product per kernel position, summed: no im2col matrix is ever built. Any number of spatial dims."""
    k = len(strides)
    xw, ww = wide(x), wide(w)
    n = x.shape[0]
    m, cg, *kernel = w.shape
    xw = pad_or_crop(xw, (0, 0, *pads[:k]), (0, 0, *pads[k:]))
    out = [(xw.shape[2 + i] - ((kernel[i] - 1) * dilations[i] + 1)) // strides[i] + 1 for i in range(k)]
    y = np.zeros((n, group, m // group, prod(out)), xw.dtype)
    for tap, position in enumerate(itertools.product(*(range(s) for s in kernel))):
        window: Any = tuple(
            slice(p * d, p * d + (o - 1) * s + 1, s) if o else slice(0, 0)
            for p, d, s, o in zip(position, dilations, strides, out, strict=True)
        )
        columns = xw[:, :, *window].reshape(n, group, cg, prod(out))
        weights = ww.reshape(m, cg, prod(kernel))[:, :, tap].reshape(group, m // group, cg)
        y += weights * columns if cg == 1 else np.matmul(weights, columns)
    y = y.reshape(n, m, *out)
    if b is not None:
        y = y + wide(b).reshape(1, m, *([1] * k))
    return narrow(y, x.dtype)


@reference("Pool")
def pool(
    x: Array,
    *,
    fn: str,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    out: tuple[int, ...],
    count_include_pad: bool = False,
    p: int = 2,
    indices: bool = False,
    column_major: bool = False,
) -> tuple[Array, ...]:
    """One pass per kernel position over index vectors of each spatial dim. Any number of spatial dims."""
    k = len(kernel)
    spatial = x.shape[2:]
    w = wide(x)
    is_max = fn == "Max"
    total = np.full((*x.shape[:2], *out), extreme(w.dtype, largest=False) if is_max else 0, w.dtype)
    where = np.zeros(total.shape, np.int64)
    count = np.zeros(out, np.int64)
    started = np.zeros(out, bool)
    order = range(k) if not column_major else range(k - 1, -1, -1)
    for position in itertools.product(*(range(s) for s in kernel)):
        index = [np.arange(out[i]) * strides[i] - pads[i] + position[i] * dilations[i] for i in range(k)]
        grid = np.meshgrid(*index, indexing="ij")
        inside = np.ones(out, bool)
        counted = np.ones(out, bool)
        for i in range(k):
            inside &= (grid[i] >= 0) & (grid[i] < spatial[i])
            counted &= grid[i] < spatial[i] + pads[k + i]
        count += counted if count_include_pad else inside
        if not inside.any():
            continue
        clipped: list[Any] = [np.clip(g, 0, s - 1) for g, s in zip(grid, spatial, strict=True)]
        value = w[:, :, *clipped]
        if is_max:
            flat = np.zeros(out, np.int64)
            for i in order:
                flat = flat * spatial[i] + clipped[i]
            better = inside & (~started | (value > total) | (np.isnan(value) & ~np.isnan(total)))
            total, where = np.where(better, value, total), np.where(better, flat, where)
            started |= inside
        elif fn == "Average":
            total = total + np.where(inside, value, 0)
        else:
            total = total + np.where(inside, np.abs(value) ** p, 0)
    if fn == "Average":
        total = total / count if total.dtype.kind == "f" else divide(total, count.astype(total.dtype))
    elif fn == "Lp":
        total = total ** (1.0 / p)
    result = narrow(total, x.dtype)
    if not indices:
        return (result,)
    planes = np.arange(prod(x.shape[:2]), dtype=np.int64).reshape(*x.shape[:2], *([1] * k))
    return result, where + planes * prod(spatial)


def _strided(flat: Array, offset: int, size: Sequence[int], strides: Sequence[int], what: str) -> Array:
    """A strided view into a flat array, checked against its bounds."""
    low = offset + sum(min(0, s * (n - 1)) for n, s in zip(size, strides, strict=True))
    high = offset + sum(max(0, s * (n - 1)) for n, s in zip(size, strides, strict=True))
    if low < 0 or high >= flat.size:
        raise ShapeError(f"a region's {what} covers elements {low}…{high} of {flat.size}")
    return as_strided(flat[offset:], tuple(size), tuple(s * flat.itemsize for s in strides))


@reference("Raster")
def raster(
    *xs: Array, regions: tuple[Region, ...], shape: tuple[int, ...], fill: float | int | bool | None = None
) -> Array:
    """Copy each region through strided views; bounds and cover are checked."""
    dtype = xs[0].dtype
    covered = sum(r.count for r in regions)
    if fill is None and covered != prod(shape):
        raise ShapeError(f"regions cover {covered} of {prod(shape)} elements, and there is no fill")
    value = fill if fill is not None else ("" if dtype.kind == "O" else 0)
    out = np.full(prod(shape), np.asarray(value).astype(dtype), dtype)
    flats = [np.ascontiguousarray(x).reshape(-1) for x in xs]
    target = out
    if dtype.itemsize == 1:  # NumPy cannot make strided views of some 8-bit floats
        flats, target = [f.view(np.uint8) for f in flats], out.view(np.uint8)
    for r in regions:
        if r.count:
            source = _strided(flats[r.origin], r.src_offset, r.size, r.src_strides, "source")
            _strided(target, r.dst_offset, r.size, r.dst_strides, "destination")[...] = source
    return out.reshape(shape)


def checked_indices(indices: Array, size: int, what: str) -> Array:
    """Non-negative indices; raises BackendError where one is outside ``[-size, size)``."""
    index = indices.astype(np.int64)
    bad = (index < -size) | (index >= size)
    if bad.any():
        raise BackendError(f"{what}: index {index[bad].flat[0]} is out of range for size {size}")
    return np.where(index < 0, index + size, index)


@reference("Gather")
def gather(data: Array, indices: Array, *, axis: int = 0) -> Array:
    """``numpy.take``."""
    index = checked_indices(indices, data.shape[axis], "Gather")
    return np.asarray(np.take(data, index, axis=axis))


_COMBINE: dict[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@reference("Scatter")
def scatter(data: Array, indices: Array, updates: Array, *, fn: str = "none") -> Array:
    """Rows written or combined in order."""
    index = checked_indices(indices, data.shape[0], "Scatter")
    if fn == "none":
        out = data.copy()
        for k, row in enumerate(index.tolist()):
            out[row] = updates[k]
        return out
    out = np.array(wide(data))
    _COMBINE[fn].at(out, index, wide(updates))
    return narrow(out, data.dtype)


@reference("Sort")
def sort(x: Array, *, axis: int, k: int, descending: bool = True) -> tuple[Array, Array]:
    """Stable sort; descending order is the mirror of ascending order over the mirrored axis."""
    w = wide(x)
    n = x.shape[axis]
    if descending:
        order = n - 1 - np.flip(np.argsort(np.flip(w, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(w, axis=axis, kind="stable")
    order = np.take(order, np.arange(k), axis=axis).astype(np.int64)
    return np.take_along_axis(x, order, axis), order


@reference("Random")
def random(
    *, fn: str, shape: tuple[int, ...], dtype: DType, a: float = 0.0, b: float = 1.0, seed: int | None = None
) -> Array:
    """Philox words ``w``: Uniform is ``a + (b − a)·u`` with ``u = (w >> 8) · 2^-24``; Normal is Box–Muller.

    Normal numbers ``2j`` and ``2j + 1`` are the cosine and the sine of the pair of words ``2j``, ``2j + 1``, the
    first of which gives the radius as ``sqrt(−2·ln(((w >> 8) + 1) · 2^-24))``.
    """
    count = prod(shape)
    words = philox(count + count % 2, int.from_bytes(os.urandom(8), "little") if seed is None else seed)
    unit = (words >> np.uint32(8)).astype(np.float64) * 2.0**-24
    if fn == "Uniform":
        value = narrow(a + (b - a) * unit[:count], dtype.numpy)
        # Rounding to the element type may reach the open end.
        end = narrow(np.asarray(b), dtype.numpy)
        below = np.nextafter(end, narrow(np.asarray(a), dtype.numpy)) if float(end) >= b else end
        value = np.where((value.astype(np.float64) >= b) & (b > a), below, value)
    else:
        radius = np.sqrt(-2 * np.log(unit[0::2] + 2.0**-24))
        angle = 2 * np.pi * unit[1::2]
        pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        value = narrow(a + b * pairs.reshape(-1)[:count], dtype.numpy)
    return value.reshape(shape)
