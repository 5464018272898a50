"""NumPy references of indexed reads and writes."""

from __future__ import annotations

import numpy as np

from mnnpy.backends.reference.kernels.atomic import checked_indices, sort
from mnnpy.backends.reference.kernels.numeric import narrow, wide
from mnnpy.decompose.registry import reference
from mnnpy.errors import BackendError, ShapeError
from mnnpy.graph.ir import Array

_COMBINE = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@reference("Compress")
def compress(x: Array, condition: Array, *, axis: int | None = None) -> Array:
    """``numpy.compress``."""
    return np.asarray(np.compress(condition, x, axis=axis))


@reference("NonZero")
def nonzero(x: Array) -> Array:
    """``numpy.nonzero``, one row per dimension."""
    if not x.ndim:
        return np.zeros((0, int(bool(x))), np.int64)
    return np.stack(np.nonzero(x)).astype(np.int64)


@reference("Unique")
def unique(x: Array, *, axis: int | None = None, sorted: int = 1) -> tuple[Array, Array, Array, Array]:
    """``numpy.unique`` with, if not sorted, the order of first occurrence."""
    # Types that NumPy cannot sort (strings as objects can) are compared in their wide form.
    keys = x if x.dtype.kind == "O" else wide(x)
    if keys.dtype.kind == "O" and axis is not None:
        _, codes = np.unique(keys, return_inverse=True)
        keys = codes.reshape(keys.shape)
    _, first, back, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    back = back.reshape(-1)
    if not sorted:
        order = np.argsort(first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        first, counts, back = first[order], counts[order], rank[back]
    values = x.reshape(-1)[first] if axis is None else np.take(x, first, axis=axis)
    return values, first.astype(np.int64), back.astype(np.int64), counts.astype(np.int64)


@reference("GatherElements")
def gather_elements(data: Array, indices: Array, *, axis: int = 0) -> Array:
    """Fancy indexing with a grid for the other dimensions."""
    axis = axis % data.ndim
    grid: list[Array] = list(np.indices(indices.shape, sparse=True))
    grid[axis] = checked_indices(indices, data.shape[axis], "GatherElements")
    return np.asarray(data[tuple(grid)])


def _tuples(indices: Array, sizes: tuple[int, ...], what: str) -> tuple[Array, ...]:
    return tuple(checked_indices(indices[..., k], n, what) for k, n in enumerate(sizes))


@reference("GatherND")
def gather_nd(data: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """Batch by batch."""
    width = indices.shape[-1]
    batch = data.shape[:batch_dims]
    out = np.empty(indices.shape[:-1] + data.shape[batch_dims + width :], data.dtype)
    for b in np.ndindex(batch):
        part = data[b]
        out[b] = part[_tuples(indices[b], part.shape[:width], "GatherND")] if width else part
    return out


@reference("ScatterElements")
def scatter_elements(data: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none") -> Array:
    """Element by element in row-major order of the updates."""
    axis = axis % data.ndim
    grid: list[Array] = list(np.indices(indices.shape))
    grid[axis] = checked_indices(indices, data.shape[axis], "ScatterElements")
    return _scatter(data, tuple(g.reshape(-1) for g in grid), updates.reshape(-1), reduction)


@reference("ScatterND")
def scatter_nd(data: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    """Slice by slice in row-major order of the updates."""
    width = indices.shape[-1]
    flat = indices.reshape(int(np.prod(indices.shape[:-1], dtype=np.int64)), width)
    rows = updates.reshape(flat.shape[0], *data.shape[width:])
    return _scatter(data, _tuples(flat, data.shape[:width], "ScatterND"), rows, reduction)


def _scatter(data: Array, at: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    if reduction == "none":
        out = data.copy()
        for k, place in enumerate(zip(*(a.tolist() for a in at), strict=True)):
            out[place] = updates[k]
        return out
    out = np.array(wide(data))
    _COMBINE[reduction].at(out, at, wide(updates))
    return narrow(out, data.dtype)


@reference("OneHot")
def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    """A comparison with the positions along the new axis."""
    n = int(depth.reshape(-1)[0])
    index = np.expand_dims(wide(indices).astype(np.int64), axis)
    index = np.where(index < 0, index + n, index)
    place = [1] * index.ndim
    place[axis] = n
    return np.asarray(np.where(index == np.arange(n).reshape(place), values[1], values[0]), values.dtype)


@reference("TopK")
def top_k(x: Array, k: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Array, Array]:
    """A stable sort."""
    return sort(x, axis=axis % x.ndim, k=int(k.reshape(-1)[0]), descending=bool(largest))


@reference("TensorScatter")
def tensor_scatter(
    past_cache: Array, update: Array, write_indices: Array | None = None, *, axis: int = -2, mode: str = "linear"
) -> Array:
    """As the specification's pseudo code."""
    axis = axis % past_cache.ndim
    if axis == 0:
        raise ShapeError("axis 0 is the batch, it cannot be the sequence")
    out, room = past_cache.copy(), past_cache.shape[axis]
    starts = np.zeros(past_cache.shape[0], np.int64) if write_indices is None else write_indices
    for prefix in np.ndindex(past_cache.shape[:axis]):
        for step in range(update.shape[axis]):
            place = int(starts[prefix[0]]) + step
            if mode == "circular":
                place %= room
            elif not 0 <= place < room:
                raise BackendError(f"TensorScatter: step {place} is out of range for a cache of {room}")
            out[(*prefix, place)] = update[(*prefix, step)]
    return out
