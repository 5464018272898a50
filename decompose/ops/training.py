"""ai.onnx.preview.training: one step of an optimiser for several tensors at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from mnnpy.decompose.infer import Operand
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError, UnsupportedOpError
from mnnpy.graph.ir import TensorType

__all__ = ["refuse_gradient"]


def _groups(tensors: Sequence[Operand], parts: int, names: str) -> int:
    """How many tensors are optimised; raises ShapeError unless the list falls into *parts* of equal types."""
    if not tensors or len(tensors) % parts:
        raise ShapeError(f"{len(tensors)} tensors do not divide into {parts} lists ({names})")
    n = len(tensors) // parts
    for k in range(n):
        first = tensors[k]
        for other in tensors[k::n]:
            if other.dtype is not first.dtype or other.rank != first.rank:
                raise ShapeError(f"tensor {k} and what belongs to it have types {first.type} and {other.type}")
    return n


@op("training.Adagrad", OpClass.COMPOSITE)
def adagrad(
    R: Operand,
    T: Operand,
    *tensors: Operand,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> tuple[TensorType, ...]:
    """Adagrad (Duchi, Hazan and Singer, 2011): values, gradients, squared sums → values, squared sums."""
    n = _groups(tensors, 3, "values, gradients, accumulated squares")
    return tuple(x.type for x in (*tensors[:n], *tensors[2 * n :]))


@op("training.Adam", OpClass.COMPOSITE)
def adam(
    R: Operand,
    T: Operand,
    *tensors: Operand,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[TensorType, ...]:
    """Adam (Kingma and Ba, 2015): values, gradients, two moments → values, two moments."""
    n = _groups(tensors, 4, "values, gradients, first moments, second moments")
    return tuple(x.type for x in (*tensors[:n], *tensors[2 * n :]))


@op("training.Momentum", OpClass.COMPOSITE)
def momentum(
    R: Operand,
    T: Operand,
    *tensors: Operand,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[TensorType, ...]:
    """Gradient descent with standard or Nesterov momentum: values, gradients, momenta → values, momenta."""
    if mode not in ("standard", "nesterov"):
        raise ShapeError(f"mode '{mode}' is not standard or nesterov")
    n = _groups(tensors, 3, "values, gradients, momenta")
    return tuple(x.type for x in (*tensors[:n], *tensors[2 * n :]))


def refuse_gradient() -> NoReturn:
    """Raise the error that explains why Gradient does not run."""
    raise UnsupportedOpError(
        "training.Gradient differentiates the graph around it, and nodes here see only their operands; export the "
        "backward pass as ordinary nodes (torch: trace the joint forward and backward graph) and load that"
    )


@op("training.Gradient", OpClass.HOST, foldable=False)
def gradient(
    *inputs: Operand, xs: tuple[str, ...] = (), y: str = "", zs: tuple[str, ...] | None = None
) -> tuple[TensorType, ...]:
    """Derivatives of one value by others: declared so that it is refused with a reason."""
    refuse_gradient()
