"""GLSL 4.50 for Vulkan: buffers are storage blocks, scalars push constants, one shader per kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from mnnpy.backends.kernels import glsl_double
from mnnpy.backends.kernels.ir import Array, AtomicUpdate, Buffer, Expr, Kernel, Type, register_type, walk
from mnnpy.backends.kernels.render import Renderer
from mnnpy.graph.dtypes import DType

__all__ = ["GlslRenderer"]

_EXTENSIONS = {
    "storage8": "GL_EXT_shader_8bit_storage",
    "storage16": "GL_EXT_shader_16bit_storage",
    "f16": "GL_EXT_shader_explicit_arithmetic_types_float16",
    "i64": "GL_EXT_shader_explicit_arithmetic_types_int64",
    "subgroups": "GL_KHR_shader_subgroup_arithmetic",
}
_STORAGE = {1: "uint8_t", 2: "uint16_t"}
_SIGNED = {DType.I8: "int8_t", DType.I16: "int16_t"}
_BITS = {
    (DType.F32, DType.I32): "floatBitsToInt", (DType.F32, DType.U32): "floatBitsToUint",
    (DType.I32, DType.F32): "intBitsToFloat", (DType.U32, DType.F32): "uintBitsToFloat",
    (DType.F64, DType.I64): "doubleBitsToInt64", (DType.F64, DType.U64): "doubleBitsToUint64",
    (DType.I64, DType.F64): "int64BitsToDouble", (DType.U64, DType.F64): "uint64BitsToDouble",
}  # fmt: skip
_SUBGROUP = {"lane": "gl_SubgroupInvocationID", "subgroup": "gl_SubgroupID", "subgroups": "gl_NumSubgroups"}
#: Execution mode SignedZeroInfNanPreserve of f32 (SPV_KHR_float_controls).
_SPECIAL = (
    "#extension GL_EXT_spirv_intrinsics : require",
    'spirv_execution_mode(extensions = ["SPV_KHR_float_controls"], capabilities = [4466], 4461, 32);',
)
#: f16 bits of a float, rounded to nearest even: float16_t() may also round towards zero (SPIR-V leaves it open).
_HALF_BITS = """uint half_bits(float x) {
  uint bits = floatBitsToUint(x), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return sign | 0x7e00u;
  if (size >= 0x477ff000u) return sign | 0x7c00u;
  if (size < 0x38800000u) return sign | uint(roundEven(uintBitsToFloat(size) * 16777216.0));
  return sign | ((size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13);
}"""
_FN = {"+": "old + value", "*": "old * value", "min": "min(old, value)", "max": "max(old, value)"}


class GlslRenderer(Renderer):
    """One kernel as a compute shader. Buffers under atomic update are declared as words and read through their bits."""

    types: ClassVar[Mapping[DType, str]] = {
        DType.BOOL: "bool", DType.I32: "int", DType.U32: "uint", DType.I64: "int64_t", DType.U64: "uint64_t",
        DType.F16: "float16_t", DType.F32: "float", DType.F64: "double",
    }  # fmt: skip
    functions: ClassVar[Mapping[str, str]] = {"rint": "roundEven", "atan2": "atan"}
    unroll = "[[unroll]]"

    def __init__(self, kernel: Kernel, *, special: bool = False) -> None:
        """*special*: ask the device to keep NaN, infinities and signs of zeros, which it may otherwise assume away."""
        super().__init__(kernel)
        self._special = special

    def header(self) -> list[str]:
        features = self.kernel.features()
        lines = ["#version 450", "#extension GL_EXT_control_flow_attributes : enable"]
        lines += [f"#extension {_EXTENSIONS[f]} : require" for f in sorted(features & set(_EXTENSIONS))]
        if self._special:
            lines += _SPECIAL
        x, y, z = self.kernel.local
        lines.append(f"layout(local_size_x = {x}, local_size_y = {y}, local_size_z = {z}) in;")
        for k, b in enumerate(self.kernel.buffers):
            access = {"r": "readonly ", "w": "", "rw": ""}[b.access]
            lines.append(
                f"layout(set = 0, binding = {k}, std430) {access}buffer B{k} {{ {self.element(b)} {b.name}[]; }};"
            )
        if self.kernel.scalars:
            fields = " ".join(f"{self.types[t]} {n};" for n, t in self.kernel.scalars)
            lines.append(f"layout(push_constant) uniform P {{ {fields} }};")
        lines += [f"shared {self.type(a.type)} {a.name}[{a.size}];" for a in self.kernel.arrays if a.space == "local"]
        if any(b.dtype is DType.F16 and "w" in b.access for b in self.kernel.buffers):
            lines.append(_HALF_BITS)
        doubles = {
            e.op for e in walk(self.kernel.body) if isinstance(e, Expr) and e.args and e.args[0].dtype is DType.F64
        }
        return lines + glsl_double.definitions(doubles & glsl_double.FUNCTIONS)

    def signature(self) -> list[str]:
        return ["void main() {"]

    def element(self, buffer: Buffer) -> str:
        d = buffer.dtype
        if buffer.atomic:
            return "uint"
        if d in _SIGNED:
            return _SIGNED[d]
        if d.itemsize < 4:
            return _STORAGE[d.itemsize]
        return self.types[d]

    def identifier(self, kind: str, axis: int) -> str:
        if kind in _SUBGROUP:
            return f"int({_SUBGROUP[kind]})"
        name = {"global": "gl_GlobalInvocationID", "local": "gl_LocalInvocationID", "group": "gl_WorkGroupID"}[kind]
        return f"int({name}.{'xyz'[axis]})"

    def declare(self, array: Array) -> str:
        return "" if array.space == "local" else f"{self.type(array.type)} {array.name}[{array.size}];"

    def load(self, buffer: Buffer, index: str) -> str:
        at = f"{buffer.name}[{index}]"
        if buffer.atomic:
            return self.bitcast(at, Type(DType.U32), Type(register_type(buffer.dtype)))
        if buffer.dtype is DType.F16:
            return f"unpackHalf2x16(uint({at})).x"
        if buffer.dtype is DType.BF16:
            return f"uintBitsToFloat(uint({at}) << 16)"
        if buffer.dtype is DType.BOOL:
            return f"(int({at}) != 0)"
        return at if buffer.dtype.itemsize >= 4 else f"int({at})"

    def store(self, buffer: Buffer, index: str, value: str, lanes: int) -> str:
        at = f"{buffer.name}[{index}]"
        if buffer.atomic:
            return f"{at} = {self.bitcast(value, Type(register_type(buffer.dtype)), Type(DType.U32))};"
        if buffer.dtype is DType.F16:
            return f"{at} = uint16_t(half_bits({value}));"
        if buffer.dtype is DType.BF16:
            return f"{{ uint bits = floatBitsToUint({value}); {at} = uint16_t({self.bf16_bits('bits')}); }}"
        if buffer.dtype is DType.BOOL:
            return f"{at} = uint8_t(({value}) ? 1 : 0);"
        return f"{at} = {self.element(buffer)}({value});" if buffer.dtype.itemsize < 4 else f"{at} = {value};"

    def cast(self, value: str, source: Type, target: Type) -> str:
        if target.dtype is DType.BOOL:
            return f"({value} != {self.literal(Expr('const', Type(source.dtype), (), 0))})"
        return f"{self.types[target.dtype]}({value})"

    def bitcast(self, value: str, source: Type, target: Type) -> str:
        if source.dtype is target.dtype:
            return value
        name = _BITS.get((source.dtype, target.dtype)) or self.types[target.dtype]
        return f"{name}({value})"

    def call(self, op: str, args: Sequence[str], e: Expr) -> str:
        if op.startswith("sg_"):
            return f"subgroup{op[3:].title()}({args[0]})"
        if op in glsl_double.FUNCTIONS and e.args[0].dtype is DType.F64:
            return f"{op}64({', '.join(args)})"
        return super().call(op, args, e)

    def floating(self, text: str, dtype: DType) -> str:
        return {DType.F64: f"({text}lf)", DType.F16: f"float16_t({text})"}.get(dtype, f"({text})")

    def special(self, value: float, dtype: DType) -> str:
        if dtype is DType.F64:
            high = 0x7FF80000 if math.isnan(value) else 0xFFF00000 if value < 0 else 0x7FF00000
            return f"packDouble2x32(uvec2(0u, {high:#x}u))"
        word = 0x7FC00000 if math.isnan(value) else 0xFF800000 if value < 0 else 0x7F800000
        text = f"uintBitsToFloat({word:#x}u)"
        return f"float16_t({text})" if dtype is DType.F16 else text

    def atomic(self, s: AtomicUpdate) -> str:
        """Compare-and-swap on the element's bits."""
        kind = register_type(s.buffer.dtype)
        at = f"{s.buffer.name}[{self.expr(s.index)}]"
        old, new = self.bitcast("was", Type(DType.U32), Type(kind)), self.bitcast("next", Type(kind), Type(DType.U32))
        name = self.types[kind]
        body = f"was = seen; {name} old = {old}; {name} next = {_FN[s.fn]}; seen = atomicCompSwap({at}, was, {new});"
        first = f"{name} value = {self.expr(s.value)}; uint seen = {at}; uint was;"
        return f"{{ {first} do {{ {body} }} while (seen != was); }}"
