"""Element-wise ops of old opsets: explicit broadcasting, attributes that became operands."""

from __future__ import annotations

from typing import Any

from mnnpy.convert.onnx.conversions import conversion
from mnnpy.convert.onnx.emitter import Emitter
from mnnpy.convert.onnx.proto import DATA_TYPES
from mnnpy.convert.onnx.tensors import dtype_of
from mnnpy.errors import ModelError

_FLT_MAX = 3.4028234663852886e38


def align(g: Emitter, b: str, a: str, axis: int) -> str:
    """*b* with trailing sizes of 1, so that its first axis meets axis *axis* of *a* under NumPy broadcasting."""
    rank_a, rank_b = g.rank(a), g.rank(b)
    if axis < 0:
        if rank_a is None:
            raise ModelError(
                f"axis {axis} counts from the end, but the rank of '{a}' is not known; run shape inference"
            )
        axis += rank_a
    if rank_a is not None and rank_b is not None:
        trailing = rank_a - axis - rank_b
        if trailing < 0:
            raise ModelError(f"an operand of rank {rank_b} at axis {axis} does not fit into rank {rank_a}")
        return g.op("Unsqueeze", b, g.ints(*range(rank_b, rank_b + trailing))) if trailing else b
    shape_b = g.op("Shape", b)
    ranks = g.op("Sub", g.op("Shape", g.op("Shape", a)), g.op("Shape", shape_b))
    ones = g.op("ConstantOfShape", g.op("Sub", ranks, g.ints(axis)), value=g.array(1))
    return g.op("Reshape", b, g.op("Concat", shape_b, ones, axis=0))  # type: ignore[no-any-return]


def _broadcasting(name: str) -> None:
    @conversion(name, until=6)
    def convert(g: Emitter, a: str, b: str, *, axis: int | None = None, broadcast: int = 0) -> Any:
        """Opsets 1–6 broadcast only where asked, and may align *b* with a given axis of *a*."""
        return g.op(name, a, align(g, b, a, axis) if broadcast and axis is not None else b)


for _name in ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less"):
    _broadcasting(_name)


@conversion("PRelu", until=6)
def prelu(g: Emitter, x: str, slope: str) -> Any:
    """One slope for all, or one per channel (axis 1)."""
    rank, value = g.rank(slope), g.value(slope)
    shared = rank == 0 or (value is not None and value.size == 1)
    return g.op("PRelu", x, slope if shared or rank not in (1, None) else align(g, slope, x, 1))


@conversion("Clip", until=5)
def clip_1(g: Emitter, x: str, *, min: float | None = None, max: float | None = None) -> Any:
    """Bounds are attributes; a missing one does not bound."""
    return g.op("Clip", x, None if min is None else g.like(min, x), None if max is None else g.like(max, x))


@conversion("Clip", since=6, until=10)
def clip_6(g: Emitter, x: str, *, min: float = -_FLT_MAX, max: float = _FLT_MAX) -> Any:
    """Bounds are attributes; a missing one is the largest float32."""
    return clip_1(g, x, min=min, max=max)


@conversion("Selu", until=5)
def selu(g: Emitter, x: str, *, alpha: float = 1.6732, gamma: float = 1.0507) -> Any:
    """Opset 1 rounded the constants to four digits."""
    return g.op("Selu", x, alpha=alpha, gamma=gamma)


@conversion("Cast", until=5)
def cast(g: Emitter, x: str, *, to: str) -> Any:
    """The target type is spelt out (``"FLOAT"``)."""
    try:
        number = DATA_TYPES[to.upper()]
    except KeyError as error:
        raise ModelError(f"'{to}' is not an element type") from error
    return g.op("Cast", x, to=dtype_of(number, "attribute 'to'"))
