"""Shape functions of element-wise ops."""

from __future__ import annotations

from collections.abc import Callable

from mnnpy.decompose.infer import Operand, broadcast_shapes, normalize_axis
from mnnpy.decompose.ops.element_types import ElementType, element_type
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType

#: ONNX name → what it computes; each is the atomic Unary of the same name.
UNARY_OPS = {
    "Abs": "|x|", "Acos": "Inverse cosine", "Acosh": "Inverse hyperbolic cosine", "Asin": "Inverse sine",
    "Asinh": "Inverse hyperbolic sine", "Atan": "Inverse tangent", "Atanh": "Inverse hyperbolic tangent",
    "BitwiseNot": "Every bit inverted", "Ceil": "The next integer above", "Cos": "Cosine",
    "Cosh": "Hyperbolic cosine", "Erf": "The error function", "Exp": "e to the x", "Floor": "The next integer below",
    "HardSwish": "x · max(0, min(1, x/6 + 1/2))", "IsNaN": "True where x is not a number", "Log": "Natural logarithm",
    "Mish": "x · tanh(softplus(x))", "Neg": "−x", "Not": "Logical negation", "Reciprocal": "1 / x",
    "Relu": "max(0, x)", "Round": "The nearest integer, halves to even", "Sigmoid": "1 / (1 + exp(−x))",
    "Sign": "−1, 0 or 1", "Sin": "Sine", "Sinh": "Hyperbolic sine", "Softplus": "log(1 + exp(x))",
    "Sqrt": "Square root", "Tan": "Tangent", "Tanh": "Hyperbolic tangent",
}  # fmt: skip

#: ONNX name → (atomic Binary, what it computes).
BINARY_OPS = {
    "Add": ("Add", "a + b"), "Sub": ("Sub", "a − b"), "Mul": ("Mul", "a · b"),
    "Div": ("Div", "a / b; integers truncate"), "And": ("And", "Logical and"), "Or": ("Or", "Logical or"),
    "Xor": ("Xor", "Logical exclusive or"), "BitwiseAnd": ("BitwiseAnd", "Bitwise and"),
    "BitwiseOr": ("BitwiseOr", "Bitwise or"), "BitwiseXor": ("BitwiseXor", "Bitwise exclusive or"),
    "Equal": ("Equal", "True where a equals b"), "Greater": ("Greater", "True where a > b"),
    "GreaterOrEqual": ("GreaterEqual", "True where a ≥ b"), "Less": ("Less", "True where a < b"),
    "LessOrEqual": ("LessEqual", "True where a ≤ b"),
}  # fmt: skip
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"})

#: Reductions over a variable number of operands.
VARIADIC_OPS = {"Max": "The largest", "Min": "The smallest", "Sum": "The sum", "Mean": "The mean"}

_LOGICAL = frozenset({"And", "Or", "Xor"})
_BITS = {DType.I2: 2, DType.U2: 2, DType.I4: 4, DType.U4: 4, DType.F4E2M1: 4}


def same_dtype(*xs: Operand) -> DType:
    """The common element type; raises ShapeError where they differ."""
    for x in xs[1:]:
        if x.dtype is not xs[0].dtype:
            raise ShapeError(f"operands have dtypes {xs[0].dtype} and {x.dtype}; cast one of them")
    return xs[0].dtype


def _declare_unary(name: str, summary: str) -> Callable[..., TensorType]:
    def shape(x: Operand) -> TensorType:
        if name == "Not" and x.dtype is not DType.BOOL:
            raise ShapeError(f"the operand is {x.dtype}, not bool")
        if name == "BitwiseNot" and not x.dtype.is_int:
            raise ShapeError(f"the operand is {x.dtype}, not an integer type")
        return TensorType(DType.BOOL if name == "IsNaN" else x.dtype, x.type.shape)

    shape.__doc__ = summary + "."
    return op(name, OpClass.ALIAS)(shape)


