"""Native FusedAttention against NumPy in float64: lengths, head sizes, masks, strides, instruction sets, threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mnnpy.backends.cpu import _native
from tests.unit.native_helpers import ISAS, THREADS, Array, assert_close, run_kernel

INF = float("inf")
#: batch, heads, queries, keys, head size, value size
SIZES = [
    (1, 2, 1, 1, 16, 16),
    (2, 3, 7, 7, 8, 8),
    (1, 2, 65, 130, 64, 64),
    (1, 1, 1, 300, 64, 64),
    (2, 2, 3, 129, 24, 40),
    (1, 2, 197, 197, 64, 64),
    (1, 1, 33, 257, 80, 100),
    (1, 2, 20, 17, 256, 256),
    (3, 1, 5, 64, 1, 3),
    (1, 2, 100, 50, 32, 33),
]


def make(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def truth(q: Array, k: Array, v: Array, mask: Array | None, scale: float, value: float = -INF) -> Array:
    """softmax(scale · q·kᵀ + mask) · v for [B, H, S, D]."""
    s = scale * (q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2))
    if mask is not None:
        s = np.where(mask, s, value) if mask.dtype == np.bool_ else s + mask
    with np.errstate(invalid="ignore"):
        e = np.exp(s - s.max(axis=-1, keepdims=True))
        p = e / e.sum(axis=-1, keepdims=True)
    out: Array = p @ v.astype(np.float64)
    return out


def strides(shape: Sequence[int], want: Sequence[int]) -> list[int]:
    """Element strides with which a dense array of *shape* reads as one of *want*."""
    full = (1,) * (len(want) - len(shape)) + tuple(shape)
    dense = [int(np.prod(full[k + 1 :])) for k in range(len(full))]
    return [0 if n == 1 and w != 1 else d for n, w, d in zip(full, want, dense, strict=True)]


def attrs_of(q: Array, k: Array, v: Array, mask: Array | None, scale: float, **more: Any) -> dict[str, Any]:
    b, h, s, d = q.shape
    t, dv = v.shape[2:]
    attrs = {"batch": [b, h], "q_len": s, "k_len": t, "dim": d, "v_dim": dv, "scale": scale,
             "q": [0, h * s * d, s * d, d], "k": [0, h * t * d, t * d, d], "v": [0, h * t * dv, t * dv, dv],
             "out": [0, h * s * dv, s * dv, dv], **more}  # fmt: skip
    if mask is not None:
        attrs["mask"] = [0, *strides(mask.shape, (b, h, s, t))]
    return attrs


def check(q: Array, k: Array, v: Array, mask: Array | None, isa: str, threads: int = 1, **more: Any) -> None:
    scale = q.shape[-1] ** -0.5
    want = truth(q, k, v, mask, scale, more.get("mask_value", -INF))
    attrs = attrs_of(q, k, v, mask, scale, **more)
    [got] = run_kernel("FusedAttention", [q, k, v, mask], [(want.shape, np.float32)], attrs, isa=isa, threads=threads)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert_close(np.nan_to_num(got), np.nan_to_num(want), 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(isa: str, threads: int, size: tuple[int, ...]) -> None:
    b, h, s, t, d, dv = size
    check(make(b, h, s, d), make(b, h, t, d, seed=1), make(b, h, t, dv, seed=2), None, isa, threads)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [(2, 3, 40, 150, 16, 20), (2, 2, 1, 150, 16, 16), (1, 2, 2, 9, 32, 32)], ids=str)
@pytest.mark.parametrize("kind", ["f32", "bool"])
def test_masks(isa: str, size: tuple[int, ...], kind: str) -> None:
    b, h, s, t, d, dv = size
    q, k, v = make(b, h, s, d), make(b, h, t, d, seed=1), make(b, h, t, dv, seed=2)
    for shape in [(b, h, s, t), (b, 1, 1, t), (1, 1, s, t), (s, t), (t,), (b, h, s, 1), (1,)]:
        mask = make(*shape, seed=3)
        if kind == "f32":
            check(q, k, v, mask * 3, isa, 2)
            continue
        check(q, k, v, mask > -1, isa, 2, mask_value=-1e4)
        check(q, k, v, np.asarray(mask > -0.5), isa)  # some rows see nothing: NaN, as the formula gives


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("s", [1, 50])
def test_masked_out(isa: str, s: int) -> None:
    t = 300
    q, k, v = make(1, 2, s, 16), make(1, 2, t, 16, seed=1), make(1, 2, t, 16, seed=2)
    for low in (-INF, -3e38, -1e4):
        mask = np.zeros((1, 1, s, t), np.float32)
        mask[..., :200] = low  # whole blocks of keys come before the first that counts
        check(q, k, v, mask, isa)
        if low < -1e4:  # there what f32 keeps of the scores is rounding
            mask[..., 200:] = low
            check(q, k, v, mask, isa)
    causal = np.where(np.tri(s, t, t - s) > 0, 0, -INF).astype(np.float32)
    check(q, k, v, causal, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_extremes(isa: str) -> None:
    q, k, v = make(1, 1, 20, 16), make(1, 1, 260, 16, seed=1), make(1, 1, 260, 16, seed=2)
    check(q * 40, k * 40, v, None, isa)
    k[0, 0, 255, 3] = np.nan
    check(q, k, v, None, isa)
    k[0, 0, 255, 3] = INF
    check(q, k, v, None, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("s", [2, 70])
@pytest.mark.parametrize("threads", [1, 2])
def test_strides_into_merged_projections(isa: str, s: int, threads: int) -> None:
    b, h, d = 2, 3, 24
    qkv = make(b, s, 3, h, d)
    q, k, v = (qkv[:, :, n].transpose(0, 2, 1, 3) for n in range(3))
    want = truth(q, k, v, None, 0.5).transpose(0, 2, 1, 3).reshape(b, s, h * d)
    row = 3 * h * d
    attrs = {"batch": [b, h], "q_len": s, "k_len": s, "dim": d, "v_dim": d, "scale": 0.5,
             "q": [0, s * row, d, row], "k": [h * d, s * row, d, row], "v": [2 * h * d, s * row, d, row],
             "out": [0, s * h * d, d, h * d]}  # fmt: skip
    [got] = run_kernel("FusedAttention", [qkv, qkv, qkv], [(want.shape, np.float32)], attrs, isa=isa, threads=threads)
    assert_close(got, want, 1e-6)


def test_shared_keys_and_absent_keys() -> None:
    b, kv, group, s, t, d = 2, 2, 3, 6, 5, 16
    q, k, v = make(b, kv, group, s, d), make(b, kv, 1, t, d, seed=1), make(b, kv, 1, t, d, seed=2)
    want = truth(q, k, v, None, 1.0)
    own = [0, kv * t * d, t * d, 0, d]
    rows = [0, kv * group * s * d, group * s * d, s * d, d]
    attrs = {
        "batch": [b, kv, group],
        "q_len": s,
        "k_len": t,
        "dim": d,
        "v_dim": d,
        "q": rows,
        "k": own,
        "v": own,
        "out": rows,
    }
    [got] = run_kernel("FusedAttention", [q, k, v], [(want.shape, np.float32)], attrs)
    assert_close(got, want, 1e-6)
    q, k = make(1, 1, 6, 16), make(1, 1, 0, 16)
    [got] = run_kernel("FusedAttention", [q, k, k], [(q.shape, np.float32)], attrs_of(q, k, k, None, 1.0))
    assert not got.any()


def test_declines() -> None:
    q = make(1, 2, 3, 16)
    good = attrs_of(q, q, q, None, 1.0)
    f32 = ("f32", q.shape)
    assert _native.supports("FusedAttention", good, [f32] * 3, [f32])[0]
    for bad in ({"q": [16, 96, 48, 16]}, {"v": [-1, 96, 48, 16]}, {"k": [0, 96, 16]}, {"dim": 17}):
        assert not _native.supports("FusedAttention", {**good, **bad}, [f32] * 3, [f32])[0]
    half = ("f16", q.shape)
    assert not _native.supports("FusedAttention", good, [half] * 3, [half])[0]
