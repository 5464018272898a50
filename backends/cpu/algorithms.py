"""The algorithms of each op: when they apply, which precision allows them, and what they cost on paper.

One entry per algorithm; its name is the value of the attribute ``algorithm`` of a node. ``applies`` is a cheap
necessary condition: whether a kernel really takes the node is asked of the native factory, so an entry whose kernel
does not exist on this machine is never a candidate. Adding an algorithm is adding an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, prod

from mnnpy.backends.analytic import moved_bytes, node_flops
from mnnpy.backends.base import Candidate, NodeView
from mnnpy.classes import dataclass
from mnnpy.graph.dtypes import DType

__all__ = ["TABLE", "Algorithm", "Work", "find", "ran", "selectable"]

HIGH, NORMAL, LOW = "high", "normal", "low"
#: Bytes of weights that stay in a core's L2 while other operands stream past.
RESIDENT = 512 << 10


@dataclass(frozen=True, slots=True)
class Work:
    """What one run costs: operations, bytes to and from memory, bytes of extra passes within the caches."""

    flops: float
    bytes: float
    cached: float = 0.0


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One way to compute an op."""

    name: str
    precisions: frozenset[str]  #: tiers whose error bar it keeps
    applies: Callable[[NodeView], bool]
    work: Callable[[NodeView], Work]
    rate: str = "f32"  #: kind of arithmetic, a key of ``Peaks.rates``

    def candidate(self, view: NodeView) -> Candidate:
        """Its cost for one node."""
        work = self.work(view)
        parameters = {"rate": self.rate, "cached": work.cached, "precisions": tuple(sorted(self.precisions))}
        return Candidate(self.name, work.flops, work.bytes, 1, parameters)


def find(op: str, name: str) -> Algorithm | None:
    """The entry of *name* among the algorithms of *op*."""
    return next((a for a in TABLE.get(op, ()) if a.name == name), None)


def ran(op: str, described: str) -> str:
    """The table's name for what a kernel says of itself (``conv-winograd4`` → ``winograd4``)."""
    names = [a.name for a in TABLE.get(op, ()) if a.name != "direct"]
    found = [n for n in names if any(part.startswith(n) for part in described.split("-"))]
    return max(found, key=len) if found else "direct"


def selectable(view: NodeView) -> bool:
    """Whether an op's algorithms apply at all: f32 operands, convolutions channels-last."""
    node = view.node
    if node.op not in TABLE:
        return False
    types = [t for t in (*view.inputs, *view.outputs) if t is not None]
    if any(t.dtype is not DType.F32 or not t.is_static for t in types):
        return False
    return node.op != "Convolution" or node.attrs.get("layout") == "NHWC"


# -- shapes --


def _dims(view: NodeView, operand: int) -> tuple[int, ...]:
    t = view.inputs[operand] if operand >= 0 else view.outputs[0]
    return tuple(t.shape or ()) if t is not None else ()  # type: ignore[arg-type]


def _product(view: NodeView) -> tuple[int, int, int, int]:
    """(batches, m, n, k) of a product, or of a 1×1 convolution seen as one."""
    if view.node.op == "Convolution":
        x, y = _dims(view, 0), _dims(view, -1)
        return 1, prod(y[:-1]), y[-1], x[-1]
    a, b, y = _dims(view, 0), _dims(view, 1), _dims(view, -1)
    trans_a, trans_b = bool(view.node.attrs.get("trans_a")), bool(view.node.attrs.get("trans_b"))
    k = a[-2] if trans_a and len(a) > 1 else a[-1]
    n = 1 if len(b) < 2 else b[-2] if trans_b else b[-1]
    m = 1 if len(a) < 2 else a[-1] if trans_a else a[-2]
    total = prod(y)
    if len(b) <= 2:  # the rows of all batches are one matrix
        return 1, total // max(1, n), n, k
    return total // max(1, m * n), m, n, k


def _constant_weights(view: NodeView) -> bool:
    return len(view.node.inputs) > 1 and view.node.inputs[1] in view.constants


def _ungrouped(view: NodeView) -> bool:
    return int(view.node.attrs.get("group", 1)) == 1


def _pointwise(view: NodeView) -> bool:
    """A 1×1 convolution without stride, padding or groups: a plain product."""
    attrs, w = view.node.attrs, _dims(view, 1)
    flat = all(d == 1 for d in w[2:]) and not any(attrs.get("pads", ())) and set(attrs.get("strides", ())) <= {1}
    return flat and _ungrouped(view)


# -- direct --


def _always(view: NodeView) -> bool:
    return True


def _direct_work(view: NodeView) -> Work:
    return Work(node_flops(view), moved_bytes(view))


# -- Winograd F(m×n, 3×3): Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016 --


def _winograd_applies(view: NodeView) -> bool:
    w, attrs = _dims(view, 1), view.node.attrs
    square = len(w) == 4 and w[2:] == (3, 3) and w[0] >= 8 and w[1] >= 8
    plain = set(attrs.get("strides", ())) == {1} == set(attrs.get("dilations", ()))
    return square and plain and _ungrouped(view) and _constant_weights(view)


def _winograd_work(view: NodeView, high: int, wide: int) -> Work:
    """Products of the transformed tiles, and both transforms as passes within the caches.

    Transformed weights that do not fit in L2 stream past once per block of some 24 tiles.
    """
    (batch, height, width, m), c = _dims(view, -1), _dims(view, 0)[-1]
    points = (high + 2) * (wide + 2)
    tiles = batch * ceil(height / high) * ceil(width / wide)
    weights = 4.0 * points * c * m
    passes = 1 if weights <= RESIDENT else ceil(tiles / 24)
    outside = moved_bytes(view) - 4.0 * prod(_dims(view, 1))
    return Work(2.0 * points * tiles * c * m, outside + weights * passes, 2 * 4.0 * points * tiles * (c + m))


