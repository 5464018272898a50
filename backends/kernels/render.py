"""Prints kernels: what the C-like dialects share. A dialect is a subclass that fills in names and signatures."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import ClassVar

from mnnpy.backends.kernels.ir import (
    Array,
    ArrayStore,
    Assign,
    AtomicUpdate,
    Barrier,
    Buffer,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Mutable,
    Stmt,
    Store,
    Type,
    While,
    register_type,
)
from mnnpy.backends.kernels.scalarize import scalarize
from mnnpy.graph.dtypes import DType

__all__ = ["Renderer"]

_INFIX = frozenset(["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>", "<", "<=", ">", ">=", "==", "!=", "&&", "||"])


class Renderer:
    """A printer of one kernel. Subclasses set the tables below and override what differs."""

    #: Register types as the dialect spells them.
    types: ClassVar[Mapping[DType, str]] = {}
    #: Element types of buffers; default: the register's.
    storage: ClassVar[Mapping[DType, str]] = {}
    #: Functions whose name differs from the IR's, for f32 and others.
    functions: ClassVar[Mapping[str, str]] = {}
    integer_suffix: ClassVar[Mapping[DType, str]] = {DType.I32: "", DType.U32: "u", DType.I64: "L", DType.U64: "UL"}
    unroll = "#pragma unroll"
    barrier = "barrier();"
    #: Widest vector of registers; 1: vectors become scalars.
    lanes = 1

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel if self.lanes > 1 else scalarize(kernel)
        self._lines: list[str] = []
        self._depth = 1

    # -- to be overridden --

    def header(self) -> list[str]:
        """Lines before the kernel: extensions, helpers."""
        return []

    def signature(self) -> list[str]:
        """The opening lines of the kernel, up to and with the brace."""
        raise NotImplementedError

    def identifier(self, kind: str, axis: int) -> str:
        """Index of the work item or group."""
        raise NotImplementedError

    def declare(self, array: Array) -> str:
        """A private or local array."""
        raise NotImplementedError

    def load(self, buffer: Buffer, index: str) -> str:
        """An element as its register type."""
        raise NotImplementedError

    def vload(self, buffer: Buffer, index: str, lanes: int) -> str:
        raise NotImplementedError(f"{type(self).__name__} has no vectors of {lanes}")

    def store(self, buffer: Buffer, index: str, value: str, lanes: int) -> str:
        raise NotImplementedError

    def cast(self, value: str, source: Type, target: Type) -> str:
        raise NotImplementedError

    def bitcast(self, value: str, source: Type, target: Type) -> str:
        raise NotImplementedError

    def atomic(self, s: AtomicUpdate) -> str:
        raise NotImplementedError

    # Only where ``lanes`` is above 1: elsewhere vectors are scalarised.

    def splat(self, value: str, target: Type) -> str:
        raise NotImplementedError

    def lane(self, value: str, k: int) -> str:
        raise NotImplementedError

    def vector(self, parts: Sequence[str], target: Type) -> str:
        raise NotImplementedError

    def special(self, value: float, dtype: DType) -> str:
        """An infinity or NaN."""
        raise NotImplementedError

    # -- shared --

    def source(self) -> str:
        """The whole text."""
        for a in self.kernel.arrays:
            line = self.declare(a)
            if line:
                self._put(line)
        self._block(self.kernel.body)
        return "\n".join([*self.header(), *self.signature(), *self._lines, "}"]) + "\n"

    @staticmethod
    def bf16_bits(bits: str) -> str:
        """The upper half of an f32's bits, rounded to nearest even; NaN stays NaN."""
        rounded = f"({bits} + 0x7fffu + (({bits} >> 16) & 1u)) >> 16"
        return f"(({bits} & 0x7fffffffu) > 0x7f800000u) ? (({bits} >> 16) | 0x40u) : ({rounded})"

    def type(self, t: Type) -> str:
        return self.types[t.dtype] + (str(t.lanes) if t.lanes > 1 else "")

    def element(self, buffer: Buffer) -> str:
        """Type of the elements of a buffer."""
        return self.storage.get(buffer.dtype) or self.types[register_type(buffer.dtype)]

    def expr(self, e: Expr) -> str:
        op = e.op
        if op == "const":
            return self.literal(e)
        if op == "var":
            return str(e.value)
        if op == "id":
            return self.identifier(*e.value)
        args = [self.expr(a) for a in e.args]
        if op in _INFIX:
            return f"({args[0]} {op} {args[1]})"
        if op == "load":
            return self.load(e.value, args[0])
        if op == "vload":
            return self.vload(e.value, args[0], e.type.lanes)
        if op == "aload":
            return f"{e.value.name}[{args[0]}]"
        if op == "select":
            return self.select(args, e)
        if op == "cast":
            return self.cast(args[0], e.args[0].type, e.type)
        if op == "bitcast":
            return self.bitcast(args[0], e.args[0].type, e.type)
        if op == "splat":
            return self.splat(args[0], e.type)
        if op == "lane":
            return self.lane(args[0], e.value)
        if op == "vector":
            return self.vector(args, e.type)
        if op == "neg":
            return f"(-{args[0]})"
        if op in ("not", "~"):
            return f"({'!' if op == 'not' else '~'}{args[0]})"
        return self.call(op, args, e)

    def call(self, op: str, args: Sequence[str], e: Expr) -> str:
        """A function of registers."""
        return f"{self.functions.get(op, op)}({', '.join(args)})"

    def select(self, args: Sequence[str], e: Expr) -> str:
        return f"({args[0]} ? {args[1]} : {args[2]})"

    def literal(self, e: Expr) -> str:
        if e.type.lanes > 1:
            return self.splat(self.literal(Expr("const", Type(e.dtype), (), e.value)), e.type)
        v = e.value
        if e.dtype is DType.BOOL:
            return "true" if v else "false"
        if e.dtype in self.integer_suffix:
            return self.integer(int(v), e.dtype)
        if not math.isfinite(v):
            return self.special(float(v), e.dtype)
        if e.dtype is DType.F32:
            v = struct.unpack("f", struct.pack("f", v))[0]
        return self.floating(repr(float(v)), e.dtype)

    def integer(self, v: int, dtype: DType) -> str:
        suffix = self.integer_suffix[dtype]
        if v < 0:  # the most negative number has no literal
            return f"(-{-(v + 1)}{suffix} - 1{suffix})" if v in (-(2**31), -(2**63)) else f"({v}{suffix})"
        return f"{v}{suffix}"

    def floating(self, text: str, dtype: DType) -> str:
        return f"({text}{'f' if dtype is not DType.F64 else ''})"

    def _block(self, body: Sequence[Stmt]) -> None:
        for s in body:
            self._statement(s)

    def _nested(self, head: str, body: Sequence[Stmt], tail: str = "}") -> None:
        self._put(head)
        self._depth += 1
        self._block(body)
        self._depth -= 1
        if tail:
            self._put(tail)

    def _statement(self, s: Stmt) -> None:
        if isinstance(s, (Let, Mutable)):
            constant = "const " if isinstance(s, Let) else ""
            self._put(f"{constant}{self.type(s.value.type)} {s.name} = {self.expr(s.value)};")
        elif isinstance(s, Assign):
            self._put(f"{s.name} = {self.expr(s.value)};")
        elif isinstance(s, Store):
            self._put(self.store(s.buffer, self.expr(s.index), self.expr(s.value), s.value.type.lanes))
        elif isinstance(s, ArrayStore):
            self._put(f"{s.array.name}[{self.expr(s.index)}] = {self.expr(s.value)};")
        elif isinstance(s, AtomicUpdate):
            self._put(self.atomic(s))
        elif isinstance(s, Barrier):
            self._put(self.barrier)
        elif isinstance(s, For):
            if s.unroll and self.unroll:
                self._put(self.unroll)
            first = f"{self.types[DType.I32]} {s.name} = {self.expr(s.start)}"
            self._nested(f"for ({first}; {s.name} < {self.expr(s.stop)}; {s.name} += {s.step}) {{", s.body)
        elif isinstance(s, While):
            self._nested(f"while ({self.expr(s.condition)}) {{", s.body)
        elif isinstance(s, If):
            self._nested(f"if ({self.expr(s.condition)}) {{", s.then, "" if s.otherwise else "}")
            if s.otherwise:
                self._nested("} else {", s.otherwise)
        else:
            raise TypeError(f"{type(s).__name__} is no statement")

    def _put(self, line: str) -> None:
        self._lines.append("  " * self._depth + line)