def _declare_binary(name: str, summary: str) -> Callable[..., TensorType]:
    def shape(a: Operand, b: Operand) -> TensorType:
        dtype = same_dtype(a, b)
        if name in _LOGICAL and dtype is not DType.BOOL:
            raise ShapeError(f"the operands are {dtype}, not bool")
        return TensorType(DType.BOOL if name in COMPARISONS else dtype, broadcast_shapes(a.shape, b.shape))

    shape.__doc__ = summary + ", broadcast."
    return op(name, OpClass.ALIAS)(shape)


def _declare_variadic(name: str, summary: str) -> Callable[..., TensorType]:
    def shape(*xs: Operand) -> TensorType:
        if not xs:
            raise ShapeError(f"{name} needs at least one operand")
        return TensorType(same_dtype(*xs), broadcast_shapes(*(x.shape for x in xs)))

    shape.__doc__ = summary + " of all operands, broadcast."
    return op(name, OpClass.COMPOSITE)(shape)


for _name, _summary in UNARY_OPS.items():
    _declare_unary(_name, _summary)
for _name, (_, _summary) in BINARY_OPS.items():
    _declare_binary(_name, _summary)
for _name, _summary in VARIADIC_OPS.items():
    _declare_variadic(_name, _summary)


@op("Mod", OpClass.ALIAS)
def mod(a: Operand, b: Operand, *, fmod: int = 0) -> TensorType:
    """Remainder with the divisor's sign, or with the dividend's (*fmod*)."""
    return TensorType(same_dtype(a, b), broadcast_shapes(a.shape, b.shape))


@op("Pow", OpClass.ALIAS)
def pow_(x: Operand, y: Operand) -> TensorType:
    """Element-wise: x to the power y, in the type of x."""
    return TensorType(x.dtype, broadcast_shapes(x.shape, y.shape))


@op("BitShift", OpClass.COMPOSITE)
def bit_shift(x: Operand, y: Operand, *, direction: str) -> TensorType:
    """Shift to the LEFT or RIGHT (arithmetically, where signed)."""
    if direction not in ("LEFT", "RIGHT"):
        raise ShapeError(f"direction '{direction}' is not LEFT or RIGHT")
    dtype = same_dtype(x, y)
    if not dtype.is_int:
        raise ShapeError(f"the operands are {dtype}, not an integer type")
    return TensorType(dtype, broadcast_shapes(x.shape, y.shape))


@op("PRelu", OpClass.COMPOSITE)
def prelu(x: Operand, slope: Operand) -> TensorType:
    """Element-wise: x where positive, else slope · x; *slope* broadcasts to x."""
    same_dtype(x, slope)
    if slope.rank > x.rank:
        raise ShapeError(f"the slope has rank {slope.rank}, the data only {x.rank}")
    broadcast_shapes(x.shape, slope.shape)
    return x.type


@op("SwiGLU", OpClass.COMPOSITE)
def swiglu(a: Operand, b: Operand, *, alpha: float = 1.0) -> TensorType:
    """Swish(a) · b."""
    same_dtype(a, b)
    return TensorType(a.dtype, broadcast_shapes(a.shape, b.shape))


@op("Where", OpClass.ALIAS)
def where(condition: Operand, x: Operand, y: Operand) -> TensorType:
    """Element-wise: x where the condition holds, else y."""
    if condition.dtype is not DType.BOOL:
        raise ShapeError(f"the condition is {condition.dtype}, not bool")
    return TensorType(same_dtype(x, y), broadcast_shapes(condition.shape, x.shape, y.shape))


@op("Clip", OpClass.COMPOSITE)
def clip(x: Operand, min: Operand | None = None, max: Operand | None = None) -> TensorType:
    """min(max(x, low), high) with scalar bounds."""
    same_dtype(x, *(v for v in (min, max) if v is not None))
    return x.type


@op("Celu", OpClass.COMPOSITE)
def celu(x: Operand, *, alpha: float = 1.0) -> TensorType:
    """max(0, x) + min(0, alpha · (exp(x / alpha) − 1))."""
    return x.type


