"""Shape functions of contractions: convolutions, matrix products, Einsum."""

from __future__ import annotations

from mnnpy.classes import dataclass
from mnnpy.decompose.infer import Operand, UnknownTypeError
from mnnpy.decompose.ops.atomic import matmul, window_size
from mnnpy.decompose.ops.windows import Ints, conv_window, transposed_window
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim, Shape, SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType

Label = str | int  #: a letter, or the position of an ellipsis dim counted from the right


def _check_dtype(what: str, dtype: DType, allowed: tuple[DType, ...]) -> None:
    if dtype not in allowed:
        raise ShapeError(f"{what} is {dtype}; it must be one of {', '.join(map(str, allowed))}; cast it first")


def _check_bias(b: Operand | None, channels: Dim) -> None:
    if b is None:
        return
    if b.rank != 1 or (isinstance(b.shape[0], int) and isinstance(channels, int) and b.shape[0] != channels):
        raise ShapeError(f"the bias has shape {b.shape}, but {channels} output channels need [{channels}]")


def _conv_shape(
    x: Operand,
    w: Operand,
    group: int,
    kernel_shape: Ints | None,
    strides: Ints | None,
    pads: Ints | None,
    dilations: Ints | None,
    auto_pad: str,
) -> Shape:
    window = conv_window(x.shape, w.shape, kernel_shape, strides, pads, dilations, auto_pad)
    c, m, cg = x.shape[1], w.shape[0], w.shape[1]
    if group < 1:
        raise ShapeError(f"group is {group}; it must be at least 1")
    if isinstance(c, int) and isinstance(cg, int) and c != cg * group:
        raise ShapeError(
            f"input has {c} channels, but the weight of shape {w.shape} takes {cg}·group = {cg * group}; "
            "check group and the layout (N, C, spatial…)"
        )
    if isinstance(m, int) and m % group:
        raise ShapeError(f"{m} output channels do not divide into {group} groups")
    return (x.shape[0], m, *window.out)


