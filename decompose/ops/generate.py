"""Shape functions of ops that make tensors out of nothing (or out of a shape)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from mnnpy.decompose.infer import Operand, data_dim
from mnnpy.decompose.ops.element_types import ElementType, element_type, maybe_element_type
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim, SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, TensorType, tensor_type_of


@op("ConstantOfShape", OpClass.TRANSFORM)
def constant_of_shape(shape: Operand, *, value: Array | None = None) -> TensorType:
    """A tensor of one value (f32 zero by default)."""
    dtype = DType.F32 if value is None else tensor_type_of(value).dtype
    return TensorType(dtype, shape.require_ints())


@op("EyeLike", OpClass.TRANSFORM)
def eye_like(x: Operand, *, dtype: ElementType | None = None, k: int = 0) -> TensorType:
    """Ones on the k-th diagonal, zeros elsewhere."""
    if x.rank != 2:
        raise ShapeError(f"the input has rank {x.rank}, not 2")
    return TensorType(maybe_element_type(dtype) or x.dtype, x.shape)


def range_length(start: float, limit: float, delta: float) -> int:
    """Number of elements of Range."""
    if delta == 0:
        raise ShapeError("the step of a range is 0")
    return max(0, ceil((limit - start) / delta))


@op("Range", OpClass.COMPOSITE)
def range_(start: Operand, limit: Operand, delta: Operand, *, stash_type: ElementType = 1) -> TensorType:
    """start, start + delta, … below limit."""
    first, last, step = (v.require_value().reshape(-1).tolist()[0] for v in (start, limit, delta))
    n: Dim
    if not any(isinstance(v, SymDim) for v in (first, last, step)):
        if start.dtype.is_int:
            first, last, step = int(first), int(last), int(step)
            if step == 0:
                raise ShapeError("the step of a range is 0")
            n = max(0, -((first - last) // step))
        else:
            n = range_length(float(first), float(last), float(step))
    elif step == 1:
        n = last - first
    else:
        n = data_dim("range")
    return TensorType(start.dtype, (n,))


def _window(size: Operand, output_datatype: ElementType) -> TensorType:
    (n,) = size.require_ints()
    return TensorType(element_type(output_datatype), (n,))


@op("HannWindow", OpClass.COMPOSITE)
def hann_window(size: Operand, *, output_datatype: ElementType = 1, periodic: int = 1) -> TensorType:
    """Raised cosine window."""
    return _window(size, output_datatype)


@op("HammingWindow", OpClass.COMPOSITE)
def hamming_window(size: Operand, *, output_datatype: ElementType = 1, periodic: int = 1) -> TensorType:
    """Raised cosine window on a pedestal."""
    return _window(size, output_datatype)


@op("BlackmanWindow", OpClass.COMPOSITE)
def blackman_window(size: Operand, *, output_datatype: ElementType = 1, periodic: int = 1) -> TensorType:
    """Sum of two cosines."""
    return _window(size, output_datatype)


@op("RandomUniform", OpClass.ALIAS, foldable=False)
def random_uniform(
    *, shape: Sequence[int], dtype: ElementType = 1, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> TensorType:
    """Uniform numbers in ``[low, high)``."""
    return TensorType(element_type(dtype), tuple(shape))


@op("RandomNormal", OpClass.ALIAS, foldable=False)
def random_normal(
    *, shape: Sequence[int], dtype: ElementType = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> TensorType:
    """Normal numbers with the given mean and deviation."""
    return TensorType(element_type(dtype), tuple(shape))


def _like(x: Operand, dtype: Any) -> TensorType:
    return TensorType(maybe_element_type(dtype) or x.dtype, x.type.shape)


@op("RandomUniformLike", OpClass.ALIAS, foldable=False)
def random_uniform_like(
    x: Operand, *, dtype: ElementType | None = None, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> TensorType:
    """Uniform numbers in the shape of the operand."""
    return _like(x, dtype)


@op("RandomNormalLike", OpClass.ALIAS, foldable=False)
def random_normal_like(
    x: Operand, *, dtype: ElementType | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> TensorType:
    """Normal numbers in the shape of the operand."""
    return _like(x, dtype)


@op("Bernoulli", OpClass.COMPOSITE, foldable=False)
def bernoulli(x: Operand, *, dtype: ElementType | None = None, seed: float | None = None) -> TensorType:
    """1 with the probability that the operand gives, else 0."""
    return _like(x, dtype)


@op("Multinomial", OpClass.COMPOSITE, foldable=False)
def multinomial(x: Operand, *, dtype: ElementType = 6, sample_size: int = 1, seed: float | None = None) -> TensorType:
    """Class indices drawn from the unnormalised log-probabilities of each row."""
    if x.rank != 2:
        raise ShapeError(f"the input has rank {x.rank}; [batch, classes] is needed")
    out = element_type(dtype)
    if out not in (DType.I32, DType.I64):
        raise ShapeError(f"indices of type {out} are not i32 or i64")
    return TensorType(out, (x.shape[0], sample_size))
