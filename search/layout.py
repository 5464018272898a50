"""Choosing one state per node at the least total cost, by dynamic programming over the graph. Knows no backend.

A *node* has states with costs; an *edge* has a cost per pair of states of its two nodes. Nodes are eliminated one by
one, those with fewest neighbours first; each leaves a table over its neighbours with its best cost (non-serial dynamic
programming: Bertelè and Brioschi, 1972). Chains and trees need tables over one neighbour only, networks with branches
that join again somewhat wider ones; the result is exact as long as tables stay below a limit. Beyond it a node is fixed
to its best state as seen from its neighbours, and the result is improved node by node.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np

__all__ = ["Network", "User"]

Table = np.ndarray[Any, np.dtype[np.float64]]  # numpy.typing is not imported on the way to a first inference
#: A reader of a value: the node, and its cost by (form that is read, state of the node); infinity where it cannot.
User = tuple[int, Sequence[Sequence[float]]]


class Network:
    """Nodes with states, and costs between them. ``solve`` gives the state of each node."""

    def __init__(self, limit: int = 1 << 14) -> None:
        self.limit = limit  #: entries of the largest table
        self.exact = True  #: whether the last solution is known to be the best one
        self._costs: list[Table] = []
        self._edges: dict[tuple[int, int], Table] = {}

    def node(self, costs: Sequence[float]) -> int:
        """A node with one cost per state; returns its number."""
        self._costs.append(np.array(costs, np.float64))
        return len(self._costs) - 1

    def edge(self, first: int, second: int, costs: Sequence[Sequence[float]] | Table) -> None:
        """Adds ``costs[state of first][state of second]``."""
        table = np.array(costs, np.float64)
        if first > second:
            first, second, table = second, first, table.T
        known = self._edges.get((first, second))
        self._edges[first, second] = table if known is None else known + table

    def value(
        self, producer: int, made: Sequence[int], users: Sequence[User], convert: Sequence[Sequence[float]]
    ) -> None:
        """A value made in form ``made[state of producer]`` and read by *users*.

        ``convert[a][b]`` is the cost of having form *b* too where *a* was made: paid once, however many users read it.
        """
        forms = range(len(convert))
        if len(users) == 1:
            (user, read) = users[0]
            paid = np.array(convert, np.float64)
            paths = paid[:, :, None] + np.array(read, np.float64)[None, :, :]
            self.edge(producer, user, paths.min(axis=1)[list(made)])
        elif users:
            sets = [s for size in range(1, len(forms) + 1) for s in combinations(forms, size)]
            held = self.node([0.0] * len(sets))
            inf = float("inf")
            pay = [[sum(convert[a][b] for b in s if b != a) if a in s else inf for s in sets] for a in made]
            self.edge(producer, held, pay)
            for user, read in users:
                table = np.array(read, np.float64)
                self.edge(held, user, np.array([table[list(s)].min(axis=0) for s in sets]))

    def cost(self, states: Sequence[int]) -> float:
        """The total cost of an assignment."""
        total = sum(float(c[s]) for c, s in zip(self._costs, states, strict=True))
        return total + sum(float(t[states[a], states[b]]) for (a, b), t in self._edges.items())

    def solve(self, costs: Mapping[int, Table] = MappingProxyType({})) -> list[int]:
        """The cheapest state of every node (equally cheap ones: the first); *costs* of some nodes for this time."""
        own = [costs.get(k, c) for k, c in enumerate(self._costs)] if costs else self._costs
        work = _Elimination(own, self._edges, self.limit)
        states = work.run()
        self.exact = work.exact
        return states if work.exact else self._improved(states, own)

    def _improved(self, states: list[int], costs: Sequence[Table]) -> list[int]:
        """Move single nodes to better states until there is none."""
        around: list[list[tuple[int, Table]]] = [[] for _ in self._costs]
        for (a, b), table in self._edges.items():
            around[a].append((b, table))
            around[b].append((a, table.T))
        moved = True
        while moved:
            moved = False
            for k, own in enumerate(costs):
                total = own + sum((t[:, states[other]] for other, t in around[k]), np.zeros(len(own)))
                best = int(np.argmin(total))
                if total[best] < total[states[k]]:
                    states[k], moved = best, True
        return states


class _Elimination:
    """One run over all nodes."""

    def __init__(self, costs: list[Table], edges: dict[tuple[int, int], Table], limit: int) -> None:
        self.limit = limit
        self.exact = True
        self.sizes = [len(c) for c in costs]
        self.factors: dict[int, tuple[tuple[int, ...], Table]] = {}
        self.of: list[set[int]] = [set() for _ in costs]  #: factors of a node
        self.states = [0] * len(costs)
        self.next = 0
        alone = list(costs)
        for (a, b), table in edges.items():
            if self.sizes[a] == 1:  # nothing to decide at one end: a cost of the other one
                alone[b] = alone[b] + table[0]
            elif self.sizes[b] == 1:
                alone[a] = alone[a] + table[:, 0]
            else:
                self._add((a, b), table)
        for k, own in enumerate(alone):
            if self.of[k]:
                self._add((k,), own)
            else:
                self.states[k] = int(own.argmin())
        self.undo: list[tuple[int, tuple[int, ...], Any]] = []

    def _add(self, scope: tuple[int, ...], table: Table) -> None:
        self.factors[self.next] = scope, table
        for k in scope:
            self.of[k].add(self.next)
        self.next += 1

    def _take(self, node: int) -> list[tuple[tuple[int, ...], Table]]:
        taken = sorted(self.of[node])
        found = [self.factors.pop(f) for f in taken]
        for f, (scope, _) in zip(taken, found, strict=True):
            for k in scope:
                self.of[k].discard(f)
        return found

    def _around(self, node: int) -> set[int]:
        return {k for f in self.of[node] for k in self.factors[f][0]} - {node}

    def run(self) -> list[int]:
        queue = [(len(self._around(k)), k) for k, factors in enumerate(self.of) if factors]
        heapq.heapify(queue)
        done = [False] * len(self.sizes)
        while queue:
            degree, node = heapq.heappop(queue)
            if done[node]:
                continue
            around = self._around(node)
            if len(around) > degree:
                heapq.heappush(queue, (len(around), node))
                continue
            if np.prod([float(self.sizes[k]) for k in (node, *around)]) > self.limit:
                busiest = max((node, *sorted(around)), key=lambda k: len(self.of[k]))
                around = self._fix(busiest)
                done[busiest] = True
            else:
                self._eliminate(node, tuple(sorted(around)))
                done[node] = True
            for k in (node, *around):
                if not done[k]:
                    heapq.heappush(queue, (len(self._around(k)), k))
        for node, scope, best in reversed(self.undo):
            self.states[node] = int(best[tuple(self.states[k] for k in scope)])
        return self.states

    def _eliminate(self, node: int, scope: tuple[int, ...]) -> None:
        """Replace all factors of *node* by its best cost over the states of *scope*."""
        axes = {k: a for a, k in enumerate((node, *scope))}
        total = np.zeros([self.sizes[k] for k in axes])
        for own, table in self._take(node):
            order = sorted(range(len(own)), key=lambda a: axes[own[a]])
            shape = [1] * len(axes)
            for a in own:
                shape[axes[a]] = self.sizes[a]
            total = total + table.transpose(order).reshape(shape)
        self.undo.append((node, scope, total.argmin(axis=0)))
        if scope:
            self._add(scope, total.min(axis=0))

    def _fix(self, node: int) -> set[int]:
        """Settle *node* by what its neighbours could do at best; returns the neighbours."""
        self.exact = False
        around = self._around(node)
        found = self._take(node)
        seen = np.zeros(self.sizes[node])
        for own, table in found:
            seen = seen + np.moveaxis(table, own.index(node), 0).reshape(self.sizes[node], -1).min(axis=1)
        state = int(seen.argmin())
        self.undo.append((node, (), np.array(state)))
        for own, table in found:
            rest = tuple(k for k in own if k != node)
            if rest:
                self._add(rest, np.take(table, state, axis=own.index(node)))
        return around
