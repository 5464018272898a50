"""Rules of resampling: positions are computed element-wise, pixels gathered, weighted and summed."""

from __future__ import annotations

from math import prod

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.infer import normalize_axis
from mnnpy.decompose.ops.image import resize_sizes
from mnnpy.decompose.ops.resampling import Taps, resize_taps, taps_matrix
from mnnpy.decompose.raster import Region, row_major
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import channel_rows, index_dtype, linear_taps, sample, to_float, truncated
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

#: Kernel parameter of cubic GridSample (fixed by the specification).
_CUBIC_A = -0.75
#: Elements of one gathered block of RoiAlign; larger ones are taken sample by sample.
_ROI_BLOCK = 1 << 24


def _base_grid(spatial: tuple[int, ...], align_corners: bool) -> Array:
    """Homogeneous positions ``[points, r + 1]``: x fastest, each from −1 to 1."""
    axes = [
        (np.linspace(-1, 1, d) if d > 1 else np.zeros(d)) if align_corners else (2 * np.arange(d) + 1) / max(d, 1) - 1
        for d in spatial
    ]
    mesh = [m.reshape(-1) for m in np.meshgrid(*axes, indexing="ij")]
    return np.stack([*reversed(mesh), np.ones(prod(spatial))], axis=-1)


@rule("AffineGrid")
def affine_grid(g: Builder, theta: Var, size: Var, *, align_corners: int = 0) -> Var:
    n, _, *spatial = size.require_ints()
    data = to_float(g, theta)
    points = g.const(_base_grid(tuple(spatial), bool(align_corners)), data.dtype)
    grid = g.matmul(points, g.transpose(data, (0, 2, 1)))
    return g.cast(g.reshape(grid, (n, *spatial, len(spatial))), theta.dtype)


def _reflected(g: Builder, x: Var, low: Array, high: Array) -> Var:
    """*x* folded back into ``[low, high]`` (arrays that broadcast); a range of one point gives that point."""
    span = high - low
    # |((x − low) mod 2·span) − span| is the distance from the high end
    turn = g.binary("Mod", g.sub(x, g.const(low, x.dtype)), g.const(np.where(span > 0, 2 * span, 1), x.dtype))
    distance = g.unary("Abs", g.sub(turn, g.const(span, x.dtype)))
    return g.binary("Max", g.sub(g.const(high, x.dtype), distance), g.const(low, x.dtype))


def _cubic_taps(g: Builder, position: Var) -> tuple[Var, Var]:
    """Four neighbours of ``position[k, B]`` and their weights by Keys' kernel, both ``[k, B, 4]``."""
    a = _CUBIC_A
    base = g.unary("Floor", position)
    fraction = g.reshape(g.sub(position, base), (*position.shape, 1))
    steps = g.const([-1, 0, 1, 2], position.dtype)
    d = g.unary("Abs", g.sub(fraction, steps))
    # coefficients of d³, d², d, 1: the outer taps lie between 1 and 2 away, the inner ones up to 1
    outer, inner = (a, -5 * a, 8 * a, -4 * a), (a + 2, -(a + 3), 0.0, 1.0)
    c3, c2, c1, c0 = (g.const([p, q, q, p], position.dtype) for p, q in zip(outer, inner, strict=True))
    weight = g.add(g.mul(g.add(g.mul(g.add(g.mul(c3, d), c2), d), c1), d), c0)
    return g.add(g.reshape(base, (*position.shape, 1)), steps), weight


