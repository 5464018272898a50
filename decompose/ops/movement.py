"""Shape functions of ops that only move elements (and of those that read shapes)."""

from __future__ import annotations

from collections.abc import Sequence

from mnnpy.decompose.infer import Operand, broadcast_shapes, data_dim, normalize_axis
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim, Shape, SymDim, numel
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType, Type

#: ONNX models write "to the end" as the largest integer of 32 or 64 bits.
_TO_THE_END = 2**31 - 1

PAD_MODES = ("constant", "reflect", "edge", "wrap")


def normalize_axes(axes: Sequence[Dim], rank: int) -> tuple[int, ...]:
    """All *axes* in ``[0, rank)``; raises ShapeError where one repeats or is out of range."""
    found = tuple(normalize_axis(int(a), rank) for a in axes)  # type: ignore[arg-type]
    if len(set(found)) != len(found):
        raise ShapeError(f"axes {tuple(axes)} name a dimension of rank {rank} twice")
    return found


@op("Identity", OpClass.TRANSFORM)
def identity(x: Operand) -> Type:
    """The operand itself."""
    return x.type if x.maybe_type is None else x.maybe_type


@op("Concat", OpClass.TRANSFORM)
def concat(*xs: Operand, axis: int) -> TensorType:
    """Operands one after another along *axis*."""
    if not xs:
        raise ShapeError("Concat needs at least one operand")
    rank = xs[0].rank
    axis = normalize_axis(axis, rank)
    out: list[Dim] = list(xs[0].shape)
    for x in xs[1:]:
        if x.dtype is not xs[0].dtype:
            raise ShapeError(f"operands have dtypes {xs[0].dtype} and {x.dtype}")
        if x.rank != rank:
            raise ShapeError(f"operands have ranks {rank} and {x.rank}")
        for k, d in enumerate(x.shape):
            if k == axis:
                out[k] = out[k] + d
            elif isinstance(out[k], SymDim):
                out[k] = d
            elif not isinstance(d, SymDim) and d != out[k]:
                raise ShapeError(f"dimension {k} is {out[k]} in one operand and {d} in another")
    return TensorType(xs[0].dtype, tuple(out))


@op("Transpose", OpClass.TRANSFORM)
def transpose(x: Operand, *, perm: tuple[int, ...] | None = None) -> TensorType:
    """Dimensions in the order of *perm* (reversed where not given)."""
    order = tuple(reversed(range(x.rank))) if perm is None else normalize_axes(perm, x.rank)
    if len(order) != x.rank:
        raise ShapeError(f"perm {perm} does not name each of {x.rank} dimensions once")
    return TensorType(x.dtype, tuple(x.shape[p] for p in order))


def _without_common(a: Sequence[Dim], b: Sequence[Dim]) -> tuple[list[Dim], list[Dim]]:
    """Both lists without the symbolic factors that they share, so that products divide exactly."""
    left, right = list(a), list(b)
    for d in b:
        if isinstance(d, SymDim) and d in left:
            left.remove(d)
            right.remove(d)
    return left, right


def reshaped(shape: Shape, target: Sequence[Dim], allowzero: bool) -> Shape:
    """The static meaning of Reshape's target: 0 copies a dimension (unless *allowzero*), −1 takes the rest."""
    out: list[Dim] = []
    for k, d in enumerate(target):
        if not isinstance(d, SymDim) and d == 0 and not allowzero:
            if k >= len(shape):
                raise ShapeError(f"target {tuple(target)} copies dimension {k} of shape {shape}, which has none")
            d = shape[k]
        out.append(d)
    holes = [k for k, d in enumerate(out) if not isinstance(d, SymDim) and d == -1]
    if len(holes) > 1:
        raise ShapeError(f"target {tuple(target)} has more than one −1")
    known = [d for d in out if isinstance(d, SymDim) or d != -1]
    left, right = _without_common(shape, known)
    total, part = numel(left), numel(right)
    if holes:
        if not isinstance(part, SymDim) and part == 0:
            if allowzero:
                raise ShapeError(f"−1 in target {tuple(target)} cannot be told: another dimension is 0")
            out[holes[0]] = 0
            return tuple(out)
        rest = total // part
        if not isinstance(total, SymDim) and not isinstance(part, SymDim) and total % part:
            raise ShapeError(f"{total} elements of shape {shape} do not divide into {tuple(target)}")
        out[holes[0]] = rest
    elif not isinstance(total, SymDim) and not isinstance(part, SymDim) and total != part:
        raise ShapeError(f"shape {shape} does not fit target {tuple(target)}: the numbers of elements differ")
    return tuple(out)


