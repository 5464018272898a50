"""NumPy references of ops that only move elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnnpy.decompose.registry import reference
from mnnpy.errors import ShapeError
from mnnpy.graph.ir import Array


@reference("Identity")
def identity(x: Any) -> Any:
    """The operand itself, whatever it is."""
    return (x,)


@reference("Concat")
def concat(*xs: Array, axis: int) -> Array:
    """``numpy.concatenate``."""
    return np.concatenate(xs, axis=axis)


@reference("Transpose")
def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    """``numpy.transpose``."""
    return np.transpose(x, perm)


@reference("Reshape")
def reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    """``numpy.reshape`` with 0 for *copy this dimension*."""
    target = [int(s) for s in shape.tolist()]
    if not allowzero:
        target = [x.shape[k] if s == 0 else s for k, s in enumerate(target)]
    if -1 in target:
        known = math.prod(t for t in target if t != -1)
        target[target.index(-1)] = x.size // known if known else 0
    return x.reshape(target)


@reference("Flatten")
def flatten(x: Array, *, axis: int = 1) -> Array:
    """A matrix."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), int(np.prod(x.shape[axis:], dtype=np.int64)))


@reference("Squeeze")
def squeeze(x: Array, axes: Array | None = None) -> Array:
    """``numpy.squeeze``."""
    return np.squeeze(x, None if axes is None else tuple(int(a) for a in axes.reshape(-1)))


@reference("Unsqueeze")
def unsqueeze(x: Array, axes: Array) -> Array:
    """``numpy.expand_dims``."""
    return np.expand_dims(x, tuple(int(a) for a in axes.reshape(-1)))


@reference("Expand")
def expand(x: Array, shape: Array) -> Array:
    """Broadcast both ways."""
    target = np.broadcast_shapes(x.shape, tuple(int(s) for s in shape.tolist()))
    return np.array(np.broadcast_to(x, target))


@reference("Tile")
def tile(x: Array, repeats: Array) -> Array:
    """``numpy.tile``."""
    return np.tile(x, [int(r) for r in repeats.tolist()])


def _python_slice(start: int, stop: int, step: int, size: int) -> slice:
    """ONNX bounds as a Python slice: a stop before the first element must become None."""
    if step > 0:
        return slice(start, stop, step)
    start = min(start + size if start < 0 else start, size - 1)
    stop = stop + size if stop < 0 else stop
    return slice(max(start, 0), None if stop < 0 else stop, step)


@reference("Slice")
def slice_(x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    """Python slicing."""
    first, last = starts.tolist(), ends.tolist()
    at = range(len(first)) if axes is None else axes.tolist()
    by = [1] * len(first) if steps is None else steps.tolist()
    cut = [slice(None)] * x.ndim
    for s, e, a, d in zip(first, last, at, by, strict=True):
        cut[a] = _python_slice(s, e, d, x.shape[a])
    return np.array(x[tuple(cut)])


@reference("Split")
def split(x: Array, split: Array | None = None, *, axis: int = 0, num_outputs: int | None = None) -> tuple[Array, ...]:
    """``numpy.split`` at the running sums of the part sizes."""
    n = x.shape[axis]
    if split is None:
        if not num_outputs:
            raise ShapeError("Split needs its 'split' operand or 'num_outputs'")
        chunk = -(-n // num_outputs)
        cuts = [min(n, chunk * k) for k in range(1, num_outputs)]
    else:
        cuts = np.cumsum(split)[:-1].tolist()
    return tuple(np.array(p) for p in np.split(x, cuts, axis=axis))


@reference("Pad")
def pad(
    x: Array, pads: Array, constant_value: Array | None = None, axes: Array | None = None, *, mode: str = "constant"
) -> Array:
    """``numpy.pad`` after cropping by the negative sizes."""
    at = [a % x.ndim for a in (range(x.ndim) if axes is None else axes.tolist())]
    widths = [(0, 0)] * x.ndim
    for k, a in enumerate(at):
        widths[a] = (int(pads[k]), int(pads[len(at) + k]))
    x = x[tuple(slice(max(0, -b), max(0, d - max(0, -e))) for d, (b, e) in zip(x.shape, widths, strict=True))]
    grow = [(max(0, b), max(0, e)) for b, e in widths]
    if mode != "constant":
        return np.asarray(np.pad(x, grow, mode=mode))  # type: ignore[call-overload]
    zero = "" if x.dtype.kind == "O" else np.zeros((), x.dtype)
    value = zero if constant_value is None else constant_value.reshape(-1)[0]
    out = np.full([d + b + e for d, (b, e) in zip(x.shape, grow, strict=True)], value, x.dtype)
    out[tuple(slice(b, b + d) for d, (b, _) in zip(x.shape, grow, strict=True))] = x
    return out


@reference("CenterCropPad")
def center_crop_pad(x: Array, shape: Array, *, axes: Sequence[int] | None = None) -> Array:
    """Crop and pad axis by axis; the odd element goes to the right."""
    for a, n in zip(range(x.ndim) if axes is None else axes, shape.tolist(), strict=True):
        d = x.shape[a]
        if n <= d:
            x = np.take(x, range((d - n) // 2, (d - n) // 2 + n), axis=a)
        else:
            before = (n - d) // 2
            widths = np.zeros(2 * x.ndim, np.int64)
            widths[a % x.ndim], widths[x.ndim + a % x.ndim] = before, n - d - before
            x = pad(x, widths)
    return x


@reference("DepthToSpace")
def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """As the specification spells it."""
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        y = x.reshape(n, b, b, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, depth, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, depth, h * b, w * b)


@reference("SpaceToDepth")
def space_to_depth(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """The inverse of DepthToSpace in the same mode."""
    n, c, h, w = x.shape
    b = blocksize
    y = x.reshape(n, c, h // b, b, w // b, b)
    y = y.transpose(0, 3, 5, 1, 2, 4) if mode == "DCR" else y.transpose(0, 1, 3, 5, 2, 4)
    return y.reshape(n, c * b * b, h // b, w // b)


@reference("Trilu")
def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    """Zero outside the triangle."""
    shift = 0 if k is None else int(k.reshape(-1)[0])
    n, m = x.shape[-2:]
    offset = np.arange(m)[None, :] - np.arange(n)[:, None]
    return np.where(offset >= shift if upper else offset <= shift, x, np.zeros((), x.dtype))


@reference("ReverseSequence")
def reverse_sequence(x: Array, sequence_lens: Array, *, time_axis: int = 0, batch_axis: int = 1) -> Array:
    """Sequence by sequence."""
    out = x.copy()
    for b, n in enumerate(sequence_lens.tolist()):
        at: list[Any] = [slice(None), slice(None)]
        at[batch_axis], at[time_axis] = b, slice(0, n)
        out[tuple(at)] = np.flip(x[tuple(at)], 0)
    return out


@reference("Shape")
def shape_(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """Python slicing of the shape clamps as ONNX asks."""
    return np.asarray(x.shape[start:end], np.int64)


@reference("Size")
def size(x: Array) -> Array:
    """The number of elements."""
    return np.asarray(x.size, np.int64)
