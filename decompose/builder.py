"""Builds graphs node by node, inferring types and folding constants as it goes.

Front ends and decomposition rules both write through this class, so a rule reads like NumPy code::

    @rule("HardSwish")
    def hard_swish(g: Builder, x: Var) -> Var:
        return g.mul(x, g.unary("HardSigmoid", x, alpha=1 / 6, beta=0.5))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from mnnpy.classes import dataclass
from mnnpy.decompose.infer import Operand, UnknownTypeError, infer, normalize_axis
from mnnpy.decompose.raster import Region
from mnnpy.decompose.registry import get_op
from mnnpy.errors import MnnpyError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node, TensorType, Type, tensor_type_of

__all__ = ["Builder", "Var"]

#: Folding may not blow a constant up beyond this many bytes (an expanded scalar stays an instruction).
FOLD_LIMIT = 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class Var:
    """A value under construction: name, type where known, and the array where it is a constant."""

    name: str
    maybe_type: Type | None = None
    value: Array | None = None

    def operand(self) -> Operand:
        return Operand(self.maybe_type, self.value, self.name)

    @property
    def type(self) -> TensorType:
        return self.operand().type

    @property
    def dtype(self) -> DType:
        return self.operand().dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The static shape (decomposition always runs on static shapes)."""
        return self.operand().shape  # type: ignore[return-value]

    @property
    def rank(self) -> int:
        return self.operand().rank

    def require_value(self) -> Array:
        """The constant, or NeedsValueError: the value becomes part of the plan's signature."""
        return self.operand().require_value()

    def require_ints(self) -> tuple[int, ...]:
        return self.operand().require_ints()  # type: ignore[return-value]


