"""Which device runs which task: least total time with transfers, under memory limits. Knows no backend.

Tasks are states of a ``Network`` (one per device), values are edges whose conversions are copies between memory spaces,
paid once per space however many tasks read there. Memory limits couple all tasks of a device, so they are added by
branch and bound: the relaxation without them is solved exactly, and where its best assignment overfills a device, one
of the tasks there must leave it (Land and Doig, 1960). Times add up: that parts of a plan may overlap on different
devices is not counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from mnnpy.search.layout import Network

__all__ = ["Flow", "Problem", "Solution", "Task", "cost", "resident", "solve"]

#: Relaxations solved before the search for a proof ends.
NODES = 400


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of the graph that stays in one place: seconds on each device (infinite where it cannot run)."""

    seconds: tuple[float, ...]
    weights: float = 0.0  #: bytes that stay on its device
    scratch: float = 0.0  #: bytes that it needs while it runs


@dataclass(frozen=True, slots=True)
class Flow:
    """A value: made by a task (or there from the start, in space 0), read by tasks and perhaps wanted in space 0."""

    producer: int | None
    users: tuple[int, ...]
    size: float
    output: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """Tasks in topological order, values between them, and the machine.

    spaces: memory space of each device; 0 is the host's. latency, per_byte: seconds of a copy by (from, to) space.
    limits: bytes of each device.
    """

    tasks: tuple[Task, ...]
    flows: tuple[Flow, ...]
    spaces: tuple[int, ...]
    latency: tuple[tuple[float, ...], ...]
    per_byte: tuple[tuple[float, ...], ...]
    limits: tuple[float, ...] = ()

    def copy(self, size: float, source: int, target: int) -> float:
        """Seconds of a copy between spaces."""
        return 0.0 if source == target else self.latency[source][target] + size * self.per_byte[source][target]


@dataclass(frozen=True, slots=True)
class Solution:
    """A device per task and the seconds of a run. *bound*: no assignment is faster than that."""

    devices: tuple[int, ...]
    seconds: float
    bound: float

    @property
    def exact(self) -> bool:
        return self.seconds <= self.bound * (1 + 1e-9)


def cost(problem: Problem, devices: Sequence[int]) -> float:
    """Seconds of an assignment, infinite where a device cannot run its task."""
    total = sum(t.seconds[d] for t, d in zip(problem.tasks, devices, strict=True))
    for flow in problem.flows:
        source = 0 if flow.producer is None else problem.spaces[devices[flow.producer]]
        wanted = {problem.spaces[devices[u]] for u in flow.users} | ({0} if flow.output else set())
        total += sum(problem.copy(flow.size, source, s) for s in wanted)
    return total


def resident(problem: Problem, devices: Sequence[int], device: int) -> float:
    """Bytes that an assignment needs on a device: all weights and the largest scratch."""
    own = [t for t, d in zip(problem.tasks, devices, strict=True) if d == device]
    return sum(t.weights for t in own) + max((t.scratch for t in own), default=0.0)


def solve(problem: Problem, nodes: int = NODES) -> Solution | None:
    """The fastest assignment within the limits; None where there is none.

    Exact unless the network is too wide for its tables or more than *nodes* relaxations would be needed: ``bound``
    then says how far off it can be.
    """
    everywhere = tuple(
        frozenset(d for d, s in enumerate(t.seconds) if s < inf and _alone(problem, t, d)) for t in problem.tasks
    )
    search = _Search(problem, nodes)
    return search.run(everywhere)


def _alone(problem: Problem, task: Task, device: int) -> bool:
    return not problem.limits or task.weights + task.scratch <= problem.limits[device]


Allowed = tuple[frozenset[int], ...]


