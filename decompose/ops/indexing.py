"""Shape functions of ops that read or write where other tensors say."""

from __future__ import annotations

import numpy as np

from mnnpy.decompose.infer import Operand, data_dim, normalize_axis
from mnnpy.decompose.ops.atomic import SCATTER
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim, SymDim, numel
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, TensorType

_INDEX = (DType.I32, DType.I64)


def _known(x: Operand) -> Array | None:
    """The value where every element is a number."""
    symbolic = x.value is not None and x.value.dtype == object and x.dtype is not DType.STRING
    return None if symbolic else x.value


def _index_dtype(indices: Operand) -> None:
    if indices.dtype not in _INDEX:
        raise ShapeError(f"indices are {indices.dtype}, not i32 or i64")


@op("Compress", OpClass.HOST)
def compress(x: Operand, condition: Operand, *, axis: int | None = None) -> TensorType:
    """The slices along *axis* (or the elements) where the condition holds."""
    if condition.rank != 1 or condition.dtype is not DType.BOOL:
        raise ShapeError(f"the condition is {condition.type}; a bool vector is needed")
    value = _known(condition)
    n: Dim = data_dim("compress") if value is None else int(np.count_nonzero(value))
    if axis is None:
        return TensorType(x.dtype, (n,))
    axis = normalize_axis(axis, x.rank)
    return TensorType(x.dtype, (*x.shape[:axis], n, *x.shape[axis + 1 :]))


@op("NonZero", OpClass.HOST)
def nonzero(x: Operand) -> TensorType:
    """Indices of the elements that are not zero, one row per dimension."""
    value = _known(x)
    n: Dim = data_dim("nonzero") if value is None else int(np.count_nonzero(value))
    return TensorType(DType.I64, (x.rank, n))


@op("Unique", OpClass.HOST)
def unique(x: Operand, *, axis: int | None = None, sorted: int = 1) -> tuple[TensorType, ...]:
    """Distinct elements (or slices), where each first occurs, the way back, and how often each occurs."""
    n = data_dim("unique")
    if axis is None:
        first, back = TensorType(x.dtype, (n,)), numel(x.shape)
    else:
        axis = normalize_axis(axis, x.rank)
        first, back = TensorType(x.dtype, (*x.shape[:axis], n, *x.shape[axis + 1 :])), x.shape[axis]
    counts = TensorType(DType.I64, (n,))
    return first, counts, TensorType(DType.I64, (back,)), counts


@op("GatherElements", OpClass.COMPOSITE)
def gather_elements(data: Operand, indices: Operand, *, axis: int = 0) -> TensorType:
    """``out[i][j] = data[indices[i][j]][j]`` (for axis 0)."""
    _index_dtype(indices)
    if data.rank != indices.rank or data.rank < 1:
        raise ShapeError(f"data has rank {data.rank}, indices {indices.rank}; the same rank ≥ 1 is needed")
    axis = normalize_axis(axis, data.rank)
    for k, (d, i) in enumerate(zip(data.shape, indices.shape, strict=True)):
        if k != axis and not isinstance(d, SymDim) and not isinstance(i, SymDim) and i > d:
            raise ShapeError(f"dimension {k} of the indices is {i}, that of the data only {d}")
    return TensorType(data.dtype, indices.shape)


@op("GatherND", OpClass.COMPOSITE)
def gather_nd(data: Operand, indices: Operand, *, batch_dims: int = 0) -> TensorType:
    """Slices of the data at the index tuples in the last dimension of the indices."""
    _index_dtype(indices)
    if data.rank < 1 or indices.rank < 1 or not 0 <= batch_dims < min(data.rank, indices.rank):
        raise ShapeError(f"batch_dims {batch_dims} does not fit ranks {data.rank} and {indices.rank}")
    width = indices.shape[-1]
    if isinstance(width, SymDim):
        raise ShapeError("the last dimension of the indices must be a known size")
    if not 0 <= width <= data.rank - batch_dims:
        raise ShapeError(f"index tuples have {width} elements; data of rank {data.rank} takes {data.rank - batch_dims}")
    return TensorType(data.dtype, indices.shape[:-1] + data.shape[batch_dims + width :])


