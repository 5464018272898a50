"""Region algebra on known triples: consumer, producer, and the regions that reading through must give."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.raster import Region, full_region
from mnnpy.decompose.regions import coalesce, compose, from_flat, join_regions, split_to_three_dims, to_flat
from mnnpy.errors import ShapeError


def _copy(n: int, src: int = 0, dst: int = 0) -> Region:
    return Region(0, (n,), src, (1,), dst, (1,))


_TRANSPOSE_3_4 = Region(0, (4, 3), 0, (1, 4), 0, (3, 1))  # [3,4] → [4,3]
_TRANSPOSE_4_3 = Region(0, (3, 4), 0, (1, 3), 0, (4, 1))

#: name, consumer, producer, expected regions (None: refused)
TRIPLES = [
    ("copy of a copy", _copy(8), _copy(8), [_copy(8)]),
    ("slice of a slice", _copy(3, src=3), _copy(8, src=2), [_copy(3, src=5)]),
    ("transpose twice", _TRANSPOSE_4_3, _TRANSPOSE_3_4, [_copy(12)]),
    ("flat read of a transpose", _copy(12), _TRANSPOSE_3_4, [_TRANSPOSE_3_4]),
    ("transpose of a flat copy", _TRANSPOSE_3_4, _copy(12), [_TRANSPOSE_3_4]),
    ("part before and after", _copy(6), _copy(3, dst=2), [_copy(3, dst=2)]),
    ("apart", _copy(4), _copy(4, dst=4), []),
    ("nothing", _copy(0), _copy(4), []),
    (
        "inside padded rows",
        Region(0, (2, 3), 6, (5, 1), 0, (3, 1)),
        Region(0, (2, 3), 0, (3, 1), 6, (5, 1)),
        [_copy(6)],
    ),
    (
        "whole padded tensor",
        _copy(20),
        Region(0, (2, 3), 0, (3, 1), 6, (5, 1)),
        [Region(0, (2, 3), 0, (3, 1), 6, (5, 1))],
    ),
    ("same phase", Region(0, (4,), 0, (2,), 0, (1,)), Region(0, (4,), 0, (1,), 0, (2,)), [_copy(4)]),
    ("other phase", Region(0, (4,), 0, (2,), 0, (1,)), Region(0, (4,), 0, (1,), 1, (2,)), []),
    ("every second of all", _copy(8), Region(0, (4,), 0, (1,), 1, (2,)), [Region(0, (4,), 0, (1,), 1, (2,))]),
    (
        "broadcast of a slice",
        Region(0, (3, 4), 0, (0, 1), 0, (4, 1)),
        _copy(4, src=2),
        [Region(0, (3, 4), 2, (0, 1), 0, (4, 1))],
    ),
    (
        "transpose of a broadcast",
        _TRANSPOSE_3_4,
        Region(0, (3, 4), 0, (0, 1), 0, (4, 1)),
        [Region(0, (4, 3), 0, (1, 0), 0, (3, 1))],
    ),
    ("flip of a flip", Region(0, (5,), 4, (-1,), 0, (1,)), Region(0, (5,), 4, (-1,), 0, (1,)), [_copy(5)]),
    (
        "rows that straddle",
        _copy(6, src=2),
        _TRANSPOSE_3_4,
        [
            Region(0, (), 8, (), 0, ()),
            Region(0, (3,), 1, (4,), 1, (1,)),
            Region(0, (2,), 2, (4,), 4, (1,)),
        ],
    ),
    ("strides that do not nest", _copy(9), Region(0, (2, 2), 0, (2, 1), 0, (5, 3)), None),
    (
        "axes that sum",
        Region(0, (3, 3), 0, (1, 1), 0, (3, 1)),
        _copy(5, src=7),
        [Region(0, (3, 3), 7, (1, 1), 0, (3, 1))],
    ),
]


@pytest.mark.parametrize(("consumer", "producer", "expected"), [t[1:] for t in TRIPLES], ids=[t[0] for t in TRIPLES])
def test_compose(consumer: Region, producer: Region, expected: list[Region] | None) -> None:
    got = compose(consumer, producer)
    assert got == (None if expected is None else tuple(coalesce(r) for r in expected))


@pytest.mark.parametrize(
    ("consumer", "producer"), [t[1:3] for t in TRIPLES if t[3]], ids=[t[0] for t in TRIPLES if t[3]]
)
def test_composition_runs_alike(consumer: Region, producer: Region) -> None:
    source = np.arange(1, 41, dtype=np.int32)
    (middle,) = evaluate("Raster", [source], {"regions": (producer,), "shape": (40,), "fill": 0})
    (want,) = evaluate("Raster", [middle], {"regions": (consumer,), "shape": (40,), "fill": 0})
    through = compose(consumer, producer)
    assert through is not None
    (got,) = evaluate("Raster", [source], {"regions": tuple(through), "shape": (40,), "fill": 0})
    np.testing.assert_array_equal(got, want)


def test_flat_form() -> None:
    flat = (0, 4, 1, 2, 0, 4, 2, 1, 1, 2, 2)  # the 2×2 transpose
    region = from_flat(flat)
    assert to_flat(region) == flat
    (out,) = evaluate("Raster", [np.array([[1, 2], [3, 4]])], {"regions": (region,), "shape": (2, 2)})
    assert out.tolist() == [[1, 3], [2, 4]]
    with pytest.raises(ShapeError, match="split_to_three_dims"):
        to_flat(_copy(4))
    with pytest.raises(ShapeError, match="11 integers"):
        from_flat([1, 2, 3])


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (full_region((2, 3, 4)), _copy(24)),
        (full_region((1, 1)), Region(0, (), 0, (), 0, ())),
        (Region(0, (2, 1, 3), 5, (3, 9, 1), 0, (3, 7, 1)), _copy(6, src=5)),
        (Region(0, (4,), 0, (1,), 3, (-1,)), Region(0, (4,), 3, (-1,), 0, (1,))),
        (Region(0, (2, 3), 0, (0, 0), 0, (3, 1)), Region(0, (6,), 0, (0,), 0, (1,))),
        (Region(0, (3, 4), 0, (1, 3), 0, (1, 3)), _copy(12)),
        (_TRANSPOSE_3_4, _TRANSPOSE_3_4),
    ],
)
def test_coalesce(region: Region, expected: Region) -> None:
    assert coalesce(region) == expected


def test_join() -> None:
    assert join_regions([_copy(3), _copy(5, src=3, dst=3)]) == (_copy(8),)
    rows = [Region(0, (2,), 10 * k, (1,), 3 * k, (1,)) for k in range(4)]
    assert join_regions(rows) == (Region(0, (4, 2), 0, (10, 1), 0, (3, 1)),)
    apart = [_copy(3), _copy(3, src=4, dst=3)]
    assert join_regions(apart) == tuple(apart)
    assert join_regions([_copy(0)]) == ()


def test_three_dims_keep_the_largest_axes() -> None:
    # An axis reversal of five dims: nothing merges.
    shape = (2, 3, 2, 5, 4)
    dense = [prod(shape[k + 1 :]) for k in range(5)]
    out = [prod(shape[:k]) for k in range(5)]
    parts = split_to_three_dims(Region(0, shape, 0, tuple(dense), 0, tuple(out)))
    assert len(parts) == 4
    assert {p.size for p in parts} == {(4, 5, 3)}
