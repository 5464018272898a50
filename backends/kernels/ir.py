"""The kernel IR: typed expressions and statements that every dialect can print.

A kernel runs once per work item of a grid of work groups. Values live in registers of one of a few *register types*;
buffers hold elements of any ``DType`` (narrow types are widened by a load and narrowed by a store). Expressions are
trees; what is used more than once belongs in a ``Let``. There are no pointers: a load or store names its buffer and an
index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mnnpy.graph.dtypes import DType

__all__ = [
    "REGISTER_TYPES", "SUBGROUP_IDS", "Array", "ArrayStore", "Assign", "AtomicUpdate", "Barrier", "Buffer", "Expr",
    "For", "If", "Kernel", "Let", "Mutable", "Number", "Stmt", "Store", "Type", "While", "as_expr", "const", "eq", "ne",
    "register_type", "select", "vector", "walk",
]  # fmt: skip

Number = bool | int | float

#: What expressions compute in. F16 only where the device has half arithmetic, F64 and the 64-bit integers likewise.
REGISTER_TYPES = (DType.BOOL, DType.I32, DType.U32, DType.I64, DType.U64, DType.F16, DType.F32, DType.F64)

_WIDENED = {
    DType.I2: DType.I32, DType.I4: DType.I32, DType.I8: DType.I32, DType.I16: DType.I32,
    DType.U2: DType.I32, DType.U4: DType.I32, DType.U8: DType.I32, DType.U16: DType.I32,
    DType.F16: DType.F32, DType.BF16: DType.F32,
    # 8-bit and 4-bit floats are loaded as their bits; templates decode them.
    DType.F8E4M3FN: DType.I32, DType.F8E4M3FNUZ: DType.I32, DType.F8E5M2: DType.I32, DType.F8E5M2FNUZ: DType.I32,
    DType.F8E8M0: DType.I32, DType.F4E2M1: DType.I32,
}  # fmt: skip


def register_type(dtype: DType) -> DType:
    """The type in which a stored element is computed."""
    return _WIDENED.get(dtype, dtype)


@dataclass(frozen=True, slots=True)
class Type:
    """A register type, or a vector of 2, 4, 8 or 16 of them."""

    dtype: DType
    lanes: int = 1

    def __str__(self) -> str:
        return f"{self.dtype}{f'x{self.lanes}' if self.lanes > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Buffer:
    """A global buffer: *access* is ``r``, ``w`` or ``rw``; *atomic* where ``AtomicUpdate`` is used on it."""

    name: str
    dtype: DType
    access: str = "r"
    atomic: bool = False


@dataclass(frozen=True, slots=True)
class Array:
    """Memory of one work item (``private``) or of a work group (``local``); elements are of register types."""

    name: str
    type: Type
    size: int
    space: str = "private"


@dataclass(frozen=True, slots=True, eq=False)
class Expr:
    """An expression: *op*, operands, and for leaves a *value*.

    Leaves: ``const`` (number), ``var`` (name), ``load`` (Buffer; args: index), ``vload`` (Buffer; *lanes* consecutive
    elements, args: index of the first), ``aload`` (Array; args: index), ``id`` ((kind, axis): ``global``, ``local``,
    ``group``; also ``lane``, the item's place in its subgroup, ``subgroup``, that one's place in the group, and
    ``subgroups``, how many the group has). Integer ``/`` and ``%`` truncate; templates use them on non-negative
    operands unless they mean that. ``min`` and ``max`` of floats say nothing about NaN. ``cast`` truncates floats;
    ``bitcast`` keeps bits; ``lane`` takes element *value* of a vector; ``splat`` repeats a scalar; ``vector`` joins
    scalars; ``sg_add``, ``sg_max``, ``sg_min`` reduce over a subgroup.
    """

    op: str
    type: Type
    args: tuple[Expr, ...] = ()
    value: Any = None

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def number(self) -> Number | None:
        """The value of a constant."""
        return self.value if self.op == "const" else None

    # -- operators; either operand may be a plain number --

    def __add__(self, o: Expr | Number) -> Expr:
        return _binary("+", self, o)

    def __radd__(self, o: Number) -> Expr:
        return _binary("+", as_expr(o, self.type), self)

    def __sub__(self, o: Expr | Number) -> Expr:
        return _binary("-", self, o)

    def __rsub__(self, o: Number) -> Expr:
        return _binary("-", as_expr(o, self.type), self)

    def __mul__(self, o: Expr | Number) -> Expr:
        return _binary("*", self, o)

    def __rmul__(self, o: Number) -> Expr:
        return _binary("*", as_expr(o, self.type), self)

    def __truediv__(self, o: Expr | Number) -> Expr:
        return _binary("/", self, o)

    def __rtruediv__(self, o: Number) -> Expr:
        return _binary("/", as_expr(o, self.type), self)

    def __floordiv__(self, o: Expr | Number) -> Expr:
        """Integer division, truncating: the same as ``/``; reads better in index arithmetic."""
        return _binary("/", self, o)

    def __mod__(self, o: Expr | Number) -> Expr:
        return _binary("%", self, o)

    def __and__(self, o: Expr | Number) -> Expr:
        return _binary("&&" if self.dtype is DType.BOOL else "&", self, o)

    def __or__(self, o: Expr | Number) -> Expr:
        return _binary("||" if self.dtype is DType.BOOL else "|", self, o)

    def __xor__(self, o: Expr | Number) -> Expr:
        return _binary("^", self, o)

    def __lshift__(self, o: Expr | Number) -> Expr:
        return _binary("<<", self, o)

    def __rshift__(self, o: Expr | Number) -> Expr:
        return _binary(">>", self, o)

    def __lt__(self, o: Expr | Number) -> Expr:
        return _binary("<", self, o)

    def __le__(self, o: Expr | Number) -> Expr:
        return _binary("<=", self, o)

    def __gt__(self, o: Expr | Number) -> Expr:
        return _binary(">", self, o)

    def __ge__(self, o: Expr | Number) -> Expr:
        return _binary(">=", self, o)

    def __neg__(self) -> Expr:
        return const(-self.value, self.type) if self.op == "const" else Expr("neg", self.type, (self,))

    def __invert__(self) -> Expr:
        return Expr("not" if self.dtype is DType.BOOL else "~", self.type, (self,))

    def __bool__(self) -> bool:
        raise TypeError("a kernel expression has no truth value here; use b.when(...) or select(...)")

    # -- functions --

    def call(self, fn: str, *others: Expr | Number) -> Expr:
        """A function of registers: sqrt exp log sin cos … fma pow atan2 min max (see ``FUNCTIONS``)."""
        if fn not in FUNCTIONS:
            raise ValueError(f"'{fn}' is not a function of the kernel language")
        kind = Type(DType.BOOL, self.type.lanes) if fn in ("isnan", "isinf") else self.type
        return Expr(fn, kind, (self, *(as_expr(o, self.type) for o in others)))

    def min(self, o: Expr | Number) -> Expr:
        return _binary("min", self, o)

    def max(self, o: Expr | Number) -> Expr:
        return _binary("max", self, o)

    def cast(self, dtype: DType) -> Expr:
        """Conversion to another register type; to and from bool by 0/1 and ≠ 0."""
        if dtype is self.dtype:
            return self
        if self.op == "const" and (dtype is not DType.BOOL):
            integral = dtype in (DType.I32, DType.U32, DType.I64, DType.U64)
            if not integral or math.isfinite(self.value):
                return const(int(self.value) if integral else float(self.value), Type(dtype, self.type.lanes))
        return Expr("cast", Type(dtype, self.type.lanes), (self,))

    def bitcast(self, dtype: DType) -> Expr:
        """The same bits as another register type of the same width."""
        return self if dtype is self.dtype else Expr("bitcast", Type(dtype, self.type.lanes), (self,))

    def lane(self, k: int) -> Expr:
        return self if self.type.lanes == 1 else Expr("lane", Type(self.dtype), (self,), k)

    def splat(self, lanes: int) -> Expr:
        return self if lanes == self.type.lanes else Expr("splat", Type(self.dtype, lanes), (self,))


#: Functions of one to three registers that every dialect has for f32. All else is built from them in ``functions.py``.
FUNCTIONS = frozenset(
    {"sqrt", "exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "floor", "ceil", "rint",
     "trunc", "abs", "isnan", "isinf", "pow", "atan2", "min", "max", "fma", "sg_add", "sg_max", "sg_min",
     "expm1", "log1p", "erf", "asinh", "acosh", "atanh"}  # the last six of f64 only
)  # fmt: skip
SUBGROUP_IDS = frozenset({"lane", "subgroup", "subgroups"})
#: Functions of f64 that a device with f64 arithmetic may still lack (feature ``f64_math``).
_TRANSCENDENTAL = FUNCTIONS - {
    "sqrt", "floor", "ceil", "rint", "trunc", "abs", "isnan", "isinf", "min", "max", "fma",
    "sg_add", "sg_max", "sg_min",
}  # fmt: skip
_COMPARISONS = frozenset({"<", "<=", ">", ">=", "==", "!="})
_PYTHON: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "min": min, "max": max,
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b, "&&": lambda a, b: a and b, "||": lambda a, b: a or b,
    "/": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1), "%": lambda a, b: int(math.fmod(a, b)),
}  # fmt: skip


def const(value: Number, type_: Type | DType = DType.I32) -> Expr:
    """A literal."""
    return Expr("const", type_ if isinstance(type_, Type) else Type(type_), (), value)


def as_expr(value: Expr | Number, like: Type) -> Expr:
    """*value* as an expression of type *like*; numbers become literals, scalars are repeated over lanes."""
    if isinstance(value, Expr):
        return value.splat(like.lanes) if value.type.lanes == 1 and like.lanes > 1 else value
    if like.dtype is DType.BOOL:
        value = bool(value)
    elif like.dtype in (DType.F16, DType.F32, DType.F64):
        value = float(value)
    elif isinstance(value, float) and not value.is_integer():
        raise TypeError(f"{value} is no {like.dtype}")
    else:
        value = int(value)
    return const(value, like)


def _binary(op: str, a: Expr, other: Expr | Number) -> Expr:
    b = as_expr(other, a.type)
    a = as_expr(a, b.type)
    if op not in ("<<", ">>") and a.type != b.type:
        raise TypeError(f"operands of {op} are {a.type} and {b.type}; cast one of them")
    kind = Type(DType.BOOL, a.type.lanes) if op in _COMPARISONS else a.type
    simple = _simplified(op, a, b, kind)
    return simple if simple is not None else Expr(op, kind, (a, b))


def _simplified(op: str, a: Expr, b: Expr, kind: Type) -> Expr | None:
    """Constants folded (integers and booleans only: floats keep the device's rounding), neutral elements dropped."""
    x, y = a.number, b.number
    integral = a.dtype in (DType.I32, DType.U32, DType.I64, DType.U64, DType.BOOL)
    if not integral or a.type.lanes != 1:
        return None
    if x is not None and y is not None and op in _PYTHON and not (op in "/%" and y == 0):
        return const(_PYTHON[op](x, y), kind)
    if (op in ("+", "-", "<<", ">>", "|", "^") and y == 0) or (op in ("*", "/") and y == 1):
        return a
    if (op == "+" and x == 0 and x is not False) or (op == "*" and x == 1):
        return b
    if op == "*" and (x == 0 or y == 0):
        return const(0, kind)
    if op == "%" and y == 1:
        return const(0, kind)
    if op == "&&" and (x is not None or y is not None):
        other, known = (b, x) if x is not None else (a, y)
        return other if known else const(False, kind)
    return None


def eq(a: Expr, b: Expr | Number) -> Expr:
    """``a == b``; Python's own operator keeps its meaning."""
    return _binary("==", a, b)


def ne(a: Expr, b: Expr | Number) -> Expr:
    return _binary("!=", a, b)


def vector(parts: Sequence[Expr]) -> Expr:
    """A vector of as many lanes as there are scalars; one scalar stays itself."""
    return parts[0] if len(parts) == 1 else Expr("vector", Type(parts[0].dtype, len(parts)), tuple(parts))


def select(condition: Expr, a: Expr | Number, b: Expr | Number) -> Expr:
    """``condition ? a : b``; both sides are evaluated, so neither may load out of bounds."""
    like = a.type if isinstance(a, Expr) else b.type if isinstance(b, Expr) else None
    if like is None:
        raise TypeError("one branch of select must be an expression")
    x, y = as_expr(a, like), as_expr(b, like)
    if condition.op == "const":
        return x if condition.value else y
    if x.type != y.type:
        raise TypeError(f"branches of select are {x.type} and {y.type}")
    return Expr("select", x.type, (condition, x, y))


# -- statements --


class Stmt:
    """A statement; one class each."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Let(Stmt):
    """A name for a value; never assigned again."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Mutable(Stmt):
    """A register that ``Assign`` changes."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Assign(Stmt):
    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Store(Stmt):
    """``buffer[index] = value``, narrowed to the buffer's type; a vector goes to consecutive elements."""

    buffer: Buffer
    index: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class ArrayStore(Stmt):
    array: Array
    index: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class AtomicUpdate(Stmt):
    """``buffer[index] = fn(buffer[index], value)`` undivided; *fn* is ``+ * min max``; elements of 4 bytes."""

    buffer: Buffer
    index: Expr
    fn: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Barrier(Stmt):
    """All work items of the group get here, and see each other's local memory. Never inside divergent control flow."""


@dataclass(frozen=True, slots=True)
class For(Stmt):
    """``for (i32 name = start; name < stop; name += step)``; *unroll* is a hint."""

    name: str
    start: Expr
    stop: Expr
    step: int
    body: tuple[Stmt, ...]
    unroll: bool = False


@dataclass(frozen=True, slots=True)
class While(Stmt):
    condition: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class If(Stmt):
    condition: Expr
    then: tuple[Stmt, ...]
    otherwise: tuple[Stmt, ...] = ()


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel: buffers in binding order, run-time scalars (i32, u32 or f32), work-group size, arrays and body.

    Equal sources are compiled once, so templates pass as scalars what changes often and bake in what pays.
    """

    name: str
    buffers: tuple[Buffer, ...]
    scalars: tuple[tuple[str, DType], ...]
    local: tuple[int, int, int]
    arrays: tuple[Array, ...]
    body: tuple[Stmt, ...]

    def features(self) -> frozenset[str]:
        """What the device must have: ``f64``, ``f16``, ``i64``, ``subgroups``, ``atomics``, ``i8``/``i16`` storage."""
        found: set[str] = set()
        names = {DType.F64: "f64", DType.F16: "f16", DType.I64: "i64", DType.U64: "i64"}
        for item in walk(self.body):
            if isinstance(item, Expr):
                if item.dtype in names:
                    found.add(names[item.dtype])
                if item.dtype is DType.F64 and item.op in _TRANSCENDENTAL:
                    found.add("f64_math")
                if item.op.startswith("sg_") or (item.op == "id" and item.value[0] in SUBGROUP_IDS):
                    found.add("subgroups")
            elif isinstance(item, AtomicUpdate):
                found.add("atomics")
        for b in self.buffers:
            found |= {names[b.dtype]} if b.dtype in names and b.dtype is not DType.F16 else set()
            found |= {f"storage{8 * b.dtype.itemsize}"} if b.dtype.itemsize < 4 else set()
        return frozenset(found)


def walk(body: Sequence[Stmt]) -> Iterator[Stmt | Expr]:
    """Every statement and expression, outermost first."""
    for s in body:
        yield s
        for name in getattr(type(s), "__slots__", ()):
            part = getattr(s, name)
            if isinstance(part, Expr):
                yield from _inside(part)
            elif isinstance(part, tuple) and part and isinstance(part[0], Stmt):
                yield from walk(part)


def _inside(e: Expr) -> Iterator[Expr]:
    yield e
    for a in e.args:
        yield from _inside(a)
