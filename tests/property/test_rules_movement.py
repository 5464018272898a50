"""Rules of movement ops give what their NumPy references give."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.decompose.infer import Operand, infer
from mnnpy.decompose.ops.movement import reshaped, slice_range
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import sym
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType
from tests.rule_check import check_rule

_SETTINGS = settings(max_examples=60, deadline=None)
_SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple)


def _data(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


def _ints(*values: int) -> Any:
    return np.array(values, np.int64)


@_SETTINGS
@given(_SHAPES, st.data())
def test_transpose(shape: tuple[int, ...], data: st.DataObject) -> None:
    perm = tuple(data.draw(st.permutations(range(len(shape)))))
    check_rule("Transpose", [_data(shape)], {"perm": perm}, max_nodes=1)
    check_rule("Transpose", [_data(shape, np.int8)], max_nodes=1)


@_SETTINGS
@given(_SHAPES, st.data())
def test_slice(shape: tuple[int, ...], data: st.DataObject) -> None:
    axes = data.draw(st.lists(st.sampled_from(range(len(shape))), unique=True, min_size=1))
    bounds = st.integers(-7, 7) | st.sampled_from([2**63 - 1, -(2**63), 2**31 - 1])
    starts, ends = (data.draw(st.lists(bounds, min_size=len(axes), max_size=len(axes))) for _ in range(2))
    steps = data.draw(st.lists(st.sampled_from([1, 2, 3, -1, -2]), min_size=len(axes), max_size=len(axes)))
    operands = [_data(shape), _ints(*starts), _ints(*ends), _ints(*axes), _ints(*steps)]
    check_rule("Slice", operands, const=(1, 2, 3, 4), max_nodes=1)


@_SETTINGS
@given(st.integers(0, 9), st.integers(-12, 12), st.integers(-12, 12), st.sampled_from([1, 2, 3, -1, -2, -3]))
def test_slice_range_counts_as_python(size: int, start: int, stop: int, step: int) -> None:
    first, count = slice_range(start, stop, step, size)
    begin = start + size if start < 0 else start
    end = stop + size if stop < 0 else stop
    begin = min(max(begin, 0), size if step > 0 else size - 1)
    end = min(max(end, 0 if step > 0 else -1), size if step > 0 else size - 1)
    want = list(range(begin, end, step))
    assert count == len(want)
    assert not want or first == want[0]


@_SETTINGS
@given(_SHAPES, st.data(), st.sampled_from(["constant", "reflect", "edge", "wrap"]))
def test_pad(shape: tuple[int, ...], data: st.DataObject, mode: str) -> None:
    if mode != "constant":
        shape = tuple(max(1, d) for d in shape)
    begins = [data.draw(st.integers(-min(d, 1) if d > 2 else 0, 4)) for d in shape]
    ends = [data.draw(st.integers(-min(d, 1) if d > 2 else 0, 4)) for d in shape]
    value = np.float32(3) if mode == "constant" and data.draw(st.booleans()) else None
    known = (1, 2) if data.draw(st.booleans()) else (1,)
    check_rule("Pad", [_data(shape), _ints(*begins, *ends), value], {"mode": mode}, const=known, max_nodes=1)


def test_pad_some_axes_of_half_and_bool() -> None:
    for dtype in (ml_dtypes.bfloat16, np.float16, np.bool_, np.uint64, ml_dtypes.float8_e4m3fn):
        check_rule("Pad", [_data((2, 3), dtype), _ints(1, 2), None, _ints(-1)], const=(1, 3), max_nodes=1)


@_SETTINGS
@given(_SHAPES, st.data())
def test_concat_and_split(shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    at = axis % len(shape)
    pieces = [_data((*shape[:at], n, *shape[at + 1 :])) + k for k, n in enumerate(parts)]
    check_rule("Concat", pieces, {"axis": axis}, max_nodes=1)
    whole = np.concatenate(pieces, axis)
    check_rule("Split", [whole, _ints(*parts)], {"axis": axis}, outputs=len(parts), const=(1,))
    check_rule("Split", [whole, None], {"axis": axis, "num_outputs": 3}, outputs=3)


@_SETTINGS
@given(_SHAPES, st.data())
def test_repetition(shape: tuple[int, ...], data: st.DataObject) -> None:
    repeats = [data.draw(st.integers(0, 3)) for _ in shape]
    check_rule("Tile", [_data(shape), _ints(*repeats)], const=(1,), max_nodes=1)
    ones = tuple(data.draw(st.sampled_from([1, d])) for d in shape)
    target = (*(data.draw(st.integers(0, 2)) for _ in range(data.draw(st.integers(0, 2)))), *shape)
    check_rule("Expand", [_data(ones), _ints(*target)], const=(1,), max_nodes=1)


def test_shapes() -> None:
    x = _data((2, 3, 4))
    for target, zero in [((6, -1), 0), ((0, -1), 0), ((2, 0, 2, 2), 0), ((-1,), 1), ((4, 3, 2), 1)]:
        check_rule("Reshape", [x, _ints(*target)], {"allowzero": zero}, const=(1,), max_nodes=1)
    check_rule("Reshape", [_data((2, 0, 3)), _ints(0, -1, 0)], const=(1,))
    for axis in range(-3, 4):
        check_rule("Flatten", [x], {"axis": axis}, max_nodes=1)
    check_rule("Squeeze", [_data((1, 3, 1)), _ints(-1)], const=(1,), max_nodes=1)
    check_rule("Squeeze", [_data((1, 3, 1))], max_nodes=1)
    check_rule("Unsqueeze", [x, _ints(-1, 0)], const=(1,), max_nodes=1)
    check_rule("Shape", [x], {"start": -2, "end": 7}, max_nodes=0)
    check_rule("Size", [x], max_nodes=0)
    check_rule("Identity", [x], max_nodes=0)


@_SETTINGS
@given(st.integers(1, 2), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3), st.sampled_from(["DCR", "CRD"]))
def test_blocks(n: int, c: int, h: int, b: int, mode: str) -> None:
    check_rule("DepthToSpace", [_data((n, c * b * b, h, 2))], {"blocksize": b, "mode": mode}, max_nodes=1)
    check_rule("SpaceToDepth", [_data((n, c, h * b, 2 * b))], {"blocksize": b, "mode": mode}, max_nodes=1)


@_SETTINGS
@given(st.lists(st.integers(0, 7), min_size=1, max_size=3), st.data())
def test_center_crop_pad(shape: list[int], data: st.DataObject) -> None:
    target = [data.draw(st.integers(0, 8)) for _ in shape]
    check_rule("CenterCropPad", [_data(tuple(shape)), _ints(*target)], const=(1,), max_nodes=1)
    axes = (-1,)
    check_rule("CenterCropPad", [_data(tuple(shape)), _ints(target[-1])], {"axes": axes}, const=(1,), max_nodes=1)


@pytest.mark.parametrize("known", [(1,), ()])
@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [-7, -1, 0, 1, 2, 9])
def test_trilu(known: tuple[int, ...], upper: int, k: int) -> None:
    check_rule("Trilu", [_data((2, 3, 5)), np.array(k)], {"upper": upper}, const=known)
    check_rule("Trilu", [_data((0, 4), np.int64)], {"upper": upper})


@pytest.mark.parametrize("known", [(1,), ()])
@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
def test_reverse_sequence(known: tuple[int, ...], axes: tuple[int, int]) -> None:
    x = _data((4, 4, 3), np.int32)
    attrs = {"time_axis": axes[0], "batch_axis": axes[1]}
    check_rule("ReverseSequence", [x, _ints(1, 4, 2, 3)], attrs, const=known)
    check_rule("ReverseSequence", [x[:, :, 0], _ints(1, 4, 2, 0)], attrs, const=known)


def _shape_of(name: str, *operands: Operand, **attrs: Any) -> Any:
    (first, *_) = infer(name, list(operands), attrs, 1)
    assert isinstance(first, TensorType)
    return first.shape


def test_symbolic_shapes() -> None:
    n, s = sym("n"), sym("s")
    x = Operand(TensorType(DType.F32, (n, s, 12)))

    def value(*v: Any) -> Operand:
        array = np.empty(len(v), object)
        array[:] = v
        return Operand(TensorType(DType.I64, (len(v),)), array)

    assert _shape_of("Reshape", x, value(n, s, 3, -1)) == (n, s, 3, 4)
    assert _shape_of("Reshape", x, value(0, 0, 4, 3)) == (n, s, 4, 3)
    assert _shape_of("Flatten", Operand(TensorType(DType.F32, (n, 3, 4)))) == (n, 12)
    assert _shape_of("Slice", x, value(1), value(2**63 - 1), value(1)) == (n, s - 1, 12)
    assert _shape_of("Slice", x, value(0), value(-1), value(1)) == (n, s - 1, 12)
    assert _shape_of("Concat", x, x, axis=1) == (n, s * 2, 12)
    assert _shape_of("Tile", x, value(1, 2, 1)) == (n, s * 2, 12)
    assert _shape_of("Expand", Operand(TensorType(DType.F32, (1, 12))), value(n, s, 1)) == (n, s, 12)
    assert _shape_of("Pad", x, value(0, 1, 0, 0, 1, 0)) == (n, s + 2, 12)
    assert _shape_of("Transpose", x, perm=(2, 0, 1)) == (12, n, s)
    assert reshaped((n, 4), (-1, 2), False) == (n * 2, 2)


@pytest.mark.parametrize(
    ("name", "shapes", "values", "attrs", "text"),
    [
        ("Concat", [(2, 3), (3, 3)], {}, {"axis": 1}, "dimension 0"),
        ("Transpose", [(2, 3)], {}, {"perm": (0, 0)}, "twice"),
        ("Reshape", [(2, 3), (1,)], {1: _ints(4)}, {}, "elements differ"),
        ("Reshape", [(2, 3), (2,)], {1: _ints(-1, -1)}, {}, "more than one"),
        ("Squeeze", [(2, 3), (1,)], {1: _ints(0)}, {}, "cannot be squeezed"),
        ("Slice", [(3,), (1,), (1,), (1,), (1,)], dict.fromkeys(range(1, 5), _ints(0)), {}, "step is 0"),
        ("Split", [(5, 3), (2,)], {1: _ints(2, 2)}, {}, "do not add up"),
        ("Pad", [(2, 3), (2,)], {1: _ints(1, 1)}, {}, "two per axis"),
        ("Pad", [(2, 3), (4,)], {1: _ints(1, 1, 1, 1)}, {"mode": "mirror"}, "not one of"),
        ("DepthToSpace", [(1, 6, 2, 2)], {}, {"blocksize": 2}, "do not divide"),
        ("Tile", [(2, 3), (1,)], {1: _ints(2)}, {}, "repeats for rank"),
    ],
)  # fmt: skip
def test_misuse_is_explained(
    name: str, shapes: list[tuple[int, ...]], values: dict[int, Any], attrs: dict[str, Any], text: str
) -> None:
    operands = [
        Operand(TensorType(DType.I64 if k in values else DType.F32, s), values.get(k)) for k, s in enumerate(shapes)
    ]
    with pytest.raises(ShapeError, match=text):
        infer(name, operands, attrs, 1)
