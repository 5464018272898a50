"""NumPy references of reductions, Softmax and Det."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mnnpy.backends.reference.kernels.atomic import arg_reduce, prefix_scan, reduce_array
from mnnpy.backends.reference.kernels.numeric import narrow, wide
from mnnpy.decompose.ops.reduce import REDUCTIONS
from mnnpy.decompose.registry import reference
from mnnpy.graph.ir import Array


def _axes(x: Array, axes: Array | None, noop: int) -> tuple[int, ...]:
    if axes is None or not axes.size:
        return () if noop else tuple(range(x.ndim))
    return tuple(int(a) % x.ndim for a in axes.reshape(-1))


def _reduction(name: str, fn: str) -> Callable[..., Array]:
    @reference(name)
    def apply(x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
        return reduce_array(x, fn, _axes(x, axes, noop_with_empty_axes), bool(keepdims))

    return apply


for _name, (_fn, _) in REDUCTIONS.items():
    _reduction(_name, _fn)


@reference("ReduceLogSum")
def reduce_log_sum(x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
    """Logarithm of the sum, in float64."""
    total = np.sum(wide(x), axis=_axes(x, axes, noop_with_empty_axes), keepdims=bool(keepdims))
    return narrow(np.log(np.asarray(total, np.float64)), x.dtype)


@reference("ReduceLogSumExp")
def reduce_log_sum_exp(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """Logarithm of the sum of exponentials, folded pairwise without overflow."""
    v = wide(x).astype(np.float64)
    at = _axes(x, axes, noop_with_empty_axes)
    for a in sorted(at, reverse=True):
        v = np.asarray(np.logaddexp.reduce(v, axis=a, keepdims=bool(keepdims), initial=-np.inf))  # type: ignore[call-overload]
    return narrow(v, x.dtype)


@reference("ArgMax")
def argmax(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """The atomic function."""
    return arg_reduce(x, fn="Max", axis=axis % x.ndim, keepdims=bool(keepdims), select_last=bool(select_last_index))


@reference("ArgMin")
def argmin(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """The atomic function."""
    return arg_reduce(x, fn="Min", axis=axis % x.ndim, keepdims=bool(keepdims), select_last=bool(select_last_index))


def _scan(fn: str, x: Array, axis: Array, exclusive: int, reverse: int) -> Array:
    at = int(axis.reshape(-1)[0]) % x.ndim
    return prefix_scan(x, fn=fn, axis=at, exclusive=bool(exclusive), reverse=bool(reverse))


@reference("CumSum")
def cumsum(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """The atomic function."""
    return _scan("Sum", x, axis, exclusive, reverse)


@reference("CumProd")
def cumprod(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """The atomic function."""
    return _scan("Prod", x, axis, exclusive, reverse)


@reference("Softmax")
def softmax(x: Array, *, axis: int = -1) -> Array:
    """Shifted by the maximum."""
    if not x.size:
        return x
    v = wide(x)
    e = np.exp(v - np.max(v, axis=axis, keepdims=True))
    return narrow(e / np.sum(e, axis=axis, keepdims=True), x.dtype)


@reference("LogSoftmax")
def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """Shifted by the maximum."""
    if not x.size:
        return x
    v = wide(x)
    v = v - np.max(v, axis=axis, keepdims=True)
    return narrow(v - np.log(np.sum(np.exp(v), axis=axis, keepdims=True)), x.dtype)


@reference("Det")
def det(x: Array) -> Array:
    """``numpy.linalg.det`` in float64."""
    return narrow(np.linalg.det(wide(x)), x.dtype)
