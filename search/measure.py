"""Measuring a few candidates fairly: interleaved rounds, early drop, a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from mnnpy.search.observe import Tell, silent

__all__ = ["DROP", "measure"]

#: A candidate this much slower than the leader after two rounds is not measured further.
DROP = 1.5


def measure(
    candidates: Mapping[str, Callable[[], float]], budget: float, rounds: int = 5, tell: Tell = silent
) -> tuple[str, dict[str, list[float]]]:
    """Time each candidate (a call returns seconds) in turn; returns the fastest by minimum, and all samples.

    Minima, because noise of a shared machine only ever adds. Stops when *budget* seconds are spent, but every
    candidate is measured at least once after one warm-up. *tell* hears of every run and of candidates left behind.
    """
    begin = time.perf_counter()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for name, run in candidates.items():
        tell("begun", name)
        run()
    alive = list(candidates)
    for k in range(rounds):
        for name in alive:
            seconds = candidates[name]()
            samples[name].append(seconds)
            tell("measured", name, seconds)
        if time.perf_counter() - begin > budget:
            break
        if k >= 1:
            best = min(min(s) for s in samples.values())
            slow = [n for n in alive if min(samples[n]) > DROP * best]
            for name in slow:
                tell("dropped", name, min(samples[name]))
            alive = [n for n in alive if n not in slow]
            if len(alive) == 1:
                break
    return min(samples, key=lambda n: min(samples[n])), samples
