"""LSTM, GRU and RNN unrolled over time.

The input projection is one MatMul for all steps. Both directions of a bidirectional network step together
(the backward one reads its inputs from the end), so a step costs the same number of nodes as in one direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mnnpy.classes import dataclass
from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.ops.recurrent import Activation, activation_sets, direction_count, gates_of
from mnnpy.decompose.raster import Region, row_major
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import is_zero, to_float
from mnnpy.graph.dtypes import DType

#: (gate inputs of this step, states) → new states
Cell = Callable[[Var, tuple[Var, ...]], tuple[Var, ...]]


@dataclass(slots=True)
class _Unroll:
    """Dimensions and operands of one group of directions that step together, in time-major order."""

    g: Builder
    x: Var  #: [T·B, I]
    steps: int
    batch: int
    hidden: int
    backwards: tuple[bool, ...]  #: per direction of the group
    lengths: Var | None

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading dims of states and gates: none for one direction, so that its products stay two-dimensional."""
        return (len(self.backwards),) if len(self.backwards) > 1 else ()

    def transposed(self, w: Var) -> Var:
        """``[D, a, b]`` as ``[lead, b, a]``."""
        g = self.g
        return g.transpose(w, (0, 2, 1)) if self.lead else g.transpose(g.reshape(w, w.shape[1:]), (1, 0))

    def vector(self, v: Var) -> Var:
        """``[D, n]`` shaped to add to ``[lead, B, n]``."""
        return self.g.reshape(v, (*self.lead, 1, v.shape[1]))

    def project(self, w: Var, bias: Var | None) -> list[Var]:
        """Gate inputs of every step, each ``[lead, B, n]``, in the order in which they are consumed."""
        g, n = self.g, w.shape[1]
        gates = g.matmul(self.x, self.transposed(w))  # [lead, T·B, n]
        if bias is not None:
            gates = g.add(gates, self.vector(bias))
        row, whole = self.batch * n, self.steps * self.batch * n
        made = []
        for s in range(self.steps):
            regions = []
            for k, backward in enumerate(self.backwards):
                t = self.steps - 1 - s if backward else s
                regions.append(Region(0, (row,), k * whole + t * row, (1,), k * row, (1,)))
            made.append(g.raster([gates], regions, (*self.lead, self.batch, n)))
        return made

    def masks(self) -> list[Var] | None:
        """Per step, whether each sequence is still inside its length: bool ``[lead, B, 1]``."""
        if self.lengths is None:
            return None
        g = self.g
        times = [[self.steps - 1 - s if b else s for b in self.backwards] for s in range(self.steps)]
        shape = (self.steps, len(self.backwards), 1, 1)
        inside = g.binary(
            "Less",
            g.const(np.asarray(times).reshape(shape), self.lengths.dtype),
            g.reshape(self.lengths, (self.batch, 1)),
        )
        return [g.reshape(g.slice(inside, 0, s, s + 1), (*self.lead, self.batch, 1)) for s in range(self.steps)]

    def run(self, inputs: list[Var], states: tuple[Var, ...], cell: Cell) -> tuple[list[Var], tuple[Var, ...]]:
        """Hidden states of every step and the final states."""
        masks = self.masks()
        outputs = []
        for s in range(self.steps):
            new = cell(inputs[s], states)
            if masks is not None:
                new = tuple(self.g.select(masks[s], a, b) for a, b in zip(new, states, strict=True))
            states = new
            outputs.append(states[0])
        return outputs, states


def activate(g: Builder, a: Activation, x: Var) -> Var:
    """One of the activation functions of recurrent ops."""
    if a.fn in ("LeakyRelu", "Elu"):
        return g.unary(a.fn, x, alpha=a.alpha)
    if a.fn == "HardSigmoid":
        return g.unary(a.fn, x, alpha=a.alpha, beta=a.beta)
    if a.fn == "Affine":
        return g.add(g.mul(x, a.alpha), a.beta)
    if a.fn == "ScaledTanh":
        return g.mul(g.unary("Tanh", g.mul(x, a.beta)), a.alpha)
    if a.fn == "ThresholdedRelu":
        return g.select(g.binary("GreaterEqual", x, a.alpha), x, 0)
    if a.fn == "Softsign":
        return g.div(x, g.add(g.unary("Abs", x), 1))
    return g.unary(a.fn, x)


