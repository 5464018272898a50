"""LSTM, GRU and RNN: shapes, and what rules and references share of their attributes (ONNX operator specification)."""

from __future__ import annotations

from collections.abc import Sequence

from mnnpy.classes import dataclass
from mnnpy.decompose.infer import Operand
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim
from mnnpy.graph.ir import TensorType

__all__ = ["Activation", "activation_sets", "direction_count", "gates_of"]

#: Lower-case name → (ONNX name, default alpha, default beta); None: the function takes no such parameter.
_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "relu": ("Relu", None, None),
    "tanh": ("Tanh", None, None),
    "sigmoid": ("Sigmoid", None, None),
    "affine": ("Affine", 1.0, 0.0),
    "leakyrelu": ("LeakyRelu", 0.01, None),
    "thresholdedrelu": ("ThresholdedRelu", 1.0, None),
    "scaledtanh": ("ScaledTanh", 1.0, 1.0),
    "hardsigmoid": ("HardSigmoid", 0.2, 0.5),
    "elu": ("Elu", 1.0, None),
    "softsign": ("Softsign", None, None),
    "softplus": ("Softplus", None, None),
}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True, slots=True)
class Activation:
    """One activation with its parameters (0 where it has none)."""

    fn: str
    alpha: float = 0.0
    beta: float = 0.0


def gates_of(name: str) -> int:
    """Number of gates stacked in the weights of *name*."""
    return _GATES[name]


def direction_count(direction: str) -> int:
    """1 or 2; raises ShapeError for an unknown *direction*."""
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ShapeError(f"direction '{direction}' is not one of forward, reverse, bidirectional")
    return 2 if direction == "bidirectional" else 1


def activation_sets(
    name: str,
    direction: str,
    activations: Sequence[str] | None,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
) -> list[tuple[Activation, ...]]:
    """The activations per direction. *alphas* and *betas* go, in order, to the functions that take one."""
    count = direction_count(direction)
    each = len(_DEFAULTS[name])
    names = list(activations) if activations else list(_DEFAULTS[name]) * count
    if name == "RNN" and len(names) > count:  # the schema's default lists two, whatever the direction
        names = names[:count]
    if len(names) != each * count:
        raise ShapeError(f"activations has {len(names)} entries; {direction} {name} takes {each * count}")
    alpha_left, beta_left = list(alphas or ()), list(betas or ())
    made = []
    for text in names:
        known = _ACTIVATIONS.get(text.lower())
        if known is None:
            raise ShapeError(f"activation '{text}' is not one of {', '.join(v[0] for v in _ACTIVATIONS.values())}")
        fn, alpha, beta = known
        if alpha is not None and alpha_left:
            alpha = alpha_left.pop(0)
        if beta is not None and beta_left:
            beta = beta_left.pop(0)
        made.append(Activation(fn, alpha or 0.0, beta or 0.0))
    return [tuple(made[k * each : (k + 1) * each]) for k in range(count)]


def _known(*dims: Dim) -> bool:
    return all(isinstance(d, int) for d in dims)


