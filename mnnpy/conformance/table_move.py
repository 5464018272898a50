"""Cases of the atomic ops that move or order elements: Raster, Gather, Scatter, Sort."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from mnnpy.conformance.cases import Case, Operand, family, with_layouts
from mnnpy.decompose.raster import Region, full_region, row_major
from mnnpy.graph.dtypes import DType

__all__ = ["OPS"]

OPS = ("Raster", "Gather", "Scatter", "Sort")

F16, BF16, F32, F64 = DType.F16, DType.BF16, DType.F32, DType.F64
I8, U8, I32, I64, U64, BOOL = DType.I8, DType.U8, DType.I32, DType.I64, DType.U64, DType.BOOL
#: Everything that is a number: moves keep bits.
MOVED = tuple(d for d in DType if d is not DType.STRING and not d.is_complex)


def _raster(
    shown: str, shapes: tuple[tuple[int, ...], ...], out: tuple[int, ...], regions: tuple[Region, ...],
    fill: float | None = None, dtype: DType = F32, *, sample: bool = False,
) -> Case:  # fmt: skip
    values = "bits" if dtype.itemsize == 1 and dtype.is_float and dtype is not DType.F4E2M1 else "normal"
    operands = tuple(Operand(dtype, s, values) for s in shapes)
    return Case("Raster", operands, {"regions": regions, "shape": out, "fill": fill}, shown, sample=sample)


def transposed(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[tuple[int, ...], Region]:
    """Shape and region of a permutation of axes."""
    strides = row_major(shape)
    size = tuple(shape[k] for k in order)
    return size, Region(0, size, 0, tuple(strides[k] for k in order), 0, row_major(size))


def _transposition(shape: tuple[int, ...], order: tuple[int, ...], dtype: DType = F32, *, sample: bool = False) -> Case:
    out, region = transposed(shape, order)
    return _raster(f"transpose={''.join(map(str, order))}", (shape,), out, (region,), None, dtype, sample=sample)


@family("Raster")
def raster() -> Iterator[Case]:
    dtype: DType
    parts: tuple[Region, ...]
    for dtype in MOVED:
        yield _transposition((5, 7), (1, 0), dtype, sample=dtype in (F32, F16, I64))
    orders = (((3, 4, 5), (0, 2, 1)), ((3, 4, 5), (2, 1, 0)), ((3, 4, 5), (1, 0, 2)), ((2, 3, 4, 5), (0, 3, 1, 2)),
              ((2, 3, 4, 5), (0, 2, 3, 1)), ((2, 3, 2, 3, 2), (4, 2, 0, 3, 1)), ((65, 130), (1, 0)),
              ((2, 2, 2, 2, 2, 2, 2, 2), (7, 5, 3, 1, 6, 4, 2, 0)))  # fmt: skip
    for k, (shape, order) in enumerate(orders):
        yield _transposition(shape, order, sample=k % 3 == 0)
    whole = full_region((3, 4))
    yield _raster("copy", ((3, 4),), (3, 4), (whole,))
    yield _raster("reshape", ((3, 4),), (2, 6), (full_region((2, 6)),), sample=True)
    yield _raster("flip", ((4, 5),), (4, 5), (Region(0, (4, 5), 19, (-5, -1), 0, (5, 1)),), sample=True)
    yield _raster("broadcast", ((5,),), (4, 5), (Region(0, (4, 5), 0, (0, 1), 0, (5, 1)),))
    yield _raster("broadcast_scalar", ((),), (4, 5), (Region(0, (4, 5), 0, (0, 0), 0, (5, 1)),))
    yield _raster("slice", ((9, 11),), (3, 4), (Region(0, (3, 4), 13, (22, 2), 0, (4, 1)),), sample=True)
    yield _raster("large_stride", ((97, 101),), (97,), (Region(0, (97,), 100, (101,), 0, (1,)),))
    yield _raster("diagonal", ((17, 17),), (17,), (Region(0, (17,), 0, (18,), 0, (1,)),))
    yield _raster("run_long", ((3, 1000),), (3, 999), (Region(0, (3, 999), 1, (1000, 1), 0, (999, 1)),))
    for dtype in (F32, U8, I64, BOOL):
        parts = (Region(0, (3, 4), 0, (4, 1), 0, (9, 1)), Region(1, (3, 5), 0, (5, 1), 4, (9, 1)))
        yield _raster("concat", ((3, 4), (3, 5)), (3, 9), parts, None, dtype, sample=dtype is U8)
    parts = tuple(Region(k, (2, 3), 0, (3, 1), 6 * k, (3, 1)) for k in range(3))
    yield _raster("stack", ((2, 3),) * 3, (3, 2, 3), parts)
    yield _raster("interleave", ((8,), (8,)), (8, 2), tuple(Region(k, (8,), 0, (1,), k, (2,)) for k in range(2)))
    for fill, dtype in (
        (0.0, F32),
        (1.5, F16),
        (-3, I32),
        (7, U8),
        (True, BOOL),
        (-(2**40), I64),
        (float("-inf"), F32),
    ):
        pad = (Region(0, (3, 4), 0, (4, 1), 13, (8, 1)),)
        yield _raster(f"pad={fill}", ((3, 4),), (6, 8), pad, fill, dtype, sample=fill == 1.5)
    yield _raster(
        "same_origin_twice", ((6,),), (12,), (Region(0, (6,), 0, (1,), 0, (1,)), Region(0, (6,), 5, (-1,), 6, (1,)))
    )
    yield _raster("empty", ((0, 4),), (0, 4), (full_region((0, 4)),))
    yield _raster("empty_and_fill", ((0,),), (3, 4), (Region(0, (0,), 0, (1,), 0, (1,)),), 2.0)
    yield _raster("no_region", ((2,),), (3,), (), 4.0)
    grid = tuple(Region(0, (2, 2), 8 * i + 2 * j, (4, 1), 4 * (2 * i + j), (2, 1)) for i in range(2) for j in range(2))
    yield _raster("space_to_depth", ((4, 4),), (4, 2, 2), grid)


def _gather(
    data: tuple[int, ...], indices: tuple[int, ...], axis: int, *, dtype: DType = F32, index: DType = I64,
    values: str = "index", layout: str = "dense", sample: bool = False,
) -> Case:  # fmt: skip
    operands = (Operand(dtype, data), Operand(index, indices, f"{values}:{data[axis]}"))
    return Case("Gather", operands, {"axis": axis}, f"axis={axis},{index}", "exact", layout, sample)


@family("Gather")
def gather() -> Iterator[Case]:
    for dtype in MOVED:
        yield _gather((5, 7), (3,), 0, dtype=dtype, sample=dtype in (F32, I64))
    for k, axis in enumerate((0, 1, 2, -1, -3)):
        yield _gather((4, 5, 6), (2, 3), axis, sample=k == 1)
        yield _gather((4, 5, 6), (2, 3), axis, index=I32)
    yield _gather((4, 5), (), 1)
    yield _gather((4, 5), (0,), 1)
    yield _gather((1,), (9,), 0)
    yield _gather((0, 5), (3,), 1)
    yield _gather((301, 65), (77,), 0, values="repeat")
    yield _gather((2, 3, 4), (2, 2, 2), 1)
    yield from with_layouts(_gather((6, 5, 4), (3, 7), 1, sample=True))


def _scatter(
    fn: str, shape: tuple[int, int], many: int, *, dtype: DType = F32, values: str = "index", sample: bool = False
) -> Case:
    data = (Operand(dtype, shape, "small"), Operand(I64, (many,), f"{values}:{shape[0]}"))
    operands = (*data, Operand(dtype, (many, shape[1]), "small"))
    exact = fn in ("none", "max", "min") or not dtype.is_float
    return Case("Scatter", operands, {"fn": fn}, f"fn={fn},{values}", "exact" if exact else "element", sample=sample)


@family("Scatter")
def scatter() -> Iterator[Case]:
    for fn in ("none", "add", "mul", "max", "min"):
        for dtype in (F32, F16, BF16, F64, I32, I64, U8, I8, *((BOOL,) if fn in ("none", "max", "min") else ())):
            yield _scatter(fn, (7, 5), 4, dtype=dtype, sample=dtype in (F32, I64))
        for dtype in (F32, F16, I32, I64, U8):
            # most rows are written several times: the order and the atomicity of updates show
            yield _scatter(fn, (7, 5), 20, dtype=dtype, values="repeat", sample=dtype is F32)
        yield _scatter(fn, (3, 4), 0)
        yield _scatter(fn, (600, 3), 300)
    yield _scatter("none", (1, 1), 1)
    yield _scatter("add", (4, 0), 2)
    base = _scatter("add", (6, 5), 4, values="below", sample=True)
    yield from with_layouts(base, ("constant", "behind", "before"))


def _sort(
    shape: tuple[int, ...], axis: int, k: int, descending: bool, *, dtype: DType = F32, values: str = "ties",
    sample: bool = False,
) -> Case:  # fmt: skip
    shown = f"axis={axis},k={k},{'descending' if descending else 'ascending'},{values}"
    attrs = {"axis": axis, "k": k, "descending": descending}
    return Case("Sort", (Operand(dtype, shape, values),), attrs, shown, sample=sample)


@family("Sort")
def sort() -> Iterator[Case]:
    for descending in (True, False):
        for dtype in (F32, F16, BF16, F64, I8, U8, I32, I64, U64):
            yield _sort((3, 17), 1, 5, descending, dtype=dtype, sample=dtype in (F32, I64))
        for shape, axis, k in (
            ((5,), 0, 5),
            ((1,), 0, 1),
            ((4, 5, 6), 1, 3),
            ((4, 5, 6), 0, 4),
            ((3, 257), -1, 257),
            ((2, 1000), 1, 10),
        ):
            yield _sort(shape, axis, k, descending, sample=prod(shape) == 120)
        yield _sort((4, 33), 1, 33, descending, values="nan", sample=True)
        yield _sort((2, 15), 1, 15, descending, values="special")
        yield _sort((0, 4), 1, 2, descending)
        yield _sort((3, 4), 1, 0, descending)
    base = _sort((6, 5, 4), 2, 3, True, values="normal", sample=True)
    yield from with_layouts(base, ("dense", "behind", "before"))
