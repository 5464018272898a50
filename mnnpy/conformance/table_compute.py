"""Cases of the atomic ops that combine elements: Reduce, ArgReduce, PrefixScan, MatMul, Convolution, Pool, Random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from mnnpy.conformance.cases import Case, Operand, family, with_layouts
from mnnpy.decompose.ops.atomic import REDUCE, window_size
from mnnpy.graph.dtypes import DType

__all__ = ["OPS"]

OPS = ("Reduce", "ArgReduce", "PrefixScan", "MatMul", "Convolution", "Pool", "Random")

F16, BF16, F32, F64 = DType.F16, DType.BF16, DType.F32, DType.F64
I8, U8, I32, U32, I64, U64, BOOL = DType.I8, DType.U8, DType.I32, DType.U32, DType.I64, DType.U64, DType.BOOL
FLOATS = (F32, F16, BF16, F64)
Sizes: TypeAlias = tuple[int, ...]


def _reduce(
    fn: str, shape: tuple[int, ...], axes: tuple[int, ...], *, dtype: DType = F32, values: str = "", keep: bool = True,
    **more: Any,
) -> Case:  # fmt: skip
    values = values or {"Prod": "signs", "Max": "normal", "Min": "normal"}.get(fn, "normal")
    if fn == "Prod" and values == "signs":
        values = "unit" if dtype.is_float else "positive"
    shown = f"fn={fn},axes={'+'.join(map(str, axes)) or 'none'}" + ("" if keep else ",dropped")
    shown += f",{values}" if values in ("special", "nan", "wide") else ""
    rule = "exact" if fn in ("Max", "Min") or not dtype.is_float else "max"
    return Case(
        "Reduce", (Operand(dtype, shape, values),), {"fn": fn, "axes": axes, "keepdims": keep}, shown, rule, **more
    )


@family("Reduce")
def reduce() -> Iterator[Case]:
    axes: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,), (0, 2), (0, 1), (1, 2), (0, 1, 2), ())
    for fn in REDUCE:
        for dtype in (*FLOATS, I32, I64, U8, I8, U32, U64):
            yield _reduce(fn, (3, 5, 7), (1,), dtype=dtype, sample=dtype in (F32, I64))
        yield _reduce(fn, (2, 3001), (1,), sample=fn in ("Sum", "Max"))
        yield _reduce(fn, (2000, 3), (0,))
        yield _reduce(fn, (3, 0, 2), (1,), sample=fn in ("Sum", "Prod", "Max"))
        yield _reduce(fn, (3, 4), (0,), keep=False)
    for k, which in enumerate(axes[:1] + axes[2:]):
        yield _reduce("Sum", (3, 5, 7), which, sample=k in (2, 5))
        yield _reduce("Max", (3, 5, 7), which, dtype=F16)
    yield _reduce("Sum", (2, 3, 2, 3, 2, 3), (0, 2, 4))
    yield _reduce("Mean", (64, 64), (0, 1))
    yield _reduce("Sum", (), ())
    yield _reduce("Sum", (0,), (0,))
    for fn in ("Max", "Min"):
        yield _reduce(fn, (3, 5, 7), (1,), dtype=BOOL, sample=True)
        yield _reduce(fn, (2, 45), (1,), values="nan")
        yield _reduce(fn, (45, 2), (0,), values="nan", dtype=F16)
    for fn in ("Sum", "Prod"):  # integers wrap
        yield _reduce(fn, (3, 9), (1,), dtype=I32, values="wide")
        yield _reduce(fn, (3, 9), (1,), dtype=U8, values="wide")
    yield from with_layouts(_reduce("Sum", (6, 5, 4), (2,), sample=True), ("behind", "before"))
    yield from with_layouts(_reduce("Mean", (6, 5, 4), (0,)), ("behind", "before"))


@family("ArgReduce")
def arg_reduce() -> Iterator[Case]:
    def case(fn: str, shape: tuple[int, ...], axis: int, dtype: DType = F32, values: str = "ties", **more: Any) -> Case:
        last, keep = more.pop("last", False), more.pop("keep", True)
        attrs = {"fn": fn, "axis": axis, "keepdims": keep, "select_last": last}
        words = [f"fn={fn}", f"axis={axis}", values, "last" if last else "first", "" if keep else "dropped"]
        return Case("ArgReduce", (Operand(dtype, shape, values),), attrs, ",".join(w for w in words if w), **more)

    for fn in ("Max", "Min"):
        for last in (False, True):
            for dtype in (*FLOATS, I32, I64, U8, I8, U64):
                yield case(fn, (3, 9, 4), 1, dtype, last=last, sample=dtype in (F32, I64))
            yield case(fn, (4, 21), 1, values="nan", last=last, sample=True)
            yield case(fn, (3, 9, 4), 1, last=last, keep=False)
        yield case(fn, (3, 9, 4), 0)
        yield case(fn, (3, 9, 4), 2, F16)
        yield case(fn, (2, 3001), 1)
        yield case(fn, (0, 4), 1)
        yield case(fn, (3, 1), 1)
    yield from with_layouts(case("Max", (6, 5, 4), 2, values="normal", sample=True), ("behind",))


@family("PrefixScan")
def prefix_scan() -> Iterator[Case]:
    def case(fn: str, shape: tuple[int, ...], axis: int, dtype: DType = F32, **more: Any) -> Case:
        exclusive, reverse = more.pop("exclusive", False), more.pop("reverse", False)
        attrs = {"fn": fn, "axis": axis, "exclusive": exclusive, "reverse": reverse}
        words = [f"fn={fn}", f"axis={axis}", "exclusive" if exclusive else "", "reverse" if reverse else ""]
        values = "normal" if fn == "Sum" else "signs" if dtype.is_float else "ties"
        operand = Operand(dtype, shape, values)
        rule = "max" if dtype.is_float else "exact"
        return Case("PrefixScan", (operand,), attrs, ",".join(w for w in words if w), rule, **more)

    for fn in ("Sum", "Prod"):
        for exclusive in (False, True):
            for reverse in (False, True):
                for dtype in (F32, I64):
                    yield case(fn, (3, 9, 4), 1, dtype, exclusive=exclusive, reverse=reverse, sample=dtype is F32)
        for dtype in (F16, BF16, F64, I32, U8, U32, U64, I8):
            yield case(fn, (3, 5, 4), 1, dtype)
        yield case(fn, (3, 9, 4), 0)
        yield case(fn, (3, 9, 4), -1)
        yield case(fn, (1,), 0)
        yield case(fn, (3, 0), 1)
    yield case("Sum", (2, 1500), 1, sample=True)
    yield from with_layouts(case("Sum", (6, 5, 4), 2, sample=True), ("behind", "before"))


def _matmul(a: tuple[int, ...], b: tuple[int, ...], dtype: DType = F32, **more: Any) -> Case:
    rule = "max" if dtype.is_float else "exact"
    return Case("MatMul", (Operand(dtype, a), Operand(dtype, b)), {}, "", rule, **more)


@family("MatMul")
def matmul() -> Iterator[Case]:
    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
        ((1, 1), (1, 1)), ((1, 64), (64, 64)), ((64, 1), (1, 64)), ((7, 13), (13, 5)), ((64, 64), (64, 64)),
        ((65, 33), (33, 17)), ((17, 129), (129, 33)), ((128, 96), (96, 80)), ((3, 300), (300, 2)), ((33, 1), (1, 3)),
        ((2, 3, 4, 5), (2, 3, 5, 6)), ((2, 1, 4, 5), (3, 5, 6)), ((4, 5), (2, 5, 6)), ((3, 4, 5), (5, 6)),
        ((5,), (5, 3)), ((4, 5), (5,)), ((5,), (5,)), ((2, 4, 5), (5,)), ((4, 0), (0, 3)), ((0, 4), (4, 3)),
        ((2, 0, 4), (4, 3)), ((100, 31), (31, 1)),
    )  # fmt: skip
    for k, (a, b) in enumerate(shapes):
        yield _matmul(a, b, sample=k in (3, 5, 11, 18))
        if k in (3, 4, 5, 6, 7, 10, 11, 13):
            yield from with_layouts(_matmul(a, b), ("constant",))
            yield _matmul(a, b, F16)
    for dtype in (F16, BF16, F64, I32, I64, U8, I8, U32, U64):
        yield _matmul((9, 21), (21, 11), dtype, sample=dtype is F16)
    yield from with_layouts(_matmul((24, 40), (40, 16), sample=True), ("dense", "constant", "behind", "before"))


def _conv(
    x: tuple[int, ...], w: tuple[int, ...], *, strides: Sequence[int] = (), pads: Sequence[int] = (),
    dilations: Sequence[int] = (), group: int = 1, bias: bool = False, dtype: DType = F32, **more: Any,
) -> Case:  # fmt: skip
    k = len(w) - 2
    attrs = {
        "strides": tuple(strides) or (1,) * k, "pads": tuple(pads) or (0,) * 2 * k,
        "dilations": tuple(dilations) or (1,) * k, "group": group,
    }  # fmt: skip
    words = [
        f"{n[0]}={'.'.join(map(str, v))}"
        for n, v in attrs.items()
        if isinstance(v, tuple) and len(set(v)) + v[0] != 2 - (n == "pads")
    ]
    words += [f"group={group}"] * (group > 1) + ["bias"] * bias
    operands: list[Operand | None] = [Operand(dtype, x), Operand(dtype, w)]
    operands += [Operand(dtype, w[:1])] if bias else []
    return Case("Convolution", tuple(operands), attrs, ",".join(words), "max" if dtype.is_float else "exact", **more)


@family("Convolution")
def convolution() -> Iterator[Case]:
    weights = ("dense", "constant")
    yield from with_layouts(_conv((1, 3, 9, 11), (5, 3, 3, 3), sample=True), ("dense", "constant", "behind", "before"))
    for bias in (False, True):
        yield from with_layouts(_conv((2, 4, 8, 8), (6, 4, 3, 3), pads=(1, 1, 1, 1), bias=bias, sample=bias), weights)
    yield from with_layouts(_conv((1, 8, 7, 5), (16, 8, 1, 1), bias=True, sample=True), weights)
    yield from with_layouts(_conv((1, 16, 14, 14), (16, 16, 3, 3), pads=(1, 1, 1, 1)), weights)
    yield _conv((1, 8, 9, 9), (4, 8, 1, 1), strides=(2, 2))
    yield _conv((1, 3, 12, 10), (4, 3, 3, 3), strides=(2, 3), pads=(0, 1, 2, 1), sample=True)
    yield _conv((1, 3, 12, 10), (4, 3, 3, 2), dilations=(2, 3))
    yield _conv((1, 3, 17, 17), (4, 3, 7, 7), strides=(2, 2), pads=(3, 3, 3, 3), bias=True)
    yield _conv((1, 2, 3, 3), (3, 2, 5, 5), pads=(2, 2, 2, 2))
    yield _conv((1, 6, 9, 9), (6, 1, 3, 3), pads=(1, 1, 1, 1), group=6, bias=True, sample=True)
    yield from with_layouts(_conv((2, 6, 9, 9), (6, 1, 3, 3), strides=(2, 2), group=6), ("constant",))
    yield _conv((1, 6, 9, 9), (12, 1, 3, 3), group=6)
    yield _conv((1, 6, 9, 9), (4, 3, 3, 3), group=2, pads=(1, 0, 0, 1), bias=True)
    yield from with_layouts(_conv((1, 5, 19), (7, 5, 3), pads=(1, 1), bias=True, sample=True), weights)
    yield _conv((2, 4, 33), (4, 1, 5), strides=(3,), dilations=(2,), pads=(4, 0), group=4)
    yield _conv((1, 2, 5, 6, 7), (3, 2, 3, 2, 3), pads=(1, 0, 1, 1, 1, 0), strides=(1, 2, 1), bias=True, sample=True)
    yield _conv((1, 4, 4, 4, 4), (4, 1, 2, 2, 2), dilations=(1, 2, 1), group=4)
    yield _conv((0, 3, 5, 5), (4, 3, 3, 3))
    yield _conv((1, 3, 3, 3), (4, 3, 3, 3))
    yield _conv((1, 1, 1, 40), (1, 1, 1, 9), pads=(0, 4, 0, 4))
    for dtype in (F16, BF16, F64, I32, U8):
        yield _conv((1, 4, 7, 7), (4, 4, 3, 3), pads=(1, 1, 1, 1), bias=True, dtype=dtype, sample=dtype is F16)


def _pool(
    fn: str, x: Sizes, kernel: Sizes, strides: Sizes, pads: Sizes = (), *, dilations: Sizes = (), ceil: bool = False,
    dtype: DType = F32, values: str = "normal", sample: bool = False, **extra: Any,
) -> Case:  # fmt: skip
    k = len(kernel)
    pads, dilations = pads or (0,) * 2 * k, dilations or (1,) * k
    windows = zip(x[2:], kernel, strides, dilations, pads[:k], pads[k:], strict=True)
    out = tuple(window_size(n, kn, s, d, b, e, ceil) for n, kn, s, d, b, e in windows)
    attrs = {"fn": fn, "kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations, "out": out, **extra}
    words = [f"fn={fn}", *(f"{n}={'.'.join(map(str, v))}" for n, v in (("k", kernel), ("s", strides), ("p", pads)))]
    words += [f"d={'.'.join(map(str, dilations))}"] * (max(dilations) > 1) + ["ceil"] * ceil
    words += [f"{n}={v}" for n, v in extra.items()] + [values] * (values != "normal")
    rule = "exact" if fn == "Max" or not dtype.is_float else "max"
    return Case("Pool", (Operand(dtype, x, values),), attrs, ",".join(words), rule, sample=sample)


@family("Pool")
def pool() -> Iterator[Case]:
    dtype: DType
    for fn in ("Max", "Average", "Lp"):
        for dtype in FLOATS:
            yield _pool(fn, (2, 3, 9, 11), (3, 3), (2, 2), (1, 1, 1, 1), dtype=dtype, sample=dtype is F32)
        yield _pool(fn, (1, 2, 13), (4,), (3,), (1, 2), sample=fn == "Lp")
        yield _pool(fn, (1, 2, 5, 6, 7), (2, 3, 2), (1, 2, 2), (0, 1, 1, 1, 1, 0), sample=fn == "Average")
        yield _pool(fn, (1, 2, 12, 12), (3, 2), (1, 2), (2, 0, 0, 1), dilations=(2, 3))
        yield _pool(fn, (1, 2, 8, 8), (3, 3), (2, 2), ceil=True)
        yield _pool(fn, (1, 5, 7, 7), (7, 7), (1, 1))
        yield _pool(fn, (0, 5, 7, 7), (2, 2), (2, 2))
    for kernel, pads in (((3, 3), (1, 1, 1, 1)), ((2, 4), (0, 2, 1, 1)), ((5, 5), (2, 2, 2, 2))):
        yield _pool(
            "Average", (1, 2, 8, 9), kernel, (2, 2), pads, count_include_pad=True, ceil=True, sample=kernel == (2, 4)
        )
    yield _pool("Average", (1, 2, 4, 5, 6), (2, 2, 2), (1, 1, 1), (1,) * 6, count_include_pad=True)
    for p in (1, 2, 3):
        yield _pool("Lp", (1, 2, 9, 9), (3, 3), (2, 2), p=p)
    for column_major in (False, True):
        for rank in (1, 2, 3):
            x, window = (2, 2, *(9, 8, 7)[:rank]), (3, 2, 3)[:rank]
            more: dict[str, Any] = {"indices": True, "column_major": column_major}
            yield _pool("Max", x, window, (2,) * rank, (1,) * 2 * rank, values="ties", sample=rank == 2, **more)
    for dtype in (I8, U8, I32):
        yield _pool("Max", (1, 2, 8, 8), (2, 2), (2, 2), dtype=dtype)
    yield _pool("Max", (1, 2, 8, 8), (3, 3), (1, 1), values="nan")
    yield _pool("Max", (1, 2, 6, 6), (2, 2), (2, 2), values="special")


@family("Random")
def random() -> Iterator[Case]:
    for fn in ("Uniform", "Normal"):
        for dtype in FLOATS:
            for k, shape in enumerate(((3, 5, 7), (1,), (1024,), (0, 2))):
                attrs = {"fn": fn, "shape": shape, "dtype": dtype, "a": -1.0, "b": 2.5, "seed": 7 * k + 1}
                shown = f"fn={fn},seed={7 * k + 1},{dtype},{'x'.join(map(str, shape))}"
                yield Case("Random", (), attrs, shown, "max", sample=dtype is F32 and k == 0)
        attrs = {"fn": fn, "shape": (4, 33), "dtype": F32, "seed": 2**40 + 3}
        yield Case("Random", (), attrs, f"fn={fn},seed=large", "max", sample=True)
        yield Case("Random", (), {"fn": fn, "shape": (64,), "dtype": F32}, f"fn={fn},no seed", "shape")
