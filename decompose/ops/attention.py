"""Attention and its companions of language models: shapes (ONNX operator specification, Attention-25 and others)."""

from __future__ import annotations

from mnnpy.classes import dataclass
from mnnpy.decompose.infer import Operand
from mnnpy.decompose.ops.element_types import ElementType, maybe_element_type
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, TensorType

__all__ = ["UPDATE_RULES", "Heads", "attention_dims", "check_linear_attention"]

UPDATE_RULES = ("linear", "gated", "delta", "gated_delta")


@dataclass(frozen=True, slots=True)
class Heads:
    """Dimensions of one attention: batch, heads, query and new key steps, sizes of query and value heads."""

    batch: Dim
    q_heads: Dim
    kv_heads: Dim
    q_steps: Dim
    kv_steps: Dim
    size: Dim
    v_size: Dim
    past: Dim

    @property
    def total(self) -> Dim:
        return self.past + self.kv_steps


def _differ(a: Dim, b: Dim) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a != b


def _split(x: Operand, heads: int | None, what: str, attribute: str) -> tuple[Dim, Dim, Dim, Dim]:
    """(batch, heads, steps, size) of a rank 3 or 4 operand."""
    if x.rank == 4:
        b, h, s, d = x.shape
        return b, h, s, d
    if x.rank != 3:
        raise ShapeError(f"{what} has shape {x.shape}; Attention takes rank 3 (with {attribute}) or rank 4")
    if not heads:
        raise ShapeError(f"{what} has rank 3, so {attribute} must be given")
    b, s, hidden = x.shape
    if isinstance(hidden, int) and hidden % heads:
        raise ShapeError(f"the hidden size {hidden} of {what} does not divide into {heads} heads")
    return b, heads, s, hidden // heads


def attention_dims(
    Q: Operand, K: Operand, V: Operand, past_key: Operand | None, q_num_heads: int | None, kv_num_heads: int | None
) -> Heads:
    """The dimensions of Attention; raises ShapeError where operands do not fit."""
    if not (Q.rank == K.rank == V.rank):
        raise ShapeError(f"Q, K and V have ranks {Q.rank}, {K.rank} and {V.rank}; they must agree")
    batch, q_heads, q_steps, size = _split(Q, q_num_heads, "Q", "q_num_heads")
    _, kv_heads, kv_steps, k_size = _split(K, kv_num_heads, "K", "kv_num_heads")
    _, v_heads, v_steps, v_size = _split(V, kv_num_heads, "V", "kv_num_heads")
    for what, a, b in (
        ("batch sizes", batch, K.shape[0]), ("batch sizes", batch, V.shape[0]), ("head sizes of Q and K", size, k_size),
        ("heads of K and V", kv_heads, v_heads), ("steps of K and V", kv_steps, v_steps),
    ):  # fmt: skip
        if _differ(a, b):
            raise ShapeError(f"{what} differ: {a} against {b}")
    if isinstance(q_heads, int) and isinstance(kv_heads, int) and (kv_heads == 0 or q_heads % kv_heads):
        raise ShapeError(f"{q_heads} query heads do not divide into groups for {kv_heads} key-value heads")
    past: Dim = 0
    if past_key is not None:
        if past_key.rank != 4:
            raise ShapeError(f"past_key has shape {past_key.shape}; it takes (batch, kv_heads, past steps, head size)")
        past = past_key.shape[2]
    return Heads(batch, q_heads, kv_heads, q_steps, kv_steps, size, v_size, past)


@op("Attention", OpClass.COMPOSITE)
def attention(
    Q: Operand,
    K: Operand,
    V: Operand,
    attn_mask: Operand | None = None,
    past_key: Operand | None = None,
    past_value: Operand | None = None,
    nonpad_kv_seqlen: Operand | None = None,
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
) -> tuple[TensorType, TensorType, TensorType, TensorType]:
    """Scaled dot-product attention: multi-head, grouped or multi-query, with masks, windows and a key-value cache."""
    h = attention_dims(Q, K, V, past_key, q_num_heads, kv_num_heads)
    if (past_key is None) != (past_value is None):
        raise ShapeError("past_key and past_value must be given together")
    if past_key is not None and nonpad_kv_seqlen is not None:
        raise ShapeError("nonpad_kv_seqlen is for a cache kept outside; it does not go with past_key and past_value")
    if qk_matmul_output_mode not in (0, 1, 2, 3):
        raise ShapeError(f"qk_matmul_output_mode {qk_matmul_output_mode} is not 0, 1, 2 or 3")
    maybe_element_type(softmax_precision)
    if Q.rank == 3:
        y = TensorType(Q.dtype, (h.batch, h.q_steps, h.q_heads * h.v_size))
    else:
        y = TensorType(Q.dtype, (h.batch, h.q_heads, h.q_steps, h.v_size))
    key = TensorType(K.dtype, (h.batch, h.kv_heads, h.total, h.size))
    value = TensorType(V.dtype, (h.batch, h.kv_heads, h.total, h.v_size))
    return y, key, value, TensorType(Q.dtype, (h.batch, h.q_heads, h.q_steps, h.total))


