"""References of Attention, FlexAttention, RotaryEmbedding, LinearAttention and CausalConvWithState."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mnnpy.backends.reference.kernels.numeric import narrow, wide
from mnnpy.decompose.ops.attention import check_linear_attention
from mnnpy.decompose.ops.element_types import ElementType, maybe_element_type
from mnnpy.decompose.registry import reference
from mnnpy.errors import ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph

Run = Callable[[Graph, Sequence[Any]], list[Any]]


def _heads(x: Array, heads: int | None) -> Array:
    """``[B, S, H·d]`` as ``[B, H, S, d]``."""
    if x.ndim == 4:
        return x
    b, s, hidden = x.shape
    heads = heads or 1
    return x.reshape(b, s, heads, hidden // heads).transpose(0, 2, 1, 3)


def softmax(x: Array) -> Array:
    """Along the last axis; a row of −inf only gives NaN, as the formula does."""
    if x.shape[-1] == 0:
        return x
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _bias(
    mask: Array | None,
    lengths: Array | None,
    q_steps: int,
    total: int,
    past: int,
    is_causal: int,
    left: int,
    right: int,
) -> Array:
    """Everything that is added to the scores, broadcastable to ``[B, H, S, T]``."""
    bias = np.zeros((1, 1, q_steps, total))
    if mask is not None:
        added = np.where(mask, 0.0, -np.inf) if mask.dtype == np.bool_ else wide(mask).astype(np.float64)
        short = total - added.shape[-1]
        if short < 0:
            raise ShapeError(f"attn_mask has {added.shape[-1]} columns for {total} keys")
        bias = bias + np.pad(added, [(0, 0)] * (added.ndim - 1) + [(0, short)], constant_values=-np.inf)
    keys = np.arange(total)
    offset = np.full((1, 1, 1, 1), past) if lengths is None else lengths.reshape(-1, 1, 1, 1) - q_steps
    position = offset + np.arange(q_steps).reshape(-1, 1)
    allowed = np.ones((1, 1, 1, 1), np.bool_)
    if is_causal:
        allowed = allowed & (keys <= position)
    if left >= 0:
        allowed = allowed & (keys >= position - left)
    if right >= 0:
        allowed = allowed & (keys <= position + right)
    if lengths is not None:
        allowed = allowed & (keys < lengths.reshape(-1, 1, 1, 1))
    return np.where(allowed, bias, -np.inf)


@reference("Attention")
def attention(
    Q: Array,
    K: Array,
    V: Array,
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    nonpad_kv_seqlen: Array | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: ElementType | None = None,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> tuple[Array, ...]:
    q, k, v = _heads(Q, q_num_heads), _heads(K, kv_num_heads), _heads(V, kv_num_heads)
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k = np.concatenate([past_key, k], axis=2)
        v = np.concatenate([past_value, v], axis=2)
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = np.repeat(wide(k), group, axis=1), np.repeat(wide(v), group, axis=1)
    factor = 1 / np.sqrt(q.shape[3]) if scale is None else scale
    stages = [wide(q) @ wide_k.transpose(0, 1, 3, 2) * factor]
    stages.append(softcap * np.tanh(stages[0] / softcap) if softcap else stages[0])
    bias = _bias(
        attn_mask, nonpad_kv_seqlen, q.shape[2], k.shape[2], past, is_causal, left_window_size, right_window_size
    )
    stages.append(stages[1] + bias)
    precision = maybe_element_type(softmax_precision)
    scores = stages[2] if precision is None else wide(narrow(stages[2], precision.numpy))
    p = softmax(scores)
    if precision is not None:
        p = wide(narrow(p, precision.numpy))
    nothing = np.isneginf(bias.max(axis=-1, keepdims=True, initial=-np.inf))
    p = np.where(nothing, 0.0, p)
    stages.append(p)
    y = np.where(nothing, 0.0, p @ wide_v) if k.shape[2] else np.zeros((*q.shape[:3], v.shape[3]))
    if Q.ndim == 3:
        y = y.transpose(0, 2, 1, 3).reshape(*Q.shape[:2], -1)
    return narrow(y, Q.dtype), k, v, narrow(stages[qk_matmul_output_mode], Q.dtype)


@reference("preview.FlexAttention", evaluate=True)
def flex_attention(
    run: Run,
    Q: Array,
    K: Array,
    V: Array,
    *captured: Any,
    scale: float | None = None,
    score_mod: Graph | None = None,
    prob_mod: Graph | None = None,
    softmax_precision: ElementType | None = None,
    captures: int = 0,
) -> Array:
    group = Q.shape[1] // K.shape[1]
    k, v = np.repeat(wide(K), group, axis=1), np.repeat(wide(V), group, axis=1)
    factor = 1 / np.sqrt(Q.shape[3]) if scale is None else scale
    precision = maybe_element_type(softmax_precision) or (DType.F64 if Q.dtype == np.float64 else DType.F32)
    scores = narrow(wide(Q) @ k.transpose(0, 1, 3, 2) * factor, precision.numpy)
    if score_mod is not None:
        (scores,) = run(score_mod, [scores, *captured])
    p = narrow(softmax(wide(scores)), precision.numpy)
    if prob_mod is not None:
        (p,) = run(prob_mod, [p, *captured])
    return narrow(wide(p) @ v, Q.dtype)


@reference("RotaryEmbedding")
def rotary_embedding(
    X: Array,
    cos_cache: Array,
    sin_cache: Array,
    position_ids: Array | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Array:
    x = wide(X)
    if X.ndim == 3:
        x = x.reshape(*X.shape[:2], num_heads or 1, X.shape[2] // (num_heads or 1))
        axis = 2
    else:
        axis = 1
    cos, sin = wide(cos_cache), wide(sin_cache)
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]
    cos, sin = np.expand_dims(cos, axis), np.expand_dims(sin, axis)
    width = rotary_embedding_dim or x.shape[-1]
    first, second = (
        (slice(0, width, 2), slice(1, width, 2)) if interleaved else (slice(width // 2), slice(width // 2, width))
    )
    y = x.copy()
    y[..., first] = cos * x[..., first] - sin * x[..., second]
    y[..., second] = sin * x[..., first] + cos * x[..., second]
    return narrow(y.reshape(X.shape), X.dtype)


@reference("LinearAttention")
def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    past_state: Array | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    kv_num_heads: int,
    q_num_heads: int,
    chunk_size: int = 64,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Array, Array]:
    gated, delta = check_linear_attention(update_rule, decay, beta)
    b, steps, _ = query.shape
    h, group = kv_num_heads, q_num_heads // kv_num_heads
    q, k, v = (wide(x).reshape(b, steps, n, -1) for x, n in ((query, q_num_heads), (key, h), (value, h)))
    factor = scale or 1 / np.sqrt(q.shape[3])
    state = np.zeros((b, h, k.shape[3], v.shape[3])) if past_state is None else wide(past_state).copy()
    rate = wide(beta).reshape(b, steps, -1, 1) if beta is not None else None
    fade = np.exp(wide(decay).reshape(b, steps, h, -1)) if decay is not None else None
    y = np.zeros((b, steps, q_num_heads, v.shape[3]))
    for t in range(steps):
        if gated and fade is not None:
            state = state * fade[:, t, :, :, None]
        new = v[:, t]
        if delta and rate is not None:
            new = rate[:, t] * (new - np.einsum("bhkv,bhk->bhv", state, k[:, t]))
        state = state + k[:, t, :, :, None] * new[:, :, None, :]
        y[:, t] = factor * np.einsum("bhkv,bhk->bhv", np.repeat(state, group, axis=1), q[:, t])
    kind = query.dtype if past_state is None else past_state.dtype
    return narrow(y.reshape(b, steps, -1), query.dtype), narrow(state, kind)


@reference("CausalConvWithState")
def causal_conv_with_state(
    x: Array, weight: Array, bias: Array | None = None, past_state: Array | None = None, *, activation: str = "none"
) -> tuple[Array, Array]:
    k, steps = weight.shape[2], x.shape[2]
    before = np.zeros((*x.shape[:2], k - 1), x.dtype) if past_state is None else past_state
    whole = np.concatenate([before, x], axis=2)
    w, source = wide(weight), wide(whole)
    y = np.zeros(x.shape)
    for j in range(k):
        y += w[:, 0, j, None] * source[:, :, j : j + steps]
    if bias is not None:
        y += wide(bias)[:, None]
    if activation != "none":
        y = y / (1 + np.exp(-y))
    return narrow(y, x.dtype), whole[:, :, whole.shape[2] - (k - 1) :]
