"""Which device runs which task: least total time with transfers, under memory limits. Knows no backend.

Tasks are states of a ``Network`` (one per device), values are edges whose conversions are copies between memory spaces,
paid once per space however many tasks read there. Memory limits couple all tasks of a device: a byte of weights there
gets a price, with which the network is solved as before and gives a bound (Lagrangian relaxation: Everett, 1963;
Geoffrion, 1974), and branch and bound closes what is left of the gap (Land and Doig, 1960). Times add up: that parts
of a plan may overlap on different devices is not counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import inf

import numpy as np

from mnnpy.search.dominance import undominated
from mnnpy.search.layout import Network
from mnnpy.search.problem import Bond, Flow, Problem, Task, cost, resident

__all__ = ["Bond", "Flow", "Problem", "Solution", "Task", "cost", "resident", "solve"]

#: Networks solved before the search for a proof ends.
NODES = 400
#: Entries of the largest table of a network.
TABLE = 1 << 20
#: An assignment this close to the bound is good enough where a proof takes long.
GAP = 5e-3
#: Sizes of scratch memory that are told apart, over all devices with limits.
LEVELS = 32


@dataclass(frozen=True, slots=True)
class Solution:
    """A device per task and the seconds of a run. *bound*: no assignment is faster than that."""

    devices: tuple[int, ...]
    seconds: float
    bound: float

    @property
    def exact(self) -> bool:
        return self.seconds <= self.bound * (1 + 1e-9)


Allowed = tuple[frozenset[int], ...]
Devices = tuple[int, ...]


def solve(problem: Problem, nodes: int = NODES, gap: float = GAP) -> Solution | None:
    """The fastest assignment within the limits; None where there is none.

    Exact unless the network is too wide for its tables, or memory is short and the proof takes long: after *nodes* / 4
    networks what is within *gap* of the fastest will do, after *nodes* the best so far. ``bound`` says how far off it
    can be.
    """
    everywhere = tuple(
        frozenset(d for d, s in enumerate(t.seconds) if s < inf and _alone(problem, t, d)) for t in problem.tasks
    )
    if not all(everywhere):
        return None
    everywhere = undominated(problem, everywhere)
    search = _Search(problem, everywhere, nodes, gap)
    return search.run() if any(len(a) > 1 for a in everywhere) else search.only()


def _alone(problem: Problem, task: Task, device: int) -> bool:
    return not problem.limits or task.weights + task.scratch <= problem.limits[device]




class _Relaxation:
    """The problem without memory limits as a network, built once and solved for several prices of memory."""

    def __init__(self, problem: Problem, allowed: Allowed) -> None:
        self.problem = problem
        self.places = [sorted(a) for a in allowed]
        self.exact = True
        self._network = network = Network(TABLE)
        seconds = [[t.seconds[d] for d in p] for t, p in zip(problem.tasks, self.places, strict=True)]
        self._seconds = [np.array(s) for s in seconds]
        self._states = [network.node(s) for s in seconds]
        self._host = network.node([0.0])
        for flow in problem.flows:
            self._flow(flow)
        for bond in problem.bonds:
            first, second = self.places[bond.first], self.places[bond.second]
            saved = [[-bond.saved[a] if a == b else 0.0 for b in second] for a in first]
            network.edge(self._states[bond.first], self._states[bond.second], saved)

    def _flow(self, flow: Flow) -> None:
        """A value between tasks; forms are the spaces where it may be, numbered anew."""
        problem = self.problem
        made = [0] if flow.producer is None else [problem.spaces[d] for d in self.places[flow.producer]]
        read = [[problem.spaces[d] for d in self.places[u]] for u in flow.users]
        wanted = {0} if flow.output else set()
        forms = sorted({*made, *wanted, *(s for spaces in read for s in spaces)})
        if len(forms) == 1:
            return
        copies = [[problem.copy(flow.size, a, b) for b in forms] for a in forms]
        users = [
            (self._states[u], [[0.0 if s == form else inf for s in spaces] for form in forms])
            for u, spaces in zip(flow.users, read, strict=True)
        ]
        if flow.output:
            users.append((self._host, [[0.0 if form == 0 else inf] for form in forms]))
        producer = self._host if flow.producer is None else self._states[flow.producer]
        self._network.value(producer, [forms.index(m) for m in made], users, copies)

    def solve(self, allowed: Allowed, prices: Sequence[float]) -> Devices | None:
        """The fastest assignment within *allowed* where a byte of weights costs a device's price in seconds."""
        costs = {}
        for k, (own, places, task) in enumerate(zip(self._seconds, self.places, self.problem.tasks, strict=True)):
            priced = [0.0 if d in allowed[k] else inf for d in places]
            if any(prices):
                priced = [p + prices[d] * task.weights for p, d in zip(priced, places, strict=True)]
            if any(priced):
                costs[self._states[k]] = own + np.array(priced)
        found = self._network.solve(costs)
        self.exact = self.exact and self._network.exact
        devices = tuple(p[found[s]] for p, s in zip(self.places, self._states, strict=True))
        return devices if all(d in a for d, a in zip(devices, allowed, strict=True)) else None