def _bounded(g: Builder, x: Var, clip: float | None) -> Var:
    return g.unary("Clip", x, alpha=-clip, beta=clip) if clip else x


def _part(g: Builder, x: Var, k: int, n: int, width: int = 1) -> Var:
    """Gates *k* to *k + width* of ``x[…, gates·n]``."""
    return g.slice(x, x.rank - 1, k * n, (k + width) * n)


@dataclass(slots=True)
class _Network:
    """Operands of a recurrent op, converted to the type it is computed in and split into groups of directions."""

    g: Builder
    name: str
    X: Var
    W: Var
    R: Var
    B: Var | None
    lengths: Var | None
    states: Sequence[Var | None]
    direction: str
    layout: int
    sets: list[tuple[Activation, ...]]

    def solve(
        self, make_cell: Callable[[_Unroll, slice, tuple[Activation, ...]], Cell], folded_bias: int
    ) -> tuple[Var, ...]:
        """Y and the final states. *folded_bias*: how many leading gates take their recurrence bias from the input."""
        g, dtype = self.g, self.X.dtype
        x = to_float(g, self.X)
        if self.layout:
            x = g.transpose(x, (1, 0, 2))
        steps, batch, size = x.shape
        hidden = self.R.shape[2]
        count = direction_count(self.direction)
        x = g.reshape(x, (steps * batch, size))
        together = count == 1 or self.sets[0] == self.sets[1]
        groups = [slice(0, count)] if together else [slice(d, d + 1) for d in range(count)]
        sequences: list[list[Var]] = []
        finals: list[tuple[Var, ...]] = []
        lengths = self._lengths(steps)
        for span in groups:
            backwards = tuple(self.direction == "reverse" or d == 1 for d in range(count)[span])
            unroll = _Unroll(g, x, steps, batch, hidden, backwards, lengths)
            inputs = unroll.project(self._span(self.W, span), self._bias(span, folded_bias))
            cell = make_cell(unroll, span, self.sets[span.start])
            outputs, states = unroll.run(inputs, self._initial(unroll, span), cell)
            sequences.append(outputs)
            finals.append(states)
        y = self._sequence(sequences, groups, (steps, count, batch, hidden), lengths)
        results = (y, *(self._final([f[k] for f in finals], count) for k in range(len(self.states))))
        return tuple(g.cast(v, dtype) for v in results)

    @property
    def _computed(self) -> DType:
        return DType.F64 if self.X.dtype is DType.F64 else DType.F32

    def _span(self, v: Var, span: slice) -> Var:
        v = to_float(self.g, v)
        return v if span.stop - span.start == v.shape[0] else self.g.slice(v, 0, span.start, span.stop)

    def _lengths(self, steps: int) -> Var | None:
        v = self.lengths
        return None if v is None or (v.value is not None and bool((v.value >= steps).all())) else v

    def _bias(self, span: slice, folded: int) -> Var | None:
        """Wb plus the recurrence bias of the first *folded* gates: ``[D, gates·H]``."""
        if is_zero(self.B):
            return None
        assert self.B is not None
        g, hidden, gates = self.g, self.R.shape[2], gates_of(self.name)
        b = self._span(self.B, span)
        wb, rb = _part(g, b, 0, gates * hidden), _part(g, b, 1, gates * hidden)
        if folded == gates:
            return g.add(wb, rb)
        head = g.add(_part(g, wb, 0, hidden, folded), _part(g, rb, 0, hidden, folded))
        return g.concat([head, _part(g, wb, folded, hidden, gates - folded)], 1)

    def _initial(self, unroll: _Unroll, span: slice) -> tuple[Var, ...]:
        g = self.g
        shape = (*unroll.lead, unroll.batch, unroll.hidden)
        made = []
        for s in self.states:
            if s is None:
                made.append(g.const(np.zeros(shape), self._computed))
                continue
            v = to_float(g, s)
            if self.layout:
                v = g.transpose(v, (1, 0, 2))
            made.append(g.reshape(self._span(v, span), shape))
        return tuple(made)

    def _sequence(
        self, sequences: list[list[Var]], groups: list[slice], shape: tuple[int, ...], lengths: Var | None
    ) -> Var:
        """Y from the hidden states of all steps, in one raster; zero behind the end of each sequence."""
        g = self.g
        steps, count, batch, hidden = shape
        out = (batch, steps, count, hidden) if self.layout else shape
        if self.layout:
            per_row, step, per_direction, _ = row_major(out)
        else:
            step, per_direction, per_row, _ = row_major(out)
        if steps == 0:
            return g.const(np.zeros(out), self._computed)
        origins: list[Var] = []
        regions: list[Region] = []
        for span, outputs in zip(groups, sequences, strict=True):
            for s, h in enumerate(outputs):
                for k, d in enumerate(range(count)[span]):
                    t = steps - 1 - s if self.direction == "reverse" or d == 1 else s
                    at = t * step + d * per_direction
                    source = k * batch * hidden
                    regions.append(Region(len(origins), (batch, hidden), source, (hidden, 1), at, (per_row, 1)))
                origins.append(h)
        y = g.raster(origins, regions, out)
        if lengths is None:
            return y
        times = g.const(np.arange(steps), lengths.dtype)
        if self.layout:
            inside = g.binary("Less", g.reshape(times, (1, steps, 1, 1)), g.reshape(lengths, (batch, 1, 1, 1)))
        else:
            inside = g.binary("Less", g.reshape(times, (steps, 1, 1, 1)), g.reshape(lengths, (batch, 1)))
        return g.select(inside, y, 0)

    def _final(self, parts: list[Var], count: int) -> Var:
        g = self.g
        batch, hidden = parts[0].shape[-2:]
        parts = [g.reshape(p, (p.shape[0] if p.rank == 3 else 1, batch, hidden)) for p in parts]
        v = parts[0] if len(parts) == 1 else g.concat(parts, 0)
        return g.transpose(v, (1, 0, 2)) if self.layout else v


