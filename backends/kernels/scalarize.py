"""Vectors into scalars, for dialects without wide vectors: one register, load and store per lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mnnpy.backends.kernels.ir import (
    Array,
    ArrayStore,
    Assign,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Mutable,
    Stmt,
    Store,
    Type,
    While,
    const,
    walk,
)

__all__ = ["scalarize"]


def scalarize(kernel: Kernel) -> Kernel:
    """The same kernel without vector types; *kernel* itself where it has none."""
    if all(a.type.lanes == 1 for a in kernel.arrays) and not any(_wide(item) for item in walk(kernel.body)):
        return kernel
    return _Scalarizer(kernel).run()


def _wide(item: Stmt | Expr) -> bool:
    """A vector, also one of which only a lane is used."""
    return isinstance(item, Expr) and item.type.lanes > 1


class _Scalarizer:
    """Rewrites statements; lane *k* of register ``v`` is register ``vxk_``."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._arrays = {a.name: replace(a, type=Type(a.type.dtype), size=a.size * a.type.lanes) for a in kernel.arrays}
        self._out: list[Stmt] = []
        self._count = 0

    def run(self) -> Kernel:
        arrays = tuple(self._arrays[a.name] for a in self._kernel.arrays)
        return replace(self._kernel, arrays=arrays, body=self._block(self._kernel.body))

    def _block(self, body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        outer, self._out = self._out, []
        for s in body:
            self._statement(s)
        outer, self._out = self._out, outer
        return tuple(outer)

    def _statement(self, s: Stmt) -> None:
        if isinstance(s, (Let, Mutable)):
            lanes = s.value.type.lanes
            kind = type(s)
            value = self._hoisted(s.value)
            for k in range(lanes):
                self._out.append(kind(s.name if lanes == 1 else _lane(s.name, k), self._part(value, k)))
        elif isinstance(s, Assign):
            self._assign(s)
        elif isinstance(s, Store):
            self._store(s)
        elif isinstance(s, ArrayStore):
            lanes, array = s.array.type.lanes, self._arrays[s.array.name]
            at, value = self._index(s.index, lanes), self._hoisted(s.value)
            for k in range(lanes):
                self._out.append(ArrayStore(array, at * lanes + k, self._part(value, k)))
        elif isinstance(s, For):
            start, stop = self._part(s.start, 0), self._part(s.stop, 0)
            self._out.append(replace(s, start=start, stop=stop, body=self._block(s.body)))
        elif isinstance(s, While):
            self._out.append(While(self._part(s.condition, 0), self._block(s.body)))
        elif isinstance(s, If):
            condition = self._part(s.condition, 0)
            self._out.append(If(condition, self._block(s.then), self._block(s.otherwise)))
        else:
            self._out.append(self._rest(s))

    def _assign(self, s: Assign) -> None:
        lanes = s.value.type.lanes
        value = self._hoisted(s.value)
        if lanes == 1:
            self._out.append(Assign(s.name, self._part(value, 0)))
            return
        parts = [self._part(value, k) for k in range(lanes)]
        if _has_lane(s.value):  # a lane of the register that is being assigned may be read after it changed
            parts = [self._named(p) for p in parts]
        self._out += [Assign(_lane(s.name, k), p) for k, p in enumerate(parts)]

    def _store(self, s: Store) -> None:
        lanes = s.value.type.lanes
        value = self._hoisted(s.value)
        at = self._index(s.index, lanes)
        for k in range(lanes):
            self._out.append(Store(s.buffer, at + k, self._part(value, k)))

    def _rest(self, s: Stmt) -> Stmt:
        """Statements of scalars: expressions inside may still take lanes of vectors."""
        changes = {
            name: self._part(getattr(s, name), 0)
            for name in getattr(type(s), "__slots__", ())
            if isinstance(getattr(s, name), Expr)
        }
        return replace(s, **changes) if changes else s  # type: ignore[type-var]

    # -- expressions --

    def _index(self, index: Expr, lanes: int) -> Expr:
        scalar = self._part(index, 0)
        return self._named(scalar) if lanes > 1 else scalar

    def _named(self, e: Expr) -> Expr:
        if e.op in ("const", "var"):
            return e
        self._count += 1
        name = f"s{self._count}x_"
        self._out.append(Let(name, e))
        return Expr("var", e.type, (), name)

    def _hoisted(self, e: Expr) -> Expr:
        """*e* with the indices of its vector loads, and the scalars it repeats, named once."""
        if e.op in ("vload", "splat") or (e.op == "aload" and e.type.lanes > 1):
            return Expr(e.op, e.type, (self._named(self._part(e.args[0], 0)),), e.value)
        if not e.args:
            return e
        return Expr(e.op, e.type, tuple(self._hoisted(a) for a in e.args), e.value)

    def _part(self, e: Expr, k: int) -> Expr:
        """Lane *k*; of a scalar the scalar itself."""
        lanes, kind = e.type.lanes, Type(e.dtype)
        if e.op == "const":
            return const(e.value, kind)
        if e.op == "var":
            return e if lanes == 1 else Expr("var", kind, (), _lane(e.value, k))
        if e.op == "splat":
            return self._part(e.args[0], 0)
        if e.op == "lane":
            return self._part(e.args[0], e.value)
        if e.op == "vector":
            return self._part(e.args[k], 0)
        if e.op == "vload":
            return Expr("load", kind, (self._part(e.args[0], 0) + k,), e.value)
        if e.op == "aload":
            array: Array = self._arrays[e.value.name]
            at = self._part(e.args[0], 0)
            return Expr("aload", kind, (at * lanes + k if lanes > 1 else at,), array)
        return Expr(e.op, kind, tuple(self._part(a, k if lanes > 1 else 0) for a in e.args), e.value)


def _lane(name: str, k: int) -> str:
    return f"{name}x{k}_"


def _has_lane(e: Expr) -> bool:
    return e.op == "lane" or any(_has_lane(a) for a in e.args)
