"""Writes kernels: ``b = KernelBuilder("name"); x = b.buffer("x", DType.F32); …; b.build()``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mnnpy.backends.kernels.ir import (
    Array,
    ArrayStore,
    Assign,
    AtomicUpdate,
    Barrier,
    Buffer,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Mutable,
    Number,
    Stmt,
    Store,
    Type,
    While,
    as_expr,
    register_type,
)
from mnnpy.graph.dtypes import DType

__all__ = ["KernelBuilder"]


class KernelBuilder:
    """One kernel under construction. Statements go where they are written; ``with`` opens blocks."""

    def __init__(self, name: str, local: tuple[int, int, int] = (64, 1, 1)) -> None:
        self.name = name
        self.local = local
        self._buffers: list[Buffer] = []
        self._scalars: list[tuple[str, DType]] = []
        self._arrays: list[Array] = []
        self._blocks: list[list[Stmt]] = [[]]
        self._count = 0

    # -- operands --

    def buffer(self, name: str, dtype: DType, access: str = "r", *, atomic: bool = False) -> Buffer:
        """A global buffer; launches bind buffers by these names."""
        made = Buffer(name, dtype, access, atomic)
        if any(b.name == name for b in self._buffers):
            raise ValueError(f"kernel '{self.name}' has a buffer '{name}' already")
        self._buffers.append(made)
        return made

    def scalar(self, name: str, dtype: DType = DType.I32) -> Expr:
        """A number that each launch gives, typed by its first use: no new source is compiled when it changes."""
        known = dict(self._scalars).get(name)
        if known is None:
            self._scalars.append((name, dtype))
        return Expr("var", Type(known or dtype), (), name)

    def array(self, dtype: DType, size: int, space: str = "private", lanes: int = 1) -> Array:
        """Memory of the work item, or of the work group (``local``)."""
        made = Array(self._name("m"), Type(dtype, lanes), size, space)
        self._arrays.append(made)
        return made

    def global_id(self, axis: int = 0) -> Expr:
        return Expr("id", Type(DType.I32), (), ("global", axis))

    def local_id(self, axis: int = 0) -> Expr:
        return Expr("id", Type(DType.I32), (), ("local", axis))

    def group_id(self, axis: int = 0) -> Expr:
        return Expr("id", Type(DType.I32), (), ("group", axis))

    def subgroup_id(self, kind: str) -> Expr:
        """``lane`` (of the item in its subgroup), ``subgroup`` (in the group), ``subgroups`` (how many)."""
        return Expr("id", Type(DType.I32), (), (kind, 0))

    # -- expressions --

    def load(self, buffer: Buffer, index: Expr | Number, lanes: int = 1) -> Expr:
        """An element, widened to its register type; *lanes* consecutive ones as a vector."""
        at = as_expr(index, Type(DType.I32))
        return Expr("load" if lanes == 1 else "vload", Type(register_type(buffer.dtype), lanes), (at,), buffer)

    def read(self, array: Array, index: Expr | Number) -> Expr:
        return Expr("aload", array.type, (as_expr(index, Type(DType.I32)),), array)

    def let(self, value: Expr, hint: str = "v") -> Expr:
        """A named value: write it once, use it often. Leaves are returned as they are."""
        if value.op in ("const", "var"):
            return value
        name = self._name(hint)
        self._emit(Let(name, value))
        return Expr("var", value.type, (), name)

    def mutable(self, value: Expr, hint: str = "r") -> Expr:
        """A register with a first value, for ``assign``."""
        name = self._name(hint)
        self._emit(Mutable(name, value))
        return Expr("var", value.type, (), name)

    # -- statements --

    def assign(self, register: Expr, value: Expr | Number) -> None:
        self._emit(Assign(str(register.value), as_expr(value, register.type)))

    def store(self, buffer: Buffer, index: Expr | Number, value: Expr | Number) -> None:
        """Write one element (or a vector of consecutive ones)."""
        at = as_expr(index, Type(DType.I32))
        self._emit(Store(buffer, at, as_expr(value, Type(register_type(buffer.dtype)))))

    def write(self, array: Array, index: Expr | Number, value: Expr | Number) -> None:
        self._emit(ArrayStore(array, as_expr(index, Type(DType.I32)), as_expr(value, array.type)))

    def atomic(self, buffer: Buffer, index: Expr, fn: str, value: Expr) -> None:
        """``buffer[index] = fn(buffer[index], value)`` undivided; the buffer must be declared with ``atomic=True``."""
        if not buffer.atomic or buffer.dtype.itemsize != 4:
            raise ValueError(f"buffer '{buffer.name}' ({buffer.dtype}) is not declared for atomic updates of 4 bytes")
        self._emit(AtomicUpdate(buffer, index, fn, value))

    def barrier(self) -> None:
        self._emit(Barrier())

    @contextmanager
    def loop(
        self, start: Expr | Number, stop: Expr | Number, step: int = 1, *, unroll: bool = False, hint: str = "k"
    ) -> Iterator[Expr]:
        """``with b.loop(0, n) as k:``"""
        name = self._name(hint)
        index = Type(DType.I32)
        self._blocks.append([])
        yield Expr("var", index, (), name)
        body = tuple(self._blocks.pop())
        self._emit(For(name, as_expr(start, index), as_expr(stop, index), step, body, unroll))

    @contextmanager
    def repeat(self, condition: Expr) -> Iterator[None]:
        """``while (condition)``; the condition reads mutable registers."""
        self._blocks.append([])
        yield
        self._emit(While(condition, tuple(self._blocks.pop())))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        self._blocks.append([])
        yield
        body = tuple(self._blocks.pop())
        if condition.op == "const":
            for s in body if condition.value else ():
                self._emit(s)
        else:
            self._emit(If(condition, body))

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """The other branch of the ``when`` just closed."""
        last = self._blocks[-1][-1]
        if not isinstance(last, If) or last.otherwise:
            raise ValueError("otherwise() follows a when() whose condition is not constant")
        self._blocks.append([])
        yield
        body = tuple(self._blocks.pop())
        self._blocks[-1][-1] = If(last.condition, last.then, body)

    # -- helpers that most templates need --

    def unravel(self, flat: Expr, sizes: Sequence[Expr | int]) -> list[Expr]:
        """Coordinates of a row-major flat index; the first one is not reduced modulo its size."""
        out: list[Expr] = []
        rest = flat
        for size in reversed(sizes[1:]):
            rest = self.let(rest, "i")
            out.append(rest % size)
            rest = rest // size
        return [self.let(c, "i") for c in (rest, *reversed(out))] if sizes else []

    def build(self) -> Kernel:
        if len(self._blocks) != 1:
            raise ValueError(f"kernel '{self.name}' has an open block")
        return Kernel(
            self.name,
            tuple(self._buffers),
            tuple(self._scalars),
            self.local,
            tuple(self._arrays),
            tuple(self._blocks[0]),
        )

    def _emit(self, statement: Stmt) -> None:
        self._blocks[-1].append(statement)

    def _name(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}_"  # names of buffers and scalars end otherwise