@rule("LSTM")
def lstm(
    g: Builder,
    X: Var,
    W: Var,
    R: Var,
    B: Var | None = None,
    sequence_lens: Var | None = None,
    initial_h: Var | None = None,
    initial_c: Var | None = None,
    P: Var | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: tuple[str, ...] | None = None,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    clip: float | None = None,
    layout: int = 0,
    input_forget: int = 0,
) -> tuple[Var, ...]:
    sets = activation_sets("LSTM", direction, activations, activation_alpha, activation_beta)
    net = _Network(g, "LSTM", X, W, R, B, sequence_lens, (initial_h, initial_c), direction, layout, sets)

    def make_cell(u: _Unroll, span: slice, functions: tuple[Activation, ...]) -> Cell:
        r = u.transposed(net._span(R, span))
        peepholes = None
        if not is_zero(P):
            assert P is not None
            rows = u.vector(net._span(P, span))
            peepholes = [_part(g, rows, k, u.hidden) for k in range(3)]  # i, o, f
        return _lstm_cell(g, u.hidden, r, peepholes, functions, clip, bool(input_forget))

    return net.solve(make_cell, 4)


def _lstm_cell(
    g: Builder,
    n: int,
    r: Var,
    peepholes: list[Var] | None,
    functions: tuple[Activation, ...],
    clip: float | None,
    input_forget: bool,
) -> Cell:
    f, cell_fn, hidden_fn = functions

    def gate(x: Var) -> Var:
        return activate(g, f, _bounded(g, x, clip))

    def cell(x: Var, state: tuple[Var, ...]) -> tuple[Var, ...]:
        h, c = state
        gates = g.add(x, g.matmul(h, r))
        candidate = activate(g, cell_fn, _bounded(g, _part(g, gates, 3, n), clip))
        if peepholes is None:
            open_gates = gate(_part(g, gates, 0, n, 3))
            i, o, forget = (_part(g, open_gates, k, n) for k in range(3))
        else:
            i = gate(g.add(_part(g, gates, 0, n), g.mul(peepholes[0], c)))
            forget = gate(g.add(_part(g, gates, 2, n), g.mul(peepholes[2], c)))
        if input_forget:
            forget = g.sub(g.const(1, i.dtype), i)
        new_c = g.add(g.mul(forget, c), g.mul(i, candidate))
        if peepholes is not None:
            o = gate(g.add(_part(g, gates, 1, n), g.mul(peepholes[1], new_c)))
        # The cell state itself is not clipped: "the input of activations" means the gates, as in other engines.
        return g.mul(o, activate(g, hidden_fn, new_c)), new_c

    return cell


