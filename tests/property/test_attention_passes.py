"""Attention, merged projections and residual norms on the cpu backend: what is fused, and that answers stay."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnnpy
from mnnpy.backends.passes.views import axis_strides, refine, split_axes, swapped
from mnnpy.decompose.raster import Region, row_major
from mnnpy.options import OPTIMIZATIONS
from tests.models import MODELS, Feeds, Net

NEW = {"fuse_attention", "merge_matmul", "fuse_norm"}


def kernels(session: mnnpy.Session) -> Counter[str]:
    return Counter(str(row["op"]) for row in session.explain().rows)


def run(model: onnx.ModelProto, feeds: Feeds, **options: Any) -> tuple[list[Any], Counter[str]]:
    session = mnnpy.Session(model, **options)
    return session.run(None, feeds), kernels(session)


def check(model: onnx.ModelProto, feeds: Feeds) -> Counter[str]:
    """Answers agree with those of the plain plan; returns how often each kernel runs."""
    got, used = run(model, feeds)
    want, plain = run(model, feeds, optimize=OPTIMIZATIONS - NEW)
    assert not plain["FusedAttention"] + plain["AddLayerNormalization"]
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=2e-6 * max(1e-3, float(np.abs(w).max())))
    return used


@pytest.mark.parametrize(
    ("name", "attentions", "products"),
    [("transformer_block", 1, 4), ("vision_attention", 1, 1), ("masked_attention", 2, 5), ("cached_attention", 1, 5)],
)
def test_models(name: str, attentions: int, products: int) -> None:
    used = check(*MODELS[name]())
    assert used["FusedAttention"] == attentions
    assert used["MatMul"] == products


def test_no_copies_between_projections_and_result() -> None:
    used = check(*MODELS["masked_attention"]())
    assert not used["Raster"]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (3, 3, 9, 9, 20))),
    scaling=st.sampled_from(["none", "div", "mul", "q", "q and k"]),
    masking=st.sampled_from(["none", "add", "add first", "where", "keys"]),
    form=st.sampled_from(["split", "heads", "shared"]),
)
def test_spellings(sizes: tuple[int, ...], scaling: str, masking: str, form: str) -> None:
    b, h, s, t, d = sizes
    n = Net(sum(sizes))

    def heads(steps: int) -> str:
        if form == "heads":
            return n.input(b, h, steps, d)
        if form == "shared":
            return n.op("Expand", n.input(b, 1, steps, d), n.ints(b, h, steps, d))  # type: ignore[no-any-return]
        return n.op("Transpose", n.op("Reshape", n.input(b, steps, h * d), n.ints(b, steps, h, d)), perm=[0, 2, 1, 3])  # type: ignore[no-any-return]

    q, k, v = heads(s), heads(t), heads(t)
    k = n.op("Transpose", k, perm=[0, 1, 3, 2])
    factor = n.const(0.3)
    if scaling in ("q", "q and k"):
        q = n.op("Mul", q, factor)
    if scaling == "q and k":
        k = n.op("Mul", factor, k)
    p = n.op("MatMul", q, k)
    if scaling in ("div", "mul"):
        p = n.op("Div" if scaling == "div" else "Mul", p, factor)
    if masking in ("add", "add first"):
        mask = n.input(b, 1, s, t)
        p = n.op("Add", *((p, mask) if masking == "add" else (mask, p)))
    elif masking == "keys":
        p = n.op("Add", p, n.input(1, t))
    elif masking == "where":
        p = n.op("Where", n.op("Greater", n.input(s, t), n.const(-1.0)), p, n.const(-1e4))
    y = n.op("MatMul", n.op("Softmax", p, axis=-1), v)
    used = check(*n.finish(n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(b, s, h * d))))
    assert used["FusedAttention"] == 1


@pytest.mark.parametrize(
    "extra", [{}, {"is_causal": 1}, {"kv": 2}, {"kv": 1, "is_causal": 1}, {"scale": 0.5, "mask": True}]
)
@pytest.mark.parametrize("s", [1, 9])
def test_attention_op(extra: dict[str, Any], s: int) -> None:
    attrs = dict(extra)
    kv, masks = attrs.pop("kv", 4), attrs.pop("mask", False)
    n = Net(3, opset=23)
    b, h, d = 2, 4, 16
    x = n.input(b, s, h * d)
    operands = [n.op("MatMul", x, n.w(h * d, width * d)) for width in (h, kv, kv)]
    if masks:
        operands.append(n.const(np.where(np.tri(s) > 0, 0, -1e9)))
    used = check(*n.finish(n.op("Attention", *operands, q_num_heads=h, kv_num_heads=kv, **attrs)))
    assert used["FusedAttention"] == 1
    assert used["MatMul"] == 1


def test_what_is_not_attention_stays() -> None:
    n = Net(4)
    q, k, v = n.input(2, 3, 5, 8), n.input(2, 3, 8, 6), n.input(2, 3, 6, 8)
    wrong_axis = n.op("MatMul", n.op("Softmax", n.op("MatMul", q, k), axis=-2), v)
    masked_first = n.op("Mul", n.op("Add", n.op("MatMul", q, k), n.input(5, 6)), n.const(0.5))
    scaled_after = n.op("MatMul", n.op("Softmax", masked_first, axis=-1), v)
    shared = n.op("Softmax", n.op("Mul", n.op("MatMul", q, k), n.const(2.0)), axis=-1)
    used = check(*n.finish(wrong_axis, scaled_after, shared, n.op("MatMul", shared, v)))
    assert not used["FusedAttention"]


@pytest.mark.parametrize("more", [False, True])
def test_residual_norm(more: bool) -> None:
    n = Net(5)
    x, y = n.input(2, 7, 12), n.input(2, 7, 12)
    total = n.op("Add", x, y)
    normed = n.op("LayerNormalization", total, n.w(12), n.w(12))
    used = check(*(n.finish(normed, n.op("Sub", total, normed), total) if more else n.finish(normed)))
    assert used["AddLayerNormalization"] == 1


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_strides_of_a_transpose(shape: list[int], random: Any) -> None:
    perm = list(range(len(shape)))
    random.shuffle(perm)
    out = tuple(shape[p] for p in perm)
    strides = tuple(row_major(tuple(shape))[p] for p in perm)
    region = Region(0, out, 3, strides, 0, row_major(out))
    found = axis_strides(region, out)
    assert found == tuple(s if n > 1 else 0 for n, s in zip(out, strides, strict=True))
    x = np.arange(int(np.prod(shape))).reshape(shape)
    back = axis_strides(swapped(region.replace(src_offset=0)), shape)
    assert back is not None
    scattered = np.empty(x.size, x.dtype)
    np.lib.stride_tricks.as_strided(scattered, shape, [s * x.itemsize for s in back])[...] = x
    np.testing.assert_array_equal(scattered.reshape(out), x.transpose(perm))


def test_refinement() -> None:
    assert refine((2, 4, 9), (2, 2, 18)) == (2, 2, 2, 9)
    assert refine((6, 2), (4, 3)) is None
    assert refine((1, 1)) == ()
    assert split_axes((2, 4, 1, 9), (2, 2, 2, 9)) == [(2,), (2, 2), (), (9,)]
    assert split_axes((4, 9), (2, 9)) is None
    assert axis_strides(Region(0, (2, 6), 0, (20, 1), 0, (6, 1)), (2, 6)) == (20, 1)
    assert axis_strides(Region(0, (2, 6), 0, (20, 1), 0, (6, 1)), (12,)) is None
