"""What kernels that reduce share: one work group per row with a tree in local memory, or one work item per row.

An item of a CPU-like device goes along its rows by explicit vectors where the caller's loads can be vectors.
"""

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
#: Items for each unit of a CPU-like device, where an item has many rows.
ITEMS = 16
Merge = Callable[[Expr, Expr], Expr]
#: What is known so far and an index → the same with the elements from there on, as many as the first has lanes.
Step = Callable[[Expr, Expr], Expr]
_FLOATS = frozenset({DType.F16, DType.F32, DType.F64})


class Rows:
    """How rows are spread over work items: *lanes* items to a row (1: each item has its own).

    CPU-like devices always take one item per row: their barriers cost more than they save.
    """

    def __init__(
        self, work: Lowering, name: str, count: int, length: int, *, dense: bool = True, vectors: bool = False
    ) -> None:
        """*dense*: neighbouring items of a row lie side by side; else neighbouring rows do.

        *vectors*: steps take any number of lanes of f32, and elements of a row lie side by side.
        """
        busy = count >= (64 * LOCAL if dense else LOCAL) * work.caps.units  # every unit has rows enough
        self.lanes = 1
        if not work.caps.cpu_like and length >= LEAST and not busy:
            self.lanes = min(256, work.caps.max_group)
        self.group = self.lanes > 1
        self.width = work.caps.lanes if vectors and work.caps.cpu_like and 8 <= work.caps.lanes <= length else 1
        share = -(-length // self.lanes)
        self.stretch = 0 if share <= STRETCHES[0] else STRETCHES[share > STRETCHES[0] ** 2]
        local, suffix = (self.lanes, "_group") if self.group else (LOCAL, "")
        self.groups = count if self.group else work.grid(count, LOCAL)
        self.scalars: dict[str, int | float] = {}  #: for the launch, besides those of the caller
        if self.width > 1:
            local, suffix, self.groups = 1, f"_rows{self.width}", min(count, ITEMS * work.caps.units)
            self.scalars["share"] = -(-count // max(1, self.groups))
        self.builder = KernelBuilder(name + suffix, (local, 1, 1))
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
        if self.width > 1:
            first = b.let(b.group_id() * b.scalar("share"))
            with b.loop(first, (first + b.scalar("share")).min(count)) as row:
                yield row
            return
        row = b.let(b.global_id(), "row")
        with b.when(row < count):
            yield row

    @contextmanager
    def loop(self, length: Expr | Number) -> Iterator[Expr]:
        """Over this item's share of a row."""
        with self.builder.loop(self.lane, length, self.lanes) as k:
            yield k

    def every(self, length: Expr, body: Callable[[Expr, int], None]) -> None:
        """*body* at the first index and number of lanes of each piece of this item's share of a row."""
        b = self.builder
        if self.width == 1:
            with self.loop(length) as k:
                body(k, 1)
            return
        whole = b.let(length / self.width * self.width)
        with b.loop(0, whole, self.width) as k:
            body(k, self.width)
        with b.loop(whole, length) as k:
            body(k, 1)

    def fold(self, length: Expr, start: Expr, step: Step, merge: Merge, subgroup: str = "") -> Expr:
        """A row's elements taken one by one, known to all its items; *merge* joins two results, from *start* on."""
        b = self.builder
        found = b.mutable(start)
        if self.width == 1:
            with self.loop(length) as k:
                b.assign(found, step(found, k))
            return self.total(found, merge, subgroup)
        wide = b.mutable(start.splat(self.width))

        def one(k: Expr, lanes: int) -> None:
            b.assign(wide if lanes > 1 else found, step(wide if lanes > 1 else found, k))

        self.every(length, one)
        return merge(found, self._lanes(wide, merge))

    def sum(self, length: Expr, kind: DType, add: Step) -> Expr:
        """The sum over a row, known to all its items; *add* gives a sum and the next element's index, returns the sum.

        Long rows are summed in stretches: rounding errors grow with the length of a sum, and so as little as they can.
        """
        b = self.builder
        zero = const(0.0 if kind in _FLOATS else 0, kind)
        if not self.stretch or kind not in _FLOATS:
            return self.fold(length, zero, add, _plus, "add")
        step = self.stretch * self.lanes * self.width
        total = b.mutable(zero.splat(self.width))
        whole = b.let(length / self.width * self.width)
        with b.loop(0, whole, step) as base:
            part = b.mutable(zero.splat(self.width))
            with b.loop(base + self.lane, (base + step).min(whole), self.lanes * self.width) as k:
                b.assign(part, add(part, k))
            b.assign(total, total + part)
        if self.width == 1:
            return self.total(total, _plus, "add")
        rest = b.mutable(zero)
        with b.loop(whole, length) as k:
            b.assign(rest, add(rest, k))
        return rest + self._lanes(total, _plus)

    def _lanes(self, wide: Expr, merge: Merge) -> Expr:
        """The lanes of a vector merged by pairs."""
        b = self.builder
        parts = [b.let(wide.lane(k)) for k in range(self.width)]
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [b.let(merge(a, c)) for a, c in zip(parts[:half], parts[half:], strict=True)]
        return parts[0]

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


def _plus(one: Expr, other: Expr) -> Expr:
    return one + other