class Builder:
    """Collects nodes and constants. *prefix* keeps new names unique; *fold* evaluates constant nodes at once."""

    def __init__(self, prefix: str = "", *, fold: bool = True) -> None:
        self.prefix = prefix
        self.fold = fold
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self.types: dict[str, Type] = {}
        self.origin = ""  #: name given to new nodes: the source node being decomposed
        self._count = 0

    def fresh(self, hint: str = "t") -> str:
        """A new unique value name."""
        self._count += 1
        return f"{self.prefix}{hint}_{self._count}"

    def var(self, name: str, type: Type | None = None, value: Array | None = None) -> Var:
        """Wrap an existing value."""
        if type is not None:
            self.types[name] = type
        return Var(name, type, value)

    def const(self, value: Any, dtype: DType | Any | None = None) -> Var:
        """A constant from anything numpy takes."""
        np_dtype = dtype.numpy if isinstance(dtype, DType) else dtype
        array = np.asarray(value, np_dtype) if np_dtype is not None else np.asarray(value)
        name = self.fresh("c")
        self.constants[name] = array
        type = self.types[name] = tensor_type_of(array)
        return Var(name, type, array)

    def op(self, name: str, *inputs: Var | None, outputs: int = 1, **attrs: Any) -> Any:
        """Emit one node. Returns its Var, or a tuple of Vars where ``outputs != 1``."""
        found = get_op(name)
        args = list(inputs)
        while args and args[-1] is None:
            args.pop()
        try:
            types = infer(name, [None if a is None else a.operand() for a in args], attrs, outputs, self.origin or name)
        except UnknownTypeError:
            types = (None,) * outputs
        foldable = self.fold and found.foldable and args and all(a is None or a.value is not None for a in args)
        if foldable and self._small(types, args):
            values = evaluate(name, [a and a.value for a in args], attrs)
            folded = tuple(self.const(v) for v in values[:outputs])
            return folded[0] if outputs == 1 else folded
        made = []
        for k in range(outputs):
            out = self.fresh()
            t = types[k]
            if t is not None:
                self.types[out] = t
            made.append(Var(out, t))
        ins = tuple("" if a is None else a.name for a in args)
        self.nodes.append(Node(name, ins, tuple(v.name for v in made), attrs, self.origin))
        return made[0] if outputs == 1 else tuple(made)

    @staticmethod
    def _small(types: Sequence[Type | None], args: Sequence[Var | None]) -> bool:
        size = 0
        for t in types:
            if not isinstance(t, TensorType) or not t.is_static or t.dtype is DType.STRING:
                return False
            size += t.dtype.itemsize * int(prod(t.shape or ()))  # type: ignore[arg-type]
        return size <= max(FOLD_LIMIT, 2 * sum(a.value.nbytes for a in args if a is not None and a.value is not None))

    # -- shorthand for the atomic and movement ops, so that rules read like formulas --

    def unary(self, fn: str, x: Var, **params: float) -> Var:
        attrs: dict[str, Any] = {"fn": fn, **params}
        return self.op("Unary", x, **attrs)  # type: ignore[no-any-return]

    def binary(self, fn: str, a: Var, b: Var | float) -> Var:
        return self.op("Binary", a, self.like(b, a), fn=fn)  # type: ignore[no-any-return]

    def like(self, value: Var | float, x: Var) -> Var:
        """A Python number as a scalar constant of x's dtype."""
        return value if isinstance(value, Var) else self.const(np.asarray(value).astype(x.dtype.numpy))

    def add(self, a: Var, b: Var | float) -> Var:
        return self.binary("Add", a, b)

    def sub(self, a: Var, b: Var | float) -> Var:
        return self.binary("Sub", a, b)

    def mul(self, a: Var, b: Var | float) -> Var:
        return self.binary("Mul", a, b)

    def div(self, a: Var, b: Var | float) -> Var:
        return self.binary("Div", a, b)

    def select(self, condition: Var, a: Var, b: Var | float) -> Var:
        return self.op("Select", condition, a, self.like(b, a))  # type: ignore[no-any-return]

    def cast(self, x: Var, to: DType) -> Var:
        return x if x.dtype is to else self.op("Convert", x, to=to)

    def reduce(self, fn: str, x: Var, axes: Sequence[int], keepdims: bool = True) -> Var:
        axes = tuple(sorted(normalize_axis(a, x.rank) for a in axes))
        return self.op("Reduce", x, fn=fn, axes=axes, keepdims=keepdims)  # type: ignore[no-any-return]

    def matmul(self, a: Var, b: Var) -> Var:
        return self.op("MatMul", a, b)  # type: ignore[no-any-return]

    def gather(self, data: Var, indices: Var, axis: int = 0) -> Var:
        return self.op("Gather", data, indices, axis=axis)  # type: ignore[no-any-return]

    def raster(
        self, xs: Sequence[Var], regions: Sequence[Region], shape: Sequence[int], fill: float | int | bool | None = None
    ) -> Var:
        return self.op("Raster", *xs, regions=tuple(regions), shape=tuple(shape), fill=fill)  # type: ignore[no-any-return]

    def reshape(self, x: Var, shape: Sequence[int]) -> Var:
        """Reshape to a static *shape* (−1 allowed once)."""
        return self.op("Reshape", x, self.const(np.asarray(shape, np.int64)), allowzero=1)  # type: ignore[no-any-return]

    def transpose(self, x: Var, perm: Sequence[int]) -> Var:
        return self.op("Transpose", x, perm=tuple(perm))  # type: ignore[no-any-return]

    def concat(self, xs: Sequence[Var], axis: int) -> Var:
        return self.op("Concat", *xs, axis=axis)  # type: ignore[no-any-return]

    def expand(self, x: Var, shape: Sequence[int]) -> Var:
        return self.op("Expand", x, self.const(np.asarray(shape, np.int64)))  # type: ignore[no-any-return]

    def slice(self, x: Var, axis: int, start: int, stop: int, step: int = 1) -> Var:
        """``x[…, start:stop:step, …]`` along one axis, as ONNX Slice counts."""
        numbers = [self.const(np.asarray([v], np.int64)) for v in (start, stop, axis, step)]
        return self.op("Slice", x, *numbers)  # type: ignore[no-any-return]

    def unsqueeze(self, x: Var, *axes: int) -> Var:
        return self.op("Unsqueeze", x, self.const(np.asarray(axes, np.int64)))  # type: ignore[no-any-return]

    def pad(self, x: Var, begins: Sequence[int], ends: Sequence[int], value: float | int | bool = 0) -> Var:
        """Constant padding (negative sizes crop)."""
        pads = self.const(np.asarray([*begins, *ends], np.int64))
        return self.op("Pad", x, pads, self.like(value, x))  # type: ignore[no-any-return]


def evaluate(name: str, values: Sequence[Any], attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Run the NumPy reference of one op on concrete values; always returns a tuple of results."""
    found = get_op(name)
    if found.reference is None:
        raise MnnpyError(f"op '{name}' has no reference; add @reference({name!r}) to mnnpy/backends/reference/kernels")
    if found.reference_options.get("evaluate"):
        from mnnpy.backends.reference.interpreter import run_graph

        result = found.reference(run_graph, *values, **attrs)
    else:
        with np.errstate(all="ignore"):
            result = found.reference(*values, **attrs)
    return result if isinstance(result, tuple) else (result,)