@dataclass(slots=True)
class _Search:
    """Best first over restrictions of where tasks may go."""

    problem: Problem
    nodes: int
    solved: int = 0
    exact: bool = True
    queue: list[tuple[float, int, Allowed, tuple[int, ...]]] = field(default_factory=list)

    def run(self, allowed: Allowed) -> Solution | None:
        self._push(allowed)
        while self.queue:
            seconds, _, allowed, devices = heapq.heappop(self.queue)
            full = self._overfull(devices)
            if full is None:
                return Solution(devices, seconds, seconds if self.exact else self._bound(allowed))
            if self.solved >= self.nodes:
                return self._repaired(devices, allowed, seconds)
            for child in self._children(allowed, devices, full):
                self._push(child)
        return None

    def _push(self, allowed: Allowed) -> None:
        if not all(allowed):
            return
        devices, exact = _relaxed(self.problem, allowed)
        self.solved += 1
        self.exact = self.exact and exact
        seconds = cost(self.problem, devices)
        if seconds < inf:
            heapq.heappush(self.queue, (seconds, self.solved, allowed, devices))

    def _overfull(self, devices: Sequence[int]) -> int | None:
        for d, limit in enumerate(self.problem.limits):
            if resident(self.problem, devices, d) > limit:
                return d
        return None

    def _children(self, allowed: Allowed, devices: Sequence[int], full: int) -> Iterator[Allowed]:
        """One of the tasks on the overfull device leaves it; those before it stay: the children are disjoint."""
        there = [k for k, d in enumerate(devices) if d == full and allowed[k] != {full}]
        there.sort(key=lambda k: -self.problem.tasks[k].weights)
        for n, k in enumerate(there):
            child = list(allowed)
            for stays in there[:n]:
                child[stays] = frozenset({full})
            child[k] = allowed[k] - {full}
            yield tuple(child)

    def _repaired(self, devices: tuple[int, ...], allowed: Allowed, bound: float) -> Solution | None:
        """Tasks leave overfull devices one by one, each time the one that costs least."""
        while (full := self._overfull(devices)) is not None:
            best: tuple[float, Allowed, tuple[int, ...]] | None = None
            for k, d in enumerate(devices):
                if (
                    d != full
                    or allowed[k] == {full}
                    or not self.problem.tasks[k].weights + self.problem.tasks[k].scratch
                ):
                    continue
                child = (*allowed[:k], allowed[k] - {full}, *allowed[k + 1 :])
                moved = _moved(self.problem, devices, k, child[k])
                if best is None or moved[0] < best[0]:
                    best = (moved[0], child, moved[1])
            if best is None:
                return None
            _, allowed, devices = best
        return Solution(devices, cost(self.problem, devices), bound)

    def _bound(self, allowed: Allowed) -> float:
        """What no assignment can beat where the network was too wide to solve: every task at its best, no copies."""
        return sum(min(t.seconds[d] for d in a) for t, a in zip(self.problem.tasks, allowed, strict=True))


def _moved(
    problem: Problem, devices: tuple[int, ...], task: int, places: frozenset[int]
) -> tuple[float, tuple[int, ...]]:
    """The best assignment that differs in one task."""
    return min((cost(problem, c), c) for c in ((*devices[:task], d, *devices[task + 1 :]) for d in sorted(places)))


def _relaxed(problem: Problem, allowed: Allowed) -> tuple[tuple[int, ...], bool]:
    """The fastest assignment within *allowed*, without regard to memory; and whether it is known to be the fastest."""
    network = Network()
    places = [sorted(a) for a in allowed]
    states = [network.node([t.seconds[d] for d in p]) for t, p in zip(problem.tasks, places, strict=True)]
    host = network.node([0.0])
    count = len(problem.latency)
    for flow in problem.flows:
        copies = [[problem.copy(flow.size, a, b) for b in range(count)] for a in range(count)]
        made = [0] if flow.producer is None else [problem.spaces[d] for d in places[flow.producer]]
        users = []
        for user in dict.fromkeys(flow.users):
            spaces = [problem.spaces[d] for d in places[user]]
            users.append((states[user], [[0.0 if s == form else inf for s in spaces] for form in range(count)]))
        if flow.output:
            users.append((host, [[0.0 if form == 0 else inf] for form in range(count)]))
        network.value(host if flow.producer is None else states[flow.producer], made, users, copies)
    found = network.solve()
    return tuple(p[found[s]] for p, s in zip(places, states, strict=True)), network.exact
