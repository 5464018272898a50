"""Rules of indexed reads and writes: all become atomic Gather or Scatter over rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.infer import normalize_axis
from mnnpy.decompose.raster import Region, row_major
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.movement import as_shape, broadcast, move
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array


def _scaled(g: Builder, index: Var, size: int, stride: int) -> Var:
    """``index · stride`` with negative indices counted from the end.

    A Gather from a table does all three steps at once: it wraps, it multiplies, and it raises where an index
    is out of range, which plain arithmetic would turn into a wrong address.
    """
    return g.gather(g.const(np.arange(size) * stride, np.int64), index)


def _grid(shape: Sequence[int], strides: Sequence[int], skip: int = -1) -> Array:
    """Offsets ``sum(i[k] · strides[k])`` of every point of *shape*; dimension *skip* counts as 1 long."""
    total = np.zeros([1] * len(shape), np.int64)
    for k, (n, s) in enumerate(zip(shape, strides, strict=True)):
        if k != skip:
            total = total + (np.arange(n, dtype=np.int64) * s).reshape([n if j == k else 1 for j in range(len(shape))])
    return total


def _element_index(g: Builder, indices: Var, shape: Sequence[int], axis: int) -> Var:
    """Flat addresses ``[M]`` of GatherElements and ScatterElements."""
    strides = row_major(tuple(shape))
    flat = _scaled(g, indices, shape[axis], strides[axis])
    base = _grid(indices.shape, strides, skip=axis)
    if base.any():
        flat = g.add(flat, g.const(base))
    return as_shape(g, flat, (prod(indices.shape),))


def _row_index(g: Builder, indices: Var, sizes: Sequence[int]) -> Var:
    """Row numbers in a matrix of ``prod(sizes)`` rows from index tuples in the last dimension."""
    strides = row_major(tuple(sizes))
    lead = indices.shape[:-1]
    total: Var | None = None
    for k, (n, s) in enumerate(zip(sizes, strides, strict=True)):
        part = as_shape(g, g.slice(indices, -1, k, k + 1), lead) if len(sizes) > 1 else as_shape(g, indices, lead)
        term = _scaled(g, part, n, s)
        total = term if total is None else g.add(total, term)
    return broadcast(g, g.const(0, np.int64), lead) if total is None else total


@rule("GatherElements")
def gather_elements(g: Builder, data: Var, indices: Var, *, axis: int = 0) -> Var | None:
    if data.dtype is DType.STRING:
        return None
    index = _element_index(g, indices, data.shape, normalize_axis(axis, data.rank))
    return as_shape(g, g.gather(as_shape(g, data, (prod(data.shape),)), index), indices.shape)


@rule("GatherND")
def gather_nd(g: Builder, data: Var, indices: Var, *, batch_dims: int = 0) -> Var | None:
    if data.dtype is DType.STRING:
        return None
    width, b = indices.shape[-1], batch_dims
    out = indices.shape[:-1] + data.shape[b + width :]
    if b == 0 and width == 1:
        return g.gather(data, as_shape(g, indices, indices.shape[:-1]))
    inner = data.shape[b : b + width]
    rows = _row_index(g, indices, inner)
    if b:
        lead = indices.shape[:b]
        base = _grid(lead, [s * prod(inner) for s in row_major(lead)])
        rows = g.add(rows, g.const(base.reshape(*lead, *[1] * (rows.rank - b))))
    table = as_shape(g, data, (prod(data.shape[: b + width]), prod(data.shape[b + width :])))
    return as_shape(g, g.gather(table, as_shape(g, rows, (prod(rows.shape),))), out)


@rule("ScatterElements")
def scatter_elements(
    g: Builder, data: Var, indices: Var, updates: Var, *, axis: int = 0, reduction: str = "none"
) -> Var | None:
    if data.dtype is DType.STRING:
        return None
    index = _element_index(g, indices, data.shape, normalize_axis(axis, data.rank))
    return _scatter(g, data, index, updates, 1, reduction)


@rule("ScatterND")
def scatter_nd(g: Builder, data: Var, indices: Var, updates: Var, *, reduction: str = "none") -> Var | None:
    if data.dtype is DType.STRING:
        return None
    width = indices.shape[-1]
    rows = _row_index(g, indices, data.shape[:width])
    return _scatter(g, data, as_shape(g, rows, (prod(rows.shape),)), updates, prod(data.shape[width:]), reduction)


def _scatter(g: Builder, data: Var, index: Var, updates: Var, row: int, fn: str) -> Var:
    """Atomic Scatter over rows of *row* elements."""
    count = index.shape[0]
    table = as_shape(g, data, (prod(data.shape) // row if row else 0, row))
    if not prod(data.shape) or not count:
        return data
    out = g.op("Scatter", table, index, as_shape(g, updates, (count, row)), fn=fn)
    return as_shape(g, out, data.shape)


@rule("OneHot")
def one_hot(g: Builder, indices: Var, depth: Var, values: Var, *, axis: int = -1) -> Var | None:
    if values.dtype is DType.STRING:
        return None
    axis = normalize_axis(axis, indices.rank + 1)
    (n,) = depth.require_ints()
    index = g.cast(indices, DType.I64)
    index = g.select(g.binary("Less", index, 0), g.add(index, n), index)
    index = as_shape(g, index, (*indices.shape[:axis], 1, *indices.shape[axis:]))
    place = [n if k == axis else 1 for k in range(indices.rank + 1)]
    hit = g.binary("Equal", index, g.const(np.arange(n).reshape(place), np.int64))
    off, on = (as_shape(g, g.slice(values, 0, k, k + 1), ()) for k in (0, 1))
    return g.select(hit, on, off)


@rule("TopK")
def top_k(g: Builder, x: Var, k: Var, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Var, Var]:
    (n,) = k.require_ints()
    out: tuple[Var, Var] = g.op(
        "Sort", x, outputs=2, axis=normalize_axis(axis, x.rank), k=int(n), descending=bool(largest)
    )
    return out


@rule("TensorScatter")
def tensor_scatter(
    g: Builder, past_cache: Var, update: Var, write_indices: Var | None = None, *, axis: int = -2, mode: str = "linear"
) -> Var | None:
    if past_cache.dtype is DType.STRING:
        return None
    shape, at = past_cache.shape, normalize_axis(axis, past_cache.rank)
    room, steps = shape[at], update.shape[at]
    if not prod(update.shape):
        return past_cache
    if write_indices is None:
        return _write_front(g, past_cache, update, at)
    prefix = prod(shape[:at])
    first = as_shape(g, g.cast(write_indices, DType.I64), (shape[0], 1))
    first = as_shape(g, broadcast(g, first, (shape[0], prefix // shape[0])), (prefix, 1))
    step = g.add(first, g.const(np.arange(steps).reshape(1, steps), np.int64))
    if mode == "circular":
        step = g.binary("Mod", step, room)
    else:
        step = _scaled(g, step, room, 1)
    rows = g.add(step, g.const(np.arange(prefix).reshape(prefix, 1) * room, np.int64))
    return _scatter(g, past_cache, as_shape(g, rows, (prefix * steps,)), update, prod(shape[at + 1 :]), "none")


def _write_front(g: Builder, cache: Var, update: Var, axis: int) -> Var:
    """All samples are written from position 0: two regions."""
    strides, steps = row_major(cache.shape), update.shape[axis]
    rest = (*cache.shape[:axis], cache.shape[axis] - steps, *cache.shape[axis + 1 :])
    old = Region(0, rest, steps * strides[axis], strides, steps * strides[axis], strides)
    new = Region(1, update.shape, 0, row_major(update.shape), 0, strides)
    return move(g, [cache, update], [old, new], cache.shape)
