"""Losses as atomic ops: the class of each sample is picked by a mask over the class axis."""

from __future__ import annotations

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import to_float


def _loss(g: Builder, log_p: Var, target: Var, weight: Var | None, ignore_index: int | None, reduction: str) -> Var:
    classes, rest = log_p.shape[1], (1,) * (log_p.rank - 2)
    if ignore_index is not None:  # −1 is no class: nothing is picked, no weight counts
        target = g.select(g.binary("Equal", target, ignore_index), g.const(-1, target.dtype), target)
    index = g.const(np.arange(classes).reshape(classes, *rest), target.dtype)
    chosen = g.binary("Equal", index, g.reshape(target, (target.shape[0], 1, *target.shape[1:])))
    weights = None if weight is None else g.reshape(weight, (classes, *rest))
    weighted = log_p if weights is None else g.mul(log_p, weights)
    loss = g.unary("Neg", g.reduce("Sum", g.select(chosen, weighted, 0), [1], keepdims=False))
    if reduction == "none":
        return loss
    axes = range(loss.rank)
    if reduction == "mean" and weights is None and ignore_index is None:
        return g.reduce("Mean", loss, axes, keepdims=False)
    total = g.reduce("Sum", loss, axes, keepdims=False)
    if reduction == "sum":
        return total
    one = g.const(1, log_p.dtype) if weights is None else weights
    return g.div(total, g.reduce("Sum", g.select(chosen, one, 0), range(log_p.rank), keepdims=False))


@rule("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(
    g: Builder,
    x: Var,
    target: Var,
    weight: Var | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Var:
    w = None if weight is None else to_float(g, weight)
    return g.cast(_loss(g, to_float(g, x), target, w, ignore_index, reduction), x.dtype)


@rule("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(
    g: Builder,
    scores: Var,
    labels: Var,
    weights: Var | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Var, Var]:
    log_p = g.op("LogSoftmax", to_float(g, scores), axis=1)
    w = None if weights is None else to_float(g, weights)
    loss = _loss(g, log_p, labels, w, ignore_index, reduction)
    return g.cast(loss, scores.dtype), g.cast(log_p, scores.dtype)