def _types(
    name: str,
    X: Operand,
    W: Operand,
    R: Operand,
    direction: str,
    layout: int,
    hidden_size: int | None,
    extra: Sequence[tuple[str, Operand | None, tuple[str, ...]]],
) -> tuple[TensorType, TensorType]:
    gates, count = _GATES[name], direction_count(direction)
    for what, x in (("X", X), ("W", W), ("R", R)):
        if x.rank != 3:
            raise ShapeError(f"{what} has shape {x.shape}; {name} takes rank 3")
        if x.dtype is not X.dtype or not x.dtype.is_float:
            raise ShapeError(f"{what} is {x.dtype}; X, W and R share one floating type (X is {X.dtype})")
    steps, batch, size = X.shape if not layout else (X.shape[1], X.shape[0], X.shape[2])
    hidden = R.shape[2]
    if hidden_size is not None and _known(hidden) and hidden != hidden_size:
        raise ShapeError(f"hidden_size is {hidden_size}, but R {R.shape} has hidden size {hidden}")
    named: list[tuple[str, Operand | None, tuple[Dim, ...]]] = [
        ("W", W, (count, hidden * gates, size)),
        ("R", R, (count, hidden * gates, hidden)),
        *((w, o, _resolve(s, {"B": batch, "D": count, "H": hidden}, layout)) for w, o, s in extra),
    ]
    for what, operand, want in named:
        if operand is None or operand.maybe_type is None:
            continue
        shape = operand.shape
        if len(shape) != len(want) or any(_known(a, b) and a != b for a, b in zip(shape, want, strict=True)):
            raise ShapeError(f"{what} has shape {shape}; this {direction} {name} takes {want}")
    if layout:
        return TensorType(X.dtype, (batch, steps, count, hidden)), TensorType(X.dtype, (batch, count, hidden))
    return TensorType(X.dtype, (steps, count, batch, hidden)), TensorType(X.dtype, (count, batch, hidden))


def _resolve(shape: tuple[str, ...], dims: dict[str, Dim], layout: int) -> tuple[Dim, ...]:
    """Sizes of named dims: ``"H"``, ``"8H"`` (a multiple), or ``"state"`` for the layout of an initial state."""
    if shape == ("state",):
        shape = ("B", "D", "H") if layout else ("D", "B", "H")
    return tuple(dims[s] if s in dims else dims["H"] * int(s[:-1]) for s in shape)


@op("LSTM", OpClass.COMPOSITE)
def lstm(
    X: Operand,
    W: Operand,
    R: Operand,
    B: Operand | None = None,
    sequence_lens: Operand | None = None,
    initial_h: Operand | None = None,
    initial_c: Operand | None = None,
    P: Operand | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: tuple[str, ...] | None = None,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    clip: float | None = None,
    layout: int = 0,
    input_forget: int = 0,
) -> tuple[TensorType, TensorType, TensorType]:
    """Long short-term memory; gates are stacked in the order i, o, f, c."""
    activation_sets("LSTM", direction, activations, activation_alpha, activation_beta)
    extra = [
        ("B", B, ("D", "8H")), ("sequence_lens", sequence_lens, ("B",)), ("initial_h", initial_h, ("state",)),
        ("initial_c", initial_c, ("state",)), ("P", P, ("D", "3H")),
    ]  # fmt: skip
    y, state = _types("LSTM", X, W, R, direction, layout, hidden_size, extra)
    return y, state, state


@op("GRU", OpClass.COMPOSITE)
def gru(
    X: Operand,
    W: Operand,
    R: Operand,
    B: Operand | None = None,
    sequence_lens: Operand | None = None,
    initial_h: Operand | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: tuple[str, ...] | None = None,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    clip: float | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[TensorType, TensorType]:
    """Gated recurrent unit; gates are stacked in the order z, r, h."""
    activation_sets("GRU", direction, activations, activation_alpha, activation_beta)
    extra = [("B", B, ("D", "6H")), ("sequence_lens", sequence_lens, ("B",)), ("initial_h", initial_h, ("state",))]
    return _types("GRU", X, W, R, direction, layout, hidden_size, extra)


@op("RNN", OpClass.COMPOSITE)
def rnn(
    X: Operand,
    W: Operand,
    R: Operand,
    B: Operand | None = None,
    sequence_lens: Operand | None = None,
    initial_h: Operand | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    activations: tuple[str, ...] | None = None,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    clip: float | None = None,
    layout: int = 0,
) -> tuple[TensorType, TensorType]:
    """Simple recurrent network with one activation."""
    activation_sets("RNN", direction, activations, activation_alpha, activation_beta)
    extra = [("B", B, ("D", "2H")), ("sequence_lens", sequence_lens, ("B",)), ("initial_h", initial_h, ("state",))]
    return _types("RNN", X, W, R, direction, layout, hidden_size, extra)
