"""Pooling and matrix products of old opsets."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnnpy.convert.onnx.conversions import conversion
from mnnpy.convert.onnx.emitter import Emitter
from mnnpy.errors import ModelError
from mnnpy.graph.dtypes import DType


def _power(g: Emitter, x: str, p: float) -> str:
    return g.op("Pow", x, g.like(p, x))  # type: ignore[no-any-return]


@conversion("LpPool", until=1)
def lp_pool(g: Emitter, x: str, *, kernel_shape: tuple[int, ...] | None = None, p: float = 2.0, **attrs: Any) -> Any:
    """*p* was a float; ``(k · average |x|^p)^(1/p)`` where it is no integer."""
    if kernel_shape is None:
        raise ModelError("LpPool needs attribute 'kernel_shape'")
    if p == int(p):
        return g.op("LpPool", x, kernel_shape=kernel_shape, p=int(p), **attrs)
    powers = _power(g, g.op("Abs", x), p)
    mean = g.op("AveragePool", powers, kernel_shape=kernel_shape, count_include_pad=1, **attrs)
    return _power(g, g.op("Mul", mean, g.like(float(np.prod(kernel_shape)), x)), 1 / p)


@conversion("GlobalLpPool", until=1)
def global_lp_pool(g: Emitter, x: str, *, p: float = 2.0) -> Any:
    """*p* was a float; ``(sum |x|^p)^(1/p)`` over all spatial axes where it is no integer."""
    if p == int(p):
        return g.op("GlobalLpPool", x, p=int(p))
    rank = g.op("Size", g.op("Shape", x))
    axes = g.op("Range", g.const(2, DType.I64), rank, g.const(1, DType.I64))
    return _power(g, g.op("ReduceSum", _power(g, g.op("Abs", x), p), axes, keepdims=1), 1 / p)


@conversion("Gemm", until=6)
def gemm(g: Emitter, a: str, b: str, c: str, *, broadcast: int = 0, **attrs: Any) -> Any:
    """Whether *c* broadcasts is now told by its shape alone."""
    return g.op("Gemm", a, b, c, **attrs)
