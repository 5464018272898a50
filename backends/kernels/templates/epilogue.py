"""What a product does with a sum before storing it: ``y = act(alpha·sum + bias + residual)``.

Attributes ``alpha``, ``act``, ``act_alpha``, ``act_beta``; input 2 is the bias, input 3 the residual (shaped as the
output). Passes put them on MatMul (bias over columns) and Convolution (bias over channels).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.functions import unary, wrap
from mnnpy.backends.kernels.ir import Buffer, Expr
from mnnpy.backends.kernels.lowering import Lowering
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__ = ["Epilogue", "Tail"]


@dataclass(frozen=True, slots=True)
class Epilogue:
    """The attributes and operands of one node."""

    dtype: DType
    bias: str = ""
    residual: str = ""
    act: str = ""
    act_alpha: float = 0.0
    act_beta: float = 0.0
    alpha: float = 1.0

    @classmethod
    def of(cls, work: Lowering, node: Node) -> Epilogue:
        """Those of a MatMul or Convolution."""
        operands = [*node.inputs, "", ""]
        a = node.attrs
        return cls(
            work.dtype(node.outputs[0]), operands[2], operands[3], str(a.get("act", "") or ""),
            float(a.get("act_alpha", 0.0)), float(a.get("act_beta", 0.0)), float(a.get("alpha", 1.0)),
        )  # fmt: skip

    def attach(self, b: KernelBuilder) -> Tail:
        """Declare the buffers and scalars in a kernel."""
        return Tail(
            self,
            b,
            b.buffer("bias", self.dtype) if self.bias else None,
            b.buffer("residual", self.dtype) if self.residual else None,
        )


@dataclass(frozen=True, slots=True)
class Tail:
    """An epilogue inside one kernel."""

    epilogue: Epilogue
    builder: KernelBuilder
    bias: Buffer | None
    residual: Buffer | None

    def buffers(self) -> Mapping[str, str]:
        """Operands by buffer name, for the launch."""
        e = self.epilogue
        return {n: v for n, v in (("bias", e.bias), ("residual", e.residual)) if v}

    def scalars(self) -> Mapping[str, int | float]:
        return {"alpha": self.epilogue.alpha} if self.epilogue.alpha != 1.0 else {}

    def load_bias(self, at: Expr, lanes: int = 1) -> Expr | None:
        """Bias elements from index *at*."""
        return self.builder.load(self.bias, at, lanes) if self.bias is not None else None

    def finish(self, total: Expr, at: Expr, bias: Expr | None) -> Expr:
        """The value to store at flat index *at* of the output (a vector: from *at* on)."""
        e, b = self.epilogue, self.builder
        if e.alpha != 1.0:
            total = total * b.scalar("alpha", DType.F32)
        if bias is not None:
            total = total + bias
        if self.residual is not None:
            total = total + b.load(self.residual, at, total.type.lanes)
        if e.act:
            total = unary(b, e.act, total, e.dtype, e.act_alpha, e.act_beta)
        return wrap(total, e.dtype)