def _check_reduction(reduction: str) -> None:
    if reduction not in SCATTER:
        raise ShapeError(f"reduction '{reduction}' is not one of {', '.join(SCATTER)}")


@op("ScatterElements", OpClass.COMPOSITE)
def scatter_elements(
    data: Operand, indices: Operand, updates: Operand, *, axis: int = 0, reduction: str = "none"
) -> TensorType:
    """The data with ``out[indices[i][j]][j]`` replaced by or combined with ``updates[i][j]`` (for axis 0)."""
    _check_reduction(reduction)
    _index_dtype(indices)
    normalize_axis(axis, data.rank)
    if not data.rank == indices.rank == updates.rank:
        raise ShapeError(f"ranks {data.rank}, {indices.rank} and {updates.rank} of the operands differ")
    if data.dtype is not updates.dtype:
        raise ShapeError(f"the data are {data.dtype}, the updates {updates.dtype}")
    return data.type


@op("ScatterND", OpClass.COMPOSITE)
def scatter_nd(data: Operand, indices: Operand, updates: Operand, *, reduction: str = "none") -> TensorType:
    """The data with the slices at the index tuples replaced by or combined with the updates."""
    _check_reduction(reduction)
    _index_dtype(indices)
    if data.dtype is not updates.dtype:
        raise ShapeError(f"the data are {data.dtype}, the updates {updates.dtype}")
    width = indices.shape[-1]
    if not isinstance(width, SymDim):
        if width > data.rank:
            raise ShapeError(f"index tuples have {width} elements, the data only rank {data.rank}")
        want = indices.rank - 1 + data.rank - width
        if updates.rank != want:
            raise ShapeError(f"the updates have rank {updates.rank}, {want} is needed")
    return data.type


@op("OneHot", OpClass.COMPOSITE)
def one_hot(indices: Operand, depth: Operand, values: Operand, *, axis: int = -1) -> TensorType:
    """``values[1]`` where the position along a new axis is the index, else ``values[0]``."""
    axis = normalize_axis(axis, indices.rank + 1)
    (n,) = depth.require_ints()
    return TensorType(values.dtype, (*indices.shape[:axis], n, *indices.shape[axis:]))


@op("TopK", OpClass.COMPOSITE)
def top_k(
    x: Operand, k: Operand, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[TensorType, TensorType]:
    """The k largest (or smallest) elements along *axis* and their indices."""
    axis = normalize_axis(axis, x.rank)
    (n,) = k.require_ints()
    size = x.shape[axis]
    if not isinstance(n, SymDim) and not isinstance(size, SymDim) and not 0 <= n <= size:
        raise ShapeError(f"{n} elements are asked for of {size}")
    shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
    return TensorType(x.dtype, shape), TensorType(DType.I64, shape)


@op("TensorScatter", OpClass.COMPOSITE)
def tensor_scatter(
    past_cache: Operand, update: Operand, write_indices: Operand | None = None, *, axis: int = -2, mode: str = "linear"
) -> TensorType:
    """The cache with the update written from each sample's position on."""
    if mode not in ("linear", "circular"):
        raise ShapeError(f"mode '{mode}' is not linear or circular")
    at = normalize_axis(axis, past_cache.rank)
    if at == 0:
        raise ShapeError("axis 0 is the batch, it cannot be the sequence")
    if update.rank != past_cache.rank or update.dtype is not past_cache.dtype:
        raise ShapeError(f"the update is {update.type}, the cache {past_cache.type}")
    new, room = update.shape[at], past_cache.shape[at]
    if not isinstance(new, SymDim) and not isinstance(room, SymDim) and new > room:
        raise ShapeError(f"{new} steps do not fit a cache of {room}")
    return past_cache.type
