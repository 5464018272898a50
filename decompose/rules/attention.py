"""Attention, FlexAttention, RotaryEmbedding and CausalConvWithState as atomic ops.

Half types are computed in f32. Groups of query heads that share a key head become rows of one product, so keys
and values are never repeated.
"""

from __future__ import annotations

import math

import numpy as np

from mnnpy.decompose.builder import Builder, Var, evaluate
from mnnpy.decompose.ops.attention import Heads, attention_dims
from mnnpy.decompose.ops.element_types import ElementType, maybe_element_type
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules import linear_attention as _linear_attention  # noqa: F401  registers its rule
from mnnpy.decompose.rules.helpers import to_float
from mnnpy.errors import ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph

__all__ = ["inline_graph"]


def _sizes(h: Heads) -> tuple[int, int, int, int, int, int]:
    """Batch, key heads, queries per key head, query steps, key steps in all, value size."""
    q_heads, kv_heads = int(h.q_heads), int(h.kv_heads)  # type: ignore[arg-type]
    return int(h.batch), kv_heads, q_heads // kv_heads, int(h.q_steps), int(h.total), int(h.v_size)  # type: ignore[arg-type]


def _to_heads(g: Builder, x: Var, heads: int) -> Var:
    """``[B, S, H·d]`` as ``[B, H, S, d]``."""
    if x.rank == 4:
        return x
    b, s, hidden = x.shape
    return g.transpose(g.reshape(x, (b, s, heads, hidden // heads)), (0, 2, 1, 3))


def _scores(g: Builder, q: Var, k: Var, dims: tuple[int, int, int, int, int, int], scale: float) -> Var:
    """``scale · q·kᵀ`` as ``[B, Hq, S, T]``, in the type that scores are computed in."""
    b, kv_heads, group, steps, total, _ = dims
    q, k = g.mul(to_float(g, q), scale), to_float(g, k)
    q = g.reshape(q, (b, kv_heads, group * steps, q.shape[3]))
    product = g.matmul(q, g.transpose(k, (0, 1, 3, 2)))
    return g.reshape(product, (b, kv_heads * group, steps, total))


def _weighted(g: Builder, p: Var, v: Var, dims: tuple[int, int, int, int, int, int]) -> Var:
    """``p·v`` as ``[B, Hq, S, dv]``."""
    b, kv_heads, group, steps, total, size = dims
    p = g.reshape(p, (b, kv_heads, group * steps, total))
    y = g.matmul(p, g.cast(v, p.dtype))
    return g.reshape(y, (b, kv_heads * group, steps, size))


def _allowed(
    g: Builder, q_steps: int, total: int, past: int, lengths: Var | None, is_causal: int, left: int, right: int
) -> Var | None:
    """Which key each query may see (bool, broadcastable to ``[B, 1, S, T]``), or None where all may."""
    ahead = right if right >= 0 else None
    if is_causal:
        ahead = 0 if ahead is None else min(ahead, 0)
    distance = np.arange(total)[None, :] - np.arange(q_steps)[:, None]  # key position minus query index
    if lengths is None:
        seen = np.ones((q_steps, total), np.bool_)
        if ahead is not None:
            seen &= distance <= past + ahead
        if left >= 0:
            seen &= distance >= past - left
        return None if seen.all() else g.const(seen)
    n = g.reshape(lengths, (lengths.shape[0], 1, 1, 1))
    seen_keys = g.binary("Less", g.const(np.arange(total), DType.I64), n)
    if ahead is not None:
        edge = g.const(distance + q_steps - ahead, DType.I64)
        seen_keys = g.binary("And", seen_keys, g.binary("LessEqual", edge, n))
    if left >= 0:
        edge = g.const(distance + q_steps + left, DType.I64)
        seen_keys = g.binary("And", seen_keys, g.binary("GreaterEqual", edge, n))
    return seen_keys


def _mask(g: Builder, scores: Var, mask: Var | None, allowed: Var | None, total: int) -> tuple[Var, Var | None]:
    """Scores with masks applied, and which query rows see any key at all (None: each does)."""
    if mask is not None:
        short = total - mask.shape[-1]
        if short < 0:
            raise ShapeError(f"attn_mask has {mask.shape[-1]} columns for {total} keys")
        lead = [0] * (mask.rank - 1)
        if mask.dtype is DType.BOOL:
            mask = g.pad(mask, [*lead, 0], [*lead, short], False) if short else mask
            allowed = mask if allowed is None else g.binary("And", mask, allowed)
            mask = None
        else:
            mask = g.cast(mask, scores.dtype)
            mask = g.pad(mask, [*lead, 0], [*lead, short], -math.inf) if short else mask
            if allowed is not None:
                mask = g.select(allowed, mask, -math.inf)
    if mask is not None:
        top = g.reduce("Max", mask, [-1])
        return g.add(scores, mask), g.binary("Greater", top, -math.inf)
    if allowed is None:
        return scores, None
    masked = g.select(allowed, scores, -math.inf)
    if allowed.value is not None and bool(allowed.value.any(axis=-1).all()):
        return masked, None
    return masked, g.reduce("Max", allowed, [-1])


def _softmax(g: Builder, scores: Var, precision: DType | None) -> Var:
    """Softmax over keys in *precision*, back in the type of *scores*."""
    narrowed = scores if precision is None else g.cast(scores, precision)
    return g.cast(g.op("Softmax", narrowed, axis=-1), scores.dtype)


@rule("Attention")
def attention(
    g: Builder,
    Q: Var,
    K: Var,
    V: Var,
    attn_mask: Var | None = None,
    past_key: Var | None = None,
    past_value: Var | None = None,
    nonpad_kv_seqlen: Var | None = None,
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
) -> tuple[Var, ...]:
    past_operand = past_key.operand() if past_key is not None else None
    h = attention_dims(Q.operand(), K.operand(), V.operand(), past_operand, q_num_heads, kv_num_heads)
    dims = _sizes(h)
    _, kv_heads, group, steps, total, size = dims
    q = _to_heads(g, Q, kv_heads * group)
    k, v = _to_heads(g, K, kv_heads), _to_heads(g, V, kv_heads)
    if past_key is not None and past_value is not None:
        k, v = g.concat([past_key, k], 2), g.concat([past_value, v], 2)
    head_size = q.shape[3]
    raw = _scores(g, q, k, dims, 1 / math.sqrt(head_size) if scale is None else scale)
    capped = g.mul(g.unary("Tanh", g.mul(raw, 1 / softcap)), softcap) if softcap else raw
    past = int(h.past)  # type: ignore[arg-type]
    allowed = _allowed(g, steps, total, past, nonpad_kv_seqlen, is_causal, left_window_size, right_window_size)
    biased, any_key = _mask(g, capped, attn_mask, allowed, total)
    p = _softmax(g, biased, maybe_element_type(softmax_precision))
    if any_key is not None and qk_matmul_output_mode == 3:
        p = g.select(any_key, p, 0)
    y = _weighted(g, p, v, dims)
    if any_key is not None and qk_matmul_output_mode != 3:
        y = g.select(any_key, y, 0)  # rows without a key hold NaN here, and Y is smaller than the probabilities
    if Q.rank == 3:
        y = g.reshape(g.transpose(y, (0, 2, 1, 3)), (*Q.shape[:2], kv_heads * group * size))
    stage = (raw, capped, biased, p)[qk_matmul_output_mode]
    return g.cast(y, Q.dtype), k, v, g.cast(stage, Q.dtype)


def inline_graph(g: Builder, graph: Graph, inputs: list[Var]) -> list[Var]:
    """Emit the nodes of a sub-graph; returns its outputs."""
    known = dict(zip(graph.input_names, inputs, strict=True))
    known.update({name: g.const(array) for name, array in graph.constants.items() if name not in known})
    for node in graph.nodes:
        if node.op in ("Shape", "Size"):  # decomposition knows all shapes, and what is computed from them folds
            shape = known[node.inputs[0]].shape
            known[node.outputs[0]] = g.const(evaluate(node.op, [np.broadcast_to(np.int8(0), shape)], node.attrs)[0])
            continue
        made = g.op(node.op, *(known[n] if n else None for n in node.inputs), outputs=len(node.outputs), **node.attrs)
        known.update(zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True))
    return [known[n] for n in graph.output_names]


@rule("preview.FlexAttention")
def flex_attention(
    g: Builder,
    Q: Var,
    K: Var,
    V: Var,
    *captured: Var,
    scale: float | None = None,
    score_mod: Graph | None = None,
    prob_mod: Graph | None = None,
    softmax_precision: ElementType | None = None,
    captures: int = 0,
) -> Var:
    dims = _sizes(attention_dims(Q.operand(), K.operand(), V.operand(), None, None, None))
    precision = maybe_element_type(softmax_precision) or (DType.F64 if Q.dtype is DType.F64 else DType.F32)
    scores = g.cast(_scores(g, Q, K, dims, 1 / math.sqrt(Q.shape[3]) if scale is None else scale), precision)
    if score_mod is not None:
        (scores,) = inline_graph(g, score_mod, [scores, *captured])
    p = g.op("Softmax", scores, axis=-1)
    if prob_mod is not None:
        (p,) = inline_graph(g, prob_mod, [p, *captured])
    return g.cast(_weighted(g, to_float(g, p), V, dims), Q.dtype)


@rule("RotaryEmbedding")
def rotary_embedding(
    g: Builder,
    X: Var,
    cos_cache: Var,
    sin_cache: Var,
    position_ids: Var | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Var:
    x = to_float(g, X)
    if X.rank == 3:
        b, steps, hidden = X.shape
        x = g.reshape(x, (b, steps, num_heads or 1, hidden // (num_heads or 1)))
        spread = (b, steps, 1)
    else:
        b, _, steps, _ = X.shape
        spread = (b, 1, steps)
    size = x.shape[3]
    width = rotary_embedding_dim or size
    half = width // 2
    # A pair (first, second) is an axis of two, inside or outside of the axis over pairs; rotating swaps its sides.
    pair, pair_axis, row = ((half, 2), 4, (half, 1)) if interleaved else ((2, half), 3, (1, half))
    sign = g.const(np.asarray([-1, 1]).reshape((1, 2) if interleaved else (2, 1)), x.dtype)

    def table(cache: Var, signed: bool) -> Var:
        t = to_float(g, cache)
        t = g.reshape(t, (*cache.shape[:-1], *row))
        if signed:
            t = g.mul(t, sign)
        if position_ids is not None:
            t = g.gather(t, position_ids, 0)
        return g.reshape(t, (*spread, *t.shape[-2:]))

    turning = g.reshape(g.slice(x, 3, 0, width) if width < size else x, (*x.shape[:3], *pair))
    swapped = g.slice(turning, pair_axis, 1, -(2**31), -1)
    y = g.add(g.mul(turning, table(cos_cache, False)), g.mul(swapped, table(sin_cache, True)))
    y = g.reshape(y, (*x.shape[:3], width))
    if width < size:
        y = g.concat([y, g.slice(x, 3, width, size)], 3)
    return g.cast(g.reshape(y, X.shape), X.dtype)


@rule("CausalConvWithState")
def causal_conv_with_state(
    g: Builder,
    x: Var,
    weight: Var,
    bias: Var | None = None,
    past_state: Var | None = None,
    *,
    activation: str = "none",
) -> tuple[Var, Var]:
    channels, _, k = weight.shape
    steps = x.shape[2]
    whole = g.pad(x, (0, 0, k - 1), (0, 0, 0)) if past_state is None else g.concat([past_state, x], 2)
    operands = [whole, weight] if bias is None else [whole, weight, bias]
    y = g.op("Convolution", *operands, strides=(1,), pads=(0, 0), dilations=(1,), group=channels)
    if activation != "none":
        y = g.unary("Silu", y)
    return y, g.slice(whole, 2, steps, steps + k - 1)
