"""What kernels that reduce share: one work group per row with a tree in local memory, or one work item per row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Array, Expr, Number, Type, const
from mnnpy.backends.kernels.lowering import Lowering
from mnnpy.graph.dtypes import DType

__all__ = ["Rows"]

LOCAL = 64
#: Rows below this length are not worth the barriers of a group.
LEAST = 128
#: Elements that an item adds up before it starts another partial sum: up to the square of the first, and beyond.
STRETCHES = (128, 1024)
Merge = Callable[[Expr, Expr], Expr]
_FLOATS = frozenset({DType.F16, DType.F32, DType.F64})


class Rows:
    """How rows are spread over work items: *lanes* items to a row (1: each item has its own).

    CPU-like devices always take one item per row: their barriers cost more than they save.
    """

    def __init__(self, work: Lowering, name: str, count: int, length: int, *, dense: bool = True) -> None:
        """*dense*: neighbouring items of a row lie side by side; else neighbouring rows do."""
        busy = count >= (64 * LOCAL if dense else LOCAL) * work.caps.units  # every unit has rows enough
        self.lanes = 1
        if not work.caps.cpu_like and length >= LEAST and not busy:
            self.lanes = min(256, work.caps.max_group)
        self.group = self.lanes > 1
        share = -(-length // self.lanes)
        self.stretch = 0 if share <= STRETCHES[0] else STRETCHES[share > STRETCHES[0] ** 2]
        self.builder = KernelBuilder(
            f"{name}_group" if self.group else name, (self.lanes if self.group else LOCAL, 1, 1)
        )
        self.groups = count if self.group else work.grid(count, LOCAL)
        self.subgroups = self.group and "subgroups" in work.caps.features and self.lanes % 64 == 0
        self._shared: dict[tuple[DType, int], Array] = {}

    @property
    def lane(self) -> Expr:
        """The item's place in its row."""
        return self.builder.local_id() if self.group else const(0)

    @contextmanager
    def each(self, count: Expr) -> Iterator[Expr]:
        """The body of a row; yields its index."""
        b = self.builder
        if self.group:
            yield b.let(b.group_id(), "row")
            return
        row = b.let(b.global_id(), "row")
        with b.when(row < count):
            yield row

    @contextmanager
    def loop(self, length: Expr | Number) -> Iterator[Expr]:
        """Over this item's share of a row."""
        with self.builder.loop(self.lane, length, self.lanes) as k:
            yield k

    def sum(self, length: Expr, kind: DType, add: Callable[[Expr, Expr], Expr]) -> Expr:
        """The sum over a row, known to all its items; *add* gives a sum and the next element's index, returns the sum.

        Long rows are summed in stretches: rounding errors grow with the length of a sum, and so as little as they can.
        """
        b = self.builder
        zero = const(0.0 if kind in _FLOATS else 0, kind)
        total = b.mutable(zero)
        if not self.stretch or kind not in _FLOATS:
            with self.loop(length) as k:
                b.assign(total, add(total, k))
        else:
            step = self.stretch * self.lanes
            with b.loop(0, length, step) as base:
                part = b.mutable(zero)
                with b.loop(base + self.lane, (base + step).min(length), self.lanes) as k:
                    b.assign(part, add(part, k))
                b.assign(total, total + part)
        return self.total(total, lambda one, other: one + other, "add")

    @contextmanager
    def once(self) -> Iterator[None]:
        """What one item of a row does."""
        if self.group:
            with self.builder.when(self.lane < 1):
                yield
        else:
            yield

    def shared(self, kind: Type | DType, slot: int = 0) -> Array:
        """Local memory of one value per item; slots are told apart by number."""
        dtype = kind.dtype if isinstance(kind, Type) else kind
        if (dtype, slot) not in self._shared:
            self._shared[dtype, slot] = self.builder.array(dtype, self.lanes, "local")
        return self._shared[dtype, slot]

    def total(self, partial: Expr, merge: Merge, subgroup: str = "") -> Expr:
        """The merged partial results of all items of a row, known to each of them.

        *subgroup* (``add``, ``max``, ``min``) says that *merge* may be that reduction over subgroups of the device:
        for ``max`` and ``min``, that NaN does not matter.
        """
        if not self.group:
            return partial
        b, shared = self.builder, self.shared(partial.type)
        if subgroup and self.subgroups and partial.dtype in (DType.F32, DType.I32):
            return self._over_subgroups(partial.call(f"sg_{subgroup}"), merge, shared)
        b.write(shared, self.lane, partial)
        b.barrier()
        with self.halves() as half, b.when(self.lane < half):
            one, other = b.let(b.read(shared, self.lane)), b.let(b.read(shared, self.lane + half))
            b.write(shared, self.lane, merge(one, other))
        found = b.let(b.read(shared, 0), "total")
        b.barrier()  # the next reduction writes here
        return found

    def _over_subgroups(self, partial: Expr, merge: Merge, shared: Array) -> Expr:
        """What the subgroups found, merged by every item for itself: two barriers instead of one per halving."""
        b = self.builder
        part = b.let(partial)
        with b.when(b.subgroup_id("lane") < 1):
            b.write(shared, b.subgroup_id("subgroup"), part)
        b.barrier()
        total = b.mutable(b.read(shared, 0), "total")
        with b.loop(1, b.subgroup_id("subgroups")) as k:
            b.assign(total, merge(total, b.let(b.read(shared, k))))
        b.barrier()  # the next reduction writes here
        return total

    @contextmanager
    def halves(self) -> Iterator[Expr]:
        """Half the items, a quarter, …, 1, with a barrier after each step: what a tree walks through."""
        b = self.builder
        half = b.mutable(const(self.lanes // 2), "half")
        with b.repeat(half > 0):
            yield half
            b.barrier()
            b.assign(half, half / 2)