@rule("GridSample")
def grid_sample(
    g: Builder, x: Var, grid: Var, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Var | None:
    (n, c, *spatial), r = x.shape, x.rank - 2
    out = grid.shape[1:-1]
    if 0 in (n, c, *out):
        return g.raster([x], (), (n, c, *out), fill=0)
    if x.dtype in (DType.STRING, DType.C64, DType.C128) or 0 in spatial:
        return None
    points = prod(out)
    place, weight = _grid_places(
        g, grid, n * points, np.asarray(spatial, np.float64), bool(align_corners), mode, padding_mode
    )
    data = x if mode == "nearest" else to_float(g, x)
    if weight is not None and weight.dtype is not data.dtype:
        weight = g.cast(weight, data.dtype)
    first = np.repeat(np.arange(n) * prod(spatial), points)
    zeros = padding_mode == "zeros"
    y = sample(g, channel_rows(g, data), place, weight, spatial, zeros=zeros, first_row=first)
    y = g.transpose(g.reshape(y, (n, points, c)), (0, 2, 1))
    assert len(out) == r
    return truncated(g, g.reshape(y, (n, c, *out)), x.dtype) if mode != "nearest" else g.reshape(y, (n, c, *out))


def _grid_places(
    g: Builder, grid: Var, count: int, sizes: Array, align: bool, mode: str, padding_mode: str
) -> tuple[Var, Var | None]:
    """Integer places ``[r, B, T]`` (floating type) of the pixels that each grid point reads, and their weights."""
    r = len(sizes)
    points = to_float(g, grid)
    if padding_mode != "zeros":
        points = g.select(g.unary("IsNaN", points), g.const(-1, points.dtype), points)
    # [B, r] with x first → [r, B] with the slowest dim first
    flip = Region(0, (r, count), r - 1, (-1, r), 0, (count, 1))
    order = g.raster([points], [flip], (r, count))
    extent = sizes.reshape(r, 1)
    if align:
        position = g.mul(g.add(order, 1), g.const((extent - 1) / 2, order.dtype))
        low, high = np.zeros_like(extent), extent - 1
    else:
        position = g.mul(g.sub(g.mul(g.add(order, 1), g.const(extent, order.dtype)), 1), 0.5)
        low, high = np.full_like(extent, -0.5), extent - 0.5
    if mode == "nearest":
        position = g.unary("Round", position)
    if padding_mode == "reflection":
        position = _reflected(g, position, low, high)
    elif padding_mode == "border" and mode == "cubic":
        clipped = g.binary("Min", g.binary("Max", position, 0), g.const(extent - 1, position.dtype))
        beyond = g.binary(
            "Or",
            g.binary("Less", position, g.const(low, position.dtype)),
            g.binary("Greater", position, g.const(high, position.dtype)),
        )
        position = g.select(beyond, clipped, position)
    if mode == "nearest":
        return g.reshape(position, (r, count, 1)), None
    place, weight = linear_taps(g, position) if mode == "linear" else _cubic_taps(g, position)
    if padding_mode == "reflection" and mode == "cubic":
        place = g.unary("Round", _reflected(g, place, low[..., None], high[..., None]))
    return place, weight


def _along(g: Builder, y: Var, taps: Taps, axis: int) -> Var:
    """Resample floating *y* along one axis."""
    size, (out, count) = y.shape[axis], taps.indices.shape
    tail = (1,) * (y.rank - axis - 1)
    if count <= 2:
        index = taps.indices if count == 2 else np.repeat(taps.indices, 2, axis=1)
        first = g.gather(y, g.const(index[:, 0].copy()), axis)
        sums = taps.weights.sum(axis=1)
        if count == 1 or not np.any(taps.weights[:, 1]):
            one = taps.weights[:, 0]
            return first if np.all(one == 1) else g.mul(first, g.const(one.reshape(-1, *tail), y.dtype))
        second = g.gather(y, g.const(index[:, 1].copy()), axis)
        w = [g.const(taps.weights[:, k].reshape(-1, *tail), y.dtype) for k in (0, 1)]
        if np.allclose(sums, 1, atol=1e-12):
            return g.add(first, g.mul(g.sub(second, first), w[1]))
        return g.add(g.mul(first, w[0]), g.mul(second, w[1]))
    if count <= 4:
        spread = g.gather(y, g.const(taps.indices), axis)
        weighted = g.mul(spread, g.const(taps.weights.reshape(out, count, *tail), y.dtype))
        return g.reduce("Sum", weighted, (axis + 1,), keepdims=False)
    lead, rest = y.shape[:axis], y.shape[axis + 1 :]
    rows = g.reshape(y, (prod(lead), size, prod(rest)))
    matrix = g.const(taps_matrix(taps, size), y.dtype)
    return g.reshape(g.matmul(matrix, rows), (*lead, out, *rest))


def _regular(index: Array) -> tuple[int, tuple[tuple[int, int], ...]] | None:
    """*index* as an affine walk: the first element and (count, step) of nested loops, or None."""
    out = len(index)
    jumps = np.flatnonzero(np.diff(index))
    if not jumps.size:
        return int(index[0]), ((out, 0),)
    repeat = int(jumps[0]) + 1
    if out % repeat == 0:
        blocks = index.reshape(-1, repeat)
        steps = np.diff(blocks[:, 0])
        if np.all(blocks == blocks[:, :1]) and (not steps.size or np.all(steps == steps[0])):
            step = int(steps[0]) if steps.size else 0
            return int(index[0]), ((out // repeat, step), (repeat, 0)) if repeat > 1 else ((out, step),)
    return None


def _picked(g: Builder, x: Var, plan: list[tuple[int, Taps]]) -> Var:
    """Nearest neighbours: one raster over all axes with regular steps, a gather for each other one."""
    walks = {axis: walk for axis, taps in plan if (walk := _regular(taps.indices[:, 0])) is not None}
    y = x
    for axis, taps in plan:
        if axis not in walks:
            y = g.gather(y, g.const(taps.indices[:, 0].copy()), axis)
    if not walks:
        return y
    shape = list(y.shape)
    loops: list[tuple[int, int, int]] = []
    offset, source = 0, row_major(y.shape)
    for axis, d in enumerate(y.shape):
        start, steps = walks.get(axis, (0, ((d, 1),)))
        offset += start * source[axis]
        loops += [(count, step * source[axis], axis) for count, step in steps]
        shape[axis] = prod(count for count, _ in steps)
    # the loops nest in the order of the output, so they walk it densely
    size = tuple(count for count, _, _ in loops)
    region = Region(0, size, offset, tuple(step for _, step, _ in loops), 0, row_major(size))
    return g.raster([y], [region], tuple(shape))


@rule("Resize")
def resize(
    g: Builder,
    x: Var,
    roi: Var | None = None,
    scales: Var | None = None,
    sizes: Var | None = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Var | None:
    if x.dtype in (DType.STRING, DType.C64, DType.C128) or (x.dtype is DType.BOOL and mode != "nearest"):
        return None
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    along = [normalize_axis(a, x.rank) for a in axes] if axes is not None else list(range(x.rank))
    window = None
    if crop and roi is not None and roi.shape != (0,):
        window = roi.require_value().astype(np.float64).reshape(-1)
    factors = scales.require_value().tolist() if scales is not None and scales.shape != (0,) else None
    wanted = sizes.require_ints() if factors is None and sizes is not None else None
    out, scale = resize_sizes(x.shape, window, factors, wanted, axes, keep_aspect_ratio_policy, crop)
    assert scale is not None
    outside = np.zeros(x.rank, object)
    plan: list[tuple[int, Taps]] = []
    for axis in along:
        size, o = x.shape[axis], int(out[axis])  # type: ignore[arg-type]
        region = (0.0, 1.0)
        if window is not None:
            k = along.index(axis)
            region = (float(window[k]), float(window[len(along) + k]))
        if size == o and scale[axis] == 1 and not crop:
            continue
        taps = resize_taps(
            size, o, scale[axis], mode=mode, transformation=coordinate_transformation_mode, nearest_mode=nearest_mode,
            antialias=bool(antialias), cubic_coeff_a=cubic_coeff_a, exclude_outside=bool(exclude_outside), roi=region,
        )  # fmt: skip
        plan.append((axis, taps))
        outside[axis] = taps.outside
    if 0 in out:
        return g.raster([x], (), out, fill=0)  # type: ignore[arg-type]
    if 0 in x.shape:
        return None
    # the axis that shrinks most goes first: the others have less to do then
    plan.sort(key=lambda p: len(p[1].indices) / x.shape[p[0]])
    if mode == "nearest":
        y = _picked(g, x, plan)
    else:
        y = to_float(g, x)
        for axis, taps in plan:
            y = _along(g, y, taps, axis)
        y = g.unary("Round", y) if antialias and x.dtype.is_int else y
        y = truncated(g, y, x.dtype)
    for axis, flags in enumerate(outside):
        if np.any(flags):
            mask = g.const(np.asarray(flags, bool).reshape(-1, *(1,) * (x.rank - axis - 1)))
            y = g.select(mask, g.const(np.asarray(extrapolation_value).astype(x.dtype.numpy)), y)
    return y


def _roi_axis(g: Builder, low: Var, length: Var, bins: int, samples: int, size: int, kind: DType) -> tuple[Var, Var]:
    """Places (*kind*) and weights ``[R, bins, samples, 2]`` along one axis of every region."""
    steps = (np.arange(bins)[:, None] + (np.arange(samples) + 0.5) / samples) / bins
    shape = (low.shape[0], 1, 1)
    at = g.add(g.mul(g.reshape(length, shape), g.const(steps, low.dtype)), g.reshape(low, shape))
    valid = g.binary("And", g.binary("GreaterEqual", at, -1), g.binary("LessEqual", at, size))
    inside = g.binary("Min", g.binary("Max", at, 0), size - 1)
    base = g.unary("Floor", inside)
    spread = (*inside.shape, 1)
    upper = g.const([0, 1], at.dtype)
    fraction = g.reshape(g.sub(inside, base), spread)
    weight = g.sub(g.const(1, at.dtype), g.unary("Abs", g.sub(fraction, upper)))
    weight = g.mul(weight, g.reshape(g.cast(valid, at.dtype), spread))
    place = g.binary("Min", g.add(g.reshape(base, spread), upper), size - 1)
    return g.cast(place, kind), weight


@rule("RoiAlign")
def roi_align(
    g: Builder,
    x: Var,
    rois: Var,
    batch_indices: Var,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Var | None:
    if rois.shape[0] == 0:
        return g.raster([x], (), (0, x.shape[1], output_height, output_width), fill=0)
    # with an adaptive grid every region has its own number of samples: left to the host
    if sampling_ratio <= 0 or 0 in x.shape:
        return None
    (_, c, height, width), count, s = x.shape, rois.shape[0], sampling_ratio
    half = coordinate_transformation_mode == "half_pixel"
    data = to_float(g, x)
    corners = g.mul(g.transpose(g.cast(rois, data.dtype), (1, 0)), spatial_scale)
    if half:
        corners = g.sub(corners, 0.5)
    x1, y1, x2, y2 = (g.reshape(g.slice(corners, 0, k, k + 1), (count,)) for k in range(4))
    lengths = [g.sub(y2, y1), g.sub(x2, x1)]
    if not half:
        lengths = [g.binary("Max", v, 1) for v in lengths]
    rows = channel_rows(g, data)
    kind = index_dtype(rows.shape[0])
    py, wy = _roi_axis(g, y1, lengths[0], output_height, s, height, kind)
    px, wx = _roi_axis(g, x1, lengths[1], output_width, s, width, kind)
    start = g.reshape(g.mul(g.cast(batch_indices, kind), height * width), (count, 1, 1, 1))
    py = g.add(g.mul(py, width), start)
    total = count * output_height * output_width * c * 4 * s * s
    step = s if total <= _ROI_BLOCK else 1
    result: Var | None = None
    for i in range(0, s, step):
        for j in range(0, s, step):
            block = _roi_block(g, rows, (py, wy, i), (px, wx, j), step, mode)
            result = block if result is None else g.binary("Add" if mode == "avg" else "Max", result, block)
    assert result is not None
    if mode == "avg":
        result = g.mul(result, 1 / (s * s))
    return g.cast(g.transpose(result, (0, 3, 1, 2)), x.dtype)


def _roi_block(
    g: Builder, rows: Var, vertical: tuple[Var, Var, int], horizontal: tuple[Var, Var, int], step: int, mode: str
) -> Var:
    """Sum or maximum ``[R, height, width, C]`` over *step*² samples of every bin, four pixels each."""

    def part(v: Var, first: int, shape: tuple[int, ...]) -> Var:
        return g.reshape(g.slice(v, 2, first, first + step) if step < v.shape[2] else v, shape)

    (py, wy, i), (px, wx, j) = vertical, horizontal
    tall, wide = (py.shape[0], py.shape[1], 1, step * 2, 1), (px.shape[0], 1, px.shape[1], 1, step * 2)
    index = g.add(part(py, i, tall), part(px, j, wide))
    weight = g.mul(part(wy, i, tall), part(wx, j, wide))
    values = g.mul(g.gather(rows, index), g.reshape(weight, (*weight.shape, 1)))
    return g.reduce("Sum" if mode == "avg" else "Max", values, (3, 4), keepdims=False)
