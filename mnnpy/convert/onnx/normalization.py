"""Softmax and its kin, normalisations, dropout, and reductions."""

from __future__ import annotations

from typing import Any

from mnnpy.convert.onnx.conversions import conversion
from mnnpy.convert.onnx.emitter import Emitter
from mnnpy.graph.dtypes import DType


def _flattening(name: str) -> None:
    @conversion(name, until=12)
    def convert(g: Emitter, x: str, *, axis: int = 1) -> Any:
        """Until opset 12 all axes from *axis* on count as one."""
        rank = g.rank(x)
        if axis == -1 or (rank is not None and axis in (-1, rank - 1)):
            return g.op(name, x, axis=-1)
        flat = g.op(name, g.op("Flatten", x, axis=axis), axis=-1)
        return g.op("Reshape", flat, g.op("Shape", x), allowzero=1)


for _name in ("Softmax", "LogSoftmax", "Hardmax"):
    _flattening(_name)


def _reduction(name: str, until: int) -> None:
    @conversion(name, until=until)
    def convert(g: Emitter, x: str, *, axes: tuple[int, ...] | None = None, keepdims: int = 1) -> Any:
        """Axes were an attribute; none given means all."""
        return g.op(name, x, g.ints(*axes) if axes else None, keepdims=keepdims)


for _name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"):
    _reduction(f"Reduce{_name}", 17)
_reduction("ReduceSum", 12)


@conversion("BatchNormalization", until=6)
def batch_normalization_1(
    g: Emitter,
    x: str,
    scale: str,
    b: str,
    mean: str,
    var: str,
    *,
    epsilon: float = 1e-5,
    is_test: int = 0,
    momentum: float = 0.9,
    spatial: int = 1,
) -> Any:
    """``is_test`` tells inference from training; a node with one output infers in any case."""
    training = not is_test and any(g.used(k) for k in range(1, g.n_outputs))
    return _batch_normalization(g, (x, scale, b, mean, var), epsilon, momentum, bool(spatial), training)


@conversion("BatchNormalization", since=7, until=13)
def batch_normalization_7(
    g: Emitter,
    x: str,
    scale: str,
    b: str,
    mean: str,
    var: str,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
) -> Any:
    """The number of outputs tells inference from training; until opset 8 statistics may be per element."""
    training = any(g.used(k) for k in range(1, g.n_outputs))
    return _batch_normalization(g, (x, scale, b, mean, var), epsilon, momentum, bool(spatial), training)


def _batch_normalization(
    g: Emitter, operands: tuple[str, ...], epsilon: float, momentum: float, spatial: bool, training: bool
) -> Any:
    x, scale, b, mean, var = operands
    if spatial and not training:
        return g.op("BatchNormalization", *operands, epsilon=epsilon)
    if not training:
        return _normalize(g, operands, epsilon)
    if spatial:
        samples = g.op("Reshape", x, g.ints(0, 0, -1))
        saved_mean, saved_var = _moments(g, samples, (0, 2))
        y, new_mean, new_var = g.op(
            "BatchNormalization", *operands, outputs=3, epsilon=epsilon, momentum=momentum, training_mode=1
        )
        return y, new_mean, new_var, saved_mean, saved_var
    saved_mean, saved_var = _moments(g, x, (0,))
    y = _normalize(g, (x, scale, b, saved_mean, saved_var), epsilon)
    keep, take = g.like(momentum, x), g.like(1 - momentum, x)
    new_mean, new_var = (
        g.op("Add", g.op("Mul", old, keep), g.op("Mul", new, take))
        for old, new in ((mean, saved_mean), (var, saved_var))
    )
    return y, new_mean, new_var, saved_mean, saved_var


def _normalize(g: Emitter, operands: tuple[str, ...], epsilon: float) -> str:
    """The formula, with statistics that broadcast as they are (one per element of a sample)."""
    x, scale, b, mean, var = operands
    deviation = g.op("Sqrt", g.op("Add", var, g.like(epsilon, x)))
    return g.op("Add", g.op("Mul", g.op("Div", g.op("Sub", x, mean), deviation), scale), b)  # type: ignore[no-any-return]


def _moments(g: Emitter, x: str, axes: tuple[int, ...]) -> tuple[str, str]:
    mean = g.op("ReduceMean", x, g.ints(*axes), keepdims=1)
    centred = g.op("Sub", x, mean)
    var = g.op("ReduceMean", g.op("Mul", centred, centred), g.ints(*axes), keepdims=0)
    return g.op("Squeeze", mean, g.ints(*axes)), var


@conversion("GroupNormalization", since=18, until=20)
def group_normalization(g: Emitter, x: str, scale: str, bias: str, *, num_groups: int, epsilon: float = 1e-5) -> Any:
    """Scale and bias were per group, now they are per channel; computation was in the type of *x*."""
    channels = g.op("Slice", g.op("Shape", x), g.ints(1), g.ints(2))
    per_group = g.op("Concat", g.ints(num_groups), g.op("Div", channels, g.ints(num_groups)), axis=0)
    spread = [
        g.op("Reshape", g.op("Expand", g.op("Unsqueeze", v, g.ints(1)), per_group), g.ints(-1)) for v in (scale, bias)
    ]
    stash = DType.F64 if g.dtype(x) is DType.F64 else None
    return g.op("GroupNormalization", x, *spread, num_groups=num_groups, epsilon=epsilon, stash_type=stash)


@conversion("Dropout", until=6)
def dropout_1(g: Emitter, x: str, *, ratio: float = 0.5, is_test: int = 0) -> Any:
    """``is_test`` tells inference from training; the mask has the type of *x*."""
    if is_test:
        return dropout_7(g, x, ratio=ratio)
    y, mask = g.op("Dropout", x, g.const(ratio, DType.F32), g.const(True), outputs=2)
    return (y, g.op("CastLike", mask, x)) if g.used(1) else y


@conversion("Dropout", since=7, until=9)
def dropout_7(g: Emitter, x: str, *, ratio: float = 0.5) -> Any:
    """Inference only; the mask has the type of *x*."""
    if not g.used(1):
        return g.op("Dropout", x)
    y, mask = g.op("Dropout", x, outputs=2)
    return y, g.op("CastLike", mask, x)


@conversion("Dropout", since=10, until=11)
def dropout_10(g: Emitter, x: str, *, ratio: float = 0.5) -> Any:
    """Inference only."""
    return g.op("Dropout", x, outputs=2) if g.used(1) else g.op("Dropout", x)
