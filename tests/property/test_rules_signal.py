"""Rules of signal processing against their references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.graph.ir import Array
from tests.rule_check import check_rule

CALM = settings(max_examples=30, deadline=None)


def randn(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@CALM
@given(
    st.sampled_from(["real", "complex", "inverse", "real inverse", "rfft", "irfft"]), st.sampled_from([0, 1, -2, -3]),
    st.sampled_from([None, 1, 4, 7, 9]),
)  # fmt: skip
def test_dft(kind: str, axis: int, length: int | None) -> None:
    parts = 1 if kind in ("real", "real inverse", "rfft") else 2
    attrs = {"inverse": int("inverse" in kind or kind == "irfft"), "onesided": int(kind in ("rfft", "irfft"))}
    x = randn(0, 5, 6, 7, parts)
    axis_input = np.asarray(axis - (axis < -1) * 0, np.int64)
    inputs = [x, None if length is None else np.asarray(length, np.int64), axis_input]
    check_rule("DFT", inputs, attrs, const=(1, 2), rtol=1e-4, atol=1e-4)


def test_dft_defaults_and_half() -> None:
    check_rule("DFT", [randn(0, 2, 8, 1)], {}, rtol=1e-4, atol=1e-4)
    check_rule("DFT", [randn(0, 2, 8, 2, dtype=np.float16)], {}, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("parts,onesided", [(1, 1), (1, 0), (2, 0)])
@pytest.mark.parametrize("windowed,length", [(True, None), (True, 6), (False, 6), (False, None)])
def test_stft(parts: int, onesided: int, windowed: bool, length: int | None) -> None:
    inputs = [
        randn(0, 2, 20, parts),
        np.asarray(3, np.int64),
        randn(1, 6) if windowed else None,
        None if length is None else np.asarray(length, np.int64),
    ]
    check_rule("STFT", inputs, {"onesided": onesided}, const=(1, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [4, 6, 12, 30, 36])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("inverse", [0, 1])
def test_two_stage_transforms(length: int, parts: int, inverse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnnpy.decompose.rules import signal

    monkeypatch.setattr(signal, "SPLIT_ABOVE", 0)
    x = randn(0, 3, length, 2, parts)
    for size in (length, length - 1, length + 2):
        inputs = [x, np.asarray(size, np.int64), np.asarray(1, np.int64)]
        check_rule("DFT", inputs, {"inverse": inverse}, const=(1, 2), rtol=1e-4, atol=1e-4)
        if parts == 1 and not inverse:
            check_rule("DFT", inputs, {"onesided": 1}, const=(1, 2), rtol=1e-4, atol=1e-4)
    stft = [randn(1, 2, 3 * length, parts), np.asarray(3, np.int64), randn(2, length)]
    check_rule("STFT", stft, {"onesided": 2 - parts}, const=(1,), rtol=1e-4, atol=1e-4)


def test_long_transform() -> None:
    x = randn(0, 1, 1 << 14, 1)
    nodes = check_rule("DFT", [x], {"onesided": 1}, rtol=1e-3, atol=2e-3)
    assert sum(n.op == "MatMul" for n in nodes) == 2


def test_mel_weight_matrix() -> None:
    inputs = [
        np.asarray(v, t)
        for v, t in ((8, np.int64), (64, np.int64), (8192, np.int64), (0.0, np.float32), (4096.0, np.float32))
    ]
    for number in (1, 11):
        check_rule("MelWeightMatrix", inputs, {"output_datatype": number}, const=range(5), max_nodes=0)
