"""Native type conversion: exhaustively from types of up to 16 bits, and the ONNX node tests of Cast and CastLike."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest

from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array
from tests.unit.native_ops import ISAS, oracle, run_op

TYPES = tuple(d for d in DType if not d.is_complex and d is not DType.STRING)
NARROW = tuple(d for d in TYPES if d.itemsize <= 2)
BITS = {DType.I2: 2, DType.U2: 2, DType.I4: 4, DType.U4: 4, DType.F4E2M1: 4, DType.BOOL: 1}


def all_values(dtype: DType) -> Array:
    """Every value of a type of up to 16 bits."""
    bits = BITS.get(dtype, dtype.itemsize * 8)
    return np.arange(2**bits).astype(f"u{dtype.itemsize}").view(dtype.numpy)


def samples(dtype: DType) -> Array:
    """Values of a wide type: random bits, and neighbours of what narrow types can hold."""
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, 4000 * dtype.itemsize, dtype=np.uint8).view(dtype.numpy)
    if not dtype.is_float:
        small = np.concatenate(
            [rng.integers(0, 1 << b, 300, dtype=np.uint64) for b in (1, 4, 8, 12, 17, 25, 32, 54, 63)]
        )
        return np.concatenate([raw, small.astype(dtype.numpy), (-small.astype(np.int64)).astype(dtype.numpy)])
    steps = np.concatenate([all_values(d).astype(np.float32) for d in (DType.F8E4M3FN, DType.F8E5M2FNUZ, DType.F4E2M1)])
    halves = all_values(DType.F16)[::7].astype(np.float32)
    with np.errstate(all="ignore"):
        body = np.concatenate([steps, halves, *(rng.standard_normal(500) * 10.0**p for p in (-6, -2, 0, 2, 4, 9, 18))])
        body = body.astype(dtype.numpy)
        ties = np.convolve(np.sort(body[np.isfinite(body)]), [0.5, 0.5], "valid").astype(dtype.numpy)
        near = np.concatenate(
            [np.nextafter(ties, np.inf, dtype=dtype.numpy), np.nextafter(ties, -np.inf, dtype=dtype.numpy)]
        )
    return np.concatenate([raw, body, ties, near])


def same(got: Array, want: Array) -> Array:
    """Element by element: equal bits, or NaN in both."""
    size = got.dtype.itemsize
    equal = got.view(f"u{size}") == want.view(f"u{size}")
    t = DType.of(got.dtype)
    if t in BITS and t is not DType.BOOL:
        mask = 2 ** BITS[t] - 1
        equal |= (got.view(np.uint8) & mask) == (want.view(np.uint8) & mask)
    if t.is_float:
        wide = [v if t is DType.F64 else v.astype(np.float32) for v in (got, want)]
        equal |= np.isnan(wide[0]) & np.isnan(wide[1])
    return np.asarray(equal)


def check(source: Array, to: DType, isa: str, **attrs: Any) -> None:
    want = oracle("Convert")(source, to=to, **attrs)
    (got,) = run_op("Convert", attrs, [source], [(to, source.shape)], isa=isa)
    bad = ~same(got, want)
    assert not bad.any(), (int(bad.sum()), source[bad][:8], got[bad][:8], want[bad][:8])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("source", TYPES, ids=str)
def test_all_pairs(source: DType, isa: str) -> None:
    x = all_values(source) if source in NARROW else samples(source)
    for to in TYPES:
        if to is DType.U64 and source.is_float:
            wide = x.astype(np.float32) if source is not DType.F64 else x
            check(
                x[np.abs(np.nan_to_num(wide, nan=0, posinf=1e30, neginf=-1e30)) < 2.0**63], to, isa
            )  # beyond: undefined
            continue
        check(x, to, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("source", [DType.F32, DType.F16, DType.BF16, DType.F64, DType.I32, DType.F8E5M2], ids=str)
def test_modes(source: DType, isa: str) -> None:
    x = all_values(source) if source in NARROW else samples(source)
    for to in (DType.F8E4M3FN, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ):
        check(x, to, isa, saturate=False)
    if source is DType.F64:
        x = x[~(np.abs(x) >= 2.0**127)]
    for mode in ("up", "down", "nearest"):
        for saturate in (True, False):
            check(x, DType.F8E8M0, isa, round_mode=mode, saturate=saturate)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1023,), (1025,), (5, 70001)])
def test_sizes(shape: tuple[int, ...], threads: int) -> None:
    x = np.arange(int(np.prod(shape))).reshape(shape).astype(np.int32)
    for to in (DType.F32, DType.F16, DType.BF16, DType.U8, DType.F64):
        with np.errstate(over="ignore"):
            want = x.astype(to.numpy)
        (got,) = run_op("Convert", {}, [x], [(to, shape)], threads=threads)
        assert np.array_equal(got, want)


@functools.cache
def node_tests() -> list[Any]:
    loader = pytest.importorskip("onnx.backend.test.loader")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators overflow on purpose
        return [c for c in loader.load_model_tests(kind="node") if c.name.startswith("test_cast")]


@pytest.mark.parametrize("isa", ISAS)
def test_onnx_node_cases(isa: str) -> None:
    """Inputs and outputs as ONNX stores them; strings are the reference backend's business."""
    import onnx
    from onnx import numpy_helper

    ran = 0
    for case in node_tests():
        model = case.model or onnx.load(f"{case.model_dir}/model.onnx")
        node = model.graph.node[0]
        if node.op_type not in ("Cast", "CastLike") or len(model.graph.node) != 1:
            continue
        sets = case.data_sets or _stored(case.model_dir, len(model.graph.input))
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        attrs = {k: v.decode() if isinstance(v, bytes) else v for k, v in attrs.items() if k != "to"}
        for inputs, outputs in sets:
            x, want = (
                numpy_helper.to_array(t) if isinstance(t, onnx.TensorProto) else t for t in (inputs[0], outputs[0])
            )
            if "O" in (x.dtype.kind, want.dtype.kind) or "U" in (x.dtype.kind, want.dtype.kind):
                continue
            (got,) = run_op("Convert", attrs, [x], [(DType.of(want.dtype), want.shape)], isa=isa)
            assert same(got, np.ascontiguousarray(want)).all(), (case.name, got, want)
            ran += 1
    assert ran > 150


def _stored(folder: str, n_inputs: int) -> list[tuple[list[Any], list[Any]]]:
    from pathlib import Path

    import onnx

    data = Path(folder) / "test_data_set_0"

    def read(path: Path) -> Any:
        message = onnx.TensorProto()
        message.ParseFromString(path.read_bytes())
        return message

    return [([read(data / f"input_{k}.pb") for k in range(n_inputs)], [read(data / "output_0.pb")])]
