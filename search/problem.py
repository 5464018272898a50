"""The problem of placement: tasks, values between them, a machine; and what an assignment costs. Knows no backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bond", "Flow", "Problem", "Task", "cost", "resident"]


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
class Bond:
    """Two tasks that a device fuses where it gets both: seconds that this saves on each device, 0 where it cannot."""

    first: int
    second: int
    saved: tuple[float, ...]


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
    bonds: tuple[Bond, ...] = ()

    def copy(self, size: float, source: int, target: int) -> float:
        """Seconds of a copy between spaces."""
        return 0.0 if source == target else self.latency[source][target] + size * self.per_byte[source][target]


def cost(problem: Problem, devices: Sequence[int]) -> float:
    """Seconds of an assignment, infinite where a device cannot run its task."""
    total = sum(t.seconds[d] for t, d in zip(problem.tasks, devices, strict=True))
    for flow in problem.flows:
        source = 0 if flow.producer is None else problem.spaces[devices[flow.producer]]
        wanted = {problem.spaces[devices[u]] for u in flow.users} | ({0} if flow.output else set())
        total += sum(problem.copy(flow.size, source, s) for s in wanted)
    for bond in problem.bonds:
        if devices[bond.first] == devices[bond.second]:
            total -= bond.saved[devices[bond.first]]
    return total


def resident(problem: Problem, devices: Sequence[int], device: int) -> float:
    """Bytes that an assignment needs on a device: all weights and the largest scratch."""
    own = [t for t, d in zip(problem.tasks, devices, strict=True) if d == device]
    return sum(t.weights for t in own) + max((t.scratch for t in own), default=0.0)
