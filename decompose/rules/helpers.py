"""Small graph fragments that rules of several families share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.raster import Region, row_major
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = [
    "LIMITS",
    "along_channel",
    "channel_rows",
    "index_dtype",
    "is_zero",
    "linear_taps",
    "sample",
    "to_float",
    "truncated",
]

#: Smallest and largest value of the integer types that results are clipped to.
LIMITS = {
    DType.I2: (-2, 1), DType.U2: (0, 3), DType.I4: (-8, 7), DType.U4: (0, 15),
    DType.I8: (-128, 127), DType.U8: (0, 255),
    DType.I16: (-(1 << 15), (1 << 15) - 1), DType.U16: (0, (1 << 16) - 1), DType.I32: (-(1 << 31), (1 << 31) - 1),
    DType.U32: (0, (1 << 32) - 1), DType.I64: (-(1 << 63), (1 << 63) - 1), DType.U64: (0, (1 << 64) - 1),
}  # fmt: skip


def to_float(g: Builder, x: Var) -> Var:
    """*x* in the type that statistics are computed in: f32, or f64 where it is f64 already."""
    return x if x.dtype is DType.F64 else g.cast(x, DType.F32)


def along_channel(g: Builder, v: Var, rank: int) -> Var:
    """A vector ``[C]`` shaped to broadcast over ``[N, C, …]`` of *rank*."""
    return v if rank <= 2 or v.rank == 0 else g.reshape(v, (v.shape[0], *(1,) * (rank - 2)))


def is_zero(v: Var | None) -> bool:
    """True for an absent operand and for a constant of zeros only."""
    return v is None or (v.value is not None and not np.any(v.value.astype(np.float32)))


def truncated(g: Builder, y: Var, to: DType) -> Var:
    """Floating *y* as *to*; integers are clipped to their range first."""
    if to.is_int:
        low, high = LIMITS[to]
        top = np.asarray(high).astype(y.dtype.numpy)
        if float(top) > high:  # the limit rounds up to a value that no longer fits
            top = np.nextafter(top, np.zeros_like(top))
        y = g.unary("Clip", y, alpha=float(low), beta=float(top))
    return g.cast(y, to)


def index_dtype(rows: int) -> DType:
    """i32 where it can count *rows*, else i64."""
    return DType.I32 if rows < (1 << 31) - 1 else DType.I64


def channel_rows(g: Builder, x: Var, groups: int = 1) -> Var:
    """``x[N, C, …]`` as rows ``[N·groups·S + 1, C/groups]``, one per pixel; the last row is zero."""
    n, c, *spatial = x.shape
    s, per = int(np.prod(spatial, dtype=np.int64)), c // groups
    region = Region(0, (n, groups, per, s), 0, (c * s, per * s, s, 1), 0, (groups * s * per, s * per, 1, per))
    return g.raster([x], [region], (n * groups * s + 1, per), fill=0)


def linear_taps(g: Builder, position: Var) -> tuple[Var, Var]:
    """Lower and upper neighbour of ``position[k, B]`` and their weights, both ``[k, B, 2]``."""
    base = g.unary("Floor", position)
    fraction = g.sub(position, base)
    shape = (*position.shape, 1)
    steps = g.const([0, 1], position.dtype)
    distance = g.unary("Abs", g.sub(g.reshape(fraction, shape), steps))
    return g.add(g.reshape(base, shape), steps), g.sub(g.const(1, position.dtype), distance)


def _combined(g: Builder, parts: Var, fn: str) -> Var:
    """``parts[k, B, T]`` combined over *k* as an outer product: ``[B, T, …, T]``."""
    k, b, t = parts.shape
    result: Var | None = None
    for j in range(k):
        part = g.reshape(g.slice(parts, 0, j, j + 1) if k > 1 else parts, (b, *(t if i == j else 1 for i in range(k))))
        result = part if result is None else g.binary(fn, result, part)
    assert result is not None
    return result


def sample(
    g: Builder,
    rows: Var,
    place: Var,
    weight: Var | None,
    sizes: Sequence[int],
    *,
    zeros: bool,
    first_row: Array | None = None,
    scale: Var | None = None,
) -> Var:
    """Weighted sums ``[B, C]`` of pixels at integer *place* ``[k, B, T]`` (floating type).

    *rows* comes from ``channel_rows``; *first_row* ``[B]`` is where each point's image starts; *scale* ``[B]``
    multiplies the weights. Places outside read zero (*zeros*) or the nearest border pixel.
    """
    k, b, _ = place.shape
    kind = index_dtype(rows.shape[0])
    bounds = np.asarray(sizes, np.float64).reshape(k, 1, 1) - 1
    top = g.const(bounds, place.dtype)
    clipped = g.cast(g.binary("Min", g.binary("Max", place, 0), top), kind)
    strides = g.const(np.asarray(row_major(tuple(sizes))).reshape(k, 1, 1), kind)
    index = _combined(g, g.mul(clipped, strides), "Add")
    spread = (b, *(1,) * k)
    if first_row is not None and first_row.any():
        index = g.add(index, g.const(first_row.reshape(spread), kind))
    if zeros:
        inside = g.binary("And", g.binary("GreaterEqual", place, 0), g.binary("LessEqual", place, top))
        index = g.select(_combined(g, inside, "And"), index, rows.shape[0] - 1)
    values = g.gather(rows, index)
    if weight is None:
        return g.reshape(values, (b, rows.shape[1]))
    factor = _combined(g, weight, "Mul")
    if scale is not None:
        factor = g.mul(factor, g.reshape(scale, spread))
    weighted = g.mul(values, g.reshape(factor, (*factor.shape, 1)))
    return g.reduce("Sum", weighted, range(1, 1 + k), keepdims=False)