@op("Elu", OpClass.ALIAS)
def elu(x: Operand, *, alpha: float = 1.0) -> TensorType:
    """Element-wise: x where positive, else alpha · (exp(x) − 1)."""
    return x.type


@op("Selu", OpClass.COMPOSITE)
def selu(x: Operand, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323) -> TensorType:
    """Element-wise: gamma · Elu(x, alpha)."""
    return x.type


@op("Gelu", OpClass.ALIAS)
def gelu(x: Operand, *, approximate: str = "none") -> TensorType:
    """Element-wise: x · Φ(x), exactly or by tanh."""
    if approximate not in ("none", "tanh"):
        raise ShapeError(f"approximate '{approximate}' is not none or tanh")
    return x.type


@op("HardSigmoid", OpClass.ALIAS)
def hard_sigmoid(x: Operand, *, alpha: float = 0.20000000298023224, beta: float = 0.5) -> TensorType:
    """max(0, min(1, alpha · x + beta))."""
    return x.type


@op("LeakyRelu", OpClass.ALIAS)
def leaky_relu(x: Operand, *, alpha: float = 0.009999999776482582) -> TensorType:
    """Element-wise: x where not negative, else alpha · x."""
    return x.type


@op("Shrink", OpClass.COMPOSITE)
def shrink(x: Operand, *, bias: float = 0.0, lambd: float = 0.5) -> TensorType:
    """Element-wise: x + bias below −lambd, x − bias above lambd, else 0."""
    return x.type


@op("Softsign", OpClass.COMPOSITE)
def softsign(x: Operand) -> TensorType:
    """Element-wise: x / (1 + |x|)."""
    return x.type


@op("Swish", OpClass.COMPOSITE)
def swish(x: Operand, *, alpha: float = 1.0) -> TensorType:
    """Element-wise: x · sigmoid(alpha · x)."""
    return x.type


@op("ThresholdedRelu", OpClass.COMPOSITE)
def thresholded_relu(x: Operand, *, alpha: float = 1.0) -> TensorType:
    """Element-wise: x above alpha, else 0."""
    return x.type


@op("IsInf", OpClass.ALIAS)
def is_inf(x: Operand, *, detect_negative: int = 1, detect_positive: int = 1) -> TensorType:
    """True where x is infinite (of the signs asked for)."""
    return TensorType(DType.BOOL, x.type.shape)


@op("Cast", OpClass.ALIAS)
def cast(x: Operand, *, to: ElementType, saturate: int = 1, round_mode: str = "up") -> TensorType:
    """Element type conversion, strings included."""
    return TensorType(element_type(to), x.type.shape)


@op("CastLike", OpClass.ALIAS)
def cast_like(x: Operand, target_type: Operand, *, saturate: int = 1, round_mode: str = "up") -> TensorType:
    """Conversion to the element type of the second operand."""
    return TensorType(target_type.dtype, x.type.shape)


@op("BitCast", OpClass.ALIAS)
def bit_cast(x: Operand, *, to: ElementType) -> TensorType:
    """The same bits as another element type of the same width."""
    target = element_type(to)
    widths = [_BITS.get(t, 8 * t.itemsize) for t in (x.dtype, target)]
    if DType.STRING in (x.dtype, target) or widths[0] != widths[1]:
        raise ShapeError(f"{x.dtype} ({widths[0]} bits) cannot be reinterpreted as {target} ({widths[1]} bits)")
    return TensorType(target, x.type.shape)


@op("Hardmax", OpClass.COMPOSITE)
def hardmax(x: Operand, *, axis: int = -1) -> TensorType:
    """1 at the first largest element along *axis*, else 0."""
    normalize_axis(axis, x.rank)
    return x.type


@op("Dropout", OpClass.COMPOSITE, foldable=False)
def dropout(
    x: Operand, ratio: Operand | None = None, training_mode: Operand | None = None, *, seed: float | None = None
) -> tuple[TensorType, TensorType]:
    """The data (scaled and masked at random in training mode) and the mask."""
    return x.type, TensorType(DType.BOOL, x.type.shape)
