"""NumPy references of normalisation, from the ONNX operator specification."""

from __future__ import annotations

import numpy as np

from mnnpy.backends.reference.kernels.numeric import narrow, wide
from mnnpy.decompose.ops.element_types import ElementType, element_type
from mnnpy.decompose.registry import reference
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array


def _per_channel(v: Array, rank: int) -> Array:
    return wide(v).reshape(-1, *(1,) * (rank - 2)) if rank > 1 else wide(v)


@reference("BatchNormalization")
def batch_normalization(
    x: Array,
    scale: Array,
    b: Array,
    input_mean: Array,
    input_var: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Array | tuple[Array, Array, Array]:
    values = wide(x)
    mean, var = wide(input_mean), wide(input_var)
    if training_mode:
        axes = (0, *range(2, x.ndim))
        mean, var = values.mean(axis=axes).reshape(mean.shape), values.var(axis=axes).reshape(var.shape)
    factor = _per_channel(scale, x.ndim) / np.sqrt(_per_channel(var, x.ndim) + epsilon)
    y = narrow((values - _per_channel(mean, x.ndim)) * factor + _per_channel(b, x.ndim), x.dtype)
    if not training_mode:
        return y
    running_mean = wide(input_mean) * momentum + mean * (1 - momentum)
    running_var = wide(input_var) * momentum + var * (1 - momentum)
    return y, narrow(running_mean, input_mean.dtype), narrow(running_var, input_var.dtype)


def standardize(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """Zero mean and unit variance over *axes*; also the mean and the inverse standard deviation."""
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    inverse = 1 / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon)
    return centred * inverse, mean, inverse


def _stash(x: Array, stash_type: ElementType) -> Array:
    """*x* rounded to the type of the first stage (a matter for f64 input and a narrow stash only), computed widely."""
    return wide(x.astype(element_type(stash_type).numpy))


@reference("GroupNormalization")
def group_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: ElementType = DType.F32,
) -> Array:
    n, c = x.shape[:2]
    grouped = _stash(x, stash_type).reshape(n, num_groups, c // num_groups, *x.shape[2:])
    normal = standardize(grouped, tuple(range(2, grouped.ndim)), epsilon)[0].reshape(x.shape)
    normal = wide(narrow(normal, x.dtype))
    return narrow(normal * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim), x.dtype)


@reference("InstanceNormalization")
def instance_normalization(x: Array, scale: Array, b: Array, *, epsilon: float = 1e-5) -> Array:
    normal = standardize(wide(x), tuple(range(2, x.ndim)), epsilon)[0]
    return narrow(normal * _per_channel(scale, x.ndim) + _per_channel(b, x.ndim), x.dtype)


@reference("LayerNormalization")
def layer_normalization(
    x: Array,
    scale: Array,
    b: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: ElementType = DType.F32,
) -> tuple[Array, Array, Array]:
    axes = tuple(range(axis % x.ndim, x.ndim))
    normal, mean, inverse = standardize(_stash(x, stash_type), axes, epsilon)
    y = wide(narrow(normal, x.dtype)) * wide(scale)
    stash = element_type(stash_type).numpy
    return narrow(y if b is None else y + wide(b), x.dtype), narrow(mean, stash), narrow(inverse, stash)


@reference("RMSNormalization")
def rms_normalization(
    x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: ElementType = DType.F32
) -> Array:
    axes = tuple(range(axis % x.ndim, x.ndim))
    values = _stash(x, stash_type)
    normal = values / np.sqrt(np.square(values).mean(axis=axes, keepdims=True) + epsilon)
    return narrow(wide(narrow(normal, x.dtype)) * wide(scale), scale.dtype)


@reference("LRN")
def lrn(x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Array:
    values = wide(x)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    square = np.pad(np.square(values), [(0, 0), (before, after), *((0, 0),) * (x.ndim - 2)])
    total = sum(square[:, k : k + x.shape[1]] for k in range(size))
    return narrow(values / (bias + alpha / size * total) ** beta, x.dtype)


@reference("LpNormalization")
def lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Array:
    values = wide(x)
    powers = np.abs(values) if p == 1 else np.square(values)
    norm = powers.sum(axis=axis, keepdims=True)
    norm = norm if p == 1 else np.sqrt(norm)
    return narrow(values / np.where(norm == 0, 1, norm), x.dtype)


@reference("MeanVarianceNormalization")
def mean_variance_normalization(x: Array, *, axes: tuple[int, ...] = (0, 2, 3)) -> Array:
    values = wide(x)
    centred = values - values.mean(axis=axes, keepdims=True)
    # the specification's function body adds 1e-9 to the deviation
    deviation = np.sqrt(np.square(centred).mean(axis=axes, keepdims=True)) + 1e-9
    return narrow(centred / deviation, x.dtype)
