"""Losses of ONNX: negative log-likelihood and softmax cross-entropy."""

from __future__ import annotations

from mnnpy.decompose.infer import Operand
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType


def _loss_type(x: Operand, labels: Operand, weights: Operand | None, reduction: str) -> TensorType:
    if reduction not in ("none", "sum", "mean"):
        raise ShapeError(f"reduction '{reduction}' is not one of none, sum, mean")
    if x.rank < 2:
        raise ShapeError(f"the scores have shape {x.shape}; (N, C, …) is needed")
    if labels.dtype not in (DType.I32, DType.I64):
        raise ShapeError(f"the labels are {labels.dtype}, not i32 or i64")
    want = (x.shape[0], *x.shape[2:])
    if len(want) != labels.rank or any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(want, labels.shape, strict=True)
    ):
        raise ShapeError(f"the labels have shape {labels.shape}; scores {x.shape} need {want}")
    if weights is not None and (weights.rank != 1 or weights.dtype is not x.dtype):
        raise ShapeError(f"weights are {weights.type}; one {x.dtype} per class is needed")
    return TensorType(x.dtype, want if reduction == "none" else ())


@op("NegativeLogLikelihoodLoss", OpClass.COMPOSITE)
def negative_log_likelihood_loss(
    x: Operand,
    target: Operand,
    weight: Operand | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> TensorType:
    """Loss of log-probabilities ``[N, C, …]`` against class indices ``[N, …]``."""
    return _loss_type(x, target, weight, reduction)


@op("SoftmaxCrossEntropyLoss", OpClass.COMPOSITE)
def softmax_cross_entropy_loss(
    scores: Operand,
    labels: Operand,
    weights: Operand | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[TensorType, TensorType]:
    """Negative log-likelihood of the softmax of scores over axis 1; the second output is the log-softmax."""
    return _loss_type(scores, labels, weights, reduction), scores.type
