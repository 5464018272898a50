"""Attention and its companions: rules against references."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.decompose.infer import infer, operand_of
from mnnpy.errors import ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, Value
from tests.rule_check import check_rule


def uniform(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Any:
    return rng.uniform(-1, 1, shape).astype(dtype)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_attention(data: st.DataObject) -> None:
    draw = data.draw
    r = np.random.default_rng(draw(st.integers(0, 99)))
    b, kv, group, s, t, d, dv = (draw(st.integers(1, n)) for n in (2, 2, 2, 4, 4, 3, 3))
    q, k, v = uniform(r, b, kv * group, s, d), uniform(r, b, kv, t, d), uniform(r, b, kv, t, dv)
    attrs: dict[str, Any] = {
        "is_causal": draw(st.integers(0, 1)), "qk_matmul_output_mode": draw(st.integers(0, 3)),
        "softcap": draw(st.sampled_from([0.0, 2.0])), "scale": draw(st.sampled_from([None, 0.7])),
        "left_window_size": draw(st.integers(-1, 2)), "right_window_size": draw(st.integers(-1, 2)),
    }  # fmt: skip
    past_k = past_v = lengths = mask = None
    cache = draw(st.sampled_from(["none", "inside", "outside"]))
    total = t
    if cache == "inside":
        total += 2
        past_k, past_v = uniform(r, b, kv, 2, d), uniform(r, b, kv, 2, dv)
    elif cache == "outside":
        lengths = r.integers(0, t + 1, b)
    kind = draw(st.sampled_from(["none", "bool", "float", "short"]))
    if kind != "none":
        lead = draw(st.sampled_from([(), (b, 1), (b, kv * group)]))
        width = max(1, total - 1) if kind == "short" else total
        mask = r.random((*lead, s, width)) < 0.6
        if kind != "bool":
            mask = np.where(mask, uniform(r, *mask.shape), np.float32(-np.inf)).astype(np.float32)
    if draw(st.booleans()):
        q, k, v = (x.transpose(0, 2, 1, 3).reshape(b, x.shape[2], -1) for x in (q, k, v))
        attrs |= {"q_num_heads": kv * group, "kv_num_heads": kv}
    check_rule("Attention", [q, k, v, mask, past_k, past_v, lengths], attrs, outputs=4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(np.float16, 2e-3), (ml_dtypes.bfloat16, 2e-2), (np.float64, 1e-12)])
@pytest.mark.parametrize("precision", [None, DType.F32])
def test_attention_types(dtype: Any, tolerance: float, precision: DType | None) -> None:
    r = np.random.default_rng(0)
    xs = [uniform(r, 1, 2, 3, 4, dtype=dtype) for _ in range(3)]
    if dtype is np.float64 and precision is not None:
        tolerance = 1e-6
    check_rule("Attention", xs, {"softmax_precision": precision, "is_causal": 1}, rtol=tolerance, atol=tolerance)


def test_attention_nodes() -> None:
    r = np.random.default_rng(0)
    xs = [uniform(r, 1, 4, 3, 8), uniform(r, 1, 2, 3, 8), uniform(r, 1, 2, 3, 8)]
    nodes = check_rule("Attention", xs, {"is_causal": 1})
    assert sum(n.op == "MatMul" for n in nodes) == 2
    assert not [n for n in nodes if n.op == "Gather"]


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("width", [0, 4])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rotary(interleaved: int, rank: int, width: int, positions: bool, dtype: Any) -> None:
    r = np.random.default_rng(1)
    x = uniform(r, *((2, 3, 4, 6) if rank == 4 else (2, 4, 18)), dtype=dtype)
    half = (width or 6) // 2
    lead = (9,) if positions else (2, 4)
    xs = [x, uniform(r, *lead, half, dtype=dtype), uniform(r, *lead, half, dtype=dtype)]
    if positions:
        xs.append(r.integers(0, 9, (2, 4)))
    attrs = {"interleaved": interleaved, "rotary_embedding_dim": width, "num_heads": 3 if rank == 3 else None}
    tolerance = 1e-5 if dtype is np.float32 else 1e-3
    nodes = check_rule("RotaryEmbedding", xs, attrs, rtol=tolerance, atol=tolerance)
    assert sum(n.op not in ("Raster", "Convert") for n in nodes) == (6 if positions else 4)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_linear_attention(data: st.DataObject) -> None:
    draw = data.draw
    r = np.random.default_rng(draw(st.integers(0, 99)))
    b, h, group, steps, d_k, d_v = (draw(st.integers(1, n)) for n in (2, 2, 2, 7, 3, 3))
    update = draw(st.sampled_from(["linear", "gated", "delta", "gated_delta"]))
    xs: list[Any] = [
        uniform(r, b, steps, h * group * d_k),
        uniform(r, b, steps, h * d_k),
        uniform(r, b, steps, h * d_v),
    ]
    xs.append(uniform(r, b, h, d_k, d_v) if draw(st.booleans()) else None)
    per_key = draw(st.booleans())
    xs.append(-3 * abs(uniform(r, b, steps, h * (d_k if per_key else 1))) if "gated" in update else None)
    xs.append(abs(uniform(r, b, steps, draw(st.sampled_from([1, h])))) if "delta" in update else None)
    attrs = {"q_num_heads": h * group, "kv_num_heads": h, "update_rule": update,
             "chunk_size": draw(st.sampled_from([2, 3, 64])),
             "scale": draw(st.sampled_from([0.0, 0.5]))}  # fmt: skip
    check_rule("LinearAttention", xs, attrs, outputs=2, rtol=1e-4, atol=1e-5)


def test_linear_attention_survives_strong_decay() -> None:
    r = np.random.default_rng(0)
    xs = [uniform(r, 1, 64, 4), uniform(r, 1, 64, 4), uniform(r, 1, 64, 4), None, np.full((1, 64, 1), -40, np.float32)]
    attrs = {"q_num_heads": 1, "kv_num_heads": 1, "update_rule": "gated"}
    check_rule("LinearAttention", xs, attrs, outputs=2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_causal_conv(state: bool, k: int, steps: int, activation: str) -> None:
    r = np.random.default_rng(2)
    xs = [uniform(r, 2, 3, steps), uniform(r, 3, 1, k), uniform(r, 3), uniform(r, 2, 3, k - 1) if state else None]
    check_rule("CausalConvWithState", xs, {"activation": activation}, outputs=2)


def test_flex_attention() -> None:
    r = np.random.default_rng(3)
    xs = [uniform(r, 1, 4, 3, 2), uniform(r, 1, 2, 3, 2), uniform(r, 1, 2, 3, 5)]
    body = lambda fn: Graph(  # noqa: E731
        "mod", (Value("s"), Value("c")), (Value("y"),), (Node("Binary", ("s", "c"), ("y",), {"fn": fn}),)
    )
    captured = uniform(r, 3, 3)
    attrs = {"score_mod": body("Add"), "prob_mod": body("Mul"), "captures": 1}
    check_rule("preview.FlexAttention", [*xs, captured], attrs)


@pytest.mark.parametrize(
    "shapes, attrs, message",
    [
        ([(1, 2, 3), (1, 2, 3), (1, 2, 3)], {}, "q_num_heads must be given"),
        ([(1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 4)], {}, "head sizes of Q and K differ: 4 against 5"),
        ([(1, 3, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)], {}, "3 query heads do not divide"),
        ([(1, 2, 3, 4)] * 3, {"qk_matmul_output_mode": 4}, "qk_matmul_output_mode 4"),
    ],
)
def test_errors(shapes: list[tuple[int, ...]], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        infer("Attention", [operand_of(np.zeros(s, np.float32)) for s in shapes], attrs, 1)
