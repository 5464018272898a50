"""Answers do not depend on the optimisations, the backend, the thread count or the way of planning."""

from __future__ import annotations

import numpy as np
import pytest

import mnnpy
from mnnpy.options import OPTIMIZATIONS
from tests.models import MODELS

ort = pytest.importorskip("onnxruntime")


def truth(name: str) -> tuple[object, dict[str, np.ndarray], list[np.ndarray]]:
    model, feeds = MODELS[name]()
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return model, feeds, session.run(None, feeds)


def assert_close(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=0, atol=3e-5 * max(1e-3, float(np.abs(w).max(initial=0))))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_cpu_agrees_with_onnxruntime(name: str, threads: int) -> None:
    model, feeds, want = truth(name)
    assert_close(mnnpy.Session(model, threads=threads).run(None, feeds), want)


@pytest.mark.parametrize("name", MODELS)
def test_reference_agrees_with_onnxruntime(name: str) -> None:
    model, feeds, want = truth(name)
    assert_close(mnnpy.Session(model, "reference").run(None, feeds), want)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("off", [*sorted(OPTIMIZATIONS), "all"])
def test_each_optimisation_off(name: str, off: str) -> None:
    model, feeds, want = truth(name)
    optimize = frozenset() if off == "all" else OPTIMIZATIONS - {off}
    assert_close(mnnpy.Session(model, optimize=optimize).run(None, feeds), want)


@pytest.mark.parametrize("name", MODELS)
def test_everything_runs_in_one_native_program(name: str) -> None:
    model, feeds, _ = truth(name)
    session = mnnpy.Session(model)
    session.run(None, feeds)
    assert {r["backend"] for r in session.explain().rows} == {"cpu"}
