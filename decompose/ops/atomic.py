"""The atomic vocabulary: what a backend implements. Everything else becomes these.

Operands are dense row-major tensors with static shapes. Binary and Select broadcast as NumPy does.
Unless said otherwise all operands of a node share one dtype, which is the result's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

from mnnpy.decompose.infer import Operand, broadcast_shapes, data_dim, normalize_axis
from mnnpy.decompose.raster import Region
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim, SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType

#: ``y = fn(x)``. Parametric ones read *alpha* and *beta*.
UNARY = (
    "Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Trunc", "Sqrt", "Rsqrt", "Reciprocal", "Square",
    "Exp", "Expm1", "Log", "Log1p", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Tanh",
    "Asinh", "Acosh", "Atanh", "Erf", "Sigmoid", "Softplus", "Relu", "Silu", "Gelu", "GeluTanh",
    "HardSwish", "Mish",
    "LeakyRelu",  # x < 0 ? alpha·x : x
    "Elu",  # x < 0 ? alpha·(exp(x) − 1) : x
    "HardSigmoid",  # max(0, min(1, alpha·x + beta))
    "Clip",  # min(max(x, alpha), beta); NaN stays NaN
    "Not",  # bool
    "BitwiseNot",
    "IsNaN", "IsInf",  # → bool
)  # fmt: skip
UNARY_TO_BOOL = frozenset({"IsNaN", "IsInf"})

#: ``y = fn(a, b)``. Integer Div truncates; Mod takes the divisor's sign, Fmod the dividend's (C);
#: Max and Min propagate NaN; shifts are of unsigned types, by ≥ width gives 0.
BINARY = (
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "Fmod", "Atan2", "SquaredDifference",
    "Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual",  # → bool
    "And", "Or", "Xor",  # bool
    "BitwiseAnd", "BitwiseOr", "BitwiseXor", "ShiftLeft", "ShiftRight",
)  # fmt: skip
BINARY_TO_BOOL = frozenset({"Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual"})

REDUCE = ("Sum", "Mean", "Max", "Min", "Prod", "SumSquare", "L1", "L2")
ARG_REDUCE = ("Max", "Min")
PREFIX_SCAN = ("Sum", "Prod")
POOL = ("Max", "Average", "Lp")
SCATTER = ("none", "add", "mul", "max", "min")
RANDOM = ("Uniform", "Normal")


def _one_of(fn: str, known: Sequence[str]) -> None:
    if fn not in known:
        raise ShapeError(f"fn '{fn}' is not one of {', '.join(known)}")


@op("Unary", OpClass.ATOMIC)
def unary(x: Operand, *, fn: str, alpha: float = 0.0, beta: float = 0.0) -> TensorType:
    """Element-wise function of one operand."""
    _one_of(fn, UNARY)
    return TensorType(DType.BOOL if fn in UNARY_TO_BOOL else x.dtype, x.type.shape)


@op("Binary", OpClass.ATOMIC)
def binary(a: Operand, b: Operand, *, fn: str) -> TensorType:
    """Element-wise function of two operands, broadcast."""
    _one_of(fn, BINARY)
    if a.dtype is not b.dtype:
        raise ShapeError(f"operands of {fn} have dtypes {a.dtype} and {b.dtype}; cast one of them")
    return TensorType(DType.BOOL if fn in BINARY_TO_BOOL else a.dtype, broadcast_shapes(a.shape, b.shape))


@op("Select", OpClass.ATOMIC)
def select(condition: Operand, a: Operand, b: Operand) -> TensorType:
    """``condition ? a : b``, broadcast; *condition* is bool."""
    if condition.dtype is not DType.BOOL:
        raise ShapeError(f"the condition is {condition.dtype}, not bool")
    if a.dtype is not b.dtype:
        raise ShapeError(f"the branches have dtypes {a.dtype} and {b.dtype}")
    return TensorType(a.dtype, broadcast_shapes(condition.shape, a.shape, b.shape))


@op("Convert", OpClass.ATOMIC)
def convert(x: Operand, *, to: DType, saturate: bool = True, round_mode: str = "up") -> TensorType:
    """Element type conversion with the semantics of ONNX Cast (numeric and bool types only)."""
    return TensorType(to, x.type.shape)


@op("Reinterpret", OpClass.ATOMIC)
def reinterpret(x: Operand, *, to: DType) -> TensorType:
    """The same bytes as another element type of the same width."""
    if to.itemsize != x.dtype.itemsize:
        raise ShapeError(f"{x.dtype} and {to} differ in width")
    return TensorType(to, x.type.shape)


def reduced_shape(shape: tuple[Dim, ...], axes: Sequence[int], keepdims: bool) -> tuple[Dim, ...]:
    """Shape after reducing *axes* (normalised, maybe empty = none)."""
    gone = {normalize_axis(a, len(shape)) for a in axes}
    if keepdims:
        return tuple(1 if k in gone else d for k, d in enumerate(shape))
    return tuple(d for k, d in enumerate(shape) if k not in gone)


@op("Reduce", OpClass.ATOMIC)
def reduce(x: Operand, *, fn: str, axes: tuple[int, ...], keepdims: bool = True) -> TensorType:
    """Reduction over *axes* (explicit and non-negative; bool Max/Min are any/all).

    Over zero elements: Sum 0, Prod 1, Max −inf or the type's minimum, Min the opposite.
    """
    _one_of(fn, REDUCE)
    return TensorType(x.dtype, reduced_shape(x.shape, axes, keepdims))


@op("ArgReduce", OpClass.ATOMIC)
def arg_reduce(x: Operand, *, fn: str, axis: int, keepdims: bool = True, select_last: bool = False) -> TensorType:
    """Index (i64) of the extreme element along *axis*; the first one, or the last where asked."""
    _one_of(fn, ARG_REDUCE)
    return TensorType(DType.I64, reduced_shape(x.shape, (axis,), keepdims))


@op("PrefixScan", OpClass.ATOMIC)
def prefix_scan(x: Operand, *, fn: str, axis: int, exclusive: bool = False, reverse: bool = False) -> TensorType:
    """Running sum or product along *axis*."""
    _one_of(fn, PREFIX_SCAN)
    normalize_axis(axis, x.rank)
    return x.type


@op("MatMul", OpClass.ATOMIC)
def matmul(a: Operand, b: Operand) -> TensorType:
    """``numpy.matmul``: batch dimensions broadcast, 1-d operands are vectors. f16/bf16 accumulate in f32."""
    sa, sb = a.shape, b.shape
    if not sa or not sb:
        raise ShapeError("operands of MatMul need rank ≥ 1")
    if a.dtype is not b.dtype:
        raise ShapeError(f"operands of MatMul have dtypes {a.dtype} and {b.dtype}")
    ka, kb = sa[-1], sb[-2] if len(sb) > 1 else sb[0]
    if isinstance(ka, int) and isinstance(kb, int) and ka != kb:
        raise ShapeError(f"inner sizes differ: {ka} against {kb}")
    batch = broadcast_shapes(sa[:-2], sb[:-2])
    return TensorType(a.dtype, batch + (sa[-2:-1] if len(sa) > 1 else ()) + (sb[-1:] if len(sb) > 1 else ()))


def window_size(size: Dim, kernel: int, stride: int, dilation: int, before: int, after: int, ceil: bool = False) -> Dim:
    """Output size of a sliding window (ONNX Conv and Pool)."""
    if ceil and isinstance(size, SymDim):
        return data_dim("ceil")  # whether the last window counts depends on the size itself
    span = size + before + after - ((kernel - 1) * dilation + 1)
    out = (span + (stride - 1 if ceil else 0)) // stride + 1
    if ceil and isinstance(out, int) and isinstance(size, int) and (out - 1) * stride >= size + before:
        out -= 1  # a window may not start in the right padding
    return out


@op("Convolution", OpClass.ATOMIC)
def convolution(
    x: Operand,
    w: Operand,
    b: Operand | None = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
) -> TensorType:
    """Convolution over 1–3 spatial dims: ``x[N,C,…] * w[M,C/group,…] + b[M]``; *pads* as ONNX: all begins, all ends."""
    n, c, *spatial = x.shape
    m, cg, *kernel = w.shape
    if len(spatial) != len(kernel) or not spatial:
        raise ShapeError(f"input has {len(spatial)} spatial dims, the kernel {len(kernel)}")
    if isinstance(c, int) and isinstance(cg, int) and c != cg * group:
        raise ShapeError(f"input has {c} channels, the kernel wants {cg}·{group}")
    if isinstance(m, int) and m % group:
        raise ShapeError(f"{m} output channels do not divide into {group} groups")
    k = len(spatial)
    out = tuple(
        window_size(spatial[i], int(kernel[i]), strides[i], dilations[i], pads[i], pads[k + i]) for i in range(k)  # type: ignore[arg-type]
    )
    return TensorType(x.dtype, (n, m, *out))


@op("Pool", OpClass.ATOMIC)
def pool(
    x: Operand,
    *,
    fn: str,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    out: tuple[int, ...],
    count_include_pad: bool = False,
    p: int = 2,
    indices: bool = False,
    column_major: bool = False,
) -> tuple[TensorType, ...]:
    """Sliding-window reduction over 1–3 spatial dims of ``x[N,C,…]``; spatial output sizes are given as *out*.

    Windows are clipped to the input (Max, Lp) or divided by the elements counted (Average; *count_include_pad*
    counts those inside the padded extent). With *indices* (Max) a second output holds i64 flat indices into
    the whole of ``x`` (row-major, or column-major within the spatial dims).
    """
    _one_of(fn, POOL)
    n, c, *_ = x.shape
    first = TensorType(x.dtype, (n, c, *out))
    return (first, TensorType(DType.I64, first.shape)) if indices else (first,)


@op("Raster", OpClass.ATOMIC)
def raster(
    *xs: Operand, regions: tuple[Region, ...], shape: tuple[int, ...], fill: float | int | bool | None = None
) -> TensorType:
    """A new tensor of *shape*, filled with *fill* (``None``: regions cover all of it), then written by *regions*."""
    for r in regions:
        if not 0 <= r.origin < len(xs):
            raise ShapeError(f"a region reads origin {r.origin} of {len(xs)}")
    if any(x.dtype is not xs[0].dtype for x in xs):
        raise ShapeError(f"origins have dtypes {', '.join(str(x.dtype) for x in xs)}")
    return TensorType(xs[0].dtype, shape)


@op("Gather", OpClass.ATOMIC)
def gather(data: Operand, indices: Operand, *, axis: int = 0) -> TensorType:
    """``numpy.take(data, indices, axis)``; i32 or i64 indices, negative ones count from the end; others raise."""
    if indices.dtype not in (DType.I32, DType.I64):
        raise ShapeError(f"indices are {indices.dtype}, not i32 or i64")
    axis = normalize_axis(axis, data.rank)
    return TensorType(data.dtype, data.shape[:axis] + indices.shape + data.shape[axis + 1 :])


@op("Scatter", OpClass.ATOMIC)
def scatter(data: Operand, indices: Operand, updates: Operand, *, fn: str = "none") -> TensorType:
    """A copy of ``data[R, D]`` with rows ``indices[M]`` (i64) replaced by or combined with those of ``updates[M, D]``.

    Repeated indices combine in order of *k*; negative ones count from the end; others raise.
    """
    _one_of(fn, SCATTER)
    if data.rank != 2 or indices.rank != 1 or updates.rank != 2:
        raise ShapeError("atomic Scatter takes data[R,D], indices[M], updates[M,D]")
    return data.type


@op("Sort", OpClass.ATOMIC)
def sort(x: Operand, *, axis: int, k: int, descending: bool = True) -> tuple[TensorType, TensorType]:
    """The first *k* elements in order along *axis* and their i64 indices; ties by lower index; NaN sorts as largest."""
    axis = normalize_axis(axis, x.rank)
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return TensorType(x.dtype, shape), TensorType(DType.I64, shape)


@op("Random", OpClass.ATOMIC, foldable=False)
def random(
    *, fn: str, shape: tuple[int, ...], dtype: DType, a: float = 0.0, b: float = 1.0, seed: int | None = None
) -> TensorType:
    """Philox-4x32-10 numbers; a fresh stream per run without *seed*.

    Word ``i`` of the stream is word ``i % 4`` of the block with counter ``i // 4`` (64 bits, upper half 0) and key
    *seed* (64 bits). Uniform in ``[a, b)``: element ``i`` is ``a + (b − a)·(w[i] >> 8)·2^-24``. Normal, mean *a* and
    deviation *b*: elements ``2j`` and ``2j + 1`` are ``r·cos t`` and ``r·sin t`` scaled, with
    ``t = 2π·(w[2j+1] >> 8)·2^-24`` and ``r = sqrt(−2·ln(((w[2j] >> 8) + 1)·2^-24))``. The result is rounded to *dtype*.
    """
    _one_of(fn, RANDOM)
    return TensorType(dtype, shape)
