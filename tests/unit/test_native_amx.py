"""Products on AMX tiles, on a stand-in of the unit and, where there is one, on the hardware."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mnnpy
from mnnpy.backends.cpu import _native, calibrate, select
from mnnpy.backends.cpu.provider import CpuBackend
from mnnpy.search.records import Records
from tests.models import MODELS
from tests.unit.native_helpers import ISAS, THREADS, Array, assert_close, oracle, run_kernel

HARDWARE = not _native.missing_amx()
UNITS = ["amx-emulated", "amx"] if HARDWARE else ["amx-emulated"]
#: Largest error per algorithm, against f64 and, for one plane, against f64 on rounded operands.
BARS = {"bf16x3": 1e-5, "bf16": 2e-2}
EXACT = 1e-5


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.emulate_amx(request.param == "amx-emulated")
    yield request.param
    _native.emulate_amx(False)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, unit: str) -> str:
    name: str = request.param
    if unit == "amx" and name != "avx512":
        pytest.skip("AMX belongs to the avx512 variant")
    return name


def rounded(a: Array) -> Array:
    return a.astype(ml_dtypes.bfloat16).astype(np.float64)


def make(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def activation(y: Array, act: str) -> Array:
    if act == "Relu":
        return np.maximum(y, 0)
    if act == "Clip":
        return np.clip(y, -6, 8)
    return y / (1 + np.exp(-y)) if act == "Silu" else y


def finish(y: Array, bias: Array | None, residual: Array | None, attrs: dict[str, Any]) -> tuple[Array, float]:
    """The result, and the scale that its error is measured by (a clip hides the largest values, not their error)."""
    y = y * attrs.get("alpha", 1.0)
    y = y if bias is None else y + bias
    y = y if residual is None else y + residual
    return activation(y, attrs.get("act", "")), max(1e-3, float(np.abs(y).max(initial=0)))


def fused(attrs: dict[str, Any], algorithm: str, **more: Any) -> dict[str, Any]:
    tier = {"algorithm": algorithm, "precision": "low" if algorithm == "bf16" else "normal"}
    clip = {"act_alpha": -6.0, "act_beta": 8.0} if attrs.get("act") == "Clip" else {}
    return {**attrs, **tier, **clip, **more}


def check(
    got: Array, exact: tuple[Array, float], of_rounded: tuple[Array, float], algorithm: str, made: list[Any], unit: str
) -> None:
    name = made[0].describe()[0]["algorithm"]
    assert name.endswith(unit.replace("amx", f"amx-{algorithm}"))
    for (want, scale), bar in ((exact, BARS[algorithm]), (of_rounded, EXACT)):
        assert got.shape == want.shape
        if want is exact[0] or algorithm == "bf16":
            assert float(np.abs(got - want).max(initial=0)) <= bar * scale


def matmul(
    a: Array, b: Array, bias: bool, residual: bool, attrs: dict[str, Any], algorithm: str, unit: str, **how: Any
) -> None:
    constant = how.pop("constant", True)
    left = a.swapaxes(-1, -2) if attrs.get("trans_a") else a
    right = b.swapaxes(-1, -2) if attrs.get("trans_b") else b
    plain = np.matmul(left.astype(np.float64), right.astype(np.float64))
    extra = make(plain.shape[-1]) if bias else None
    more = make(*plain.shape, seed=1) if residual else None
    made: list[Any] = []
    [got] = run_kernel(
        "MatMul",
        [a, b, extra, more],
        [(plain.shape, np.float32)],
        fused(attrs, algorithm),
        constant=(1, 2) if constant else (),
        program=made,
        **how,
    )
    low = finish(np.matmul(rounded(left), rounded(right)), extra, more, attrs)
    check(got, finish(plain, extra, more, attrs), low, algorithm, made, unit)


#: Tiles of one to sixteen rows, one or two tiles of columns, odd depths, more than one panel and block.
SIZES = [(1, 8, 8), (2, 33, 31), (15, 16, 32), (16, 17, 33), (17, 32, 64), (31, 48, 65), (33, 49, 100), (70, 96, 40)]


@pytest.mark.parametrize("algorithm", BARS)
@pytest.mark.parametrize("threads", THREADS)
def test_matmul(unit: str, isa: str, threads: int, algorithm: str) -> None:
    for m, n, k in SIZES:
        how = {"isa": isa, "threads": threads}
        matmul(make(m, k), make(k, n), False, False, {}, algorithm, unit, **how)
        matmul(make(m, k), make(n, k), True, True, {"trans_b": 1, "act": "Relu"}, algorithm, unit, **how)
        matmul(make(m, k), make(k, n), True, True, {"act": "Clip"}, algorithm, unit, **how)
        if m > 1:
            matmul(
                make(k, m),
                make(k, n),
                True,
                False,
                {"trans_a": 1, "alpha": 0.5, "act": "Silu"},
                algorithm,
                unit,
                constant=False,
                **how,
            )


@pytest.mark.parametrize("algorithm", BARS)
def test_matmul_batches(unit: str, isa: str, algorithm: str) -> None:
    for a, b in [
        ((2, 3, 5, 17), (2, 3, 17, 9)),
        ((4, 1, 5, 8), (3, 8, 9)),
        ((1, 20, 21), (5, 21, 30)),
        ((7, 6, 21), (21, 30)),
    ]:
        for threads in THREADS:
            for constant in (True, False):
                matmul(
                    make(*a), make(*b), False, True, {}, algorithm, unit, isa=isa, threads=threads, constant=constant
                )


@pytest.mark.parametrize("algorithm", BARS)
def test_partial_sums(unit: str, algorithm: str) -> None:
    """Deep products are summed in parts, through C."""
    for threads in THREADS:
        matmul(make(18, 11000), make(11000, 20), True, True, {"act": "Relu"}, algorithm, unit, threads=threads)


def test_many_rows_and_columns(unit: str) -> None:
    for threads in THREADS:
        matmul(make(300, 40), make(40, 200), True, False, {}, "bf16x3", unit, threads=threads)


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], str]] = [
    ((1, 32, 4, 28), (33, 32, 3, 3), {"pads": (1, 1, 1, 1)}, "Relu"),  # lines of two whole tiles
    ((1, 32, 5, 20), (16, 32, 3, 3), {"pads": (1, 1, 1, 1)}, ""),  # tiles that cross lines
    ((2, 7, 9, 11), (9, 7, 3, 3), {"pads": (1, 1, 1, 1)}, ""),  # lines of the kernel as taps
    ((1, 40, 5, 7), (20, 40, 3, 3), {"pads": (1, 1, 1, 1)}, "Silu"),  # channels filled up
    ((1, 64, 7, 7), (70, 64, 1, 1), {}, "Relu"),
    ((1, 21, 13, 12), (33, 21, 1, 1), {"strides": (2, 2)}, ""),
    ((1, 20, 5, 6), (33, 20, 1, 1), {"pads": (1, 0, 2, 1)}, "Silu"),
    ((1, 3, 17, 19), (32, 3, 7, 7), {"strides": (2, 2), "pads": (3, 3, 3, 3)}, "Clip"),
    ((1, 64, 6, 30), (16, 64, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1)}, ""),
    ((1, 25, 10, 9), (36, 25, 3, 5), {"strides": (2, 1), "pads": (0, 1, 2, 3), "dilations": (2, 1)}, "Silu"),
    ((1, 16, 9, 14), (12, 16, 3, 2), {"dilations": (1, 3), "pads": (2, 1, 0, 2)}, ""),
    ((1, 5, 9, 14), (12, 5, 3, 3), {"pads": (-1, 1, -2, -1)}, ""),
    ((1, 32, 9, 14), (12, 32, 3, 3), {"pads": (1, -2, -3, 4)}, ""),
    ((2, 20, 31), (10, 20, 5), {"pads": (2, 2)}, ""),
    ((1, 32, 5, 6, 7), (9, 32, 3, 3, 3), {"pads": (1,) * 6, "strides": (2, 1, 2)}, ""),
    ((1, 512, 3, 3), (17, 512, 3, 3), {"pads": (1, 1, 1, 1)}, "Relu"),  # partial sums over taps
    ((0, 16, 2, 2), (16, 16, 1, 1), {}, ""),
]


@pytest.mark.parametrize("algorithm", BARS)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(
    unit: str, isa: str, case: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], str], algorithm: str
) -> None:
    x_shape, w_shape, attrs, act = case
    x, w, bias = make(*x_shape), make(*w_shape), make(w_shape[0])
    n = w.ndim - 2
    attrs = {"strides": (1,) * n, "pads": (0,) * 2 * n, "dilations": (1,) * n, "group": 1, **attrs}
    reference = oracle("Convolution")
    exact = np.moveaxis(reference(x.astype(np.float64), w.astype(np.float64), **attrs), 1, -1)
    low = np.moveaxis(reference(rounded(x), rounded(w), **attrs), 1, -1)
    more = make(*exact.shape, seed=1)
    for threads, residual in ((1, None), (2, more), (7, more)):
        made: list[Any] = []
        [got] = run_kernel(
            "Convolution",
            [np.moveaxis(x, 1, -1), w, bias, residual],
            [(exact.shape, np.float32)],
            fused({**attrs, "act": act}, algorithm, layout="NHWC"),
            constant=(1, 2),
            isa=isa,
            threads=threads,
            program=made,
        )
        rest = (bias, residual, {"act": act})
        check(got, finish(exact, *rest), finish(low, *rest), algorithm, made, unit)


def test_split_is_exact_where_16_bits_are_enough(unit: str, isa: str) -> None:
    """hi + lo hold 16 bits of a mantissa; large values do not round to infinity, NaN stays NaN."""
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-15, 3.4e38, -3.3961775e38, 2**-100, -0.0, np.nan], np.float32)
    a = np.where(np.eye(8, dtype=bool), values, np.float32(0))
    [got] = run_kernel(
        "MatMul", [a, np.eye(8, dtype=np.float32)], [((8, 8), np.float32)], fused({}, "bf16x3"), constant=(1,), isa=isa
    )
    assert np.array_equal(np.diag(got)[:3], values[:3])
    np.testing.assert_allclose(np.diag(got)[:7], values[:7], rtol=2**-16)
    assert np.isnan(got[7]).all()
    assert np.isfinite(got[:7]).all()


def test_rounding_is_to_nearest_even(unit: str, isa: str) -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 3e38, 1e-3, 2**-100, -0.0], np.float32)
    a = np.diag(values)
    for left, right in ((a, np.eye(8, dtype=np.float32)), (np.eye(8, dtype=np.float32), a)):
        [got] = run_kernel("MatMul", [left, right], [((8, 8), np.float32)], fused({}, "bf16"), constant=(1,), isa=isa)
        assert np.array_equal(np.diag(got), values.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("algorithm", BARS)
def test_what_lies_behind_a_row_has_no_effect(unit: str, algorithm: str) -> None:
    """Tiles are filled with zeros, not with what follows in memory."""
    a = make(3, 9)
    a[1] = np.nan
    b = np.abs(make(9, 16)) + 0.5
    [got] = run_kernel("MatMul", [a, b], [((3, 16), np.float32)], fused({}, algorithm), constant=(1,))
    assert np.array_equal(np.isnan(got[:, 0]), [False, True, False])
    for channels in (3, 40):
        x = make(1, 6, 6, channels)
        x[0, 3, 3] = np.nan
        attrs = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1, "layout": "NHWC"}
        weights = make(8, channels, 3, 3)
        [got] = run_kernel(
            "Convolution", [x, weights], [((1, 4, 4, 8), np.float32)], fused(attrs, algorithm), constant=(1,)
        )
        assert np.array_equal(np.isnan(got[0, :, :, 0]), [[False] * 4, *[[False, True, True, True]] * 3])


def test_tiers(unit: str) -> None:
    """Neither other tiers, nor another algorithm, nor ``auto`` on the stand-in get AMX."""
    a, b = make(64, 64), make(64, 64)
    for attrs in (
        {"precision": "high"},
        {"precision": "high", "algorithm": "bf16x3"},
        {"precision": "low", "algorithm": "direct"},
        {},
        *([{"precision": "normal"}, {"precision": "low"}] if unit == "amx-emulated" else []),
    ):
        ok, why = _native.supports("MatMul", attrs, [("f32", a.shape), ("f32", b.shape)], [("f32", (64, 64))])
        made: list[Any] = []
        if ok:
            run_kernel("MatMul", [a, b], [((64, 64), np.float32)], attrs, constant=(1,), program=made)
            assert "amx" not in made[0].describe()[0]["algorithm"]
        else:
            assert why


def test_weights_of_two_planes_take_the_memory_of_f32(unit: str) -> None:
    sizes = []
    for algorithm in ("bf16x3", "bf16"):
        made: list[Any] = []
        run_kernel(
            "MatMul",
            [make(4, 512), make(512, 256)],
            [((4, 256), np.float32)],
            fused({}, algorithm),
            constant=(1,),
            program=made,
        )
        sizes.append(made[0].memory["packed"])
    assert sizes == [512 * 256 * 4, 512 * 256 * 2]


@pytest.mark.skipif(HARDWARE, reason="this machine has AMX")
def test_without_amx_the_reason_is_told() -> None:
    [info] = CpuBackend().devices()
    assert "amx-bf16" not in _native.cpu_features()
    assert "AMX" in info.facts["amx"]
    attrs = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1, "layout": "NHWC"}
    with pytest.raises(ValueError, match="another algorithm was asked for"):
        run_kernel(
            "Convolution",
            [make(1, 4, 4, 8), make(8, 8, 1, 1)],
            [((1, 4, 4, 8), np.float32)],
            {**attrs, "algorithm": "bf16x3"},
            constant=(1,),
        )


@pytest.mark.skipif(not HARDWARE, reason=_native.missing_amx() or "AMX is there")
@pytest.mark.parametrize("algorithm", BARS)
def test_stand_in_and_hardware_agree(algorithm: str) -> None:
    a, b = make(70, 100), make(100, 50)
    results = []
    for emulated in (True, False):
        _native.emulate_amx(emulated)
        try:
            [got] = run_kernel("MatMul", [a, b], [((70, 50), np.float32)], fused({}, algorithm), constant=(1,))
        finally:
            _native.emulate_amx(False)
        results.append(got)
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_sessions(unit: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whole models with every product and convolution on AMX that can be."""
    monkeypatch.setattr(select, "_accepted", {})  # answers that hold for the stand-in stay in this test
    monkeypatch.setattr(select, "records", lambda: Records(f"{unit}; {name}", tmp_path / "records.jsonl"))
    monkeypatch.setattr(calibrate, "SIDE", 32)  # peaks of the stand-in are not worth waiting for
    model, feeds = MODELS[name]()
    want = mnnpy.Session(model, "reference").run(None, feeds)
    for algorithm, precision, bar in (("bf16", "low", 2e-2), ("bf16x3", "normal", 3e-5)):
        forced = {"MatMul": algorithm, "Convolution": algorithm}
        session = mnnpy.Session(model, precision=precision, threads=2, algorithms=forced)
        for got, right in zip(session.run(None, feeds), want, strict=True):
            assert_close(got, right, bar)
        shown = [r["algorithm"] for r in session.explain().rows if r["op"] in forced]
        assert any(f"amx-{algorithm}" in a for a in shown) == bool(shown)