@op("Conv", OpClass.COMPOSITE)
def conv(
    x: Operand,
    w: Operand,
    b: Operand | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Convolution of ``x[N,C,…]`` with ``w[M,C/group,…]`` and bias ``b[M]``."""
    if x.dtype is not w.dtype:
        raise ShapeError(f"input is {x.dtype}, the weight {w.dtype}; cast one of them")
    shape = _conv_shape(x, w, group, kernel_shape, strides, pads, dilations, auto_pad)
    _check_bias(b, shape[1])
    return TensorType(x.dtype, shape)


_BYTES = (DType.I8, DType.U8)


@op("ConvInteger", OpClass.COMPOSITE)
def conv_integer(
    x: Operand,
    w: Operand,
    x_zero_point: Operand | None = None,
    w_zero_point: Operand | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Convolution of 8-bit integers with exact i32 results."""
    _check_dtype("the input", x.dtype, _BYTES)
    _check_dtype("the weight", w.dtype, _BYTES)
    return TensorType(DType.I32, _conv_shape(x, w, group, kernel_shape, strides, pads, dilations, auto_pad))


@op("QLinearConv", OpClass.COMPOSITE)
def qlinear_conv(
    x: Operand,
    x_scale: Operand,
    x_zero_point: Operand,
    w: Operand,
    w_scale: Operand,
    w_zero_point: Operand,
    y_scale: Operand,
    y_zero_point: Operand,
    b: Operand | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Convolution of 8-bit operands with scales and zero points, quantised again."""
    _check_dtype("the input", x.dtype, _BYTES)
    _check_dtype("the weight", w.dtype, _BYTES)
    shape = _conv_shape(x, w, group, kernel_shape, strides, pads, dilations, auto_pad)
    _check_bias(b, shape[1])
    return TensorType(y_zero_point.dtype, shape)


@op("ConvTranspose", OpClass.COMPOSITE)
def conv_transpose(
    x: Operand,
    w: Operand,
    b: Operand | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Transposed convolution of ``x[N,C,…]`` with ``w[C,M/group,…]`` and bias ``b[M]``."""
    if x.dtype is not w.dtype:
        raise ShapeError(f"input is {x.dtype}, the weight {w.dtype}; cast one of them")
    window = transposed_window(
        x.shape, w.shape, kernel_shape, strides, pads, dilations, auto_pad, output_padding, output_shape
    )
    c, cw, channels = x.shape[1], w.shape[0], w.shape[1] * group
    if isinstance(c, int) and isinstance(cw, int) and c != cw:
        raise ShapeError(f"input has {c} channels, the weight takes {cw}")
    if isinstance(c, int) and c % group:
        raise ShapeError(f"{c} input channels do not divide into {group} groups")
    _check_bias(b, channels)
    return TensorType(x.dtype, (x.shape[0], channels, *window.out))


@op("DeformConv", OpClass.COMPOSITE)
def deform_conv(
    x: Operand,
    w: Operand,
    offset: Operand,
    b: Operand | None = None,
    mask: Operand | None = None,
    *,
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    offset_group: int = 1,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Convolution that samples its input at learnt *offset* positions (arXiv 1703.06211, 1811.11168)."""
    shape = _conv_shape(x, w, group, kernel_shape, strides, pads, dilations, "NOTSET")
    c = x.shape[1]
    if isinstance(c, int) and c % offset_group:
        raise ShapeError(f"{c} channels do not divide into {offset_group} offset groups")
    _check_bias(b, shape[1])
    spots: Dim = offset_group
    for d in w.shape[2:]:
        spots = spots * d
    for operand, channels in ((offset, spots * (x.rank - 2)), (mask, spots)):
        if operand is None:
            continue
        if operand.rank != x.rank:
            raise ShapeError(f"'{operand.name}' has rank {operand.rank}, the input {x.rank}")
        have, want = operand.shape[1:], (channels, *shape[2:])
        if any(isinstance(p, int) and isinstance(q, int) and p != q for p, q in zip(have, want, strict=True)):
            raise ShapeError(f"'{operand.name}' has shape {operand.shape}, but {(x.shape[0], *want)} is needed")
    return TensorType(x.dtype, shape)


@op("Gemm", OpClass.COMPOSITE)
def gemm(
    a: Operand,
    b: Operand,
    c: Operand | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> TensorType:
    """``alpha · A' · B' + beta · C`` for matrices."""
    if a.rank != 2 or b.rank != 2:
        raise ShapeError(f"operands have ranks {a.rank} and {b.rank}; Gemm takes matrices, MatMul takes any rank")
    if a.dtype is not b.dtype:
        raise ShapeError(f"operands have dtypes {a.dtype} and {b.dtype}; cast one of them")
    m, ka = a.shape[::-1] if transA else a.shape
    kb, n = b.shape[::-1] if transB else b.shape
    if isinstance(ka, int) and isinstance(kb, int) and ka != kb:
        raise ShapeError(f"inner sizes differ: {ka} against {kb} (transA={transA}, transB={transB})")
    if c is not None:
        padded = (1,) * (2 - c.rank) + c.shape
        fits = c.rank <= 2 and all(
            d == 1 or isinstance(d, SymDim) or isinstance(t, SymDim) or d == t
            for d, t in zip(padded, (m, n), strict=False)
        )
        if not fits:
            raise ShapeError(f"C of shape {c.shape} does not broadcast to {(m, n)}")
    return TensorType(a.dtype, (m, n))


@op("MatMulInteger", OpClass.COMPOSITE)
def matmul_integer(
    a: Operand, b: Operand, a_zero_point: Operand | None = None, b_zero_point: Operand | None = None
) -> TensorType:
    """Matrix product of 8-bit integers with exact i32 results."""
    _check_dtype("A", a.dtype, _BYTES)
    _check_dtype("B", b.dtype, _BYTES)
    return TensorType(DType.I32, _product_shape(a, b))


def _product_shape(a: Operand, b: Operand) -> Shape:
    shape = matmul(Operand(TensorType(DType.I32, a.shape)), Operand(TensorType(DType.I32, b.shape))).shape
    assert shape is not None
    return shape


@op("QLinearMatMul", OpClass.COMPOSITE)
def qlinear_matmul(
    a: Operand,
    a_scale: Operand,
    a_zero_point: Operand,
    b: Operand,
    b_scale: Operand,
    b_zero_point: Operand,
    y_scale: Operand,
    y_zero_point: Operand,
) -> TensorType:
    """Matrix product of quantised operands, quantised again."""
    return TensorType(y_zero_point.dtype, _product_shape(a, b))


@op("Col2Im", OpClass.COMPOSITE)
def col2im(
    x: Operand,
    image_shape: Operand,
    block_shape: Operand,
    *,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Sum of column blocks ``x[N, C·block, L]`` put back into an image ``[N, C, …]``."""
    image, block = image_shape.require_ints(), block_shape.require_ints()
    k = len(image)
    if x.rank != 3 or len(block) != k:
        raise ShapeError(f"input has rank {x.rank} (3 is needed), image_shape {k} and block_shape {len(block)} entries")
    size, blocks = 1, 1
    for i, (d, e) in enumerate(zip(image, block, strict=True)):
        if isinstance(e, SymDim):
            raise UnknownTypeError("block_shape is not static")
        size *= e
        step, dil = (strides or (1,) * k)[i], (dilations or (1,) * k)[i]
        begin, end = (pads or (0,) * (2 * k))[i], (pads or (0,) * (2 * k))[k + i]
        blocks = blocks * window_size(d, e, step, dil, begin, end)  # type: ignore[assignment]
    _, columns, length = x.shape
    if isinstance(columns, int) and columns % size:
        raise ShapeError(f"{columns} rows do not divide into blocks of {size} elements")
    if isinstance(length, int) and isinstance(blocks, int) and length != blocks:
        raise ShapeError(f"input has {length} columns, but {blocks} blocks of {block} fit into the image {image}")
    return TensorType(x.dtype, (x.shape[0], columns // size, *image))


@dataclass(frozen=True, slots=True)
class EinsumTerms:
    """A parsed equation: labels of every operand and of the result."""

    inputs: tuple[tuple[Label, ...], ...]
    output: tuple[Label, ...]


def parse_einsum(equation: str, ranks: tuple[int, ...]) -> EinsumTerms:
    """Split *equation* into labels; an ellipsis becomes numbered labels, 0 being its last dim."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ShapeError(f"equation '{equation}' has {len(terms)} terms for {len(ranks)} operands")
    inputs = []
    for term, rank in zip(terms, ranks, strict=True):
        head, dots, tail = term.partition("...")
        extra = rank - len(head) - len(tail)
        if extra < 0 or (extra and not dots) or (not (head + tail).isalpha() and head + tail):
            raise ShapeError(f"term '{term}' of '{equation}' does not fit an operand of rank {rank}")
        inputs.append((*head, *range(extra - 1, -1, -1), *tail))
    widest = max((sum(isinstance(v, int) for v in t) for t in inputs), default=0)
    dots_dims = tuple(range(widest - 1, -1, -1))
    used = [v for t in inputs for v in t if isinstance(v, str)]
    if not arrow:
        return EinsumTerms(tuple(inputs), (*dots_dims, *sorted(v for v in set(used) if used.count(v) == 1)))
    head, dots, tail = right.partition("...")
    for v in head + tail:
        if v not in used or (head + tail).count(v) > 1:
            raise ShapeError(f"output label '{v}' of '{equation}' is unknown or repeated")
    return EinsumTerms(tuple(inputs), (*head, *(dots_dims if dots else ()), *tail))


@op("Einsum", OpClass.COMPOSITE)
def einsum(*xs: Operand, equation: str) -> TensorType:
    """Einstein summation over any number of operands."""
    terms = parse_einsum(equation, tuple(x.rank for x in xs))
    if any(x.dtype is not xs[0].dtype for x in xs):
        raise ShapeError(f"operands have dtypes {', '.join(str(x.dtype) for x in xs)}; cast them to one")
    sizes: dict[Label, Dim] = {}
    for x, labels in zip(xs, terms.inputs, strict=True):
        for label, d in zip(labels, x.shape, strict=True):
            known = sizes.setdefault(label, d)
            if known == 1 or (isinstance(known, SymDim) and isinstance(d, int) and d != 1):
                sizes[label] = d
            elif isinstance(known, int) and isinstance(d, int) and d not in (1, known):
                raise ShapeError(f"label '{label}' of '{equation}' stands for sizes {known} and {d}")
    return TensorType(xs[0].dtype, tuple(sizes[label] for label in terms.output))
