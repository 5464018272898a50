"""Measuring a few candidates fairly: interleaved rounds, early drop, a budget, no more than needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from math import inf
from typing import Protocol

from mnnpy.search.observe import Tell, silent

__all__ = ["DROP", "PACE", "Pace", "measure", "now", "quietly"]

#: A candidate this much slower than the leader after two rounds is not measured further.
DROP = 1.5
#: A leader this close to what no candidate can beat has won.
NEAR = 1.05
#: Peaks are measured too: a candidate may be this much faster than they allow.
BEYOND = 0.85


class Pace(Protocol):
    """Who decides when there may be measured: see ``mnnpy.background``."""

    def quiet(self, run: Callable[[], float]) -> float:
        """What *run* returned at a time when nothing disturbed it."""
        ...

    def now(self) -> float:
        """``time.perf_counter`` without what was spent on waiting for such times."""
        ...


#: Whoever measures in the background sets this in its thread.
PACE: ContextVar[Pace | None] = ContextVar("PACE", default=None)


def measure(
    candidates: Mapping[str, Callable[[], float]],
    budget: float,
    rounds: int = 5,
    tell: Tell = silent,
    bounds: Mapping[str, float] | None = None,
    deadline: float = inf,
) -> tuple[str, dict[str, list[float]]]:
    """Time each candidate (a call returns seconds) in turn; returns the fastest by minimum, and all samples.

    Minima, because noise of a shared machine only ever adds. Stops when *budget* seconds are spent, but every
    candidate is measured at least once after one warm-up; only past *deadline* (of ``now``) no other one is begun, and
    those left out have no samples. *bounds*: seconds that a candidate cannot beat by the roofline; whoever cannot win
    is left, and so is the rest when the leader has nothing to fear. *tell* hears of every run and of candidates left
    behind.
    """
    begin = now()
    least = {name: BEYOND * (bounds or {}).get(name, 0.0) for name in candidates}
    samples: dict[str, list[float]] = {}
    for name, run in candidates.items():
        if samples and now() > deadline:
            break
        tell("begun", name)
        quietly(run)
        samples[name] = []
    alive = list(samples)
    for k in range(rounds):
        for name in alive:
            if not samples[name] and k == 0 and any(samples.values()) and now() > deadline:
                continue
            seconds = quietly(candidates[name])
            samples[name].append(seconds)
            tell("measured", name, seconds)
        samples = {name: times for name, times in samples.items() if times}
        if now() - begin > budget or now() > deadline:
            break
        leader = min(samples, key=lambda n: min(samples[n]))
        best = min(samples[leader])
        slow = [n for n in alive if n != leader and (least[n] > best or (k and min(samples[n]) > DROP * best))]
        for name in slow:
            tell("dropped", name, min(samples[name]))
        alive = [n for n in alive if n not in slow]
        if k and (len(alive) == 1 or best * BEYOND <= NEAR * min(least[n] for n in alive)):
            break
    return min(samples, key=lambda n: min(samples[n])), samples


def now() -> float:
    """The clock of budgets and deadlines: seconds, without those that a measurement in the background waits."""
    pace = PACE.get()
    return time.perf_counter() if pace is None else pace.now()


def quietly(run: Callable[[], float]) -> float:
    """What *run* returns; in the background at a time when nobody else runs."""
    pace = PACE.get()
    return run() if pace is None else pace.quiet(run)
