"""Element type conversion with the semantics of ONNX Cast."""

from __future__ import annotations

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.functions import wrap
from mnnpy.backends.kernels.ir import Expr, register_type
from mnnpy.backends.kernels.lowering import Declined
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__ = ["convert"]


def convert(b: KernelBuilder, x: Expr, source: DType, node: Node) -> Expr:
    """*x*, an element of *source*, as the register type of ``node.attrs["to"]``."""
    del b
    target: DType = node.attrs["to"]
    for d in (source, target):
        if d.value.startswith(("f8", "f4")):
            raise Declined(f"no conversion of {d} yet")
    return wrap(x.cast(register_type(target)), target)
