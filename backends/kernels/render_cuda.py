"""CUDA C++ for NVRTC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from mnnpy.backends.kernels.ir import SUBGROUP_IDS, Array, AtomicUpdate, Buffer, Expr, Type, register_type
from mnnpy.backends.kernels.render import Renderer
from mnnpy.graph.dtypes import DType

__all__ = ["CudaRenderer"]

_STORAGE = {1: "unsigned char", 2: "unsigned short"}
_SIGNED = {DType.I8: "signed char", DType.I16: "short"}
_FN = {"+": "old + value", "*": "old * value", "min": "min(old, value)", "max": "max(old, value)"}
_BITS = {
    (DType.F32, DType.I32): "__float_as_int", (DType.F32, DType.U32): "__float_as_uint",
    (DType.I32, DType.F32): "__int_as_float", (DType.U32, DType.F32): "__uint_as_float",
    (DType.F64, DType.I64): "__double_as_longlong", (DType.I64, DType.F64): "__longlong_as_double",
}  # fmt: skip
#: f32 functions take the suffix; double ones go without.
_SUFFIXED = frozenset(
    {"sqrt", "exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "floor", "ceil", "rint",
     "trunc", "pow", "atan2", "expm1", "log1p", "erf", "asinh", "acosh", "atanh"}
)  # fmt: skip
#: Halves for NVRTC, which comes without the toolkit's headers: bits, converted by the device's instructions.
_HALF = (
    "#ifdef __CUDACC_RTC__",
    "struct __half { unsigned short bits; };",
    "static __device__ __forceinline__ float __half2float(__half h) {",
    '  float v; asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h.bits)); return v;',
    "}",
    "static __device__ __forceinline__ __half __float2half_rn(float v) {",
    '  __half h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(v)); return h;',
    "}",
    "#endif",
)


#: Reductions over a warp by a butterfly: every lane gets the same bits.
_SUBGROUP = [
    f"template <class T> __device__ inline T sg_{name}(T v) {{ for (int d = 16; d > 0; d >>= 1) "
    f"{{ const T o = __shfl_xor_sync(0xffffffffu, v, d); v = {step}; }} return v; }}"
    for name, step in (("add", "v + o"), ("max", "o > v ? o : v"), ("min", "o < v ? o : v"))
]


class CudaRenderer(Renderer):
    """One kernel as CUDA C++. Halves are converted by the hardware's instructions, without headers."""

    types: ClassVar[Mapping[DType, str]] = {
        DType.BOOL: "bool", DType.I32: "int", DType.U32: "unsigned int", DType.I64: "long long",
        DType.U64: "unsigned long long", DType.F16: "__half", DType.F32: "float", DType.F64: "double",
    }  # fmt: skip
    integer_suffix: ClassVar[Mapping[DType, str]] = {
        DType.I32: "", DType.U32: "u", DType.I64: "LL", DType.U64: "ULL",
    }  # fmt: skip
    barrier = "__syncthreads();"

    def header(self) -> list[str]:
        lines: list[str] = []
        if any(b.dtype is DType.F16 for b in self.kernel.buffers) or "f16" in self.kernel.features():
            lines += _HALF
        if "subgroups" in self.kernel.features():
            lines += _SUBGROUP
        return lines

    def signature(self) -> list[str]:
        x, y, z = self.kernel.local
        parts = []
        for b in self.kernel.buffers:
            constant, alias = "const " * (b.access == "r"), "__restrict__ " * (b.access != "rw")
            parts.append(f"{constant}{self.element(b)}* {alias}{b.name}")
        parts += [f"const {self.types[t]} {n}" for n, t in self.kernel.scalars]
        head = f'extern "C" __global__ void __launch_bounds__({x * y * z})'
        return [f"{head} {self.kernel.name}({', '.join(parts)}) {{"]

    def element(self, buffer: Buffer) -> str:
        d = buffer.dtype
        if d in _SIGNED:
            return _SIGNED[d]
        if d is DType.F16:
            return "__half"
        return _STORAGE[d.itemsize] if d.itemsize < 4 else self.types[d]

    def identifier(self, kind: str, axis: int) -> str:
        x, y, z = self.kernel.local
        if kind in SUBGROUP_IDS:
            item = f"(threadIdx.x + {x} * (threadIdx.y + {y} * threadIdx.z))"
            return {"lane": f"(int)({item} & 31)", "subgroup": f"(int)({item} >> 5)"}.get(kind, str(x * y * z // 32))
        a = "xyz"[axis]
        if kind == "global":
            return f"(int)(blockIdx.{a} * blockDim.{a} + threadIdx.{a})"
        return f"(int){'threadIdx' if kind == 'local' else 'blockIdx'}.{a}"

    def declare(self, array: Array) -> str:
        space = "__shared__ " if array.space == "local" else ""
        return f"{space}{self.type(array.type)} {array.name}[{array.size}];"

    def load(self, buffer: Buffer, index: str) -> str:
        at = f"{buffer.name}[{index}]"
        if buffer.dtype is DType.F16:
            return f"__half2float({at})"
        if buffer.dtype is DType.BF16:
            return f"__uint_as_float((unsigned int){at} << 16)"
        if buffer.dtype is DType.BOOL:
            return f"({at} != 0)"
        return at if buffer.dtype.itemsize >= 4 else f"((int){at})"

    def store(self, buffer: Buffer, index: str, value: str, lanes: int) -> str:
        at = f"{buffer.name}[{index}]"
        if buffer.dtype is DType.F16:
            return f"{at} = __float2half_rn({value});"
        if buffer.dtype is DType.BF16:
            rounded = f"(unsigned short)({self.bf16_bits('bits')})"
            return f"{{ const unsigned int bits = __float_as_uint({value}); {at} = {rounded}; }}"
        if buffer.dtype is DType.BOOL:
            return f"{at} = ({value}) ? 1 : 0;"
        return f"{at} = ({self.element(buffer)})({value});" if buffer.dtype.itemsize < 4 else f"{at} = {value};"

    def cast(self, value: str, source: Type, target: Type) -> str:
        if target.dtype is DType.BOOL:
            return f"({value} != 0)"
        return f"(({self.types[target.dtype]})({value}))"

    def bitcast(self, value: str, source: Type, target: Type) -> str:
        name = _BITS.get((source.dtype, target.dtype))
        return f"{name}({value})" if name else f"(({self.types[target.dtype]})({value}))"

    def call(self, op: str, args: Sequence[str], e: Expr) -> str:
        kind = e.args[0].dtype
        if op in ("isnan", "isinf"):
            return f"({op}({args[0]}) != 0)"
        if op == "abs":
            return f"{'fabsf' if kind is DType.F32 else 'fabs' if kind is DType.F64 else 'abs'}({args[0]})"
        if op in ("min", "max"):
            name = {DType.F32: f"f{op}f", DType.F64: f"f{op}"}.get(kind, op)
            return f"{name}({', '.join(args)})"
        if op == "fma":
            return f"{'fmaf' if kind is DType.F32 else 'fma'}({', '.join(args)})"
        if op in _SUFFIXED:
            return f"{op}{'f' if kind is DType.F32 else ''}({', '.join(args)})"
        return super().call(op, args, e)

    def special(self, value: float, dtype: DType) -> str:
        if dtype is DType.F64:
            word = 0x7FF8000000000000 if math.isnan(value) else 0x7FF0000000000000
            return f"({'-' * (value < 0)}__longlong_as_double({word:#x}LL))"
        return f"({'-' * (value < 0)}__int_as_float({0x7FC00000 if math.isnan(value) else 0x7F800000:#x}))"

    def atomic(self, s: AtomicUpdate) -> str:
        """Compare-and-swap on the element's bits."""
        kind = register_type(s.buffer.dtype)
        name = self.types[kind]
        word = f"((unsigned int*){s.buffer.name} + ({self.expr(s.index)}))"
        old = self.bitcast("was", Type(DType.U32), Type(kind))
        new = self.bitcast(f"(({name})({_FN[s.fn]}))", Type(kind), Type(DType.U32))
        return (
            f"{{ unsigned int* at = {word}; const {name} value = {self.expr(s.value)}; unsigned int seen = *at, was; "
            f"do {{ was = seen; const {name} old = {old}; seen = atomicCAS(at, was, {new}); }} while (seen != was); }}"
        )
