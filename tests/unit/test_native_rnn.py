"""Native LSTM, GRU and RNN against the references."""

from __future__ import annotations

import numpy as np
import pytest

from mnnpy.backends.cpu import _native
from tests.unit.native_helpers import ISAS, Array, assert_close, oracle, run_kernel

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def operands(
    op: str, steps: int, batch: int, size: int, hidden: int, directions: int, layout: int
) -> list[Array | None]:
    rng = np.random.default_rng(steps * 100 + hidden)

    def make(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.4).astype(np.float32)

    gh = GATES[op] * hidden
    state = (batch, directions, hidden) if layout else (directions, batch, hidden)
    x = make(batch, steps, size) if layout else make(steps, batch, size)
    lengths = rng.integers(0, steps + 1, batch).astype(np.int32)
    recurrent = make(directions, gh, hidden) / np.float32(hidden**0.5)  # not chaotic
    out: list[Array | None] = [
        x,
        make(directions, gh, size),
        recurrent,
        make(directions, 2 * gh),
        lengths,
        make(*state),
    ]
    if op == "LSTM":
        out += [make(*state), make(directions, 3 * hidden)]
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", list(GATES))
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
def test_matches_reference(isa: str, op: str, direction: str, layout: int) -> None:
    directions = 2 if direction == "bidirectional" else 1
    for steps, batch, size, hidden, threads in ((5, 3, 7, 19, 1), (300, 1, 16, 32, 2), (1, 2, 3, 1, 7)):
        full = operands(op, steps, batch, size, hidden, directions, layout)
        for absent in ((), (3,), (4,), (4, 5), (5, 6, 7)):
            inputs = [None if k in absent else v for k, v in enumerate(full)]
            variants = [{"linear_before_reset": 0}, {"linear_before_reset": 1}] if op == "GRU" else [{}]
            if op == "LSTM" and 3 in absent:
                variants.append({"input_forget": 1})
            for extra in variants:
                attrs = {"direction": direction, "layout": layout, **extra}
                want = oracle(op)(*inputs, **attrs)
                shapes = [(w.shape, np.float32) for w in want]
                for constant in ((1, 2), ()):
                    got = run_kernel(op, inputs, shapes, attrs, constant=constant, isa=isa, threads=threads)
                    for g, w in zip(got, want, strict=True):
                        assert_close(g, w, 3e-6)


def test_absent_outputs() -> None:
    inputs = operands("LSTM", 4, 2, 5, 6, 1, 0)
    want = oracle("LSTM")(*inputs)
    [h] = run_kernel("LSTM", inputs, [None, (want[1].shape, np.float32), None])
    assert_close(h, want[1])
    [y] = run_kernel("LSTM", inputs, [(want[0].shape, np.float32)])
    assert_close(y, want[0])


def test_exotic_configurations_are_declined() -> None:
    x, w, r = ("f32", (2, 1, 3)), ("f32", (1, 16, 3)), ("f32", (1, 16, 4))
    out = [("f32", (2, 1, 1, 4)), None, None]
    assert _native.supports("LSTM", {}, [x, w, r], out)[0]
    for attrs in ({"clip": 1.0}, {"activations": ("Relu", "Tanh", "Tanh")}, {"direction": "bidirectional"}):
        ok, reason = _native.supports("LSTM", attrs, [x, w, r], out)
        assert not ok
        assert reason
