"""Shape functions of reductions and of ops built from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mnnpy.decompose.infer import Operand, normalize_axis
from mnnpy.decompose.ops.atomic import reduced_shape
from mnnpy.decompose.ops.movement import normalize_axes
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim, SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType

#: ONNX name → (atomic Reduce, what it computes).
REDUCTIONS = {
    "ReduceL1": ("L1", "Sum of absolute values"),
    "ReduceL2": ("L2", "Square root of the sum of squares"),
    "ReduceMax": ("Max", "Maximum"),
    "ReduceMean": ("Mean", "Mean"),
    "ReduceMin": ("Min", "Minimum"),
    "ReduceProd": ("Prod", "Product"),
    "ReduceSum": ("Sum", "Sum"),
    "ReduceSumSquare": ("SumSquare", "Sum of squares"),
}
#: Reductions that take several atomic ops.
LOG_REDUCTIONS = {"ReduceLogSum": "Logarithm of the sum", "ReduceLogSumExp": "Logarithm of the sum of exponentials"}


def reduction_axes(axes: Sequence[Dim] | None, rank: int, noop: bool) -> tuple[int, ...]:
    """Sorted axes to reduce; none given means all of them, or none where *noop*."""
    if not axes:
        return () if noop else tuple(range(rank))
    return tuple(sorted(normalize_axes(axes, rank)))


def _declare(name: str, summary: str, op_class: OpClass) -> Callable[..., TensorType]:
    def shape(
        x: Operand, axes: Operand | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> TensorType:
        at = reduction_axes(None if axes is None else axes.require_ints(), x.rank, bool(noop_with_empty_axes))
        return TensorType(x.dtype, reduced_shape(x.shape, at, bool(keepdims)))

    shape.__doc__ = f"{summary} over *axes* (all of them by default)."
    return op(name, op_class)(shape)


for _name, (_, _summary) in REDUCTIONS.items():
    _declare(_name, _summary, OpClass.ALIAS)
for _name, _summary in LOG_REDUCTIONS.items():
    _declare(_name, _summary, OpClass.COMPOSITE)


def _arg_type(x: Operand, axis: int, keepdims: int) -> TensorType:
    axis = normalize_axis(axis, x.rank)
    if not isinstance(x.shape[axis], SymDim) and x.shape[axis] == 0:
        raise ShapeError(f"axis {axis} has no elements to choose from")
    return TensorType(DType.I64, reduced_shape(x.shape, (axis,), bool(keepdims)))


@op("ArgMax", OpClass.ALIAS)
def argmax(x: Operand, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> TensorType:
    """Index of the largest element along *axis*."""
    return _arg_type(x, axis, keepdims)


@op("ArgMin", OpClass.ALIAS)
def argmin(x: Operand, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> TensorType:
    """Index of the smallest element along *axis*."""
    return _arg_type(x, axis, keepdims)


def _scan_type(x: Operand, axis: Operand) -> TensorType:
    if axis.value is not None:
        normalize_axis(int(axis.require_ints()[0]), x.rank)  # type: ignore[arg-type]
    return x.type


@op("CumSum", OpClass.ALIAS)
def cumsum(x: Operand, axis: Operand, *, exclusive: int = 0, reverse: int = 0) -> TensorType:
    """Running sum along *axis*."""
    return _scan_type(x, axis)


@op("CumProd", OpClass.ALIAS)
def cumprod(x: Operand, axis: Operand, *, exclusive: int = 0, reverse: int = 0) -> TensorType:
    """Running product along *axis*."""
    return _scan_type(x, axis)


@op("Softmax", OpClass.COMPOSITE)
def softmax(x: Operand, *, axis: int = -1) -> TensorType:
    """exp(x) / sum(exp(x)) along *axis*, computed without overflow."""
    normalize_axis(axis, x.rank)
    return x.type


@op("LogSoftmax", OpClass.COMPOSITE)
def log_softmax(x: Operand, *, axis: int = -1) -> TensorType:
    """Logarithm of Softmax along *axis*."""
    normalize_axis(axis, x.rank)
    return x.type


@op("Det", OpClass.COMPOSITE)
def det(x: Operand) -> TensorType:
    """Determinants of the square matrices in the last two dimensions."""
    if x.rank < 2:
        raise ShapeError(f"the input has rank {x.rank}; at least 2 is needed")
    n, m = x.shape[-2:]
    if not isinstance(n, SymDim) and not isinstance(m, SymDim) and n != m:
        raise ShapeError(f"the matrices are {n} by {m}, not square")
    return TensorType(x.dtype, x.shape[:-2])
