"""NumPy references of ops that make tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnnpy.backends.reference.kernels.atomic import random
from mnnpy.backends.reference.kernels.numeric import is_narrow, narrow, wide
from mnnpy.decompose.ops.element_types import ElementType, element_type, maybe_element_type
from mnnpy.decompose.ops.generate import range_length
from mnnpy.decompose.registry import reference
from mnnpy.decompose.rules.elementwise import seed_bits
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array


@reference("ConstantOfShape")
def constant_of_shape(shape: Array, *, value: Array | None = None) -> Array:
    """``numpy.full``."""
    scalar = np.zeros((), np.float32) if value is None else np.asarray(value).reshape(())
    return np.full([int(s) for s in shape.tolist()], scalar, scalar.dtype)


@reference("EyeLike")
def eye_like(x: Array, *, dtype: ElementType | None = None, k: int = 0) -> Array:
    """``numpy.eye``."""
    to = maybe_element_type(dtype) or DType.of(x.dtype)
    return np.eye(x.shape[0], x.shape[1], k=k, dtype=np.float32).astype(to.numpy)


@reference("Range")
def range_(start: Array, limit: Array, delta: Array, *, stash_type: ElementType = 1) -> Array:
    """``start + i · delta``; half types are computed widely and rounded once."""
    first, last, step = (wide(v).reshape(()) for v in (start, limit, delta))
    if start.dtype.kind in "iu":
        return np.arange(int(first), int(last), int(step), dtype=start.dtype)
    n = range_length(float(first), float(last), float(step))
    if is_narrow(start.dtype) and element_type(stash_type) not in (DType.F32, DType.F64):
        # The loop in the half type itself: product and sum round each.
        steps = narrow(narrow(np.arange(n), start.dtype).astype(np.float32) * step, start.dtype)
        return narrow(steps.astype(np.float32) + first, start.dtype)
    return narrow(first + np.arange(n) * step, start.dtype)


def _cosine_window(size: Array, coefficients: Sequence[float], output_datatype: ElementType, periodic: int) -> Array:
    """``sum((−1)^k · a[k] · cos(2πkn / N))`` with N one less for a symmetric window."""
    n = int(np.asarray(size).reshape(-1)[0])
    length = n if periodic else n - 1
    angle = 2 * np.pi * np.arange(n) / max(length, 1)
    total = sum((-1) ** k * a * np.cos(k * angle) for k, a in enumerate(coefficients))
    out = np.ones(n) if n == 1 and not periodic else np.asarray(total, np.float64)
    return narrow(out, element_type(output_datatype).numpy)


@reference("HannWindow")
def hann_window(size: Array, *, output_datatype: ElementType = 1, periodic: int = 1) -> Array:
    """Coefficients 1/2, 1/2."""
    return _cosine_window(size, (0.5, 0.5), output_datatype, periodic)


@reference("HammingWindow")
def hamming_window(size: Array, *, output_datatype: ElementType = 1, periodic: int = 1) -> Array:
    """Coefficients 25/46, 21/46, as ONNX fixes them."""
    return _cosine_window(size, (25 / 46, 21 / 46), output_datatype, periodic)


@reference("BlackmanWindow")
def blackman_window(size: Array, *, output_datatype: ElementType = 1, periodic: int = 1) -> Array:
    """Coefficients 0.42, 0.5, 0.08."""
    return _cosine_window(size, (0.42, 0.5, 0.08), output_datatype, periodic)


@reference("RandomUniform")
def random_uniform(
    *, shape: Sequence[int], dtype: ElementType = 1, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> Array:
    """The atomic generator."""
    return random(fn="Uniform", shape=tuple(shape), dtype=element_type(dtype), a=low, b=high, seed=seed_bits(seed))


@reference("RandomNormal")
def random_normal(
    *, shape: Sequence[int], dtype: ElementType = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Array:
    """The atomic generator."""
    return random(fn="Normal", shape=tuple(shape), dtype=element_type(dtype), a=mean, b=scale, seed=seed_bits(seed))


@reference("RandomUniformLike")
def random_uniform_like(
    x: Array, *, dtype: ElementType | None = None, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> Array:
    """The atomic generator."""
    to = maybe_element_type(dtype) or DType.of(x.dtype)
    return random(fn="Uniform", shape=x.shape, dtype=to, a=low, b=high, seed=seed_bits(seed))


@reference("RandomNormalLike")
def random_normal_like(
    x: Array, *, dtype: ElementType | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Array:
    """The atomic generator."""
    to = maybe_element_type(dtype) or DType.of(x.dtype)
    return random(fn="Normal", shape=x.shape, dtype=to, a=mean, b=scale, seed=seed_bits(seed))


@reference("Bernoulli")
def bernoulli(x: Array, *, dtype: ElementType | None = None, seed: float | None = None) -> Array:
    """A uniform number below the probability."""
    noise = random(fn="Uniform", shape=x.shape, dtype=DType.F32, seed=seed_bits(seed))
    return (noise < wide(x).astype(np.float32)).astype((maybe_element_type(dtype) or DType.of(x.dtype)).numpy)


@reference("Multinomial")
def multinomial(x: Array, *, dtype: ElementType = 6, sample_size: int = 1, seed: float | None = None) -> Array:
    """Inverse distribution function of each row."""
    noise = random(fn="Uniform", shape=(x.shape[0], sample_size), dtype=DType.F32, seed=seed_bits(seed))
    v = wide(x)
    p = np.exp(v - v.max(axis=1, keepdims=True))
    steps = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)[:, :-1]
    rows = [np.searchsorted(s, u.astype(np.float64), side="right") for s, u in zip(steps, noise, strict=True)]
    return np.asarray(rows, element_type(dtype).numpy).reshape(x.shape[0], sample_size)
