"""Types of a node's outputs from its operands, symbolic or concrete."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnnpy.classes import dataclass
from mnnpy.decompose.registry import check_node, get_op
from mnnpy.errors import MnnpyError, ModelError, ShapeError
from mnnpy.graph.dims import Dim, Shape, SymDim, dim_max
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, TensorType, Type

__all__ = ["NeedsValueError", "Operand", "UnknownTypeError", "broadcast_shapes", "data_dim", "infer", "normalize_axis"]


class UnknownTypeError(MnnpyError):
    """A shape function needs a type or rank that is not known (yet)."""


class NeedsValueError(UnknownTypeError):
    """A shape function needs the *value* of an operand (a target shape, a count, an axis)."""

    def __init__(self, operand: str) -> None:
        super().__init__(f"the value of '{operand}' must be known to infer shapes")
        self.operand = operand


@dataclass(frozen=True, slots=True)
class Operand:
    """An input as a shape function sees it: its type and, where known, its value."""

    maybe_type: Type | None
    value: Array | None = None
    name: str = ""

    @property
    def type(self) -> TensorType:
        if not isinstance(self.maybe_type, TensorType):
            if self.maybe_type is None:
                raise UnknownTypeError(f"the type of '{self.name}' is not known")
            raise ShapeError(f"'{self.name}' is {self.maybe_type}, but a tensor is needed here")
        return self.maybe_type

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> Shape:
        shape = self.type.shape
        if shape is None:
            raise UnknownTypeError(f"the rank of '{self.name}' is not known")
        return shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    def require_value(self) -> Array:
        """The value (an array; object dtype where elements are symbolic dims), or NeedsValueError."""
        if self.value is None:
            raise NeedsValueError(self.name)
        return self.value

    def require_ints(self) -> tuple[Dim, ...]:
        """The value as a flat tuple of ints (or symbolic dims)."""
        return tuple(v if isinstance(v, SymDim) else int(v) for v in self.require_value().reshape(-1).tolist())


_counter = itertools.count()


def data_dim(hint: str = "n") -> SymDim:
    """A fresh dimension that only the data decide (NonZero, Unique, …)."""
    return SymDim({f"?{hint}{next(_counter)}": 1})


def normalize_axis(axis: int, rank: int, what: str = "axis") -> int:
    """*axis* in ``[0, rank)``; raises ShapeError outside ``[-rank, rank)``."""
    if not -rank <= axis < rank:
        raise ShapeError(f"{what} {axis} is out of range for rank {rank}")
    return axis + rank if axis < 0 else axis


def broadcast_shapes(*shapes: Shape) -> Shape:
    """NumPy broadcasting with symbolic dims: a known size above 1 wins, two unknown ones give their maximum."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = []
    for k in range(rank):
        dim: Dim = 1
        for s in shapes:
            j = k - (rank - len(s))
            d = s[j] if j >= 0 else 1
            if d == 1 or d == dim:
                continue
            if dim == 1 or (isinstance(dim, SymDim) and not isinstance(d, SymDim)):
                dim = d
            elif isinstance(dim, SymDim) and isinstance(d, SymDim):
                dim = dim_max(dim, d)  # either may turn out to be 1
            elif not isinstance(d, SymDim) and not isinstance(dim, SymDim):
                raise ShapeError(f"shapes {' and '.join(map(str, shapes))} do not broadcast: {dim} against {d}")
        out.append(dim)
    return tuple(out)


def infer(
    name: str, operands: Sequence[Operand | None], attrs: Mapping[str, Any], n_outputs: int, where: str = ""
) -> tuple[Type | None, ...]:
    """Output types of one node. Raises UnknownTypeError where they cannot be told, ShapeError where they clash.

    Returns at least *n_outputs* entries, ``None`` for outputs the shape function leaves open.
    """
    found = get_op(name)
    where = where or name
    check_node(found, len(operands), attrs, where)
    try:
        result = found.shape(*operands, **attrs)
    except MnnpyError as error:
        if isinstance(error, UnknownTypeError) or getattr(error, "located", False):
            raise
        located = type(error)(f"{where} ({name}) with {_show(operands)}: {error}")
        located.located = True  # type: ignore[attr-defined]
        raise located from error
    except (ValueError, TypeError, IndexError, AttributeError, ZeroDivisionError, OverflowError, KeyError) as error:
        raise ShapeError(
            f"{where} ({name}) with {_show(operands)}: {error}; check the operands and attributes"
        ) from error
    types = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    for t in types:
        if (
            isinstance(t, TensorType)
            and t.shape is not None
            and any(not isinstance(d, SymDim) and d < 0 for d in t.shape)
        ):
            raise ShapeError(f"{where} ({name}) with {_show(operands)}: the result would have shape {t.shape}")
    if len(types) < n_outputs:
        raise ModelError(f"{where}: {name} has {len(types)} outputs, {n_outputs} are used")
    return types


def _show(operands: Sequence[Operand | None]) -> str:
    return "(" + ", ".join("absent" if o is None else str(o.maybe_type or "?") for o in operands) + ")"


def operand_of(array: Array, name: str = "") -> Operand:
    """A known constant as an operand."""
    a = np.asarray(array)
    return Operand(TensorType(DType.of(a.dtype), tuple(a.shape)), a, name)
