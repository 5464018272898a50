"""Metal Shading Language 2.4."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from mnnpy.backends.kernels.ir import SUBGROUP_IDS, Array, AtomicUpdate, Buffer, Expr, Type, register_type
from mnnpy.backends.kernels.render import Renderer
from mnnpy.graph.dtypes import DType

__all__ = ["MetalRenderer"]

_STORAGE = {1: "uchar", 2: "ushort"}
_SIGNED = {DType.I8: "char", DType.I16: "short"}
_FN = {"+": "old + value", "*": "old * value", "min": "min(old, value)", "max": "max(old, value)"}


class MetalRenderer(Renderer):
    """One kernel as MSL. Buffers bind to indices in order; scalars come as one constant structure behind them."""

    types: ClassVar[Mapping[DType, str]] = {
        DType.BOOL: "bool", DType.I32: "int", DType.U32: "uint", DType.I64: "long", DType.U64: "ulong",
        DType.F16: "half", DType.F32: "float",
    }  # fmt: skip
    functions: ClassVar[Mapping[str, str]] = {"abs": "fabs", "min": "fmin", "max": "fmax"}
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    unroll = ""

    def header(self) -> list[str]:
        lines = ["#include <metal_stdlib>", "using namespace metal;"]
        if self.kernel.scalars:
            fields = " ".join(f"{self.types[t]} {n};" for n, t in self.kernel.scalars)
            lines.append(f"struct Scalars {{ {fields} }};")
        return lines

    def signature(self) -> list[str]:
        parts = [
            f"device {'const ' if b.access == 'r' else ''}{self.element(b)}* {b.name} [[buffer({k})]]"
            for k, b in enumerate(self.kernel.buffers)
        ]
        if self.kernel.scalars:
            parts.append(f"constant Scalars& scalars [[buffer({len(self.kernel.buffers)})]]")
        parts += [
            "uint3 global_id [[thread_position_in_grid]]",
            "uint3 local_id [[thread_position_in_threadgroup]]",
            "uint3 group_id [[threadgroup_position_in_grid]]",
        ]
        if "subgroups" in self.kernel.features():
            parts += [
                "uint lane_id [[thread_index_in_simdgroup]]",
                "uint subgroup_id [[simdgroup_index_in_threadgroup]]",
                "uint subgroups_id [[simdgroups_per_threadgroup]]",
            ]
        x, y, z = self.kernel.local
        limit = f"[[max_total_threads_per_threadgroup({x * y * z})]]"  # registers are allotted so that a group fits
        lines = [f"{limit} kernel void {self.kernel.name}({', '.join(parts)}) {{"]
        return lines + [f"  const {self.types[t]} {n} = scalars.{n};" for n, t in self.kernel.scalars]

    def element(self, buffer: Buffer) -> str:
        d = buffer.dtype
        if d in _SIGNED:
            return _SIGNED[d]
        if d is DType.F16:
            return "half"
        return _STORAGE[d.itemsize] if d.itemsize < 4 else self.types[d]

    def identifier(self, kind: str, axis: int) -> str:
        if kind in SUBGROUP_IDS:
            return f"int({kind}_id)"
        return f"int({kind}_id.{'xyz'[axis]})"

    def declare(self, array: Array) -> str:
        space = "threadgroup " if array.space == "local" else ""
        return f"{space}{self.type(array.type)} {array.name}[{array.size}];"

    def load(self, buffer: Buffer, index: str) -> str:
        at = f"{buffer.name}[{index}]"
        if buffer.dtype is DType.F16:
            return f"float({at})"
        if buffer.dtype is DType.BF16:
            return f"as_type<float>(uint({at}) << 16)"
        if buffer.dtype is DType.BOOL:
            return f"({at} != 0)"
        return at if buffer.dtype.itemsize >= 4 else f"int({at})"

    def store(self, buffer: Buffer, index: str, value: str, lanes: int) -> str:
        at = f"{buffer.name}[{index}]"
        if buffer.dtype is DType.BF16:
            return f"{{ const uint bits = as_type<uint>({value}); {at} = ushort({self.bf16_bits('bits')}); }}"
        if buffer.dtype is DType.BOOL:
            return f"{at} = ({value}) ? 1 : 0;"
        return f"{at} = {self.element(buffer)}({value});" if buffer.dtype.itemsize < 4 else f"{at} = {value};"

    def cast(self, value: str, source: Type, target: Type) -> str:
        if target.dtype is DType.BOOL:
            return f"({value} != 0)"
        return f"{self.types[target.dtype]}({value})"

    def bitcast(self, value: str, source: Type, target: Type) -> str:
        return f"as_type<{self.types[target.dtype]}>({value})"

    def call(self, op: str, args: Sequence[str], e: Expr) -> str:
        if op.startswith("sg_"):
            return f"simd_{ {'add': 'sum'}.get(op[3:], op[3:]) }({args[0]})"
        if e.args[0].dtype in (DType.I32, DType.U32, DType.I64, DType.U64) and op in ("min", "max", "abs"):
            return f"{op}({', '.join(args)})"
        if op in ("exp", "log", "sin", "cos", "tan", "pow", "sqrt", "tanh", "sinh", "cosh"):
            return f"precise::{op}({', '.join(args)})"  # the compiler's default is fast math
        return super().call(op, args, e)

    def special(self, value: float, dtype: DType) -> str:
        word = 0x7FC00000 if math.isnan(value) else 0xFF800000 if value < 0 else 0x7F800000
        return f"as_type<float>({word:#x}u)"

    def atomic(self, s: AtomicUpdate) -> str:
        """Compare-and-swap on the element's bits."""
        kind = register_type(s.buffer.dtype)
        name = self.types[kind]
        word = f"((device atomic_uint*){s.buffer.name} + ({self.expr(s.index)}))"
        old = self.bitcast("seen", Type(DType.U32), Type(kind))
        new = self.bitcast(f"{name}({_FN[s.fn]})", Type(kind), Type(DType.U32))
        swap = "atomic_compare_exchange_weak_explicit(at, &seen, next, memory_order_relaxed, memory_order_relaxed)"
        return (
            f"{{ device atomic_uint* at = {word}; const {name} value = {self.expr(s.value)}; "
            f"uint seen = atomic_load_explicit(at, memory_order_relaxed), next; "
            f"do {{ const {name} old = {old}; next = {new}; }} while (!{swap}); }}"
        )
