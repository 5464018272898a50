"""Native Raster, Gather, Scatter, Sort and Random against the NumPy references."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mnnpy.decompose.raster import Region, row_major
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array
from tests.unit.native_ops import ISAS, native, oracle, run_op

pytestmark = pytest.mark.parametrize("isa", ISAS)

SIZED = (DType.U8, DType.I16, DType.F32, DType.I64, DType.C128)


def region_attrs(regions: Sequence[Region], fill: float | None = None) -> dict[str, Any]:
    return {
        "origins": [r.origin for r in regions],
        "ranks": [len(r.size) for r in regions],
        "sizes": [v for r in regions for v in r.size],
        "src_offsets": [r.src_offset for r in regions],
        "src_strides": [v for r in regions for v in r.src_strides],
        "dst_offsets": [r.dst_offset for r in regions],
        "dst_strides": [v for r in regions for v in r.dst_strides],
        "fill": 0.0 if fill is None else fill,
        "fill_present": int(fill is not None),
    }


def data(dtype: DType, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype.numpy)


def check_raster(
    x: Sequence[Array], regions: Sequence[Region], shape: tuple[int, ...], isa: str, fill: float | None = None
) -> None:
    dtype = DType.of(x[0].dtype)
    want = oracle("Raster")(*x, regions=tuple(regions), shape=shape, fill=fill)
    (got,) = run_op("Raster", region_attrs(regions, fill), x, [(dtype, shape)], isa=isa, threads=2)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", SIZED, ids=str)
def test_permutations(dtype: DType, isa: str) -> None:
    for shape in ((3, 5, 2), (2, 17, 33), (1, 64, 100), (70, 3, 70), (2, 3, 4, 5), (3, 129, 4, 1)):
        x = data(dtype, shape)
        for order in itertools.permutations(range(len(shape))):
            out = tuple(shape[k] for k in order)
            strides = tuple(row_major(shape)[k] for k in order)
            check_raster([x], [Region(0, out, 0, strides, 0, row_major(out))], out, isa)


def test_big_transposes(isa: str) -> None:
    for channels, pixels in ((3, 50176), (64, 3136), (513, 49), (4, 20000), (2, 40001)):
        x = data(DType.F32, (channels, pixels))
        for shape, strides in (((pixels, channels), (1, pixels)),):
            check_raster([x], [Region(0, shape, 0, strides, 0, row_major(shape))], shape, isa)
        y = data(DType.F32, (pixels, channels))
        check_raster([y], [Region(0, (channels, pixels), 0, (1, channels), 0, (pixels, 1))], (channels, pixels), isa)


@pytest.mark.parametrize("dtype", SIZED, ids=str)
def test_slices_pads_and_broadcasts(dtype: DType, isa: str) -> None:
    x = data(dtype, (6, 40))
    check_raster([x], [Region(0, (3, 20), 1, (80, 2), 0, (20, 1))], (3, 20), isa)  # strided slice
    check_raster([x], [Region(0, (6, 40), 239, (-40, -1), 0, (40, 1))], (6, 40), isa)  # flip
    check_raster([x], [Region(0, (6, 40), 0, (40, 1), 45, (44, 1))], (8, 44), isa, fill=7.0)  # pad
    check_raster([x], [Region(0, (5, 40, 3), 40, (0, 1, 0), 0, (120, 3, 1))], (5, 40, 3), isa)  # expand
    check_raster([x], [Region(0, (6, 40), 0, (40, 1), 0, (80, 2))], (6, 80), isa, fill=0.0)  # interleave with zeros
    y = data(dtype, (2, 40))
    concat = [Region(0, (240,), 0, (1,), 0, (1,)), Region(1, (80,), 0, (1,), 240, (1,))]
    check_raster([x, y], concat, (8, 40), isa)
    check_raster([x], [], (3, 3), isa, fill=2.0)
    check_raster([x], [Region(0, (0, 5), 0, (1, 1), 0, (1, 1))], (0, 5), isa)
    check_raster([x], [Region(0, (), 17, (), 0, ())], (), isa)


@pytest.mark.parametrize("dtype", SIZED, ids=str)
def test_blocks_to_space(dtype: DType, isa: str) -> None:
    """Depth to space in both orders: groups of four to four planes, pairs and fours that move as one element."""
    for h, w, c, n in ((5, 7, 24, 2), (3, 33, 1, 2), (4, 6, 5, 4), (2, 9, 3, 3)):
        x = data(dtype, (h, w, c * n * n))
        shape, to = (h * n, w * n, c), (w * n * c * n, w * n * c, n * c, c, 1)
        row = w * c * n * n
        inner = Region(0, (h, n, w, n, c), 0, (row, n, c * n * n, 1, n * n), 0, to)  # channels before the block
        outer = Region(0, (h, n, w, n, c), 0, (row, n * c, c * n * n, c, 1), 0, to)  # channels after it
        for region in (inner, outer):
            check_raster([x], [region], shape, isa)
            back = region.replace(src_strides=region.dst_strides, dst_strides=region.src_strides)
            check_raster([x.reshape(shape)], [back], x.shape, isa)


@pytest.mark.parametrize("dtype", SIZED, ids=str)
def test_pieces_side_by_side(dtype: DType, isa: str) -> None:
    """Concatenations along the last axis, with repeated and strided operands and a gap that is filled."""
    for h, w, widths in ((40, 30, (24, 8, 6)), (9, 1, (1, 2, 400)), (64, 64, (2, 4, 7))):
        total, rows = sum(widths) + 3, h * w
        x = [data(dtype, (rows, widths[0])), data(dtype, (h, widths[1])), data(dtype, (widths[2], rows))]
        regions = [
            Region(0, (rows, widths[0]), 0, (widths[0], 1), 0, (total, 1)),
            Region(1, (h, w, widths[1]), 0, (widths[1], 0, 1), widths[0], (w * total, total, 1)),
            Region(2, (rows, widths[2]), 0, (1, rows), widths[0] + widths[1], (total, 1)),
        ]
        check_raster(x, regions, (rows, total), isa, fill=3.0)


@pytest.mark.parametrize("dtype", SIZED, ids=str)
def test_shuffled_channels(dtype: DType, isa: str) -> None:
    """Operands that take turns: in pairs, in pairs with a third, with strides of four."""
    for rows, n in ((50, 29), (9, 3), (64, 64)):
        a, b, c = data(dtype, (rows, n)), data(dtype, (rows, 2 * n)) + 1, data(dtype, (rows, n))[::-1].copy()
        pair = [Region(1, (rows, n), n, (2 * n, 1), 1, (2 * n, 2)), Region(0, (rows, n), 0, (n, 1), 0, (2 * n, 2))]
        check_raster([a, b.astype(a.dtype)], pair, (rows, 2 * n), isa)
        four = [Region(k, (rows, n), 0, (n, 1), at, (4 * n, 4)) for k, at in ((0, 0), (1, 2))]
        odd = [Region(2, (rows, 2 * n), 0, (2 * n, 1), 1, (4 * n, 2))]
        check_raster([a, c, b.astype(a.dtype)], [*four, *odd], (rows, 4 * n), isa)
        check_raster([a, c, b.astype(a.dtype)], [odd[0].replace(dst_offset=0)], (rows, 4 * n), isa, fill=5.0)


def test_random_regions(isa: str) -> None:
    rng = np.random.default_rng(11)
    for _ in range(60):
        rank = int(rng.integers(1, 6))
        size = tuple(int(v) for v in rng.integers(1, 7, rank))
        order = rng.permutation(rank)
        gaps = rng.integers(1, 3, rank)
        strides, step = [0] * rank, 1
        for k in order:
            strides[k] = step
            step *= size[k] * int(gaps[k])
        signs = rng.choice([-1, 1, 1, 0], rank)
        src = tuple(int(s * g) for s, g in zip(row_major(size), signs, strict=True))
        offset = sum(-s * (n - 1) for s, n in zip(src, size, strict=True) if s < 0)
        x = data(DType.F32, size)
        check_raster([x], [Region(0, size, offset, src, 0, tuple(strides))], (step,), isa, fill=1.5)


def test_raster_bounds(isa: str) -> None:
    x = data(DType.F32, (4, 4))
    for region in (
        Region(0, (4, 4), 1, (4, 1), 0, (4, 1)),
        Region(0, (4, 4), 0, (4, 1), 0, (5, 1)),
        Region(0, (4, 4), 0, (-4, 1), 0, (4, 1)),
        Region(1, (4, 4), 0, (4, 1), 0, (4, 1)),
    ):
        with pytest.raises(ValueError, match="Raster 'test'"):
            run_op("Raster", region_attrs([region]), [x], [(DType.F32, (4, 4))], isa=isa)


@pytest.mark.parametrize("dtype", [*SIZED, DType.BOOL], ids=str)
def test_gather(dtype: DType, isa: str) -> None:
    for shape, axis, picks in (
        ((9,), 0, (4,)),
        ((9,), 0, ()),
        ((9, 5), 0, (2, 3)),
        ((4, 9, 2), 1, (7,)),
        ((4, 9), 1, (3,)),
        ((3, 9, 0), 1, (2,)),
        ((5, 9), 1, (0,)),
    ):
        x = data(dtype, shape)
        for kind in (np.int32, np.int64):
            index = np.random.default_rng(1).integers(-9, 9, picks).astype(kind)
            want = np.asarray(np.take(x, np.mod(index, 9).astype(np.int64), axis=axis))
            (got,) = run_op("Gather", {"axis": axis}, [x, index], [(dtype, want.shape)], isa=isa, threads=2)
            assert np.array_equal(got, want)


def test_indices_are_checked(isa: str) -> None:
    x = data(DType.F32, (4, 3))
    for bad in (4, -5, 2**40):
        index = np.asarray([0, bad], np.int64)
        with pytest.raises(RuntimeError, match=rf"index {bad} is out of range for size 4"):
            run_op("Gather", {"axis": 0}, [x, index], [(DType.F32, (2, 3))], isa=isa)
        with pytest.raises(RuntimeError, match=rf"index {bad} is out of range for size 4"):
            run_op("Scatter", {"fn": "none"}, [x, index, x[:2]], [(DType.F32, (4, 3))], isa=isa)


@pytest.mark.parametrize("fn", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize(
    "dtype", [DType.F32, DType.F64, DType.F16, DType.I32, DType.U8, DType.BOOL, DType.I64], ids=str
)
def test_scatter(fn: str, dtype: DType, isa: str) -> None:
    rng = np.random.default_rng(3)
    for rows, width, updates in ((7, 3, 20), (7, 1, 0), (50, 130, 90), (3, 0, 4), (5, 1, 300)):
        x, u = (rng.integers(0, 3, (n, width)).astype(dtype.numpy) for n in (rows, updates))
        index = rng.integers(-rows, rows, updates)
        want = oracle("Scatter")(x, index, u, fn=fn)
        (got,) = run_op("Scatter", {"fn": fn}, [x, index, u], [(dtype, x.shape)], isa=isa, threads=2)
        assert np.array_equal(got.astype(np.float64), want.astype(np.float64), equal_nan=True)


@pytest.mark.parametrize(
    "dtype",
    [DType.F32, DType.F64, DType.F16, DType.I8, DType.U8, DType.I64, DType.U64, DType.U32, DType.I32, DType.BOOL],
    ids=str,
)
def test_sort(dtype: DType, isa: str) -> None:
    rng = np.random.default_rng(4)
    for shape, axis in (((1,), 0), ((20,), 0), ((3, 100), 1), ((100, 3), 0), ((2, 33, 4), 1), ((2, 0), 1)):
        x = rng.integers(-20 if dtype.is_signed else 0, 20, shape).astype(dtype.numpy)
        if dtype.is_float and x.size > 10:
            x.reshape(-1)[:10] = [np.nan, -0.0, 0.0, np.inf, -np.inf, -np.nan, 0.0, -0.0, 1, 1]
        n = shape[axis]
        for k, descending in itertools.product({0, min(1, n), n // 10, n // 3, n}, (True, False)):
            attrs = {"axis": axis, "k": k, "descending": descending}
            want, order = oracle("Sort")(x, **attrs)
            got, index = run_op("Sort", attrs, [x], [(dtype, want.shape), (DType.I64, want.shape)], isa=isa, threads=2)
            assert np.array_equal(index, order), attrs
            assert np.array_equal(got.astype(np.float64), want.astype(np.float64), equal_nan=True)


@pytest.mark.parametrize("fn", ["Uniform", "Normal"])
def test_random(fn: str, isa: str) -> None:
    for dtype, shape, seed in itertools.product(
        (DType.F32, DType.F64, DType.F16, DType.BF16), ((), (7,), (3, 1000), (0,), (50, 70)), (0, 12345678901)
    ):
        want = oracle("Random")(fn=fn, shape=shape, dtype=dtype, a=-1.0, b=3.0, seed=seed)
        attrs = {"fn": fn, "a": -1.0, "b": 3.0, "seed": seed}
        one, two = (run_op("Random", attrs, [], [(dtype, shape)], isa=isa, threads=t)[0] for t in (1, 2))
        assert np.array_equal(one.view(np.uint8) if shape else one, two.view(np.uint8) if shape else two)
        tolerance = {DType.F32: 1e-7, DType.F64: 1e-14}.get(dtype, 4e-3)
        np.testing.assert_allclose(one.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance)


def test_random_without_seed_and_half_open(isa: str) -> None:
    a, b = (run_op("Random", {"fn": "Uniform"}, [], [(DType.F32, (100,))], isa=isa)[0] for _ in range(2))
    assert not np.array_equal(a, b)
    for dtype in (DType.F16, DType.BF16):
        (x,) = run_op("Random", {"fn": "Uniform", "seed": 1}, [], [(dtype, (20000,))], isa=isa)
        assert x.astype(np.float32).max() < 1
        assert x.astype(np.float32).min() >= 0


def test_sort_refuses_a_bad_k(isa: str) -> None:
    with pytest.raises(ValueError, match="k 5 is not between 0 and 4"):
        native.Program(
            tensors=[("f32", (4,), "input", 0), ("f32", (5,), "output", 0), ("i64", (5,), "output", 1)],
            steps=[("Sort", "test", {"axis": 0, "k": 5}, [0], [1, 2])],
            isa=isa,
        )
