"""LinearAttention: chunks where decays are per head (or none), else one step after the other.

The chunked form is the usual one of retention and gated linear attention: inside a chunk a masked product of
queries and keys, between chunks the state. All exponents are differences of later and earlier sums of the
log-decay, so nothing grows that the recurrence would not grow. Corrections by the delta rule, and decays per key
element, are unrolled: their chunked forms need a triangular solve, or exponents of both signs.
"""

from __future__ import annotations

import math

import numpy as np

from mnnpy.classes import dataclass
from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.ops.attention import check_linear_attention
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import to_float


@dataclass(slots=True)
class _Problem:
    """Operands in f32, heads apart: q ``[B, H, G, T, dk]``, k ``[B, H, T, dk]``, v ``[B, H, T, dv]``."""

    g: Builder
    q: Var
    k: Var
    v: Var
    state: Var  #: [B, H, dk, dv]
    decay: Var | None  #: logarithm, [B, H, T, 1 or dk]
    beta: Var | None  #: [B, H or 1, T, 1]

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """Batch, heads, queries per head, steps, key size, value size."""
        b, h, group, steps, d_k = self.q.shape
        return b, h, group, steps, d_k, self.v.shape[3]


@rule("LinearAttention")
def linear_attention(
    g: Builder,
    query: Var,
    key: Var,
    value: Var,
    past_state: Var | None = None,
    decay: Var | None = None,
    beta: Var | None = None,
    *,
    kv_num_heads: int,
    q_num_heads: int,
    chunk_size: int = 64,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Var, Var]:
    gated, delta = check_linear_attention(update_rule, decay, beta)
    b, steps, width = query.shape
    h, group = kv_num_heads, q_num_heads // kv_num_heads
    d_k, d_v = key.shape[2] // h, value.shape[2] // h

    def heads(x: Var, n: int) -> Var:
        return g.transpose(g.reshape(to_float(g, x), (b, steps, n, x.shape[2] // n)), (0, 2, 1, 3))

    q = g.mul(heads(query, q_num_heads), scale or 1 / math.sqrt(width // q_num_heads))
    q = g.reshape(q, (b, h, group, steps, d_k))
    state = g.const(np.zeros((b, h, d_k, d_v), np.float32)) if past_state is None else to_float(g, past_state)
    problem = _Problem(
        g, q, heads(key, h), heads(value, h), state,
        heads(decay, h) if gated and decay is not None else None,
        heads(beta, beta.shape[2]) if delta and beta is not None else None,
    )  # fmt: skip
    chunked = not delta and (problem.decay is None or problem.decay.shape[3] == 1) and steps > 1
    y, state = _chunks(problem, max(1, chunk_size)) if chunked else _steps(problem)
    y = g.reshape(y, (b, q_num_heads, steps, d_v))
    y = g.reshape(g.transpose(y, (0, 2, 1, 3)), (b, steps, q_num_heads * d_v))
    return g.cast(y, query.dtype), g.cast(state, (past_state or query).dtype)


def _cut(g: Builder, x: Var, axis: int, start: int, stop: int) -> Var:
    """Steps *start* to *stop* along *axis*."""
    return x if (start, stop) == (0, x.shape[axis]) else g.slice(x, axis, start, stop)


def _steps(p: _Problem) -> tuple[Var, Var]:
    """The recurrence itself, unrolled."""
    g = p.g
    b, h, group, steps, d_k, d_v = p.sizes
    state = p.state
    fade = g.unary("Exp", p.decay) if p.decay is not None else None
    outputs = []
    for t in range(steps):
        key = _cut(g, p.k, 2, t, t + 1)
        if fade is not None:
            f = _cut(g, fade, 2, t, t + 1)
            state = g.mul(state, g.reshape(f, (b, h, f.shape[3], 1)))
        new = _cut(g, p.v, 2, t, t + 1)  # [B, H, 1, dv]
        if p.beta is not None:
            new = g.mul(_cut(g, p.beta, 2, t, t + 1), g.sub(new, g.matmul(key, state)))
        state = g.add(state, g.mul(g.reshape(key, (b, h, d_k, 1)), new))
        q = g.reshape(_cut(g, p.q, 3, t, t + 1), (b, h, group, d_k))
        outputs.append(g.reshape(g.matmul(q, state), (b, h, group, 1, d_v)))
    if not outputs:
        return g.const(np.zeros((b, h, group, 0, d_v), np.float32)), state
    return (outputs[0] if steps == 1 else g.concat(outputs, 3)), state


def _chunks(p: _Problem, size: int) -> tuple[Var, Var]:
    g = p.g
    b, h, group, steps, d_k, d_v = p.sizes
    state, outputs = p.state, []
    for start in range(0, steps, size):
        stop = min(start + size, steps)
        n = stop - start
        q = g.reshape(_cut(g, p.q, 3, start, stop), (b, h, group * n, d_k))
        k, v = _cut(g, p.k, 2, start, stop), _cut(g, p.v, 2, start, stop)
        seen = np.tril(np.ones((n, n), np.bool_))
        inner = g.reshape(g.matmul(q, g.transpose(k, (0, 1, 3, 2))), (b, h, group, n, n))
        outer = g.reshape(g.matmul(q, state), (b, h, group, n, d_v))
        if p.decay is None:
            inner = g.mul(inner, g.const(seen, np.float32))
        else:
            total = g.op("PrefixScan", _cut(g, p.decay, 2, start, stop), fn="Sum", axis=2)  # [B, H, n, 1]
            between = g.sub(total, g.reshape(total, (b, h, 1, n)))
            weight = g.unary("Exp", g.select(g.const(seen), between, -math.inf))
            inner = g.mul(inner, g.reshape(weight, (b, h, 1, n, n)))
            outer = g.mul(outer, g.reshape(g.unary("Exp", total), (b, h, 1, n, 1)))
            last = g.slice(total, 2, n - 1, n)
            k = g.mul(k, g.unary("Exp", g.sub(last, total)))
            state = g.mul(state, g.unary("Exp", last))
        within = g.matmul(g.reshape(inner, (b, h, group * n, n)), v)
        outputs.append(g.add(outer, g.reshape(within, (b, h, group, n, d_v))))
        state = g.add(state, g.matmul(g.transpose(k, (0, 1, 3, 2)), v))
    return (outputs[0] if len(outputs) == 1 else g.concat(outputs, 3)), state