@op("Reshape", OpClass.TRANSFORM)
def reshape(x: Operand, shape: Operand, *, allowzero: int = 0) -> TensorType:
    """The same elements under another shape."""
    return TensorType(x.dtype, reshaped(x.shape, shape.require_ints(), bool(allowzero)))


@op("Flatten", OpClass.TRANSFORM)
def flatten(x: Operand, *, axis: int = 1) -> TensorType:
    """A matrix: dimensions before *axis*, and the others."""
    if not -x.rank <= axis <= x.rank:
        raise ShapeError(f"axis {axis} is out of range for rank {x.rank}")
    axis = axis + x.rank if axis < 0 else axis
    return TensorType(x.dtype, (numel(x.shape[:axis]), numel(x.shape[axis:])))


def squeezed_axes(shape: Shape, axes: Sequence[Dim] | None) -> tuple[int, ...]:
    """The dimensions that Squeeze drops; raises ShapeError where one is not 1."""
    if axes is None:
        return tuple(k for k, d in enumerate(shape) if d == 1)
    gone = normalize_axes(axes, len(shape))
    for k in gone:
        if not isinstance(shape[k], SymDim) and shape[k] != 1:
            raise ShapeError(f"dimension {k} of shape {shape} is {shape[k]}, not 1; it cannot be squeezed")
    return gone


@op("Squeeze", OpClass.TRANSFORM)
def squeeze(x: Operand, axes: Operand | None = None) -> TensorType:
    """Without the dimensions of size 1 (all, or those in *axes*)."""
    gone = squeezed_axes(x.shape, None if axes is None else axes.require_ints())
    return TensorType(x.dtype, tuple(d for k, d in enumerate(x.shape) if k not in gone))


def unsqueezed(shape: Shape, axes: Sequence[Dim]) -> Shape:
    """*shape* with ones so that they land at *axes* of the result."""
    at = normalize_axes(axes, len(shape) + len(axes))
    rest = iter(shape)
    return tuple(1 if k in at else next(rest) for k in range(len(shape) + len(at)))


@op("Unsqueeze", OpClass.TRANSFORM)
def unsqueeze(x: Operand, axes: Operand) -> TensorType:
    """New dimensions of size 1 at *axes* of the result."""
    return TensorType(x.dtype, unsqueezed(x.shape, axes.require_ints()))


@op("Expand", OpClass.TRANSFORM)
def expand(x: Operand, shape: Operand) -> TensorType:
    """Broadcast to *shape* (both ways, as NumPy does)."""
    return TensorType(x.dtype, broadcast_shapes(x.shape, shape.require_ints()))


@op("Tile", OpClass.TRANSFORM)
def tile(x: Operand, repeats: Operand) -> TensorType:
    """The tensor *repeats* times along each dimension."""
    times = repeats.require_ints()
    if len(times) != x.rank:
        raise ShapeError(f"{len(times)} repeats for rank {x.rank}")
    return TensorType(x.dtype, tuple(d * r for d, r in zip(x.shape, times, strict=True)))


