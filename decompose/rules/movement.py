"""Rules of ops that only move elements: each becomes one Raster (or nothing at all)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.infer import normalize_axis
from mnnpy.decompose.ops.movement import (
    normalize_axes,
    pad_amounts,
    reshaped,
    shape_slice,
    slice_operands,
    slice_range,
    split_sizes,
    squeezed_axes,
    unsqueezed,
)
from mnnpy.decompose.raster import Region, row_major
from mnnpy.decompose.registry import rule
from mnnpy.graph.dtypes import DType

#: One stretch of an axis: first output index, length, first input index, input step.
Run: TypeAlias = tuple[int, int, int, int]


def _moves(x: Var) -> bool:
    """Strings stay on the host."""
    return x.dtype is not DType.STRING


def move(g: Builder, xs: Sequence[Var], regions: Sequence[Region], shape: Sequence[int], fill: Any = None) -> Var:
    """A Raster without its empty regions."""
    return g.raster(xs, [r for r in regions if r.count], shape, fill)


def as_shape(g: Builder, x: Var, shape: Sequence[int]) -> Var:
    """The same elements, densely, under another shape."""
    if tuple(shape) == x.shape:
        return x
    n = prod(shape)
    return move(g, [x], [Region(0, (n,), 0, (1,), 0, (1,))], shape)


def permuted(g: Builder, x: Var, view: Sequence[int], perm: Sequence[int], shape: Sequence[int]) -> Var:
    """``x.reshape(view).transpose(perm).reshape(shape)`` as one region."""
    strides = row_major(tuple(view))
    size = tuple(view[p] for p in perm)
    return move(g, [x], [Region(0, size, 0, tuple(strides[p] for p in perm), 0, row_major(size))], shape)


def by_axis_runs(shape: Sequence[int], out: Sequence[int], runs: Sequence[Sequence[Run]]) -> list[Region]:
    """Regions that copy every combination of one run per axis."""
    src, dst = row_major(tuple(shape)), row_major(tuple(out))
    return [
        Region(
            0,
            tuple(r[1] for r in combination),
            sum(r[2] * s for r, s in zip(combination, src, strict=True)),
            tuple(r[3] * s for r, s in zip(combination, src, strict=True)),
            sum(r[0] * s for r, s in zip(combination, dst, strict=True)),
            dst,
        )
        for combination in itertools.product(*runs)
    ]


def runs_of(index: Sequence[int]) -> list[Run]:
    """An index map (input position for each output position) as maximal runs of constant step."""
    runs: list[Run] = []
    k, n = 0, len(index)
    while k < n:
        step = index[k + 1] - index[k] if k + 1 < n else 1
        end = k + 1
        while end < n and index[end] - index[end - 1] == step:
            end += 1
        runs.append((k, end - k, index[k], step if end - k > 1 else 1))
        k = end
    return runs


@rule("Identity")
def identity(g: Builder, x: Var) -> Var:
    return x


@rule("Concat")
def concat(g: Builder, *xs: Var, axis: int) -> Var | None:
    if not _moves(xs[0]):
        return None
    axis = normalize_axis(axis, xs[0].rank)
    shape = (*xs[0].shape[:axis], sum(x.shape[axis] for x in xs), *xs[0].shape[axis + 1 :])
    if len(xs) == 1:
        return xs[0]
    dst = row_major(shape)
    regions, at = [], 0
    for k, x in enumerate(xs):
        regions.append(Region(k, x.shape, 0, row_major(x.shape), at * dst[axis], dst))
        at += x.shape[axis]
    return move(g, xs, regions, shape)


@rule("Transpose")
def transpose(g: Builder, x: Var, *, perm: Sequence[int] | None = None) -> Var | None:
    if not _moves(x):
        return None
    order = tuple(reversed(range(x.rank))) if perm is None else normalize_axes(perm, x.rank)
    if order == tuple(range(x.rank)):
        return x
    return permuted(g, x, x.shape, order, tuple(x.shape[p] for p in order))


@rule("Reshape")
def reshape(g: Builder, x: Var, shape: Var, *, allowzero: int = 0) -> Var | None:
    if not _moves(x):
        return None
    return as_shape(g, x, reshaped(x.shape, shape.require_ints(), bool(allowzero)))  # type: ignore[arg-type]


@rule("Flatten")
def flatten(g: Builder, x: Var, *, axis: int = 1) -> Var | None:
    if not _moves(x):
        return None
    axis = axis + x.rank if axis < 0 else axis
    return as_shape(g, x, (prod(x.shape[:axis]), prod(x.shape[axis:])))


@rule("Squeeze")
def squeeze(g: Builder, x: Var, axes: Var | None = None) -> Var | None:
    if not _moves(x):
        return None
    gone = squeezed_axes(x.shape, None if axes is None else axes.require_ints())
    return as_shape(g, x, tuple(d for k, d in enumerate(x.shape) if k not in gone))


@rule("Unsqueeze")
def unsqueeze(g: Builder, x: Var, axes: Var) -> Var | None:
    return as_shape(g, x, unsqueezed(x.shape, axes.require_ints())) if _moves(x) else None  # type: ignore[arg-type]


def broadcast(g: Builder, x: Var, shape: Sequence[int]) -> Var:
    """*x* repeated along new and size-1 dimensions up to *shape*."""
    if tuple(shape) == x.shape:
        return x
    lead = len(shape) - x.rank
    own = row_major(x.shape)
    src = [0] * lead + [s if d == n else 0 for s, d, n in zip(own, x.shape, shape[lead:], strict=True)]
    return move(g, [x], [Region(0, tuple(shape), 0, tuple(src), 0, row_major(tuple(shape)))], shape)


@rule("Expand")
def expand(g: Builder, x: Var, shape: Var) -> Var | None:
    if not _moves(x):
        return None
    return broadcast(g, x, np.broadcast_shapes(x.shape, shape.require_ints()))


@rule("Tile")
def tile(g: Builder, x: Var, repeats: Var) -> Var | None:
    if not _moves(x):
        return None
    times = repeats.require_ints()
    if all(t == 1 for t in times):
        return x
    shape = tuple(d * t for d, t in zip(x.shape, times, strict=True))
    size = tuple(v for pair in zip(times, x.shape, strict=True) for v in pair)
    src = tuple(v for s in row_major(x.shape) for v in (0, s))
    return move(g, [x], [Region(0, size, 0, src, 0, row_major(size))], shape)


@rule("Slice")
def slice_(g: Builder, x: Var, starts: Var, ends: Var, axes: Var | None = None, steps: Var | None = None) -> Var | None:
    if not _moves(x):
        return None
    at, by = (None if v is None else v.operand() for v in (axes, steps))
    cuts = slice_operands(starts.operand(), ends.operand(), at, by, x.rank)
    strides = row_major(x.shape)
    offset, src, shape = 0, list(strides), list(x.shape)
    for axis, (start, stop, step) in cuts.items():
        stride = int(step)  # type: ignore[arg-type]
        first, count = slice_range(int(start), int(stop), stride, x.shape[axis])  # type: ignore[arg-type]
        offset += first * strides[axis]
        src[axis], shape[axis] = strides[axis] * stride, count
    if tuple(shape) == x.shape and tuple(src) == strides:
        return x
    return move(g, [x], [Region(0, tuple(shape), offset, tuple(src), 0, row_major(tuple(shape)))], shape)


@rule("Split")
def split(
    g: Builder, x: Var, split: Var | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Var, ...] | None:
    if not _moves(x):
        return None
    axis = normalize_axis(axis, x.rank)
    sizes = split_sizes(x.shape[axis], None if split is None else split.require_ints(), num_outputs)
    strides = row_major(x.shape)
    out: list[Var] = []
    at = 0
    for n in map(int, sizes):  # type: ignore[arg-type]
        shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
        region = Region(0, shape, at * strides[axis], strides, 0, row_major(shape))
        out.append(x if shape == x.shape else move(g, [x], [region], shape))
        at += n
    return tuple(out)


def _source_index(size: int, begin: int, end: int, mode: str) -> list[int]:
    """Which input position each output position of one padded axis shows (negative pads crop first)."""
    low, high = max(0, -begin), size - max(0, -end)
    n = high - low
    at = np.arange(-max(0, begin), n + max(0, end))
    if mode == "edge":
        at = np.clip(at, 0, n - 1)
    elif mode == "wrap":
        at = at % n
    elif n <= 1:
        at = np.zeros_like(at)
    else:
        at = at % (2 * n - 2)
        at = np.where(at < n, at, 2 * n - 2 - at)
    return [int(i) + low for i in at]


@rule("Pad")
def pad(
    g: Builder, x: Var, pads: Var, constant_value: Var | None = None, axes: Var | None = None, *, mode: str = "constant"
) -> Var | None:
    if not _moves(x):
        return None
    begins, ends = pad_amounts(pads.require_ints(), None if axes is None else axes.require_ints(), x.rank)
    pairs: list[tuple[int, int]] = list(zip(begins, ends, strict=True))  # type: ignore[arg-type]
    if not any(b or e for b, e in pairs):
        return x
    shape = tuple(d + b + e for d, (b, e) in zip(x.shape, pairs, strict=True))
    if mode != "constant":
        indices = [_source_index(d, b, e, mode) for d, (b, e) in zip(x.shape, pairs, strict=True)]
        return move(g, [x], by_axis_runs(x.shape, shape, [runs_of(i) for i in indices]), shape)
    inner: list[list[Run]] = []
    for d, (b, e) in zip(x.shape, pairs, strict=True):
        inner.append([(max(0, b), max(0, d - max(0, -b) - max(0, -e)), max(0, -b), 1)])
    regions = by_axis_runs(x.shape, shape, inner)
    if constant_value is None:
        return move(g, [x], regions, shape, False if x.dtype is DType.BOOL else 0)
    if constant_value.value is not None:
        fill = constant_value.value.reshape(-1)[0]
        exact = x.dtype.is_float or x.dtype.is_int or x.dtype is DType.BOOL
        if exact:
            return move(g, [x], regions, shape, _scalar(fill, x.dtype))
    return _pad_with(g, x, constant_value, regions, shape)


def _scalar(value: Any, dtype: DType) -> float | int | bool:
    if dtype is DType.BOOL:
        return bool(value)
    return int(value) if dtype.is_int else float(value)


def _pad_with(g: Builder, x: Var, value: Var, regions: list[Region], shape: tuple[int, ...]) -> Var:
    """Padding with a value that only the run knows: a second origin covers what the data do not."""
    (inner,) = regions
    dst = row_major(shape)
    low = [int(v) for v in np.unravel_index(inner.dst_offset, shape)] if inner.count else [0] * len(shape)
    size = list(inner.size)
    if not inner.count:
        size = [0] * len(shape)
    around: list[Region] = []
    box = [(0, d) for d in shape]  # what is left to cover, peeled axis by axis
    for k in range(len(shape)):
        for first, last in ((box[k][0], low[k]), (low[k] + size[k], box[k][1])):
            if last > first:
                part = [*box[:k], (first, last), *box[k + 1 :]]
                offset = sum(b[0] * s for b, s in zip(part, dst, strict=True))
                extent = tuple(b[1] - b[0] for b in part)
                around.append(Region(1, extent, 0, (0,) * len(shape), offset, dst))
        box[k] = (low[k], low[k] + size[k])
    return move(g, [x, value], [*regions, *around], shape)


@rule("CenterCropPad")
def center_crop_pad(g: Builder, x: Var, shape: Var, *, axes: Sequence[int] | None = None) -> Var | None:
    if not _moves(x):
        return None
    at = normalize_axes(range(x.rank) if axes is None else axes, x.rank)
    target = dict(zip(at, shape.require_ints(), strict=True))
    runs: list[list[Run]] = []
    for k, d in enumerate(x.shape):
        n = target.get(k, d)
        runs.append([((n - d) // 2, d, 0, 1) if n >= d else (0, n, (d - n) // 2, 1)])
    out = tuple(target.get(k, d) for k, d in enumerate(x.shape))
    regions = by_axis_runs(x.shape, out, runs)
    covered = regions[0].count == prod(out)
    return move(g, [x], regions, out, None if covered else (False if x.dtype is DType.BOOL else 0))


@rule("DepthToSpace")
def depth_to_space(g: Builder, x: Var, *, blocksize: int, mode: str = "DCR") -> Var | None:
    if not _moves(x):
        return None
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    out = (n, depth, h * b, w * b)
    if mode == "DCR":
        return permuted(g, x, (n, b, b, depth, h, w), (0, 3, 4, 1, 5, 2), out)
    return permuted(g, x, (n, depth, b, b, h, w), (0, 1, 4, 2, 5, 3), out)


@rule("SpaceToDepth")
def space_to_depth(g: Builder, x: Var, *, blocksize: int, mode: str = "DCR") -> Var | None:
    if not _moves(x):
        return None
    n, c, h, w = x.shape
    b = blocksize
    perm = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return permuted(g, x, (n, c, h // b, b, w // b, b), perm, (n, c * b * b, h // b, w // b))


@rule("Trilu")
def trilu(g: Builder, x: Var, k: Var | None = None, *, upper: int = 1) -> Var | None:
    if not _moves(x):
        return None
    n, m = x.shape[-2:]
    diagonal = g.const(np.arange(m)[None, :] - np.arange(n)[:, None], np.int64)
    bound = g.const(0, np.int64) if k is None else as_shape(g, k, ())
    keep = g.binary("GreaterEqual" if upper else "LessEqual", diagonal, bound)
    return g.select(keep, x, 0)


@rule("ReverseSequence")
def reverse_sequence(g: Builder, x: Var, sequence_lens: Var, *, time_axis: int = 0, batch_axis: int = 1) -> Var | None:
    if not _moves(x):
        return None
    steps, batch = x.shape[time_axis], x.shape[batch_axis]
    if not prod(x.shape):
        return x
    # Rows of x[A·B, rest] are taken in the order that the lengths say.
    lens = as_shape(g, sequence_lens, (1, batch) if batch_axis else (batch, 1))
    time = g.const(np.arange(steps).reshape((steps, 1) if batch_axis else (1, steps)), np.int64)
    taken = g.select(g.binary("Less", time, lens), g.sub(g.sub(lens, 1), time), time)
    row = np.arange(batch).reshape((1, batch) if batch_axis else (batch, 1))
    if batch_axis:
        index = g.add(g.mul(taken, batch), g.const(row, np.int64))
    else:
        index = g.add(taken, g.const(row * steps, np.int64))
    rows = as_shape(g, x, (steps * batch, prod(x.shape[2:])))
    return as_shape(g, g.gather(rows, as_shape(g, index, (steps * batch,))), x.shape)


@rule("Shape")
def shape_(g: Builder, x: Var, *, start: int = 0, end: int | None = None) -> Var:
    return g.const([x.shape[k] for k in shape_slice(x.rank, start, end)], np.int64)


@rule("Size")
def size(g: Builder, x: Var) -> Var:
    return g.const(prod(x.shape), np.int64)
