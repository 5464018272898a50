"""Rules of ops that make tensors: constants, broadcasts and atomic Random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnnpy.decompose.builder import Builder, Var, evaluate
from mnnpy.decompose.ops.element_types import ElementType, element_type, maybe_element_type
from mnnpy.decompose.raster import Region
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.elementwise import seed_bits
from mnnpy.decompose.rules.movement import as_shape, broadcast, move
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array


@rule("ConstantOfShape")
def constant_of_shape(g: Builder, shape: Var, *, value: Array | None = None) -> Var | None:
    scalar = np.zeros((), np.float32) if value is None else np.asarray(value).reshape(())
    if scalar.dtype.kind == "O":
        return None
    return broadcast(g, g.const(scalar), shape.require_ints())


@rule("EyeLike")
def eye_like(g: Builder, x: Var, *, dtype: ElementType | None = None, k: int = 0) -> Var:
    n, m = x.shape
    to = maybe_element_type(dtype) or x.dtype
    length = max(0, min(n, m - k) if k >= 0 else min(n + k, m))
    first = k if k >= 0 else -k * m
    one = g.const(np.ones((), np.float32).astype(to.numpy))
    fill = False if to is DType.BOOL else 0
    return move(g, [one], [Region(0, (length,), 0, (0,), first, (m + 1,))], (n, m), fill)


@rule("Range")
def range_(g: Builder, start: Var, limit: Var, delta: Var, *, stash_type: ElementType = 1) -> Var:
    values = [v.require_value() for v in (start, limit, delta)]
    return g.const(evaluate("Range", values, {"stash_type": stash_type})[0])


def _window(g: Builder, name: str, size: Var, output_datatype: ElementType, periodic: int) -> Var:
    options = {"output_datatype": output_datatype, "periodic": periodic}
    return g.const(evaluate(name, [size.require_value()], options)[0])


@rule("HannWindow")
def hann_window(g: Builder, size: Var, *, output_datatype: ElementType = 1, periodic: int = 1) -> Var:
    return _window(g, "HannWindow", size, output_datatype, periodic)


@rule("HammingWindow")
def hamming_window(g: Builder, size: Var, *, output_datatype: ElementType = 1, periodic: int = 1) -> Var:
    return _window(g, "HammingWindow", size, output_datatype, periodic)


@rule("BlackmanWindow")
def blackman_window(g: Builder, size: Var, *, output_datatype: ElementType = 1, periodic: int = 1) -> Var:
    return _window(g, "BlackmanWindow", size, output_datatype, periodic)


def _random(g: Builder, fn: str, shape: Sequence[int], dtype: DType, a: float, b: float, seed: float | None) -> Var:
    out: Var = g.op("Random", fn=fn, shape=tuple(shape), dtype=dtype, a=float(a), b=float(b), seed=seed_bits(seed))
    return out


@rule("RandomUniform")
def random_uniform(
    g: Builder, *, shape: Sequence[int], dtype: ElementType = 1, low: float = 0.0, high: float = 1.0,
    seed: float | None = None,
) -> Var:  # fmt: skip
    return _random(g, "Uniform", shape, element_type(dtype), low, high, seed)


@rule("RandomNormal")
def random_normal(
    g: Builder, *, shape: Sequence[int], dtype: ElementType = 1, mean: float = 0.0, scale: float = 1.0,
    seed: float | None = None,
) -> Var:  # fmt: skip
    return _random(g, "Normal", shape, element_type(dtype), mean, scale, seed)


@rule("RandomUniformLike")
def random_uniform_like(
    g: Builder, x: Var, *, dtype: ElementType | None = None, low: float = 0.0, high: float = 1.0,
    seed: float | None = None,
) -> Var:  # fmt: skip
    return _random(g, "Uniform", x.shape, maybe_element_type(dtype) or x.dtype, low, high, seed)


@rule("RandomNormalLike")
def random_normal_like(
    g: Builder, x: Var, *, dtype: ElementType | None = None, mean: float = 0.0, scale: float = 1.0,
    seed: float | None = None,
) -> Var:  # fmt: skip
    return _random(g, "Normal", x.shape, maybe_element_type(dtype) or x.dtype, mean, scale, seed)


@rule("Bernoulli")
def bernoulli(g: Builder, x: Var, *, dtype: ElementType | None = None, seed: float | None = None) -> Var:
    noise = _random(g, "Uniform", x.shape, DType.F32, 0.0, 1.0, seed)
    return g.cast(g.binary("Less", noise, g.cast(x, DType.F32)), maybe_element_type(dtype) or x.dtype)


@rule("Multinomial")
def multinomial(g: Builder, x: Var, *, dtype: ElementType = 6, sample_size: int = 1, seed: float | None = None) -> Var:
    batch, classes = x.shape
    p = g.op("Softmax", g.cast(x, DType.F64), axis=1)
    # Inverse of the distribution function: how many of the first classes − 1 running sums lie at or below the number.
    steps = g.op("PrefixScan", p, fn="Sum", axis=1, exclusive=False, reverse=False)
    noise = g.cast(_random(g, "Uniform", (batch, sample_size, 1), DType.F32, 0.0, 1.0, seed), DType.F64)
    inner = as_shape(g, g.slice(steps, 1, 0, classes - 1), (batch, 1, classes - 1))
    below = g.cast(g.binary("LessEqual", inner, noise), element_type(dtype))
    return g.reduce("Sum", below, (2,), keepdims=False)
