"""Cases of the element-wise atomic ops: Unary, Binary, Select, Convert, Reinterpret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mnnpy.conformance.cases import Case, Operand, family, with_layouts
from mnnpy.decompose.ops.atomic import BINARY, UNARY
from mnnpy.graph.dtypes import DType

__all__ = ["OPS"]

OPS = ("Unary", "Binary", "Select", "Convert", "Reinterpret")

F16, BF16, F32, F64 = DType.F16, DType.BF16, DType.F32, DType.F64
I8, U8, I16, U16, I32, U32, I64, U64 = (
    DType.I8, DType.U8, DType.I16, DType.U16, DType.I32, DType.U32, DType.I64, DType.U64,
)  # fmt: skip
BOOL = DType.BOOL
FLOATS = (F32, F16, BF16, F64)
INTS = (I32, I64, U8, I8, I16, U16, U32, U64)

#: Unary functions whose argument is limited.
_DOMAIN = {
    "Sqrt": "positive", "Rsqrt": "positive", "Reciprocal": "positive", "Log": "positive", "Log1p": "positive",
    "Asin": "unit", "Acos": "unit", "Atanh": "unit", "Acosh": "above1", "Tan": "unit",
}  # fmt: skip
_ON_BOOL = frozenset({"Not"})
_ON_INT = frozenset({"BitwiseNot"})
_ALSO_INT = ("Abs", "Neg", "Sign", "Square", "Relu", "Clip", "BitwiseNot")
_EXACT = frozenset({
    "Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Trunc", "Relu", "Clip", "Not", "BitwiseNot", "IsNaN", "IsInf",
})  # fmt: skip
_PARAMETERS: dict[str, dict[str, float]] = {
    "LeakyRelu": {"alpha": 0.1}, "Elu": {"alpha": 1.3}, "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "Clip": {"alpha": -1.0, "beta": 1.5},
}  # fmt: skip
#: Ranks 0 to 6, no elements, more than one work group, not a multiple of anything.
SHAPES = ((), (1,), (0,), (3, 0, 2), (64,), (4097,), (2, 1, 3, 1, 2, 5), (129, 33))


def _unary(fn: str, dtype: DType, shape: tuple[int, ...], values: str = "", **more: Any) -> Case:
    attrs = {"fn": fn, **_PARAMETERS.get(fn, {})}
    if fn == "Clip" and dtype.is_int:
        attrs |= {"alpha": 0.0, "beta": 5.0}
    shown = f"fn={fn}" + (f",{values}" if values else "")
    rule = "exact" if fn in _EXACT or dtype.is_int else "element"
    return Case("Unary", (Operand(dtype, shape, values or _DOMAIN.get(fn, "normal")),), attrs, shown, rule, **more)


@family("Unary")
def unary() -> Iterator[Case]:
    for fn in UNARY:
        if fn in _ON_BOOL:
            yield _unary(fn, BOOL, (3, 5, 7), sample=True)
            continue
        for dtype in FLOATS if fn not in _ON_INT else ():
            yield _unary(fn, dtype, (3, 5, 7), sample=dtype is F32)
        if fn not in _ON_INT and fn not in ("Sin", "Cos", "Tan"):
            yield _unary(fn, F32, (45,), "special")
        if fn in ("IsNaN", "IsInf", "Round", "Sign"):
            for dtype in (F16, BF16, F64):
                yield _unary(fn, dtype, (45,), "special")
        if fn in _ALSO_INT:
            for dtype in INTS:
                if dtype.is_signed or fn != "Neg":
                    yield _unary(fn, dtype, (3, 5, 7), sample=dtype is I64)
    for shape in SHAPES:
        yield _unary("Exp", F32, shape, sample=len(shape) != 2)
        yield _unary("Neg", F16, shape)
    for fn in ("Sin", "Cos"):
        yield _unary(fn, F32, (1025,), "wide")
    yield from with_layouts(_unary("Tanh", F32, (6, 5, 4), sample=True))


_COMPARE = ("Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual")
_LOGIC = ("And", "Or", "Xor")
_BITS = ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
_SHIFTS = ("ShiftLeft", "ShiftRight")
_EXACT_BINARY = frozenset({"Max", "Min", *_COMPARE, *_LOGIC, *_BITS, *_SHIFTS})
#: Pairs of shapes that broadcast: rows, columns, scalars, both ways, inner, rank difference, no elements.
BROADCASTS = (
    ((4, 5), (5,)), ((4, 5), (4, 1)), ((4, 5), ()), ((4, 1), (1, 5)), ((2, 3, 4), (3, 1)), ((1,), (2, 3, 4)),
    ((2, 1, 4, 1), (3, 1, 5)), ((0, 3), (1, 3)), ((3, 0), (1,)), ((2, 3, 4, 5, 6), (3, 1, 5, 1)), ((257, 3), (257, 3)),
    ((1, 8, 1, 8, 1), (8, 1, 8, 1, 8)),
)  # fmt: skip


def _binary(
    fn: str, dtype: DType, shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((3, 5, 7), (3, 5, 7)),
    values: tuple[str, str] = ("normal", "normal"), shown: str = "", **more: Any,
) -> Case:  # fmt: skip
    rule = "exact" if fn in _EXACT_BINARY or not dtype.is_float else "element"
    operands = tuple(Operand(dtype, s, v) for s, v in zip(shapes, values, strict=True))
    return Case("Binary", operands, {"fn": fn}, f"fn={fn}" + (f",{shown}" if shown else ""), rule, **more)


def _values(fn: str, dtype: DType) -> tuple[str, str]:
    if fn == "Pow":
        return ("positive", "small") if dtype.is_float else ("ties", "positive")
    if fn in ("Div", "Mod", "Fmod"):
        return ("normal", "positive")
    if fn in _COMPARE or fn in ("Max", "Min"):
        return ("ties", "ties")
    if fn in _BITS:
        return ("wide", "wide")
    if fn in _SHIFTS:
        return ("wide", f"below:{8 * dtype.itemsize + 2}")
    return ("normal", "normal")


def _dtypes(fn: str) -> tuple[DType, ...]:
    if fn in _LOGIC:
        return (BOOL,)
    if fn in _BITS:
        return INTS
    if fn in _SHIFTS:
        return (U8, U16, U32, U64)
    if fn == "Atan2":
        return FLOATS
    if fn in ("Equal", "NotEqual"):
        return (*FLOATS, *INTS, BOOL)
    return (*FLOATS, *INTS)


@family("Binary")
def binary() -> Iterator[Case]:
    for fn in BINARY:
        for dtype in _dtypes(fn):
            first = dtype is _dtypes(fn)[0]
            yield _binary(fn, dtype, values=_values(fn, dtype), sample=first or dtype is I64)
    for fn in ("Max", "Min", "Less", "GreaterEqual", "Equal", "NotEqual", "Add", "Div", "Pow", "Mod"):
        second = "ties" if fn in ("Pow", "Mod") else "special"
        yield _binary(fn, F32, ((15,), (15,)), ("special", second), "special")
    for fn in ("Mod", "Fmod", "Div"):
        for dtype in (F32, I32, I64, I8):
            # both signs of both operands; no zero among the divisors
            yield _binary(fn, dtype, ((9, 1), (1, 9)), ("signs", "signs"), "signs", sample=dtype is I64)
    yield _binary("Pow", F32, ((9, 1), (1, 9)), ("signs", "signs"), "signs", sample=True)
    for k, shapes in enumerate(BROADCASTS):
        yield _binary("Sub", F32, shapes, sample=k in (1, 3, 6))
        yield _binary("Mul", I64 if k % 2 else F16, shapes)
    for dtype in (F32, F16):
        yield from with_layouts(_binary("Add", dtype, ((6, 5, 4), (5, 4)), sample=dtype is F32))


@family("Select")
def select() -> Iterator[Case]:
    operands: tuple[Operand, ...]
    for dtype in (*FLOATS, *INTS, BOOL):
        operands = (Operand(BOOL, (4, 5)), Operand(dtype, (4, 5)), Operand(dtype, (4, 5)))
        yield Case("Select", operands, {}, f"of={dtype}", sample=dtype in (F32, I64))
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = (
        ((4, 1), (5,), ()), ((), (3, 4), (3, 4)), ((2, 1, 3), (1, 4, 1), (2, 4, 3)), ((0, 2), (0, 2), (0, 2)),
    )  # fmt: skip
    for k, three in enumerate(shapes):
        operands = tuple(Operand(BOOL if n == 0 else F32, s) for n, s in enumerate(three))
        yield Case("Select", operands, {}, "of=f32,broadcast", sample=k == 2)
    nan = (Operand(BOOL, (15,)), Operand(F32, (15,), "special"), Operand(F32, (15,)))
    yield Case("Select", nan, {}, "of=f32,special")
    base = Case(
        "Select", (Operand(BOOL, (6, 5, 4)), Operand(F32, (6, 5, 4)), Operand(F32, (4,))), {}, "of=f32", sample=True
    )
    yield from with_layouts(base)


_SMALL = (DType.F8E4M3FN, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ, DType.F8E8M0, DType.F4E2M1)
_SUB_BYTE = (DType.I4, DType.U4, DType.I2, DType.U2)


@family("Convert")
def convert() -> Iterator[Case]:
    plain = (BOOL, *FLOATS, *INTS)
    for source in plain:
        for to in plain:
            if source is to:
                continue
            values = "positive" if not to.is_signed and source.is_float and to is not BOOL else "normal"
            quick = F32 in (source, to) and {source, to} & {I64, F16, BOOL, U8}
            yield _convert(source, to, values, sample=bool(quick))
    for to in (I32, I64, U8, F16, BF16):
        yield _convert(F32, to, "wide" if to.is_signed else "positive", "wide")
    for to in (F16, BF16, BOOL, F64):
        yield _convert(F32, to, "special", "special")
    for small in _SMALL:
        for other in (F32, F16):
            yield _convert(small, other, "bits" if small is not DType.F4E2M1 else "small", "decode")
            yield _convert(other, small, "positive" if small is DType.F8E8M0 else "normal", "encode")
        if small is not DType.F4E2M1:
            yield _convert(F32, small, "positive" if small is DType.F8E8M0 else "wide", "saturate")
            yield _convert(
                F32, small, "positive" if small is DType.F8E8M0 else "wide", "saturate=False", saturate=False
            )
    for mode in ("down", "nearest"):
        yield _convert(F32, DType.F8E8M0, "positive", f"round={mode}", round_mode=mode)
    for small in _SUB_BYTE:
        for other in (F32, I8, I32):
            yield _convert(small, other)
            yield _convert(other, small, "positive" if not small.is_signed else "unit" if other is F32 else "normal")


def _convert(
    source: DType, to: DType, values: str = "normal", shown: str = "", *, sample: bool = False, **attrs: Any
) -> Case:
    text = f"to={to}" + (f",{shown}" if shown else "")
    return Case("Convert", (Operand(source, (3, 5, 7), values),), {"to": to, **attrs}, text, sample=sample)


@family("Reinterpret")
def reinterpret() -> Iterator[Case]:
    pairs = ((F32, I32), (I32, F32), (F64, I64), (U64, F64), (U16, F16), (BF16, I16), (U8, I8), (U32, I32))
    for source, to in pairs:
        operand = Operand(source, (3, 5, 7), "wide" if source.is_int else "normal")
        yield Case("Reinterpret", (operand,), {"to": to}, f"to={to}", sample=to in (I32, F16))
    yield from with_layouts(Case("Reinterpret", (Operand(F32, (6, 5, 4)),), {"to": I32}, "to=i32", sample=True))
