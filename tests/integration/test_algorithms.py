"""Every algorithm of every op, forced in turn: it really runs, and the answers keep the bar of the precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.cpu import _native, calibrate, select
from mnnpy.backends.cpu.algorithms import TABLE, ran
from mnnpy.conformance import load_cases, run_suite
from mnnpy.search.records import Records
from tests.models import MODELS, Feeds, Net

ort = pytest.importorskip("onnxruntime")

#: Largest difference, as a share of the output's maximum, by precision.
BARS = {"high": 1e-5, "normal": 3e-5, "low": 2e-2}
#: Algorithms that need instructions which not every CPU has: elsewhere they run on the stand-in of the AMX unit.
NEEDS = {"bf16": "avx512bf16", "bf16x3": "amx-bf16", "winograd2bf16": "avx512bf16"}
#: Those without a kernel for that unit.
VECTORS_ONLY = {"winograd2bf16"}
CHOICES = [(op, a.name) for op, entries in TABLE.items() for a in entries]


def products() -> tuple[object, Feeds]:
    """Constant right operands, bias and activation; odd sizes."""
    n = Net(20)
    y = n.op("Add", n.op("MatMul", n.input(150, 260), n.w(260, 259, scale=0.05)), n.w(259))
    y = n.op("Relu", y)
    y = n.op("Gemm", y, n.w(200, 259, scale=0.05), n.w(200), transB=1)
    return n.finish(n.op("MatMul", y, n.w(200, 130, scale=0.05)))


def convolutions() -> tuple[object, Feeds]:
    """3×3 of stride 1 with bias, activation and residual, uneven edges, two images; 1×1 with many channels."""
    n = Net(21)
    x = n.op("Conv", n.input(2, 16, 19, 22), n.w(40, 16, 3, 3), n.w(40), pads=[1, 1, 1, 1])
    y = n.op("Relu", n.op("Add", n.op("Conv", x, n.w(40, 40, 3, 3), pads=[1, 1, 1, 1]), x))
    y = n.op("Conv", y, n.w(136, 40, 3, 3, scale=0.05), pads=[0, 1, 2, 1])
    return n.finish(n.op("HardSwish", n.op("Conv", y, n.w(130, 136, 1, 1, scale=0.06), n.w(130))))


SUITABLE = {"MatMul": products, "Convolution": convolutions}


@cache
def truth(name: str) -> tuple[object, Feeds, list[np.ndarray]]:
    model, feeds = (SUITABLE[name] if name in SUITABLE else MODELS[name])()
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    return model, feeds, session.run(None, feeds)


def precision_of(op: str, algorithm: str) -> str:
    """The strictest precision that allows it, but no stricter than the default."""
    allowed = next(a.precisions for a in TABLE[op] if a.name == algorithm)
    return "normal" if "normal" in allowed else "low"


def check(session: mnnpy.Session, feeds: Feeds, want: list[np.ndarray], bar: float) -> None:
    for got, expected in zip(session.run(None, feeds), want, strict=True):
        assert got.shape == expected.shape
        scale = max(1e-3, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(got, expected, rtol=0, atol=bar * scale)


@pytest.fixture(params=_native.available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def unit(isa: str, algorithm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The stand-in of the AMX unit, where this variant has no instructions for the algorithm."""
    feature = NEEDS.get(algorithm)
    lacks = feature is not None and (isa != "avx512" or feature not in _native.cpu_features())
    if lacks and algorithm in VECTORS_ONLY:
        pytest.skip(f"needs {feature} and the avx512 variant")
    _native.emulate_amx(lacks)
    if lacks:  # answers and peaks that hold for the stand-in stay in this test
        monkeypatch.setattr(select, "_accepted", {})
        monkeypatch.setattr(select, "records", lambda: Records(str(tmp_path), None))
        monkeypatch.setattr(calibrate, "SIDE", 32)
    yield
    _native.emulate_amx(False)


@pytest.mark.parametrize(("op", "algorithm"), CHOICES)
@pytest.mark.usefixtures("unit")
def test_a_forced_algorithm_runs_and_is_right(op: str, algorithm: str, isa: str) -> None:
    model, feeds, want = truth(op)
    precision = precision_of(op, algorithm)
    for threads in (1, 2, 7):
        options = mnnpy.Options(threads=threads, precision=precision, algorithms={op: algorithm}, tune="off", isa=isa)
        session = mnnpy.Session(model, options=options)
        rows = [r for r in session.explain().rows if r["op"] == op]
        forced = [r for r in rows if r["why"] == "forced"]
        assert forced, [r["algorithm"] for r in rows]
        assert {ran(op, r["algorithm"]) for r in forced} == {algorithm}
        check(session, feeds, want, BARS[precision])


@pytest.mark.parametrize(("op", "algorithm"), CHOICES)
@pytest.mark.parametrize("name", MODELS)
def test_models_do_not_depend_on_it(name: str, op: str, algorithm: str) -> None:
    """Small networks with the structures of real ones; layers that do not take the algorithm fall to another one."""
    model, feeds, want = truth(name)
    precision = precision_of(op, algorithm)
    session = mnnpy.Session(model, precision=precision, algorithms={op: algorithm}, tune="off")
    check(session, feeds, want, BARS[precision])
    for row in session.explain().rows:
        if row["why"] == "forced":  # a chain computes each of its convolutions directly
            done = "direct" if row["op"] == "ConvChain" else ran(op, row["algorithm"])
            assert (row["op"], done) in ((op, algorithm), ("ConvChain", algorithm))


@pytest.mark.parametrize("op", TABLE)
def test_high_precision_runs_direct_algorithms_only(op: str) -> None:
    model, feeds, want = truth(op)
    session = mnnpy.Session(model, precision="high")
    rows = [r for r in session.explain().rows if r["op"] == op]
    assert {ran(op, r["algorithm"]) for r in rows} == {"direct"}
    assert {r["why"] for r in rows} == {"precision=high"}
    check(session, feeds, want, BARS["high"])


@pytest.mark.parametrize("op", TABLE)
@pytest.mark.parametrize("precision", ["normal", "low"])
def test_whatever_is_chosen_is_right(op: str, precision: str) -> None:
    model, feeds, want = truth(op)
    for tuning in (0.0, 0.5):
        check(mnnpy.Session(model, precision=precision, tune=tuning), feeds, want, BARS[precision])


@pytest.mark.parametrize(
    ("op", "algorithm"), [(op, name) for op, name in CHOICES if precision_of(op, name) == "normal"]
)
def test_conformance_of_the_op(op: str, algorithm: str) -> None:
    """ONNX's node cases of convolutions and products, with the tolerance that the cases state."""
    pattern = "conv" if op == "Convolution" else "matmul|gemm"
    cases = [c for c in load_cases() if pattern.partition("|")[0] in c.name or pattern.rpartition("|")[2] in c.name]
    report = run_suite("cpu", cases=cases, algorithms={op: algorithm}, tune="off")
    assert report.count("passed") >= len(cases) > 20
    assert report.count("failed") == 0, [r for r in report.results if r.status == "failed"]
