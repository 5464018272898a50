"""References of the losses (ONNX operator specification)."""

from __future__ import annotations

import numpy as np

from mnnpy.backends.reference.kernels.numeric import narrow, wide
from mnnpy.decompose.registry import reference
from mnnpy.errors import InputError
from mnnpy.graph.ir import Array


def _loss(log_p: Array, target: Array, weight: Array | None, ignore_index: int | None, reduction: str) -> Array:
    """*log_p* and *weight* in float64."""
    classes = log_p.shape[1]
    ignored = np.zeros(target.shape, np.bool_) if ignore_index is None else target == ignore_index
    safe = np.where(ignored, 0, target)
    if safe.size and not (safe.min() >= 0 and safe.max() < classes):
        raise InputError(f"a label lies outside [0, {classes}) and is not ignore_index ({ignore_index})")
    picked = np.take_along_axis(log_p, np.expand_dims(safe, 1), axis=1)[:, 0] if classes else np.zeros(target.shape)
    each = np.ones(target.shape) if weight is None else weight[safe]
    each = np.where(ignored, 0.0, each)
    loss = np.where(ignored, 0.0, -picked * each)
    if reduction == "none":
        return loss
    return np.asarray(loss.sum() if reduction == "sum" else loss.sum() / each.sum())


@reference("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(
    x: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Array:
    return narrow(_loss(wide(x), target, None if weight is None else wide(weight), ignore_index, reduction), x.dtype)


@reference("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(
    scores: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    s = wide(scores)
    s = s - s.max(axis=1, keepdims=True, initial=-np.inf)
    log_p = s - np.log(np.exp(s).sum(axis=1, keepdims=True))
    loss = _loss(log_p, labels, None if weights is None else wide(weights), ignore_index, reduction)
    return narrow(loss, scores.dtype), narrow(log_p, scores.dtype)
