"""Windows in two spatial dims by explicit vectors along lines of the output: for CPU-like devices.

A vector has neighbouring outputs of one line. What a tap reads for them lies *stride* apart: so many vectors are loaded
and their lanes picked, which a compiler makes shuffles of; taps that read the same vectors share them. Vectors may
begin before a line or end behind it, in memory of its neighbours, and a table says per output column which taps are
inside; at the ends of the tensor, lanes are computed one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Array as Registers
from mnnpy.backends.kernels.ir import Buffer, Expr, Type, const, ne, select, vector
from mnnpy.backends.kernels.lowering import Lowering
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node

__all__ = ["UNROLLED", "Lines", "Taps", "Window", "applies"]

#: Taps that are written out.
UNROLLED = 25
#: Pieces of work for each unit of the device, where there are too few planes.
PIECES = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Sizes of input and output and of the window, two numbers each."""

    size: tuple[int, ...]
    result: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def span(self, lanes: int) -> int:
        """Elements from the first to behind the last one that vectors of a line's taps read."""
        stride = self.strides[1]
        return (self.kernel[1] - 1) * self.dilations[1] // stride * stride + stride * lanes

    def inside(self, columns: int) -> Array:
        """By output column: bit *j* where column *j* of the window lies in the input; nothing behind the last one."""
        table = np.zeros(columns, np.int32)
        place = np.arange(self.result[1]) * self.strides[1] - self.pads[1]
        for j in range(self.kernel[1]):
            at = place + j * self.dilations[1]
            table[: self.result[1]] |= ((at >= 0) & (at < self.size[1])).astype(np.int32) << j
        return table


def applies(work: Lowering, name: str, w: Window, taps: int = UNROLLED) -> bool:
    """Whether explicit vectors pay for windows of up to so many *taps* over tensor *name*."""
    caps, lanes = work.caps, work.caps.lanes
    if not caps.cpu_like or lanes < 8 or work.dtype(name) is not DType.F32 or len(w.size) != 2:
        return False
    small = w.taps <= taps and max(w.strides) <= 4 and w.result[1] >= 4
    return small and work.count(name) >= lanes * w.strides[1]


#: Outputs so far, what a tap reads, whether that is inside, the tap's flat number → outputs.
Step = Callable[[Expr, Expr, Expr, int], Expr]
#: Outputs, their first flat index, their first column → what is stored.
Finish = Callable[[Expr, Expr, Expr], Expr]


@dataclass(slots=True)
class Taps:
    """What the taps of one line of a window read for *lanes* outputs; index *first* is what tap 0 reads first."""

    b: KernelBuilder
    x: Buffer
    w: Window
    first: Expr
    lanes: int
    _loaded: dict[int, list[Expr]] = field(default_factory=dict)

    def load(self, j: int, here: Expr) -> Expr:
        """Of tap *j*; where *here* says that it is outside, anything."""
        b, stride, lanes, first = self.b, self.w.strides[1], self.lanes, self.first
        distance = j * self.w.dilations[1]
        if lanes == 1:
            return b.let(b.load(self.x, b.let(select(here, first + distance, const(0)))))
        if stride == 1:
            return b.let(b.load(self.x, first + distance, lanes))
        q, r = divmod(distance, stride)
        if q not in self._loaded:
            pieces = [first + (q * stride + k * lanes) for k in range(stride)]
            self._loaded[q] = [b.let(b.load(self.x, at, lanes)) for at in pieces]
        picked = [divmod(r + stride * k, lanes) for k in range(lanes)]
        return b.let(vector([self._loaded[q][v].lane(k) for v, k in picked]))