@op("preview.FlexAttention", OpClass.COMPOSITE)
def flex_attention(
    Q: Operand,
    K: Operand,
    V: Operand,
    *captured: Operand | None,
    scale: float | None = None,
    score_mod: Graph | None = None,
    prob_mod: Graph | None = None,
    softmax_precision: ElementType | None = None,
    captures: int = 0,
) -> TensorType:
    """Attention whose scores and probabilities pass through sub-graphs (captured values are their trailing inputs)."""
    if Q.rank != 4:
        raise ShapeError(f"Q has shape {Q.shape}; FlexAttention takes rank 4")
    h = attention_dims(Q, K, V, None, None, None)
    for name, body in (("score_mod", score_mod), ("prob_mod", prob_mod)):
        if body is not None and (len(body.inputs) != 1 + len(captured) or len(body.outputs) != 1):
            raise ShapeError(f"{name} has {len(body.inputs)} inputs and {len(body.outputs)} outputs, not one each")
    maybe_element_type(softmax_precision)
    return TensorType(Q.dtype, (h.batch, h.q_heads, h.q_steps, h.v_size))


@op("RotaryEmbedding", OpClass.COMPOSITE)
def rotary_embedding(
    X: Operand,
    cos_cache: Operand,
    sin_cache: Operand,
    position_ids: Operand | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> TensorType:
    """Rotary position embedding (Su et al., "RoFormer", 2021)."""
    if X.rank == 3:
        if not num_heads:
            raise ShapeError("X has rank 3, so num_heads must be given")
        hidden = X.shape[2]
        if isinstance(hidden, int) and hidden % num_heads:
            raise ShapeError(f"the hidden size {hidden} does not divide into {num_heads} heads")
        size = hidden // num_heads
    elif X.rank == 4:
        size = X.shape[3]
    else:
        raise ShapeError(f"X has shape {X.shape}; RotaryEmbedding takes rank 3 or 4")
    rotated = rotary_embedding_dim or size
    if isinstance(rotated, int) and (rotated % 2 or (isinstance(size, int) and rotated > size)):
        raise ShapeError(
            f"{rotated} rotated elements of a head of size {size}: must be even and not more than the head"
        )
    rank = 3 if position_ids is None else 2
    for name, cache in (("cos_cache", cos_cache), ("sin_cache", sin_cache)):
        if cache.rank != rank:
            raise ShapeError(
                f"{name} has shape {cache.shape}; rank {rank} is needed "
                f"{'without' if rank == 3 else 'with'} position_ids"
            )
        if _differ(cache.shape[-1], rotated // 2):
            raise ShapeError(f"{name} has {cache.shape[-1]} columns, {rotated // 2} are needed")
    return X.type


def check_linear_attention(update_rule: str, decay: object | None, beta: object | None) -> tuple[bool, bool]:
    """Whether the rule (decays, corrects); raises ShapeError for an unknown rule or a missing operand."""
    if update_rule not in UPDATE_RULES:
        raise ShapeError(f"update_rule '{update_rule}' is not one of {', '.join(UPDATE_RULES)}")
    gated, delta = update_rule.startswith("gated"), update_rule.endswith("delta")
    if gated and decay is None:
        raise ShapeError(f"update_rule '{update_rule}' needs decay")
    if delta and beta is None:
        raise ShapeError(f"update_rule '{update_rule}' needs beta")
    return gated, delta


@op("LinearAttention", OpClass.COMPOSITE)
def linear_attention(
    query: Operand,
    key: Operand,
    value: Operand,
    past_state: Operand | None = None,
    decay: Operand | None = None,
    beta: Operand | None = None,
    *,
    kv_num_heads: int,
    q_num_heads: int,
    chunk_size: int = 64,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[TensorType, TensorType]:
    """Linear attention with a recurrent state, and its gated and delta-rule forms."""
    check_linear_attention(update_rule, decay, beta)
    if kv_num_heads < 1 or q_num_heads % kv_num_heads:
        raise ShapeError(f"q_num_heads={q_num_heads} is not a multiple of kv_num_heads={kv_num_heads}")
    for name, x, heads in (("query", query, q_num_heads), ("key", key, kv_num_heads), ("value", value, kv_num_heads)):
        if x.rank != 3:
            raise ShapeError(f"{name} has shape {x.shape}; LinearAttention takes (batch, steps, heads · size)")
        if isinstance(x.shape[2], int) and x.shape[2] % heads:
            raise ShapeError(f"{name} has {x.shape[2]} columns for {heads} heads")
    batch, steps, _ = query.shape
    d_k, d_v = key.shape[2] // kv_num_heads, value.shape[2] // kv_num_heads
    if _differ(query.shape[2] // q_num_heads, d_k):
        raise ShapeError(f"head sizes of query and key differ: {query.shape[2] // q_num_heads} against {d_k}")
    state = past_state.dtype if past_state is not None else query.dtype
    return TensorType(query.dtype, (batch, steps, d_v * q_num_heads)), TensorType(
        state, (batch, kv_num_heads, d_k, d_v)
    )


@op("CausalConvWithState", OpClass.COMPOSITE)
def causal_conv_with_state(
    x: Operand,
    weight: Operand,
    bias: Operand | None = None,
    past_state: Operand | None = None,
    *,
    activation: str = "none",
) -> tuple[TensorType, TensorType]:
    """Depthwise convolution over the past with a carried state of ``k − 1`` positions."""
    if x.rank != 3 or weight.rank != 3:
        raise ShapeError(f"input {x.shape} and weight {weight.shape} must have rank 3")
    batch, channels, _ = x.shape
    if _differ(weight.shape[0], channels) or _differ(weight.shape[1], 1):
        raise ShapeError(f"weight has shape {weight.shape}; ({channels}, 1, k) is needed")
    if activation not in ("none", "silu", "swish"):
        raise ShapeError(f"activation '{activation}' is not one of none, silu, swish")
    if x.dtype not in (DType.F32, DType.F16, DType.BF16, DType.F64):
        raise ShapeError(f"the input is {x.dtype}, not a floating type")
    return x.type, TensorType(x.dtype, (batch, channels, weight.shape[2] - 1))
