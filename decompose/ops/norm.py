"""Shape functions of normalisation."""

from __future__ import annotations

from mnnpy.decompose.infer import Operand, normalize_axis
from mnnpy.decompose.ops.element_types import ElementType, element_type
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType


def _check_channels(x: Operand, channels: Dim, *operands: Operand) -> None:
    for operand in operands:
        size = operand.shape[0] if operand.rank == 1 else None
        if size is None or (isinstance(size, int) and isinstance(channels, int) and size != channels):
            raise ShapeError(f"'{operand.name}' has shape {operand.shape}, but input {x.shape} needs [{channels}]")


@op("BatchNormalization", OpClass.COMPOSITE)
def batch_normalization(
    x: Operand,
    scale: Operand,
    b: Operand,
    input_mean: Operand,
    input_var: Operand,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> tuple[TensorType, ...]:
    """Normalisation per channel over the batch (arXiv 1502.03167)."""
    channels = x.shape[1] if x.rank > 1 else 1
    _check_channels(x, channels, scale, b, input_mean, input_var)
    if not training_mode:
        return (x.type,)
    return x.type, TensorType(input_mean.dtype, (channels,)), TensorType(input_var.dtype, (channels,))


@op("GroupNormalization", OpClass.COMPOSITE)
def group_normalization(
    x: Operand,
    scale: Operand,
    bias: Operand,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: ElementType = DType.F32,
) -> TensorType:
    """Normalisation per group of channels (arXiv 1803.08494)."""
    if x.rank < 2:
        raise ShapeError(f"input has rank {x.rank}; it must be (N, C, spatial…)")
    c = x.shape[1]
    if num_groups < 1 or (isinstance(c, int) and c % num_groups):
        raise ShapeError(f"{c} channels do not divide into {num_groups} groups")
    _check_channels(x, c, scale, bias)
    return x.type


@op("InstanceNormalization", OpClass.COMPOSITE)
def instance_normalization(x: Operand, scale: Operand, b: Operand, *, epsilon: float = 1e-5) -> TensorType:
    """Normalisation per instance and channel (arXiv 1607.08022)."""
    if x.rank < 2:
        raise ShapeError(f"input has rank {x.rank}; it must be (N, C, spatial…)")
    _check_channels(x, x.shape[1], scale, b)
    return x.type


def _check_broadcast(x: Operand, operand: Operand | None) -> None:
    if operand is None:
        return
    if operand.rank > x.rank:
        raise ShapeError(f"'{operand.name}' of shape {operand.shape} does not broadcast to {x.shape}")
    for d, t in zip(reversed(operand.shape), reversed(x.shape), strict=False):
        if isinstance(d, int) and isinstance(t, int) and d not in (1, t):
            raise ShapeError(f"'{operand.name}' of shape {operand.shape} does not broadcast to {x.shape}")


@op("LayerNormalization", OpClass.COMPOSITE)
def layer_normalization(
    x: Operand,
    scale: Operand,
    b: Operand | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: ElementType = DType.F32,
) -> tuple[TensorType, TensorType, TensorType]:
    """Normalisation over the dims from *axis* on; also the mean and the inverse standard deviation."""
    first = normalize_axis(axis, x.rank)
    _check_broadcast(x, scale)
    _check_broadcast(x, b)
    stats = TensorType(element_type(stash_type), (*x.shape[:first], *(1 for _ in x.shape[first:])))
    return x.type, stats, stats


@op("RMSNormalization", OpClass.COMPOSITE)
def rms_normalization(
    x: Operand, scale: Operand, *, axis: int = -1, epsilon: float = 1e-5, stash_type: ElementType = DType.F32
) -> TensorType:
    """Division by the root mean square over the dims from *axis* on (arXiv 1910.07467)."""
    normalize_axis(axis, x.rank)
    _check_broadcast(x, scale)
    return TensorType(scale.dtype, x.shape)


@op("LRN", OpClass.COMPOSITE)
def lrn(x: Operand, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> TensorType:
    """Local response normalisation across channels (AlexNet, NeurIPS 2012)."""
    if x.rank < 2 or size < 1:
        raise ShapeError(f"input {x.shape} must be (N, C, …) and size {size} positive")
    return x.type


@op("LpNormalization", OpClass.COMPOSITE)
def lp_normalization(x: Operand, *, axis: int = -1, p: int = 2) -> TensorType:
    """Division by the L1 or L2 norm along one axis; 0 where the norm is 0."""
    normalize_axis(axis, x.rank)
    if p not in (1, 2):
        raise ShapeError(f"p is {p}; LpNormalization knows 1 and 2")
    return x.type


@op("MeanVarianceNormalization", OpClass.COMPOSITE)
def mean_variance_normalization(x: Operand, *, axes: tuple[int, ...] = (0, 2, 3)) -> TensorType:
    """Zero mean and unit variance over *axes*."""
    for axis in axes:
        normalize_axis(axis, x.rank)
    return x.type
