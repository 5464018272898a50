"""Rules of normalisation: reductions and element-wise arithmetic in f32 (f64 for f64)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.infer import normalize_axis
from mnnpy.decompose.ops.element_types import ElementType, element_type
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import along_channel, to_float
from mnnpy.graph.dtypes import DType


def _scale_and_shift(g: Builder, x: Var, scale: Var, shift: Var | None) -> Var:
    y = g.mul(x, g.cast(scale, x.dtype))
    return y if shift is None else g.add(y, g.cast(shift, x.dtype))


@rule("BatchNormalization")
def batch_normalization(
    g: Builder,
    x: Var,
    scale: Var,
    b: Var,
    input_mean: Var,
    input_var: Var,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Var | tuple[Var, Var, Var]:
    data = to_float(g, x)
    gain, shift, mean, var = (g.cast(v, data.dtype) for v in (scale, b, input_mean, input_var))
    if not training_mode:
        # constants in every exported model: folded to one scale and one shift
        factor = g.mul(gain, g.unary("Rsqrt", g.add(var, epsilon)))
        offset = g.sub(shift, g.mul(mean, factor))
        return g.cast(
            _scale_and_shift(g, data, along_channel(g, factor, x.rank), along_channel(g, offset, x.rank)), x.dtype
        )
    axes = (0, *range(2, x.rank))
    current = g.reduce("Mean", data, axes)
    centred = g.sub(data, current)
    spread = g.reduce("Mean", g.unary("Square", centred), axes)
    normal = g.mul(centred, g.unary("Rsqrt", g.add(spread, epsilon)))
    y = _scale_and_shift(g, normal, along_channel(g, gain, x.rank), along_channel(g, shift, x.rank))
    running = []
    for old, new, like in ((mean, current, input_mean), (var, spread, input_var)):
        mixed = g.add(g.mul(old, momentum), g.mul(g.reshape(new, old.shape), 1 - momentum))
        running.append(g.cast(mixed, like.dtype))
    return g.cast(y, x.dtype), running[0], running[1]


def standardize(g: Builder, x: Var, axes: Sequence[int], epsilon: float) -> tuple[Var, Var, Var]:
    """Zero mean and unit variance over *axes*; also the mean and the inverse standard deviation."""
    mean = g.reduce("Mean", x, axes)
    centred = g.sub(x, mean)
    inverse = g.unary("Rsqrt", g.add(g.reduce("Mean", g.unary("Square", centred), axes), epsilon))
    return g.mul(centred, inverse), mean, inverse


def _stage(g: Builder, x: Var, stash_type: ElementType) -> Var:
    """*x* in the type of the first stage; a 16-bit stash is computed in f32."""
    stash = element_type(stash_type)
    return to_float(g, g.cast(x, stash))


@rule("GroupNormalization")
def group_normalization(
    g: Builder,
    x: Var,
    scale: Var,
    bias: Var,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: ElementType = DType.F32,
) -> Var:
    n, c, *spatial = x.shape
    rows = g.reshape(_stage(g, x, stash_type), (n, num_groups, c // num_groups * prod(spatial)))
    normal = g.cast(g.reshape(standardize(g, rows, (2,), epsilon)[0], x.shape), x.dtype)
    return _scale_and_shift(g, normal, along_channel(g, scale, x.rank), along_channel(g, bias, x.rank))


@rule("InstanceNormalization")
def instance_normalization(g: Builder, x: Var, scale: Var, b: Var, *, epsilon: float = 1e-5) -> Var:
    data = to_float(g, x)
    normal = standardize(g, data, range(2, x.rank), epsilon)[0]
    y = _scale_and_shift(g, normal, along_channel(g, scale, x.rank), along_channel(g, b, x.rank))
    return g.cast(y, x.dtype)


@rule("LayerNormalization")
def layer_normalization(
    g: Builder,
    x: Var,
    scale: Var,
    b: Var | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: ElementType = DType.F32,
) -> tuple[Var, Var, Var]:
    axes = range(normalize_axis(axis, x.rank), x.rank)
    normal, mean, inverse = standardize(g, _stage(g, x, stash_type), axes, epsilon)
    y = _scale_and_shift(g, g.cast(normal, x.dtype), scale, b)
    stash = element_type(stash_type)
    return y, g.cast(mean, stash), g.cast(inverse, stash)


@rule("RMSNormalization")
def rms_normalization(
    g: Builder, x: Var, scale: Var, *, axis: int = -1, epsilon: float = 1e-5, stash_type: ElementType = DType.F32
) -> Var:
    axes = range(normalize_axis(axis, x.rank), x.rank)
    data = _stage(g, x, stash_type)
    mean_square = g.reduce("Mean", g.unary("Square", data), axes)
    normal = g.mul(data, g.unary("Rsqrt", g.add(mean_square, epsilon)))
    return g.mul(g.cast(g.cast(normal, x.dtype), scale.dtype), scale)


@rule("LRN")
def lrn(g: Builder, x: Var, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Var:
    data = to_float(g, x)
    n, c, *spatial = x.shape
    before = (size - 1) // 2
    # the mean over a window of channels, with zeros beyond the ends, is sum / size: an average pool across C
    square = g.reshape(g.unary("Square", data), (n, 1, c, prod(spatial)))
    mean = g.op(
        "Pool", square, fn="Average", kernel=(size, 1), strides=(1, 1), pads=(before, 0, size - 1 - before, 0),
        dilations=(1, 1), out=(c, prod(spatial)), count_include_pad=True,
    )  # fmt: skip
    base = g.add(g.mul(g.reshape(mean, x.shape), alpha), bias)
    return g.cast(g.mul(data, g.binary("Pow", base, -beta)), x.dtype)


@rule("LpNormalization")
def lp_normalization(g: Builder, x: Var, *, axis: int = -1, p: int = 2) -> Var:
    data = to_float(g, x)
    norm = g.reduce(f"L{p}", data, (axis,))
    safe = g.select(g.binary("Equal", norm, 0), g.const(1, norm.dtype), norm)
    return g.cast(g.div(data, safe), x.dtype)


@rule("MeanVarianceNormalization")
def mean_variance_normalization(g: Builder, x: Var, *, axes: tuple[int, ...] = (0, 2, 3)) -> Var:
    data = to_float(g, x)
    centred = g.sub(data, g.reduce("Mean", data, axes))
    deviation = g.unary("Sqrt", g.reduce("Mean", g.unary("Square", centred), axes))
    return g.cast(g.div(centred, g.add(deviation, 1e-9)), x.dtype)
