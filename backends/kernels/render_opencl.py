"""OpenCL C 1.2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from mnnpy.backends.kernels.ir import Array, AtomicUpdate, Buffer, Expr, Type, register_type
from mnnpy.backends.kernels.render import Renderer
from mnnpy.graph.dtypes import DType

__all__ = ["OpenCLRenderer"]

_BYTES = {1: "uchar", 2: "ushort", 4: "uint", 8: "ulong"}
_SIGNED = {DType.I8: "char", DType.I16: "short"}
_ROUNDED = "(bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16"
_FN = {"+": "old + value", "*": "old * value", "min": "min(old, value)", "max": "max(old, value)"}


_SUBGROUP = {"lane": "get_sub_group_local_id", "subgroup": "get_sub_group_id", "subgroups": "get_num_sub_groups"}


class OpenCLRenderer(Renderer):
    """One kernel as OpenCL C. Half elements go through ``vload_half``; bf16 through their bits."""

    types: ClassVar[Mapping[DType, str]] = {
        DType.BOOL: "bool", DType.I32: "int", DType.U32: "uint", DType.I64: "long", DType.U64: "ulong",
        DType.F16: "half", DType.F32: "float", DType.F64: "double",
    }  # fmt: skip
    functions: ClassVar[Mapping[str, str]] = {"abs": "fabs", "isnan": "isnan", "min": "fmin", "max": "fmax"}
    barrier = "barrier(CLK_LOCAL_MEM_FENCE);"
    unroll = ""
    lanes = 16

    def header(self) -> list[str]:
        lines = []
        features = self.kernel.features()
        if "f64" in features:
            lines.append("#pragma OPENCL EXTENSION cl_khr_fp64 : enable")
        if "f16" in features:
            lines.append("#pragma OPENCL EXTENSION cl_khr_fp16 : enable")
        if "subgroups" in features:
            lines.append("#pragma OPENCL EXTENSION cl_khr_subgroups : enable")
        return lines

    def signature(self) -> list[str]:
        x, y, z = self.kernel.local
        parts = [
            f"__global {'const ' if b.access == 'r' else ''}{self.element(b)}* restrict {b.name}"
            if b.access != "rw"
            else f"__global {self.element(b)}* {b.name}"
            for b in self.kernel.buffers
        ]
        parts += [f"const {self.types[t]} {n}" for n, t in self.kernel.scalars]
        head = f"__kernel __attribute__((reqd_work_group_size({x}, {y}, {z})))"
        return [f"{head} void {self.kernel.name}({', '.join(parts)}) {{"]

    def element(self, buffer: Buffer) -> str:
        d = buffer.dtype
        if d in _SIGNED:
            return _SIGNED[d]
        if d is DType.F16:
            return "half"
        if d is DType.BOOL or d.itemsize < 4:
            return _BYTES[d.itemsize]
        return self.types[d]

    def type(self, t: Type) -> str:
        return f"int{t.lanes}" if t.dtype is DType.BOOL and t.lanes > 1 else super().type(t)

    def identifier(self, kind: str, axis: int) -> str:
        if kind in _SUBGROUP:
            return f"(int){_SUBGROUP[kind]}()"
        return f"(int)get_{kind}_id({axis})"

    def declare(self, array: Array) -> str:
        space = "__local " if array.space == "local" else ""
        return f"{space}{self.type(array.type)} {array.name}[{array.size}];"

    def load(self, buffer: Buffer, index: str) -> str:
        at = f"{buffer.name}[{index}]"
        if buffer.dtype is DType.F16:
            return f"vload_half({index}, {buffer.name})"
        if buffer.dtype is DType.BF16:
            return f"as_float((uint){at} << 16)"
        if buffer.dtype is DType.BOOL:
            return f"({at} != 0)"
        return at if buffer.dtype.itemsize >= 4 else f"((int){at})"

    def vload(self, buffer: Buffer, index: str, lanes: int) -> str:
        if buffer.dtype is DType.F16:
            return f"vload_half{lanes}(0, {buffer.name} + ({index}))"
        if buffer.dtype is DType.BF16:
            return f"as_float{lanes}(convert_uint{lanes}(vload{lanes}(0, {buffer.name} + ({index}))) << 16)"
        if buffer.dtype is not register_type(buffer.dtype):
            raise NotImplementedError(f"vectors of {buffer.dtype}")
        return f"vload{lanes}(0, {buffer.name} + ({index}))"

    def store(self, buffer: Buffer, index: str, value: str, lanes: int) -> str:
        if buffer.dtype is DType.F16:
            return f"vstore_half{lanes if lanes > 1 else ''}_rte({value}, 0, {buffer.name} + ({index}));"
        if lanes > 1 and buffer.dtype is DType.BF16:
            kept = f"select({_ROUNDED}, (bits >> 16) | 0x40u, (bits & 0x7fffffffu) > 0x7f800000u)"
            narrow = f"vstore{lanes}(convert_ushort{lanes}({kept}), 0, {buffer.name} + ({index}));"
            return f"{{ const uint{lanes} bits = as_uint{lanes}({value}); {narrow} }}"
        if lanes > 1:
            return f"vstore{lanes}({value}, 0, {buffer.name} + ({index}));"
        at = f"{buffer.name}[{index}]"
        if buffer.dtype is DType.BF16:
            return f"{{ const uint bits = as_uint({value}); {at} = (ushort)({self.bf16_bits('bits')}); }}"
        if buffer.dtype is DType.BOOL:
            return f"{at} = ({value}) ? 1 : 0;"
        return f"{at} = ({self.element(buffer)})({value});" if buffer.dtype.itemsize < 4 else f"{at} = {value};"

    def cast(self, value: str, source: Type, target: Type) -> str:
        if target.lanes > 1:
            return f"convert_{self.type(target)}({value})"
        if target.dtype is DType.BOOL:
            return f"({value} != 0)"
        return f"(({self.type(target)})({value}))"

    def bitcast(self, value: str, source: Type, target: Type) -> str:
        return f"as_{self.type(target)}({value})"

    def splat(self, value: str, target: Type) -> str:
        return f"(({self.type(target)})({value}))"

    def vector(self, parts: Sequence[str], target: Type) -> str:
        return f"(({self.type(target)})({', '.join(parts)}))"

    def lane(self, value: str, k: int) -> str:
        return f"{value}.s{k:x}"

    def call(self, op: str, args: Sequence[str], e: Expr) -> str:
        if e.args[0].dtype in (DType.I32, DType.U32, DType.I64, DType.U64) and op in ("min", "max"):
            return f"{op}({', '.join(args)})"
        if op == "abs" and e.dtype in (DType.I32, DType.I64):
            return f"(({self.type(e.type)})abs({args[0]}))"
        if op.startswith("sg_"):
            return f"sub_group_reduce_{op[3:]}({args[0]})"
        return super().call(op, args, e)

    def select(self, args: Sequence[str], e: Expr) -> str:
        if e.type.lanes > 1:
            return f"select({args[2]}, {args[1]}, {args[0]})"
        return super().select(args, e)

    def special(self, value: float, dtype: DType) -> str:
        if dtype is DType.F64:
            return "as_double(0x7ff8000000000000UL)" if math.isnan(value) else f"({'-' * (value < 0)}(double)INFINITY)"
        return "NAN" if math.isnan(value) else f"({'-' * (value < 0)}INFINITY)"

    def atomic(self, s: AtomicUpdate) -> str:
        """Compare-and-swap on the element's bits: works for every type of four bytes."""
        kind = self.element(s.buffer)
        word = f"((volatile __global uint*){s.buffer.name} + ({self.expr(s.index)}))"
        real = register_type(s.buffer.dtype) is DType.F32
        step = _FN[s.fn].replace("min(", "fmin(").replace("max(", "fmax(") if real else _FN[s.fn]
        return (
            f"{{ volatile __global uint* at = {word}; const {kind} value = {self.expr(s.value)}; uint seen = *at, was; "
            f"do {{ was = seen; const {kind} old = as_{kind}(was); "
            f"seen = atomic_cmpxchg(at, was, as_uint(({kind})({step}))); }} while (seen != was); }}"
        )
