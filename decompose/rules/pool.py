"""Rules of pooling."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.ops.pool import unpooled_shape
from mnnpy.decompose.ops.windows import Ints, Window, pool_window
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import to_float
from mnnpy.graph.dtypes import DType

#: Spatial dims that the atomic pooling takes.
MAX_SPATIAL = 3


def _pool(g: Builder, x: Var, win: Window, fn: str, **options: Any) -> Var:
    return g.op(  # type: ignore[no-any-return]
        "Pool", x, fn=fn, kernel=win.kernel, strides=win.strides, pads=win.pads, dilations=win.dilations, out=win.out,
        **options,
    )  # fmt: skip


@rule("AveragePool")
def average_pool(
    g: Builder,
    x: Var,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var | None:
    win = pool_window(x.shape, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    if len(win.kernel) > MAX_SPATIAL:
        return None
    return _pool(g, x, win, "Average", count_include_pad=bool(count_include_pad))


@rule("MaxPool")
def max_pool(
    g: Builder,
    x: Var,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
) -> tuple[Var, Var] | None:
    win = pool_window(x.shape, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    if len(win.kernel) > MAX_SPATIAL:
        return None
    # two nodes, of which dead-code removal keeps what is used: indices cost extra
    y = _pool(g, x, win, "Max")
    options = {"indices": True, "column_major": bool(storage_order)}
    with_indices = g.op(
        "Pool", x, outputs=2, fn="Max", kernel=win.kernel, strides=win.strides, pads=win.pads, dilations=win.dilations,
        out=win.out, **options,
    )  # fmt: skip
    return y, with_indices[1]


@rule("LpPool")
def lp_pool(
    g: Builder,
    x: Var,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    p: int = 2,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var | None:
    win = pool_window(x.shape, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return None if len(win.kernel) > MAX_SPATIAL else _pool(g, x, win, "Lp", p=p)


@rule("GlobalAveragePool")
def global_average_pool(g: Builder, x: Var) -> Var:
    return g.reduce("Mean", x, range(2, x.rank))


@rule("GlobalMaxPool")
def global_max_pool(g: Builder, x: Var) -> Var:
    return g.reduce("Max", x, range(2, x.rank))


@rule("GlobalLpPool")
def global_lp_pool(g: Builder, x: Var, *, p: int = 2) -> Var:
    axes = range(2, x.rank)
    if p in (1, 2):
        return g.reduce(f"L{p}", x, axes)
    data = to_float(g, x)
    powers = g.binary("Pow", g.unary("Abs", data), float(p))
    return g.cast(g.binary("Pow", g.reduce("Sum", powers, axes), 1.0 / p), x.dtype)


@rule("MaxUnpool")
def max_unpool(
    g: Builder,
    x: Var,
    indices: Var,
    output_shape: Var | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var:
    inferred = tuple(int(d) for d in unpooled_shape(x.shape, kernel_shape, strides, pads))  # type: ignore[arg-type]
    count = prod(x.shape)
    empty = g.raster([g.const(np.zeros((1, 1)), x.dtype)], (), (prod(inferred), 1), fill=0)
    flat = g.op("Scatter", empty, g.cast(g.reshape(indices, (count,)), DType.I64), g.reshape(x, (count, 1)), fn="none")
    y = g.reshape(flat, inferred)
    if output_shape is None:
        return y
    wanted = output_shape.require_ints()
    if wanted == inferred:
        return y
    return g.pad(y, (0,) * x.rank, tuple(w - d for w, d in zip(wanted, inferred, strict=True)))