def slice_range(start: int, stop: int, step: int, size: int) -> tuple[int, int]:
    """First index and number of elements of one sliced dimension (ONNX Slice's clamping)."""
    if step == 0:
        raise ShapeError("a slice step is 0")
    start = start + size if start < 0 else start
    stop = stop + size if stop < 0 else stop
    if step > 0:
        start, stop = min(max(start, 0), size), min(max(stop, 0), size)
        return start, max(0, -((start - stop) // step))
    start, stop = min(max(start, 0), size - 1), min(max(stop, -1), size - 1)
    return start, max(0, -((stop - start) // -step)) if size else 0


def _sliced_dim(start: Dim, stop: Dim, step: Dim, size: Dim) -> Dim:
    if not any(isinstance(v, SymDim) for v in (start, stop, step, size)):
        return slice_range(int(start), int(stop), int(step), int(size))[1]  # type: ignore[arg-type]
    if isinstance(step, SymDim):
        return data_dim("slice")
    # With a symbolic size the bounds are taken to lie inside it.
    if step == -1 and start == -1 and not isinstance(stop, SymDim) and stop <= -_TO_THE_END:
        return size
    if step < 0:
        return data_dim("slice")
    if not isinstance(stop, SymDim):
        stop = size if stop >= _TO_THE_END else size + stop if stop < 0 else stop
    if not isinstance(start, SymDim) and start < 0:
        start = size + start
    if not isinstance(stop, SymDim) and isinstance(size, SymDim):
        return data_dim("slice")
    span = stop - start
    if not isinstance(span, SymDim):
        return max(0, -(-span // step))
    return span if step == 1 else (span + (step - 1)) // step


def slice_operands(
    starts: Operand, ends: Operand, axes: Operand | None, steps: Operand | None, rank: int
) -> dict[int, tuple[Dim, Dim, Dim]]:
    """Slice's operands as axis → (start, stop, step)."""
    first, last = starts.require_ints(), ends.require_ints()
    at = normalize_axes(axes.require_ints() if axes is not None else range(len(first)), rank)
    by = steps.require_ints() if steps is not None else (1,) * len(first)
    if not len(first) == len(last) == len(at) == len(by):
        raise ShapeError(f"{len(first)} starts, {len(last)} ends, {len(at)} axes and {len(by)} steps")
    if any(not isinstance(s, SymDim) and s == 0 for s in by):
        raise ShapeError("a slice step is 0")
    return {a: (s, e, d) for a, s, e, d in zip(at, first, last, by, strict=True)}


@op("Slice", OpClass.TRANSFORM)
def slice_(
    x: Operand, starts: Operand, ends: Operand, axes: Operand | None = None, steps: Operand | None = None
) -> TensorType:
    """A strided section along some dimensions."""
    cuts = slice_operands(starts, ends, axes, steps, x.rank)
    return TensorType(x.dtype, tuple(_sliced_dim(*cuts[k], d) if k in cuts else d for k, d in enumerate(x.shape)))


def split_sizes(size: Dim, sizes: Sequence[Dim] | None, num_outputs: int | None) -> tuple[Dim, ...]:
    """Extents of Split's outputs along its axis."""
    if sizes is not None:
        known = [s for s in sizes if not isinstance(s, SymDim)]
        complete = len(known) == len(sizes) and not isinstance(size, SymDim)
        if min(known, default=0) < 0 or (complete and sum(known) != size):
            raise ShapeError(f"parts {tuple(sizes)} do not add up to {size}")
        return tuple(sizes)
    if not num_outputs or num_outputs < 1:
        raise ShapeError("Split needs its 'split' operand or a positive 'num_outputs'")
    if isinstance(size, SymDim):
        part = -(-size // num_outputs)
        return (*(part,) * (num_outputs - 1), size - part * (num_outputs - 1))
    chunk = -(-size // num_outputs)
    return tuple(max(0, min(chunk, size - k * chunk)) for k in range(num_outputs))


@op("Split", OpClass.TRANSFORM)
def split(
    x: Operand, split: Operand | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[TensorType, ...]:
    """Consecutive sections along *axis*."""
    axis = normalize_axis(axis, x.rank)
    sizes = split_sizes(x.shape[axis], None if split is None else split.require_ints(), num_outputs)
    return tuple(TensorType(x.dtype, (*x.shape[:axis], s, *x.shape[axis + 1 :])) for s in sizes)


def pad_amounts(pads: Sequence[Dim], axes: Sequence[Dim] | None, rank: int) -> tuple[list[Dim], list[Dim]]:
    """Begins and ends for every dimension from Pad's operands."""
    at = normalize_axes(range(rank) if axes is None else axes, rank)
    if len(pads) != 2 * len(at):
        raise ShapeError(f"{len(pads)} pads for {len(at)} axes; two per axis are needed")
    begins: list[Dim] = [0] * rank
    ends: list[Dim] = [0] * rank
    for k, a in enumerate(at):
        begins[a], ends[a] = pads[k], pads[len(at) + k]
    return begins, ends


@op("Pad", OpClass.TRANSFORM)
def pad(
    x: Operand, pads: Operand, constant_value: Operand | None = None, axes: Operand | None = None, *,
    mode: str = "constant",
) -> TensorType:  # fmt: skip
    """Larger (or, with negative sizes, smaller) along some dimensions."""
    if mode not in PAD_MODES:
        raise ShapeError(f"mode '{mode}' is not one of {', '.join(PAD_MODES)}")
    if constant_value is not None and constant_value.dtype is not x.dtype:
        raise ShapeError(f"the constant is {constant_value.dtype}, the data {x.dtype}")
    begins, ends = pad_amounts(pads.require_ints(), None if axes is None else axes.require_ints(), x.rank)
    shape = tuple(d + b + e for d, b, e in zip(x.shape, begins, ends, strict=True))
    for k, d in enumerate(x.shape):
        if mode != "constant" and not isinstance(d, SymDim) and d == 0 and shape[k] != 0:
            raise ShapeError(f"dimension {k} is empty; mode '{mode}' has nothing to repeat")
    return TensorType(x.dtype, shape)


@op("CenterCropPad", OpClass.TRANSFORM)
def center_crop_pad(x: Operand, shape: Operand, *, axes: tuple[int, ...] | None = None) -> TensorType:
    """Cropped or zero-padded around the centre to *shape*."""
    at = normalize_axes(range(x.rank) if axes is None else axes, x.rank)
    sizes = shape.require_ints()
    if len(sizes) != len(at):
        raise ShapeError(f"{len(sizes)} sizes for {len(at)} axes")
    out = dict(zip(at, sizes, strict=True))
    return TensorType(x.dtype, tuple(out.get(k, d) for k, d in enumerate(x.shape)))


def _check_blocks(x: Operand, blocksize: int, mode: str) -> None:
    if x.rank != 4:
        raise ShapeError(f"the input has rank {x.rank}; [N,C,H,W] is needed")
    if blocksize < 1:
        raise ShapeError(f"blocksize {blocksize} is not positive")
    if mode not in ("DCR", "CRD"):
        raise ShapeError(f"mode '{mode}' is not DCR or CRD")


@op("DepthToSpace", OpClass.TRANSFORM)
def depth_to_space(x: Operand, *, blocksize: int, mode: str = "DCR") -> TensorType:
    """Channels become blocks of pixels."""
    _check_blocks(x, blocksize, mode)
    n, c, h, w = x.shape
    if not isinstance(c, SymDim) and c % (blocksize * blocksize):
        raise ShapeError(f"{c} channels do not divide by blocksize² = {blocksize * blocksize}")
    return TensorType(x.dtype, (n, c // (blocksize * blocksize), h * blocksize, w * blocksize))


@op("SpaceToDepth", OpClass.TRANSFORM)
def space_to_depth(x: Operand, *, blocksize: int, mode: str = "DCR") -> TensorType:
    """Blocks of pixels become channels."""
    _check_blocks(x, blocksize, mode)
    n, c, h, w = x.shape
    for d in (h, w):
        if not isinstance(d, SymDim) and d % blocksize:
            raise ShapeError(f"height or width {d} does not divide by blocksize {blocksize}")
    return TensorType(x.dtype, (n, c * (blocksize * blocksize), h // blocksize, w // blocksize))


@op("Trilu", OpClass.COMPOSITE)
def trilu(x: Operand, k: Operand | None = None, *, upper: int = 1) -> TensorType:
    """The upper or lower triangle of each matrix, zero elsewhere."""
    if x.rank < 2:
        raise ShapeError(f"the input has rank {x.rank}; at least 2 is needed")
    return x.type


@op("ReverseSequence", OpClass.COMPOSITE)
def reverse_sequence(x: Operand, sequence_lens: Operand, *, time_axis: int = 0, batch_axis: int = 1) -> TensorType:
    """The first ``sequence_lens[b]`` steps of each sequence in reverse order."""
    if x.rank < 2:
        raise ShapeError(f"the input has rank {x.rank}; at least 2 is needed")
    if {time_axis, batch_axis} != {0, 1}:
        raise ShapeError(f"time_axis {time_axis} and batch_axis {batch_axis} must be 0 and 1, or 1 and 0")
    return x.type


@op("Shape", OpClass.TRANSFORM)
def shape_(x: Operand, *, start: int = 0, end: int | None = None) -> TensorType:
    """The sizes of the operand as i64."""
    return TensorType(DType.I64, (len(shape_slice(x.rank, start, end)),))


def shape_slice(rank: int, start: int, end: int | None) -> range:
    """The dimensions that Shape(start, end) lists."""
    first = min(max(start + rank if start < 0 else start, 0), rank)
    last = rank if end is None else min(max(end + rank if end < 0 else end, 0), rank)
    return range(first, max(first, last))


@op("Size", OpClass.TRANSFORM)
def size(x: Operand) -> TensorType:
    """The number of elements as i64."""
    return TensorType(DType.I64, ())
