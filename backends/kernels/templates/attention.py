"""FusedAttention: softmax(scale · Q·Kᵀ + mask) · V without an array of all scores.

Keys are walked in blocks; every query keeps its largest score, the sum of its weights and the weighted sum of values,
rescaled when the largest changes (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et
al., "FlashAttention", 2022). ``items``: a work item has as many queries as a vector has lanes, one on GPUs.
``groups``: a work group has a tile of queries and brings tiles of keys and values to local memory.

The node comes from ``passes.attention``; operands q, k, v and optionally mask; attributes ``q``, ``k``, ``v``, ``out``
hold an offset, a stride per axis of ``batch`` and one per position, ``mask`` one per query and one per key besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Array, Buffer, Expr, const, select, vector
from mnnpy.backends.kernels.lowering import Declined, Lowering, choices, template
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node

__all__: list[str] = []

_STAGED = frozenset({DType.F16, DType.BF16, DType.F32})
LOWEST = -3.4028234663852886e38  #: of f32: in place of -inf, so that differences of two of them are numbers
KEYS = 8  #: of a block of ``items``
COLUMNS, ROWS = 16, 8  #: items of a group
TILES = ((32, 32), (16, 32), (16, 16))  #: queries and keys of a group, the first that fits local memory
#: On GPUs, products of vectors and matrices do better below so many queries; on CPU-like devices even one pays.
FEW = 4


@template("FusedAttention")
def attention(work: Lowering, node: Node) -> None:
    """``items`` on CPU-like devices, ``groups`` elsewhere."""
    names = work.algorithm(node, [name for name, _ in candidates(work, node)])
    work.first_that_fits(names, lambda n: (_Items if n == "items" else _Groups)(work, node).launch())


@choices("FusedAttention")
def candidates(work: Lowering, node: Node) -> list[tuple[str, float]]:
    """Both, with the multiplications and additions of a whole tile."""
    a = node.attrs
    for name in (*node.inputs[:3], *node.outputs):
        if work.dtype(name) not in _STAGED:
            raise Declined(f"attention of {work.dtype(name)} has no kernel")
    if a["q_len"] < FEW and not work.caps.cpu_like:
        raise Declined(f"attention of {a['q_len']} queries is left to products")
    flops = 2.0 * prod(a["batch"]) * a["q_len"] * a["k_len"] * (a["dim"] + a["v_dim"])
    found = {"items": flops}
    if a["v_dim"] <= 128 and _tile(work, a["dim"], a["v_dim"]) is not None:
        found["groups"] = flops * (50.0 if work.caps.cpu_like else 0.1)
    return sorted(found.items(), key=lambda item: item[1])


def _tile(work: Lowering, dim: int, v_dim: int) -> tuple[int, int] | None:
    """Queries and keys of a group."""
    for rows, keys in TILES:
        floats = rows * (dim + 1) + keys * _pitch(dim, v_dim) + rows * (keys + 1) + 2 * rows + 2 * COLUMNS * ROWS
        if 4 * floats <= work.caps.local_memory and work.caps.max_group >= COLUMNS * ROWS:
            return rows, keys
    return None


def _pitch(dim: int, v_dim: int) -> int:
    """Between rows of keys or values in local memory: odd, so that neighbours read different banks."""
    return max(dim, v_dim) | 1


@dataclass(slots=True)
class _Attention:
    """What both kernels share: operands, where they begin, and the mask."""

    work: Lowering
    node: Node
    b: KernelBuilder = field(init=False)
    scalars: dict[str, int | float] = field(init=False)
    operands: dict[str, Buffer] = field(init=False)
    values: dict[str, str] = field(init=False)
    starts: dict[str, Expr] = field(init=False)

    def open(self, name: str, local: tuple[int, int, int], z: int) -> None:
        """Begin the kernel; group id *z* counts batch items."""
        node, a = self.node, self.node.attrs
        b = self.b = KernelBuilder(name, local)
        self.values = dict(zip(("q", "k", "v", "mask"), node.inputs, strict=False)) | {"y": node.outputs[0]}
        self.operands = {n: b.buffer(n, self.work.dtype(v), "w" * (n == "y") or "r") for n, v in self.values.items()}
        self.scalars = {"queries": a["q_len"], "keys": a["k_len"], "scale": a["scale"]}
        b.scalar("scale", DType.F32)
        place = b.unravel(b.let(b.group_id(z)), [self.number(f"n{d}", n) for d, n in enumerate(a["batch"])])
        self.starts = {}
        for n in self.values:
            at: Expr = const(0)
            for d, index in enumerate(place):
                at = at + index * self.stride(n, d)
            self.starts[n] = b.let(at + self.number(f"{n}o", self._view(n)[0]))

    def number(self, name: str, value: int) -> Expr:
        """A scalar of the launch; 0 and 1 are written into the kernel."""
        if value in (0, 1):
            return const(value)
        self.scalars[name] = value
        return self.b.scalar(name)

    def stride(self, operand: str, axis: int) -> Expr:
        """Of a batch axis, then of positions, then (of a mask) of keys."""
        return self.number(f"{operand}{axis}", self._view(operand)[1 + axis])

    def _view(self, operand: str) -> tuple[int, ...]:
        """Offset and strides; ``out`` is a word of GLSL, so its buffer is called ``y``."""
        found: tuple[int, ...] = self.node.attrs["out" if operand == "y" else operand]
        return found

    @property
    def position(self) -> int:
        """The axis of positions among an operand's strides."""
        return len(self.node.attrs["batch"])

    def masked(self, score: Expr, queries: list[Expr], key: Expr) -> Expr:
        """A score for each of *queries* (a lane each) with the mask applied."""
        if "mask" not in self.operands:
            return score
        b, mask, axis = self.b, self.operands["mask"], self.position
        column = b.let(self.starts["mask"] + key * self.stride("mask", axis + 1))
        step, lanes = self.stride("mask", axis), score.type.lanes
        shared = step.number == 0
        found = [b.let(b.load(mask, column + q * step)) for q in (queries[:1] if shared else queries)]
        found = found * lanes if shared else found
        if mask.dtype is not DType.BOOL:
            return score + vector(found)
        other = const(float(self.node.attrs["mask_value"]), DType.F32)
        return vector([select(f, score.lane(i), other) for i, f in enumerate(found)])

    def finish(self, groups: tuple[int, int, int]) -> None:
        self.work.launch(self.node, self.b.build(), self.values, groups, self.scalars)