@dataclass(slots=True)
class Lines:
    """Writes one kernel: ``Lines(work, node, "name", window, x, y)``, operands by ``b``, then ``write``."""

    work: Lowering
    node: Node
    name: str
    w: Window
    x: str
    y: str
    b: KernelBuilder = field(init=False)
    plane: Expr = field(init=False)  #: of the output, counted over batch and channels
    source: Expr = field(init=False)  #: of the input; ``plane`` unless the caller sets it
    line: Expr = field(init=False)  #: of the output
    values: dict[str, str] = field(init=False)
    scalars: dict[str, int | float] = field(init=False)
    _x: Buffer = field(init=False)
    _y: Buffer = field(init=False)
    _inside: Buffer = field(init=False)

    def __post_init__(self) -> None:
        work, w, b = self.work, self.w, KernelBuilder(self.name, (1, 1, 1))
        self.b = b
        table = work.constant(w.inside(-(-w.result[1] // self.lanes) * self.lanes), "inside")
        self._x, self._inside = b.buffer("x", DType.F32), b.buffer("inside", DType.I32)
        self._y = b.buffer("y", DType.F32, "w")
        self.values = {"x": self.x, "inside": table, "y": self.y}
        self.scalars = {
            "i0": w.size[0], "i1": w.size[1], "o0": w.result[0], "o1": w.result[1], "p0": w.pads[0], "p1": w.pads[1],
            "size": work.count(self.x), "results": work.count(self.y),
        }  # fmt: skip
        self.plane = self.source = b.let(b.global_id())

    @property
    def lanes(self) -> int:
        return self.work.caps.lanes

    def write(self, start: float, step: Step, finish: Finish) -> None:
        """The loops, and the launch: every output begins with *start*, takes a *step* per tap, and is finished."""
        b, w = self.b, self.w
        planes = self.work.count(self.y) // max(1, w.result[0] * w.result[1])
        pieces = min(w.result[0], -(-PIECES * self.work.caps.units // max(1, planes)))
        self.scalars["share"] = -(-w.result[0] // pieces)
        first = b.let(b.group_id(1) * b.scalar("share"))
        columns, lanes, high, wide = b.scalar("o1"), self.lanes, b.scalar("i0"), b.scalar("i1")
        kept = b.array(DType.F32, lanes)
        base = b.let(self.source * (high * wide))
        with b.loop(first, (first + b.scalar("share")).min(b.scalar("o0"))) as line:
            self.line = line
            top = b.let(line * w.strides[0] - b.scalar("p0"))
            low = b.let(base + top.max(0) * wide - b.scalar("p1"))
            last = b.let((top + (w.kernel[0] - 1) * w.dilations[0]).min(high - 1))
            far = b.let(base + last * wide - b.scalar("p1") + w.span(lanes))
            target = b.let((self.plane * b.scalar("o0") + line) * columns)
            with b.loop(0, columns, lanes) as column:
                at = b.let(column * w.strides[1])
                here = b.let(target + column)
                safe = (low + at >= 0) & (far + at <= b.scalar("size"))
                with b.when(safe & (here + lanes <= b.scalar("results"))):  # what is finished may read a residual
                    total = self._window(column, base, top, start, step, lanes)
                    self._store(target, column, finish(total, here, column), kept)
                with b.otherwise(), b.loop(column, (column + lanes).min(columns)) as one:
                    total = self._window(one, base, top, start, step, 1)
                    here = b.let(target + one)
                    b.store(self._y, here, finish(total, here, one))
        self.work.launch(self.node, b.build(), self.values, (planes, pieces, 1), self.scalars)

    def _window(self, column: Expr, base: Expr, top: Expr, start: float, step: Step, lanes: int) -> Expr:
        """The outputs from *column* on."""
        b, w = self.b, self.w
        bits = b.let(b.load(self._inside, column, lanes))
        total = b.mutable(const(start, Type(DType.F32, lanes)))
        left = b.let(column * w.strides[1] - b.scalar("p1"))
        for i in range(w.kernel[0]):
            line = b.let(top + i * w.dilations[0])
            with b.when((line >= 0) & (line < b.scalar("i0"))):
                first = b.let(base + line * b.scalar("i1") + left)
                taps = Taps(b, self._x, w, first, lanes)
                for j in range(w.kernel[1]):
                    here = ne(bits & (1 << j), 0)
                    b.assign(total, step(total, taps.load(j, here), here, i * w.kernel[1] + j))
        return total

    def _store(self, target: Expr, column: Expr, value: Expr, kept: Registers) -> None:
        b, columns, lanes = self.b, self.b.scalar("o1"), self.lanes
        value = b.let(value)
        with b.when(column + lanes <= columns):
            b.store(self._y, target + column, value)
        with b.otherwise():
            for k in range(lanes):
                b.write(kept, k, value.lane(k))
            with b.loop(column, columns) as one:
                b.store(self._y, target + one, b.read(kept, one - column))
