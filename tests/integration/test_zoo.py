"""Every benchmark model and every trained one agrees with onnxruntime: 1 and 2 threads, all input shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mnnpy
from benchmarks.zoo import ZOO, ZooModel

pytestmark = pytest.mark.peers

#: Allowed difference over the largest value of an output.
TOLERANCE = 1e-4


def wanted(model: ZooModel, feeds: dict[str, Any]) -> list[Any]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 3
    session = onnxruntime.InferenceSession(str(model.build()), options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, feeds)
    return found


def params() -> list[Any]:
    return [
        pytest.param(m, id=m.name, marks=[pytest.mark.slow] * m.slow + [pytest.mark.models] * m.trained)
        for m in ZOO.values()
    ]


@pytest.mark.parametrize("model", params())
def test_agrees_with_onnxruntime(model: ZooModel) -> None:
    if reason := model.available():
        pytest.skip(reason)
    sessions = [mnnpy.Session(model.build(), "cpu", threads=threads) for threads in (1, 2)]
    for variant in range(model.variants):
        feeds = model.inputs(7, variant)
        right = wanted(model, feeds)
        for threads, session in zip((1, 2), sessions, strict=True):
            got = session.run(None, feeds)
            for arg, g, w in zip(session.get_outputs(), got, right, strict=True):
                where = f"output '{arg.name}', variant {variant}, {threads} threads"
                assert g.shape == w.shape, where
                assert g.dtype == w.dtype, where
                assert np.isfinite(g).all(), where
                error = float(np.abs(g.astype(np.float64) - w).max() / max(np.abs(w).max(), 1e-30))
                assert error <= TOLERANCE, f"{where}: {error:.2e}"


def test_inputs_are_seeded() -> None:
    first, again, other = (ZOO["din"].inputs(seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert not any(np.array_equal(first[k], other[k]) for k in first)


def test_flops_are_counted() -> None:
    flops = ZOO["mobilenet_v2"].flops()
    assert flops is not None
    assert flops == pytest.approx(0.6e9, rel=0.05)  # 300 million multiply-adds, as the paper says
