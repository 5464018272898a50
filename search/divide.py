"""Dividing the parts of a plan where work on another device takes long beside them.

A topological sweep makes parts as long as it can, so a device may wait for the end of a part of which it needs the
beginning only. Nodes of a part that have the same nodes of other devices before and behind them may stay together
without loss; between all others a cut is tried, and cuts stay where the plan gets shorter by more than they cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from mnnpy.graph.dims import numel
from mnnpy.graph.ir import Graph, TensorType

__all__ = ["divided"]

#: Seconds that a cut costs: two programs start where one did, and threads change.
CUT = 1e-4
#: Bytes per second at which values at a cut are brought into the form of outputs and back.
DENSE = 2e9
#: Pieces beyond which parts stay as they are: such a plan changes devices too often to gain from it.
PIECES = 64

Group = tuple[int, list[int]]


def divided(graph: Graph, groups: Sequence[Group], seconds: Sequence[float]) -> list[Group]:
    """*groups* of (device, node numbers) in order, some of them in several pieces; *seconds* of each node."""
    if len({d for d, _ in groups if d >= 0}) < 2:
        return list(groups)
    links = _Links(graph, groups)
    pieces = [(d, piece) for d, group in groups for piece in (links.pieces(group) if d >= 0 else [group])]
    if len(pieces) > PIECES or len(pieces) == len(groups):
        return list(groups)
    work = [sum(seconds[k] for k in piece) for _, piece in pieces]
    best = links.makespan(pieces, work)
    at = 1
    while at < len(pieces):
        (device, one), (_, two) = pieces[at - 1], pieces[at]
        if links.home[one[0]] == links.home[two[0]]:
            joined = [*pieces[: at - 1], (device, sorted((*one, *two))), *pieces[at + 1 :]]
            together = [*work[: at - 1], work[at - 1] + work[at], *work[at + 1 :]]
            longer = links.makespan(joined, together)
            if longer <= best + CUT + links.crossing(one, two) / DENSE:
                pieces, work, best = joined, together, longer
                continue
        at += 1
    return pieces


class _Links:
    """What depends on what."""

    def __init__(self, graph: Graph, groups: Sequence[Group]) -> None:
        self.graph = graph
        self.home = {k: g for g, (_, group) in enumerate(groups) for k in group}
        device = {k: d for d, group in groups for k in group}
        maker = {o: k for k, n in enumerate(graph.nodes) for o in n.outputs if o}
        self.before = [sorted({maker[i] for i in n.inputs if i in maker}) for n in graph.nodes]
        count = len(graph.nodes)
        after: list[list[int]] = [[] for _ in range(count)]
        for k, reads in enumerate(self.before):
            for j in reads:
                after[j].append(k)
        own: dict[int, int] = {}  # bit sets of nodes, from here on
        for k, d in device.items():
            own[d] = own.get(d, 0) | 1 << k
        ancestors, descendants = [0] * count, [0] * count
        for k in range(count):
            for j in self.before[k]:
                ancestors[k] |= ancestors[j] | 1 << j
        for k in reversed(range(count)):
            for j in after[k]:
                descendants[k] |= descendants[j] | 1 << j
        self.foreign = [(ancestors[k] & ~own[device[k]], descendants[k] & ~own[device[k]]) for k in range(count)]

    def pieces(self, group: Sequence[int]) -> list[list[int]]:
        """Nodes that have the same nodes of other devices before and behind them, in an order that can run."""
        same: dict[tuple[int, int], list[int]] = {}
        for k in group:
            same.setdefault(self.foreign[k], []).append(k)
        # Along a path what lies before only grows and what lies behind only shrinks.
        order = sorted(same, key=lambda f: (f[0].bit_count(), -f[1].bit_count(), same[f][0]))
        return [same[f] for f in order]

    def makespan(self, pieces: Sequence[Group], work: Sequence[float]) -> float:
        """Seconds until the last piece ends, if each device always runs what is ready first."""
        home = {k: p for p, (_, piece) in enumerate(pieces) for k in piece}
        waits = [{home[j] for k in piece for j in self.before[k]} - {p} for p, (_, piece) in enumerate(pieces)]
        ends: dict[int, float] = {}
        free: dict[int, float] = {}
        left = list(range(len(pieces)))
        while left:
            best, begin = left[0], inf
            for p in left:
                if waits[p] <= ends.keys():
                    ready = max((ends[w] for w in waits[p]), default=0.0)
                    start = max(ready, free.get(pieces[p][0], 0.0))
                    if start < begin:
                        best, begin = p, start
            left.remove(best)
            ends[best] = free[pieces[best][0]] = begin + work[best]
        return max(ends.values())

    def crossing(self, one: Sequence[int], two: Sequence[int]) -> float:
        """Bytes of the values that *two* reads from *one*."""
        made = {n for k in one for n in self.graph.nodes[k].outputs if n}
        return sum(_bytes(self.graph, n) for n in made & {n for k in two for n in self.graph.nodes[k].inputs})


def _bytes(graph: Graph, name: str) -> float:
    t = graph.types.get(name)
    if not isinstance(t, TensorType) or not t.is_static:
        return 0.0
    return float(numel(t.shape or ())) * t.dtype.itemsize  # type: ignore[arg-type]
