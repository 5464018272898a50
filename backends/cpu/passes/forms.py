"""Which nodes work channels-last: the choice with the fewest bytes moved, by dynamic programming over the graph.

Convolutions and pools have fast kernels channels-last only (the general ones are 30 and more times slower: measured on
pools of 14² to 112² pixels). Element-wise ops, reductions and ops along an axis work in either form. Rasters read and
write any form, as changes of form merge into them. Every value is made in one form, and each further form that a
reader needs is one copy. An element-wise op in the form of what it follows is fused with it, else it is one more pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod

from mnnpy.backends.passes.edit import channels_last, inverse, permuted
from mnnpy.classes import dataclass, field
from mnnpy.decompose.merge import contiguous_view, read_through
from mnnpy.decompose.raster import Region, row_major
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, TensorType
from mnnpy.search.layout import Network, User

__all__ = ["ALONG_AXIS", "ELEMENTWISE", "choose_forms", "is_spatial"]

ELEMENTWISE = frozenset({"Unary", "Binary", "Select", "Convert"})
ALONG_AXIS = frozenset({"Softmax", "LogSoftmax", "PrefixScan"})
PLAIN, LAST = 0, 1
#: Reading cost by (form, state) of a node whose states are forms and which reads its own form; or plain only.
OWN = ((0.0, inf), (inf, 0.0))
ONLY_PLAIN = ((0.0, 0.0), (inf, inf))
#: States of nodes that can do both; of equally cheap ones the first is taken.
BOTH = (LAST, PLAIN)
#: What a raster that turns an operand costs more than one that does not, as a share of the operand's bytes.
TURN = 1 / 16
#: Bytes that a core copies while a step is started (0.4 µs at some 40 GB/s).
STEP = 16 << 10


def is_spatial(graph: Graph, node: Node) -> bool:
    """A 1-d to 3-d float convolution or pool."""
    if node.op not in ("Convolution", "Pool"):
        return False
    t = graph.types.get(node.outputs[0])
    return isinstance(t, TensorType) and t.dtype is DType.F32 and t.rank in (3, 4, 5) and len(node.outputs) == 1


def choose_forms(graph: Graph) -> list[bool]:
    """For each node of *graph* whether it works channels-last."""
    work = _Forms(graph)
    for node in graph.nodes:
        work.add(node)
    states = work.solve()
    return [work.forms[k][states[k]] == LAST for k in range(len(graph.nodes))]


def moves_nothing(shape: tuple[int, ...]) -> bool:
    """True where moving axis 1 last leaves every element where it is."""
    if len(shape) not in (3, 4, 5):
        return True
    return [d for d in permuted(shape, channels_last(len(shape))) if d != 1] == [d for d in shape if d != 1]


def to_last(shape: tuple[int, ...]) -> Region:
    """The region that makes the channels-last form of a plain value of *shape*."""
    perm = channels_last(len(shape))
    out = permuted(shape, perm)
    return Region(0, out, 0, permuted(row_major(shape), perm), 0, row_major(out))


def to_plain(shape: tuple[int, ...]) -> Region:
    """The region that makes the plain form of *shape* from the channels-last one."""
    perm = channels_last(len(shape))
    strides = permuted(row_major(permuted(shape, perm)), inverse(perm))
    return Region(0, shape, 0, strides, 0, row_major(shape))


@dataclass(slots=True)
class _Forms:
    """The graph as a network of states; node numbers of graph and network are equal up to the last graph node."""

    graph: Graph
    net: Network = field(default_factory=Network)
    forms: list[tuple[int, ...]] = field(default_factory=list)  #: per node, the form of each state
    made: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)  #: value → producer, form per state
    readers: dict[str, list[User]] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        t = self.graph.types.get(name)
        return tuple(t.shape or ()) if isinstance(t, TensorType) else ()  # type: ignore[arg-type]

    def size(self, name: str) -> int:
        t = self.graph.types.get(name)
        return prod(self.shape(name)) * (t.dtype.itemsize if isinstance(t, TensorType) else 0)

    def copied(self, name: str) -> float:
        """Bytes of one more copy of a value."""
        return 2.0 * self.size(name) + STEP

    # -- the network --

    def add(self, node: Node) -> None:
        rank = len(self.shape(node.outputs[0]))
        if is_spatial(self.graph, node):
            self._node(node, (LAST,), [OWN, *[ONLY_PLAIN] * (len(node.inputs) - 1)])
        elif node.op in ELEMENTWISE and rank in (3, 4, 5) and all(self.shape(node.outputs[0])):
            reads = [OWN if len(self.shape(n)) == rank else ONLY_PLAIN for n in node.inputs]
            self._node(node, BOTH, reads)
            self._fusion(node)
        elif node.op == "Reduce" and self._reduces_last(node):
            keeps = node.attrs.get("keepdims", True)
            self._node(node, BOTH, [OWN], BOTH if keeps else (PLAIN, PLAIN))
        elif self._along_axis(node):
            self._node(node, BOTH, [OWN, *[ONLY_PLAIN] * (len(node.inputs) - 1)])
        elif node.op == "Raster":
            self._raster(node, rank)
        else:
            self._node(node, (PLAIN,), [ONLY_PLAIN] * len(node.inputs))

    def _node(
        self,
        node: Node,
        states: tuple[int, ...],
        reads: Sequence[Sequence[Sequence[float]]],
        made: tuple[int, ...] | None = None,
        cost: float = 0.0,
    ) -> None:
        number = self.net.node([cost] * len(states))
        self.forms.append(states)
        for name, read in zip(node.inputs, reads, strict=True):
            if name and name not in self.graph.constants:
                table = [[row[s] for s in states] for row in read]
                self.readers.setdefault(name, []).append((number, table))
        for name in node.outputs:
            if name:
                self.made[name] = (number, made or states)

    def _reduces_last(self, node: Node) -> bool:
        rank, axes = len(self.shape(node.inputs[0])), set(node.attrs["axes"])
        # Without keepdims what is left must keep its order: [N, C], or [N, spatial…] without C.
        return rank in (3, 4, 5) and bool(node.attrs.get("keepdims", True) or axes == set(range(2, rank)) or 1 in axes)

    def _along_axis(self, node: Node) -> bool:
        rank = len(self.shape(node.inputs[0])) if node.inputs and node.inputs[0] else 0
        if rank not in (3, 4, 5) or node.inputs[0] in self.graph.constants or len(node.outputs) != 1:
            return False
        return node.op in ALONG_AXIS or (node.op == "Gather" and len(self.shape(node.inputs[1])) == 1)

    def _fusion(self, node: Node) -> None:
        """A pass of its own for an element-wise op that has another form than the one it could be fused with."""
        second = len(self.forms) - 1
        for name in dict.fromkeys(node.inputs):
            first, made = self.made.get(name, (second, ()))
            if first == second or self.shape(name) != self.shape(node.outputs[0]):
                continue
            if self.graph.nodes[first].op in ELEMENTWISE or self.graph.nodes[first].op in ("Convolution", "MatMul"):
                extra = self.copied(node.outputs[0])
                self.net.edge(first, second, [[extra * (a != b) for b in BOTH] for a in made])

    def _raster(self, node: Node, rank: int) -> None:
        """One copy whatever it reads and writes, unless it is a view of its only operand."""
        states = BOTH if rank in (3, 4, 5) and all(self.shape(node.outputs[0])) else (PLAIN,)
        cost = self.copied(node.outputs[0])
        if len(node.inputs) != 1 or len(node.attrs["regions"]) != 1:
            self._node(node, states, [self._turns(n) for n in node.inputs], None, cost)
            return
        turns = self._turns(node.inputs[0])
        read = [[0.0 if self._views(node, a, b) else cost + turns[a][b] for b in (PLAIN, LAST)] for a in (PLAIN, LAST)]
        self._node(node, states, [read])

    def _turns(self, name: str) -> Sequence[Sequence[float]]:
        extra = 0.0 if moves_nothing(self.shape(name)) else TURN * self.size(name)
        return ((0.0, extra), (extra, 0.0))

    def _views(self, node: Node, source: int, target: int) -> bool:
        """Whether a raster copies nothing when it reads one form and writes another."""
        shape, out = self.shape(node.inputs[0]), self.shape(node.outputs[0])
        filled = node.attrs.get("fill") is not None
        regions = node.attrs["regions"]
        if source == LAST and len(shape) in (3, 4, 5):
            found = read_through(regions, 0, [to_plain(shape)], False)
            if found is None:
                return False
            regions = found[0]
        if target == LAST and len(out) in (3, 4, 5):
            found = read_through([to_last(out)], 0, regions, filled)
            if found is None:
                return False
            regions, out = found[0], permuted(out, channels_last(len(out)))
        attrs = {**node.attrs, "regions": tuple(regions), "shape": out}
        return contiguous_view(node.replace(attrs=attrs)) is not None

    def solve(self) -> list[int]:
        self._ends()
        for name, users in self.readers.items():
            producer, made = self.made[name]
            move = 0.0 if moves_nothing(self.shape(name)) else self.copied(name)
            self.net.value(producer, made, users, ((0.0, move), (move, 0.0)))
        return self.net.solve()

    def _ends(self) -> None:
        """Inputs and outputs of the graph are plain."""
        for name in dict.fromkeys(n for n in (*self.graph.input_names, *self.readers) if n not in self.made):
            self.made[name] = (self.net.node([0.0]), (PLAIN,))
        for name in self.graph.output_names:
            if name in self.made:
                self.readers.setdefault(name, []).append((self.net.node([0.0]), ((0.0,), (inf,))))
