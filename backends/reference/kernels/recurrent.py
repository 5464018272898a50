"""References of LSTM, GRU and RNN: one direction at a time, one step at a time (ONNX operator specification)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mnnpy.backends.reference.kernels.numeric import narrow, wide
from mnnpy.decompose.ops.recurrent import Activation, activation_sets, direction_count
from mnnpy.decompose.registry import reference
from mnnpy.graph.ir import Array

State = tuple[Array, ...]
Cell = Callable[[Array, State, int], State]


def activate(a: Activation, x: Array) -> Array:
    """Activation functions as the specification of LSTM lists them."""
    alpha, beta = a.alpha, a.beta
    table: dict[str, Callable[[], Array]] = {
        "Relu": lambda: np.maximum(x, 0),
        "Tanh": lambda: np.tanh(x),
        "Sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "Affine": lambda: alpha * x + beta,
        "LeakyRelu": lambda: np.where(x >= 0, x, alpha * x),
        "ThresholdedRelu": lambda: np.where(x >= alpha, x, 0),
        "ScaledTanh": lambda: alpha * np.tanh(beta * x),
        "HardSigmoid": lambda: np.clip(alpha * x + beta, 0, 1),
        "Elu": lambda: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))),
        "Softsign": lambda: x / (1 + np.abs(x)),
        "Softplus": lambda: np.logaddexp(0, x),
    }
    return table[a.fn]()


@dataclass(frozen=True, slots=True)
class _Problem:
    """Operands in time-major order and wide arithmetic."""

    x: Array  #: [T, B, I]
    lengths: Array  #: [B]
    states: tuple[Array, ...]  #: each [D, B, H]
    direction: str
    layout: int

    def run(self, cell: Cell, dtype: np.dtype[np.generic]) -> tuple[Array, ...]:
        """Y and the final states."""
        steps, batch, _ = self.x.shape
        count = direction_count(self.direction)
        y = np.zeros((steps, count, batch, self.states[0].shape[2]))
        finals = [s.copy() for s in self.states]
        for d in range(count):
            backwards = self.direction == "reverse" or d == 1
            for t in range(steps - 1, -1, -1) if backwards else range(steps):
                alive = t < self.lengths
                new = cell(self.x[t], tuple(s[d] for s in finals), d)
                for final, value in zip(finals, new, strict=True):
                    final[d] = np.where(alive[:, None], value, final[d])
                y[t, d] = np.where(alive[:, None], finals[0][d], 0)
        if self.layout:
            y = y.transpose(2, 0, 1, 3)
            finals = [f.transpose(1, 0, 2) for f in finals]
        return (narrow(y, dtype), *(narrow(f, dtype) for f in finals))


def _problem(
    X: Array, R: Array, sequence_lens: Array | None, states: tuple[Array | None, ...], direction: str, layout: int
) -> _Problem:
    x = wide(X).transpose(1, 0, 2) if layout else wide(X)
    shape = (R.shape[0], x.shape[1], R.shape[2])
    made = []
    for s in states:
        if s is None:
            made.append(np.zeros(shape))
        else:
            made.append(wide(s).transpose(1, 0, 2) if layout else wide(s))
    lengths = np.full(x.shape[1], x.shape[0]) if sequence_lens is None else sequence_lens
    return _Problem(x, lengths, tuple(made), direction, layout)


def _biases(B: Array | None, R: Array) -> tuple[Array, Array]:
    """Wb and Rb, each ``[D, gates·H]``."""
    if B is None:
        zero = np.zeros(R.shape[:2])
        return zero, zero
    half = R.shape[1]
    return wide(B)[:, :half], wide(B)[:, half:]


def _clipper(clip: float | None) -> Callable[[Array], Array]:
    return (lambda v: v) if not clip else (lambda v: np.clip(v, -clip, clip))


@reference("LSTM")
def lstm(
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    P: Array | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: tuple[str, ...] | None = None,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    clip: float | None = None,
    layout: int = 0,
    input_forget: int = 0,
) -> tuple[Array, ...]:
    problem = _problem(X, R, sequence_lens, (initial_h, initial_c), direction, layout)
    sets = activation_sets("LSTM", direction, activations, activation_alpha, activation_beta)
    w, r, n = wide(W), wide(R), R.shape[2]
    wb, rb = _biases(B, R)
    p = np.zeros((R.shape[0], 3 * n)) if P is None else wide(P)
    bounded = _clipper(clip)

    def cell(x: Array, state: State, d: int) -> State:
        f, g, h = sets[d]
        before, c = state
        gi, go, gf, gc = np.split(x @ w[d].T + before @ r[d].T + wb[d] + rb[d], 4, axis=1)
        pi, po, pf = np.split(p[d], 3)
        i = activate(f, bounded(gi + pi * c))
        forget = 1 - i if input_forget else activate(f, bounded(gf + pf * c))
        new_c = forget * c + i * activate(g, bounded(gc))
        o = activate(f, bounded(go + po * new_c))
        return o * activate(h, new_c), new_c

    return problem.run(cell, X.dtype)


@reference("GRU")
def gru(
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: tuple[str, ...] | None = None,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    clip: float | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Array, ...]:
    problem = _problem(X, R, sequence_lens, (initial_h,), direction, layout)
    sets = activation_sets("GRU", direction, activations, activation_alpha, activation_beta)
    w, r = wide(W), wide(R)
    wb, rb = _biases(B, R)
    bounded = _clipper(clip)

    def cell(x: Array, state: State, d: int) -> State:
        f, g = sets[d]
        (before,) = state
        xz, xr, xh = np.split(x @ w[d].T + wb[d], 3, axis=1)
        rz, rr, rh = np.split(r[d], 3)
        bz, br, bh = np.split(rb[d], 3)
        z = activate(f, bounded(xz + before @ rz.T + bz))
        reset = activate(f, bounded(xr + before @ rr.T + br))
        if linear_before_reset:
            h = activate(g, bounded(xh + reset * (before @ rh.T + bh)))
        else:
            h = activate(g, bounded(xh + (reset * before) @ rh.T + bh))
        return ((1 - z) * h + z * before,)

    return problem.run(cell, X.dtype)


@reference("RNN")
def rnn(
    X: Array,
    W: Array,
    R: Array,
    B: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: tuple[str, ...] | None = None,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    clip: float | None = None,
    layout: int = 0,
) -> tuple[Array, ...]:
    problem = _problem(X, R, sequence_lens, (initial_h,), direction, layout)
    sets = activation_sets("RNN", direction, activations, activation_alpha, activation_beta)
    w, r = wide(W), wide(R)
    wb, rb = _biases(B, R)
    bounded = _clipper(clip)

    def cell(x: Array, state: State, d: int) -> State:
        return (activate(sets[d][0], bounded(x @ w[d].T + state[0] @ r[d].T + wb[d] + rb[d])),)

    return problem.run(cell, X.dtype)