@dataclass(frozen=True, slots=True)
class _Part:
    """Assignments within *allowed* whose weights leave no device fuller than *rooms* (bytes)."""

    bound: float  #: no assignment of this part takes less
    allowed: Allowed
    rooms: tuple[float, ...]
    prices: tuple[float, ...]  #: seconds per byte of weights on each device, with which the bound was found
    devices: Devices  #: what the relaxation chose with them


class _Search:
    """Best first over parts of the assignments, bounded by prices of memory."""

    def __init__(self, problem: Problem, everywhere: Allowed, nodes: int, gap: float) -> None:
        self.problem = problem
        self.everywhere = everywhere
        self.nodes = nodes
        self.gap = gap
        self.free = (0.0,) * len(problem.spaces)
        self.limited = [d for d, limit in enumerate(problem.limits) if limit < inf]
        self.best = inf
        self.devices: Devices | None = None
        self.solved = 0

    @cached_property
    def relaxation(self) -> _Relaxation:
        return _Relaxation(self.problem, self.everywhere)

    def only(self) -> Solution | None:
        """Where there is nothing to choose."""
        devices = tuple(d for a in self.everywhere for d in a)
        seconds = cost(self.problem, devices)
        return Solution(devices, seconds, seconds) if seconds < inf and self._fits(devices) else None

    def run(self) -> Solution | None:
        rooms = self.problem.limits or (inf,) * len(self.free)
        first = self._part(self.everywhere, rooms, self.free)
        if first is None:
            return None
        if self._fits(first.devices):
            return Solution(first.devices, self.best, first.bound)
        self._repair(first.devices)
        queue: list[tuple[float, int, bool, _Part]] = []

        def push(part: _Part | None, priced: bool, least: float = 0.0) -> None:
            if part is not None:
                heapq.heappush(queue, (max(least, part.bound), self.solved + len(queue), priced, part))

        for allowed, smaller in self._levels(rooms):
            push(self._part(allowed, smaller, self.free), False)
        while queue and (self.solved < self.nodes or self.devices is None):
            low, _, priced, part = queue[0]
            if low >= self.best * (1 - (self.gap if 4 * self.solved > self.nodes else 1e-12)):
                break
            heapq.heappop(queue)
            if not priced:
                push(self._priced(part), True, low)
                continue
            for child in self._children(part):
                push(self._part(child, part.rooms, part.prices), False, low)
        if self.devices is None:
            return None
        return Solution(self.devices, self.best, max(first.bound, min(self.best, queue[0][0] if queue else inf)))

    def _levels(self, rooms: tuple[float, ...]) -> Iterator[tuple[Allowed, tuple[float, ...]]]:
        """Parts by the largest scratch on each limited device: what needs more goes elsewhere, weights get the rest."""
        steps = [sorted({t.scratch for t, a in zip(self.problem.tasks, self.everywhere, strict=True) if d in a})
                 for d in self.limited]  # fmt: skip
        most = max(1, int(LEVELS ** (1 / max(1, sum(map(bool, steps))))))
        for chosen in product(*(_grouped(s, most) if s else [(0.0, 0.0)] for s in steps)):
            allowed, smaller = list(self.everywhere), list(rooms)
            for d, (low, high) in zip(self.limited, chosen, strict=True):
                smaller[d] = rooms[d] - low
                allowed = [
                    a - {d} if t.scratch > high else a for t, a in zip(self.problem.tasks, allowed, strict=True)
                ]
            if all(allowed) and min(smaller) >= 0:
                yield tuple(allowed), tuple(smaller)

    def _part(self, allowed: Allowed, rooms: tuple[float, ...], prices: tuple[float, ...]) -> _Part | None:
        """The relaxation with *prices*; None where nothing is possible. What it chose is kept if it fits."""
        tight = self._tightened(allowed, rooms)
        if tight is None:
            return None
        allowed, rooms, most = tight
        prices = tuple(0.0 if m <= r else p for p, m, r in zip(prices, most, rooms, strict=True))
        self.solved += 1
        devices = self.relaxation.solve(allowed, prices)
        if devices is None:
            return None
        seconds = cost(self.problem, devices)
        if seconds == inf:
            return None
        if seconds < self.best and self._fits(devices):
            self.best, self.devices = seconds, devices
        bound = seconds + sum(p * self._excess(devices, rooms, d) for d, p in enumerate(prices) if p)
        return _Part(bound if self.relaxation.exact else self._floor(allowed), allowed, rooms, prices, devices)

    def _excess(self, devices: Devices, rooms: Sequence[float], device: int) -> float:
        """Bytes of weights on a device above its room."""
        return sum(t.weights for t, d in zip(self.problem.tasks, devices, strict=True) if d == device) - rooms[device]

    def _fits(self, devices: Devices) -> bool:
        return all(resident(self.problem, devices, d) <= limit for d, limit in enumerate(self.problem.limits))

    def _repair(self, devices: Devices) -> None:
        """Tasks leave devices that are too full one by one, never to return, each time the one that costs least."""
        allowed = list(self.everywhere)
        while not self._fits(devices):
            full = next(d for d, m in enumerate(self.problem.limits) if resident(self.problem, devices, d) > m)
            moves = []
            for k, (task, d) in enumerate(zip(self.problem.tasks, devices, strict=True)):
                if d == full and task.weights + task.scratch > 0:
                    others = ((*devices[:k], other, *devices[k + 1 :]) for other in allowed[k] - {full})
                    moves += [(cost(self.problem, o), k, o) for o in others]
            if not moves:
                return
            _, k, devices = min(moves)
            allowed[k] = allowed[k] - {full}
        self.best, self.devices = cost(self.problem, devices), devices

    def _priced(self, part: _Part) -> _Part | None:
        """The same part with prices that bound it better."""
        for device in self.limited:
            if part.bound < self.best * (1 - 1e-12):
                part = self._dearer(part, device)
        return part

    def _dearer(self, part: _Part, device: int) -> _Part:
        """With the best price of one device: where the lines of a too full and of a not too full choice meet."""

        def at(price: float) -> _Part | None:
            prices = tuple(price if d == device else p for d, p in enumerate(part.prices))
            return self._part(part.allowed, part.rooms, prices)

        def line(one: _Part) -> tuple[float, float]:
            """Seconds without this price, and bytes above the room."""
            above = self._excess(one.devices, one.rooms, device)
            return one.bound - one.prices[device] * above, above

        full = at(0.0)
        dear = at(self._dearest)
        if full is None or dear is None or self._excess(full.devices, full.rooms, device) <= 0:
            return part
        best = max(part, full, dear, key=lambda one: one.bound)
        if self._excess(dear.devices, dear.rooms, device) > 0:
            return replace(part, bound=inf)  # even so it does not fit
        while self.solved < self.nodes:
            (c0, w0), (c1, w1) = line(full), line(dear)
            middle = at(max(0.0, (c1 - c0) / (w0 - w1)))
            if middle is None:
                break
            if middle.bound > best.bound:
                best = middle
            if middle.bound >= c0 + middle.prices[device] * w0 - 1e-9 * abs(c0):
                break
            if self._excess(middle.devices, middle.rooms, device) > 0:
                full = middle
            else:
                dear = middle
        return best

    @cached_property
    def _dearest(self) -> float:
        """A price at which memory is used only where nothing else is possible."""
        worst = sum(max(s for s in t.seconds if s < inf) for t in self.problem.tasks)
        spaces = range(len(self.problem.latency))
        worst += sum(
            max(self.problem.copy(f.size, a, b) for a in spaces for b in spaces) * len(self.problem.latency)
            for f in self.problem.flows
        )
        least = min((t.weights for t in self.problem.tasks if t.weights > 0), default=1.0)
        return 4.0 * (worst + 1e-9) / least

    def _tightened(
        self, allowed: Allowed, rooms: tuple[float, ...]
    ) -> tuple[Allowed, tuple[float, ...], list[float]] | None:
        """*allowed* and *rooms* as what is pinned to a device leaves them, and the most weights that it can get."""
        found, left, most = list(allowed), list(rooms), [0.0] * len(rooms)
        for d in self.limited:
            pinned = [t for t, a in zip(self.problem.tasks, allowed, strict=True) if a == {d}]
            weights, scratch = sum(t.weights for t in pinned), max((t.scratch for t in pinned), default=0.0)
            limit = self.problem.limits[d]
            left[d] = min(left[d], limit - scratch)
            for k, (task, places) in enumerate(zip(self.problem.tasks, found, strict=True)):
                own = 0.0 if places == {d} else task.weights
                if d in places and weights + own > min(left[d], limit - task.scratch):
                    found[k] = places - {d}
            most[d] = sum(t.weights for t, a in zip(self.problem.tasks, found, strict=True) if d in a)
        return (tuple(found), tuple(left), most) if all(found) else None

    def _children(self, part: _Part) -> Iterator[Allowed]:
        """The most telling task that is undecided for a device that may get too full: it stays there, or does not."""
        tasks, limits = self.problem.tasks, self.problem.limits
        full = [d for d in self.limited if resident(self.problem, part.devices, d) > limits[d]]
        choices = []
        for d in full or self.limited:
            for k, places in enumerate(part.allowed):
                if d in places and len(places) > 1 and tasks[k].weights + tasks[k].scratch > 0:
                    there = part.devices[k] == d
                    choices.append((there == bool(full), tasks[k].weights, tasks[k].scratch, -k, d))
        if not choices:
            return
        *_, negative, d = max(choices)
        k = -negative
        yield (*part.allowed[:k], frozenset({d}), *part.allowed[k + 1 :])
        yield (*part.allowed[:k], part.allowed[k] - {d}, *part.allowed[k + 1 :])

    def _floor(self, allowed: Allowed) -> float:
        """What no assignment can beat where the network was too wide to solve: every task at its best, no copies."""
        saved = sum(max(b.saved) for b in self.problem.bonds)
        own = sum(min(t.seconds[d] for d in a) for t, a in zip(self.problem.tasks, allowed, strict=True))
        return max(0.0, own - saved)


def _grouped(steps: Sequence[float], count: int) -> list[tuple[float, float]]:
    """(smallest, largest) of at most *count* groups of neighbours."""
    size = -(-len(steps) // count)
    return [(steps[k], steps[min(k + size, len(steps)) - 1]) for k in range(0, len(steps), size)]