@rule("GRU")
def gru(
    g: Builder,
    X: Var,
    W: Var,
    R: Var,
    B: Var | None = None,
    sequence_lens: Var | None = None,
    initial_h: Var | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: tuple[str, ...] | None = None,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    clip: float | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Var, ...]:
    sets = activation_sets("GRU", direction, activations, activation_alpha, activation_beta)
    net = _Network(g, "GRU", X, W, R, B, sequence_lens, (initial_h,), direction, layout, sets)
    n = R.shape[2]

    def make_cell(u: _Unroll, span: slice, functions: tuple[Activation, ...]) -> Cell:
        weights = net._span(R, span)
        f, hidden_fn = functions
        if linear_before_reset:
            r = u.transposed(weights)
            bias = None if is_zero(B) else u.vector(_part(g, net._span(B, span), 5, n))  # type: ignore[arg-type]
        else:
            r = u.transposed(g.slice(weights, 1, 0, 2 * n))
            r_hidden = u.transposed(g.slice(weights, 1, 2 * n, 3 * n))

        def cell(x: Var, state: tuple[Var, ...]) -> tuple[Var, ...]:
            (h,) = state
            product = g.matmul(h, r)
            recurrent = _part(g, product, 0, n, 2) if linear_before_reset else product
            both = activate(g, f, _bounded(g, g.add(_part(g, x, 0, n, 2), recurrent), clip))
            z, reset = _part(g, both, 0, n), _part(g, both, 1, n)
            if linear_before_reset:
                inner = _part(g, product, 2, n)
                inner = g.mul(reset, inner if bias is None else g.add(inner, bias))
            else:
                inner = g.matmul(g.mul(reset, h), r_hidden)
            new = activate(g, hidden_fn, _bounded(g, g.add(_part(g, x, 2, n), inner), clip))
            return (g.add(new, g.mul(z, g.sub(h, new))),)

        return cell

    return net.solve(make_cell, 2 if linear_before_reset else 3)


@rule("RNN")
def rnn(
    g: Builder,
    X: Var,
    W: Var,
    R: Var,
    B: Var | None = None,
    sequence_lens: Var | None = None,
    initial_h: Var | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: tuple[str, ...] | None = None,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    clip: float | None = None,
    layout: int = 0,
) -> tuple[Var, ...]:
    sets = activation_sets("RNN", direction, activations, activation_alpha, activation_beta)
    net = _Network(g, "RNN", X, W, R, B, sequence_lens, (initial_h,), direction, layout, sets)

    def make_cell(u: _Unroll, span: slice, functions: tuple[Activation, ...]) -> Cell:
        r = u.transposed(net._span(R, span))
        return lambda x, state: (activate(g, functions[0], _bounded(g, g.add(x, g.matmul(state[0], r)), clip)),)

    return net.solve(make_cell, 1)