class _Items(_Attention):
    """Lanes are queries: Q is turned into private memory, keys and values are repeated over the lanes."""

    def launch(self) -> None:
        a, caps = self.node.attrs, self.work.caps
        lanes = max(caps.lanes, 8) if caps.cpu_like else 1  # without vectors: so many queries share what is loaded
        local = 1 if caps.lanes >= 8 else 16
        self.open(f"attention_items{lanes}", (local, 1, 1), 1)
        b, axis = self.b, self.position
        blocks = -(-a["q_len"] // lanes)
        with self._block(blocks, local) as block:
            first, last = b.let(block * lanes), b.let(b.scalar("queries") - 1)
            rows = [b.let((first + i).min(last)) for i in range(lanes)]
            turned = b.array(DType.F32, a["dim"], lanes=lanes)
            at = [b.let(self.starts["q"] + r * self.stride("q", axis)) for r in rows]
            with b.loop(0, a["dim"]) as d:
                b.write(turned, d, vector([b.load(self.operands["q"], q + d) for q in at]) * b.scalar("scale"))
            out, total = self._keys(rows, turned, lanes)
            inverse = b.let(1.0 / total)
            for i in range(lanes):
                with b.when(first + i <= last):
                    to = b.let(self.starts["y"] + (first + i) * self.stride("y", axis))
                    part = b.let(inverse.lane(i))
                    with b.loop(0, a["v_dim"]) as d:
                        b.store(self.operands["y"], to + d, b.read(out, d).lane(i) * part)
        self.finish((-(-blocks // local), prod(a["batch"]), 1))

    @contextmanager
    def _block(self, blocks: int, local: int) -> Iterator[Expr]:
        b = self.b
        block = b.let(b.global_id())
        if local == 1:
            yield block
            return
        self.scalars["blocks"] = blocks
        with b.when(block < b.scalar("blocks")):
            yield block

    def _keys(self, rows: list[Expr], turned: Array, lanes: int) -> tuple[Array, Expr]:
        """Weighted sums of the values, and the sums of the weights."""
        a, b, axis = self.node.attrs, self.b, self.position
        zero = const(0.0, DType.F32).splat(lanes)
        out = b.array(DType.F32, a["v_dim"], lanes=lanes)
        with b.loop(0, a["v_dim"]) as d:
            b.write(out, d, zero)
        total, top = b.mutable(zero), b.mutable(const(float("-inf"), DType.F32).splat(lanes))
        keys = b.scalar("keys")
        with b.loop(0, keys, KEYS) as base:
            each = [b.let((base + j).min(keys - 1)) for j in range(KEYS)]
            at = [b.let(self.starts["k"] + k * self.stride("k", axis)) for k in each]
            scores = [b.mutable(zero) for _ in each]
            with b.loop(0, a["dim"]) as d:
                query = b.let(b.read(turned, d))
                for s, k in zip(scores, at, strict=True):
                    b.assign(s, b.let(b.load(self.operands["k"], k + d)).splat(lanes).call("fma", query, s))
            largest = top.max(LOWEST)
            for j, s in enumerate(scores):
                behind = select(base + j < keys, const(0.0, DType.F32), const(float("-inf"), DType.F32))
                b.assign(s, self.masked(s, rows, each[j]) + b.let(behind).splat(lanes))
                largest = largest.max(s)
            largest = b.let(largest)
            change = b.let((top - largest).call("exp"))
            b.assign(top, largest)
            weights = [b.let((s - largest).call("exp")) for s in scores]
            b.assign(total, total * change + _sum(weights))
            at = [b.let(self.starts["v"] + k * self.stride("v", axis)) for k in each]
            with b.loop(0, a["v_dim"]) as d:
                sums = b.let(b.read(out, d) * change)
                for w, v in zip(weights, at, strict=True):
                    sums = b.let(w.call("fma", b.let(b.load(self.operands["v"], v + d)).splat(lanes), sums))
                b.write(out, d, sums)
        return out, total


class _Groups(_Attention):
    """A tile of queries and a tile of keys at a time; an item has some outputs of some queries in registers."""

    def launch(self) -> None:
        a = self.node.attrs
        tile = _tile(self.work, a["dim"], a["v_dim"])
        assert tile is not None
        (rows, keys), pitch = tile, _pitch(a["dim"], a["v_dim"])
        self.open("attention_groups", (COLUMNS, ROWS, 1), 1)
        b, axis, limit = self.b, self.position, self.b.scalar("queries")
        x, y = b.let(b.local_id(0)), b.let(b.local_id(1))
        item = b.let(y * COLUMNS + x)
        first = b.let(b.group_id(0) * rows)
        turned = b.array(DType.F32, rows * (a["dim"] + 1), "local")
        tiles = b.array(DType.F32, keys * pitch, "local")
        row = _RowState(b, item, rows, keys)
        with b.loop(item, rows * a["dim"], COLUMNS * ROWS) as e:
            r, d = b.let(e / a["dim"]), b.let(e % a["dim"])
            at = self.starts["q"] + (first + r).min(limit - 1) * self.stride("q", axis) + d
            b.write(turned, r * (a["dim"] + 1) + d, b.load(self.operands["q"], at) * b.scalar("scale"))
        own = [b.let(y + ROWS * i) for i in range(rows // ROWS)]
        queries = [b.let((first + r).min(limit - 1)) for r in own]
        columns = [b.let(x + COLUMNS * j) for j in range(-(-a["v_dim"] // COLUMNS))]
        inside = [c if (j + 1) * COLUMNS <= a["v_dim"] else b.let(c.min(a["v_dim"] - 1)) for j, c in enumerate(columns)]
        sums = [[b.mutable(const(0.0, DType.F32)) for _ in columns] for _ in own]
        totals = [b.mutable(const(0.0, DType.F32)) for _ in own]
        with b.loop(0, b.scalar("keys"), keys) as base:
            self._bring("k", tiles, base, keys, a["dim"], pitch, item)
            b.barrier()
            self._scores(row.scores, turned, tiles, base, (own, queries, x, keys, pitch))
            b.barrier()
            self._bring("v", tiles, base, keys, a["v_dim"], pitch, item)
            row.weigh()
            changes = [b.let(b.read(row.change, r)) for r in own]
            for line, total, change, r in zip(sums, totals, changes, own, strict=True):
                b.assign(total, total * change + row.sum(r))
                for s in line:
                    b.assign(s, s * change)
            with b.loop(0, keys) as j:
                weights = [b.let(b.read(row.scores, r * (keys + 1) + j)) for r in own]
                values = [b.let(b.read(tiles, j * pitch + c)) for c in inside]
                for line, w in zip(sums, weights, strict=True):
                    for s, v in zip(line, values, strict=True):
                        b.assign(s, w.call("fma", v, s))
            b.barrier()
        self._store(own, columns, sums, totals, first)
        self.finish((-(-a["q_len"] // rows), prod(a["batch"]), 1))

    def _bring(self, name: str, tile: Array, base: Expr, keys: int, width: int, pitch: int, item: Expr) -> None:
        """Keys or values to local memory; those behind the last repeat it."""
        b = self.b
        last = b.scalar("keys") - 1
        with b.loop(item, keys * width, COLUMNS * ROWS) as e:
            j, d = b.let(e / width), b.let(e % width)
            at = self.starts[name] + (base + j).min(last) * self.stride(name, self.position) + d
            b.write(tile, j * pitch + d, b.load(self.operands[name], at))

    def _scores(
        self, scores: Array, turned: Array, tile: Array, base: Expr,
        where: tuple[list[Expr], list[Expr], Expr, int, int],
    ) -> None:  # fmt: skip
        """Scores of the tile; those of keys behind the last are -inf."""
        b, dim = self.b, self.node.attrs["dim"]
        own, queries, x, keys, pitch = where
        columns = [b.let(x + COLUMNS * j) for j in range(keys // COLUMNS)]
        sums = [[b.mutable(const(0.0, DType.F32)) for _ in columns] for _ in own]
        with b.loop(0, dim) as d:
            left = [b.let(b.read(turned, r * (dim + 1) + d)) for r in own]
            right = [b.let(b.read(tile, c * pitch + d)) for c in columns]
            for line, q in zip(sums, left, strict=True):
                for s, k in zip(line, right, strict=True):
                    b.assign(s, q.call("fma", k, s))
        for c, column in enumerate(columns):
            inside = b.let(base + column < b.scalar("keys"))
            key = b.let((base + column).min(b.scalar("keys") - 1))
            for i, r in enumerate(own):
                score = self.masked(sums[i][c], [queries[i]], key)
                b.write(scores, r * (keys + 1) + column, select(inside, score, const(float("-inf"), DType.F32)))

    def _store(
        self, own: list[Expr], columns: list[Expr], sums: list[list[Expr]], totals: list[Expr], first: Expr
    ) -> None:
        b, width = self.b, self.node.attrs["v_dim"]
        for r, line, total in zip(own, sums, totals, strict=True):
            with b.when(first + r < b.scalar("queries")):
                inverse = b.let(1.0 / total)
                to = b.let(self.starts["y"] + (first + r) * self.stride("y", self.position))
                for j, (c, s) in enumerate(zip(columns, line, strict=True)):
                    if (j + 1) * COLUMNS <= width:
                        b.store(self.operands["y"], to + c, s * inverse)
                    else:
                        with b.when(c < width):
                            b.store(self.operands["y"], to + c, s * inverse)


@dataclass(slots=True)
class _RowState:
    """Scores, their largest, its latest change and sums of weights of every query of a tile, in local memory."""

    b: KernelBuilder
    item: Expr
    rows: int
    keys: int
    scores: Array = field(init=False)
    top: Array = field(init=False)
    change: Array = field(init=False)
    parts: tuple[Array, Array] = field(init=False)

    def __post_init__(self) -> None:
        b, rows = self.b, self.rows
        self.scores = b.array(DType.F32, rows * (self.keys + 1), "local")
        self.top, self.change = b.array(DType.F32, rows, "local"), b.array(DType.F32, rows, "local")
        self.parts = (b.array(DType.F32, COLUMNS * ROWS, "local"), b.array(DType.F32, COLUMNS * ROWS, "local"))
        with b.when(self.item < rows):
            b.write(self.top, self.item, float("-inf"))

    @property
    def shares(self) -> int:
        """Items to a row."""
        return COLUMNS * ROWS // self.rows

    def sum(self, row: Expr) -> Expr:
        """Of the weights that ``weigh`` left."""
        return _sum([self.b.read(self.parts[1], row * self.shares + j) for j in range(self.shares)])

    def weigh(self) -> None:
        """Scores become weights. Several items share a row; two barriers, the second one after all is written."""
        b, shares = self.b, self.shares
        r, share = b.let(self.item / shares), b.let(self.item % shares)
        line = b.let(r * (self.keys + 1) + share)
        largest = b.mutable(const(LOWEST, DType.F32))
        for j in range(0, self.keys, shares):
            b.assign(largest, largest.max(b.read(self.scores, line + j)))
        b.write(self.parts[0], self.item, largest)
        b.barrier()
        before = b.let(b.read(self.top, r))
        for j in range(shares):
            b.assign(largest, largest.max(b.read(self.parts[0], r * shares + j)))
        b.assign(largest, largest.max(before))
        weights = []
        for j in range(0, self.keys, shares):
            w = b.let((b.read(self.scores, line + j) - largest).call("exp"))
            b.write(self.scores, line + j, w)
            weights.append(w)
        b.write(self.parts[1], self.item, _sum(weights))
        with b.when(share < 1):
            b.write(self.change, r, (before - largest).call("exp"))
        b.barrier()
        with b.when(share < 1):
            b.write(self.top, r, largest)


def _sum(parts: list[Expr]) -> Expr:
    """By pairs."""
    while len(parts) > 1:
        parts = [a + c for a, c in zip(parts[::2], parts[1::2], strict=False)] + parts[len(parts) // 2 * 2 :]
    return parts[0]
