"""Element type conversion with the semantics of ONNX Cast."""

from __future__ import annotations

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.functions import wrap
from mnnpy.backends.kernels.ir import Expr, const, register_type, select
from mnnpy.backends.kernels.lowering import Declined
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__ = ["convert"]

_RANGE = {DType.I32: 2.0**31, DType.U32: 2.0**32, DType.I64: 2.0**63, DType.U64: 2.0**64}


def _to_integer(b: KernelBuilder, x: Expr, kind: DType) -> Expr:
    """Truncation; what does not fit gives a bound or 0 instead of what the device makes of undefined behaviour."""
    x = b.let(x)
    high = _RANGE[kind]
    low = -high if kind in (DType.I32, DType.I64) else 0.0
    inside = b.let((x >= low) & (x < high))
    safe = b.let(select(inside, x, const(0.0, x.type)).cast(kind))
    bottom = const(int(low), kind)
    top = const(int(high) - 1, kind)
    return select(inside, safe, select(x >= high, top, select(x < low, bottom, const(0, kind))))


def convert(b: KernelBuilder, x: Expr, source: DType, node: Node) -> Expr:
    """*x*, an element of *source*, as the register type of ``node.attrs["to"]``."""
    target: DType = node.attrs["to"]
    for d in (source, target):
        if d.value.startswith(("f8", "f4")):
            raise Declined(f"no conversion of {d} yet")
    if source in (DType.I2, DType.I4, DType.U2, DType.U4):
        x = wrap(x, source)  # one byte an element, of which only the low bits count
    if target is DType.BOOL or source is DType.BOOL or not target.is_int or not source.is_float:
        return wrap(x.cast(register_type(target)), target)
    return wrap(_to_integer(b, x, register_type(target)), target)