def _winograd(high: int, wide: int) -> Algorithm:
    name = f"winograd{high}" if high == wide else f"winograd{high}x{wide}"
    allowed = frozenset({NORMAL, LOW})
    return Algorithm(name, allowed, _winograd_applies, lambda view: _winograd_work(view, high, wide))


#: Output tiles, rows by columns. 5×5 suits maps of 13 to 15 pixels, 4×2 those of 7: less falls over the edge.
WINOGRADS = tuple(_winograd(*tile) for tile in ((2, 2), (4, 2), (4, 4), (5, 5), (6, 6)))


# -- Strassen, Winograd's form with 15 additions (Higham, "Accuracy and Stability of Numerical Algorithms", ch. 23) --

#: What the additions cost beside a multiply-add of the register tile (measured on a Zen 4; the kernel's own model).
RUNNING_SUM, FORM_LEFT, FORM_RIGHT = 5.0, 6.0, 4.0
#: Deepest leaf, and leaf rows of a block.
LEAF_DEPTH, LEAF_ROWS = 256, 128


def _strassen_applies(view: NodeView) -> bool:
    if view.node.op == "Convolution" and not _pointwise(view):
        return False
    _, m, n, k = _product(view)
    return min(m, n, k) >= 32


def _strassen_cost(m: int, n: int, k: int, levels: int) -> float:
    """Multiply-adds of one product, with all that is done beside them in the same unit."""
    cut = 1 << levels
    sums = (1.0, 2.75)[levels - 1]  # matrices of the size of the operand
    depth = k / (cut * ceil(k / (cut * LEAF_DEPTH)))
    blocks = ceil(m / (cut * LEAF_ROWS))
    products = (7 / 8) ** levels * m * n * k * (1 + RUNNING_SUM / depth)
    outer = 0.0 if levels == 1 else 7.0 * m * n * (k / (cut * depth))
    return products + outer + sums * (FORM_LEFT * m * k + FORM_RIGHT * k * n * blocks)


def _strassen_work(view: NodeView) -> Work:
    """7 products of half the size per level, and 15 additions of blocks around them.

    Nine per cent are added: whole models of small products, whose weights come from memory, gained nothing below.
    """
    batches, m, n, k = _product(view)
    cost = min(_strassen_cost(m, n, k, levels) for levels in (1, 2))
    return Work(1.09 * 2.0 * batches * cost, moved_bytes(view))


# -- bf16: pairs with f32 sums; bf16x3: every f32 as a sum of two bf16, three products --


def _bf16_applies(view: NodeView) -> bool:
    if view.node.op == "Convolution":
        return _ungrouped(view) and _constant_weights(view)
    return True


def _half_weights(view: NodeView) -> Work:
    """Constant weights are kept at half the width; operands are rounded in cache."""
    weights = 2.0 * prod(_dims(view, 1)) if _constant_weights(view) else 0.0
    return Work(node_flops(view), moved_bytes(view) - weights, 2.0 * prod(_dims(view, 0)))


def _winograd_bf16_work(view: NodeView) -> Work:
    """As F(2x2,3x3), with weights and transformed inputs of half the width."""
    (batch, height, width, m), c = _dims(view, -1), _dims(view, 0)[-1]
    tiles = batch * ceil(height / 2) * ceil(width / 2)
    weights = 2.0 * 16 * c * m
    passes = 1 if weights <= RESIDENT else ceil(tiles / 48)
    outside = moved_bytes(view) - 4.0 * prod(_dims(view, 1))
    return Work(2.0 * 16 * tiles * c * m, outside + weights * passes, 2 * 16.0 * tiles * (2 * c + 4 * m))


def _split_weights(view: NodeView) -> Work:
    """Two halves take the room of one f32. The rate of three products is measured as a whole, on full tiles."""
    waste = 1.0
    if view.node.op == "MatMul" or _pointwise(view):
        _, m, n, k = _product(view)
        waste = _filled(m, 2) * _filled(n, 16) * _filled(k, 32)
    elif len(w := _dims(view, 1)) > 2:
        waste = _filled(w[0], 16) * min(_filled(w[1], 32), _filled(w[1] * w[-1], 32))  # pixels, or lines of the kernel
    return Work(waste * node_flops(view), moved_bytes(view), 4.0 * prod(_dims(view, 0)))


def _filled(size: int, unit: int) -> float:
    """What filling up to whole units multiplies the work by."""
    return ceil(size / unit) * unit / max(1, size)


DIRECT = Algorithm("direct", frozenset({HIGH, NORMAL, LOW}), _always, _direct_work)
WINOGRAD_BF16 = Algorithm("winograd2bf16", frozenset({LOW}), _winograd_applies, _winograd_bf16_work, "bf16")
STRASSEN = Algorithm("strassen", frozenset({NORMAL, LOW}), _strassen_applies, _strassen_work)
BF16X3 = Algorithm("bf16x3", frozenset({NORMAL, LOW}), _bf16_applies, _split_weights, "bf16x3")
BF16 = Algorithm("bf16", frozenset({LOW}), _bf16_applies, _half_weights, "bf16")

#: Op → its algorithms. The first is the one that always works.
TABLE: Mapping[str, tuple[Algorithm, ...]] = {
    "MatMul": (DIRECT, STRASSEN, BF16X3, BF16),
    "Convolution": (DIRECT, *WINOGRADS, STRASSEN, BF16X3, BF16, WINOGRAD_BF16),
}
