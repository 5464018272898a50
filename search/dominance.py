"""Places that no best assignment needs: found before anything is solved, as most tasks have one place by far the best.

A place of a task goes where another one is faster by more than all copies that the move could cause (dead-end
elimination: Desmet et al., 1992); a device goes where another one is as good in every way. Only devices without a
memory limit drive others out, so that what is left holds the best assignment within the limits too.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from mnnpy.search.problem import Bond, Flow, Problem

__all__ = ["undominated"]

Allowed = tuple[frozenset[int], ...]


def undominated(problem: Problem, allowed: Allowed) -> Allowed:
    """*allowed* without places that can be done without."""
    found = [set(a) for a in _devices(problem, allowed)]
    if all(len(a) == 1 for a in found):
        return tuple(map(frozenset, found))
    made: list[list[Flow]] = [[] for _ in found]
    read: list[list[Flow]] = [[] for _ in found]
    for flow in problem.flows:
        if flow.producer is not None:
            made[flow.producer].append(flow)
        for user in flow.users:
            read[user].append(flow)
    bonds: list[list[Bond]] = [[] for _ in found]
    for bond in problem.bonds:
        bonds[bond.first].append(bond)
        bonds[bond.second].append(bond)
    waiting = dict.fromkeys(k for k, a in enumerate(found) if len(a) > 1)
    while waiting:
        k = next(iter(waiting))
        del waiting[k]
        if _thinned(problem, found, k, made[k], read[k], bonds[k]):
            around = {u for f in made[k] for u in f.users} | {f.producer for f in read[k]}
            around |= {b.first for b in bonds[k]} | {b.second for b in bonds[k]}
            waiting |= dict.fromkeys(u for u in sorted(x for x in around if x is not None) if len(found[u]) > 1)
    return tuple(map(frozenset, found))


def _free(problem: Problem, device: int) -> bool:
    return not problem.limits or problem.limits[device] == inf


def _devices(problem: Problem, allowed: Allowed) -> Allowed:
    """Without devices that another one is as good as for every task and every copy."""
    count, spaces = len(problem.spaces), problem.spaces
    gone: set[int] = set()
    for a in reversed(range(count)):  # of two that are alike the first one stays
        for b in range(count):
            if b in gone or b == a or not _free(problem, b) or not any(a in places for places in allowed):
                continue
            faster = all(
                t.seconds[b] <= t.seconds[a] and b in p for t, p in zip(problem.tasks, allowed, strict=True) if a in p
            )
            bound = all(bond.saved[b] >= bond.saved[a] for bond in problem.bonds)
            if faster and bound and _nearer(problem, spaces[b], spaces[a]):
                gone.add(a)
                break
    return tuple(p - gone for p in allowed)


def _nearer(problem: Problem, near: int, far: int) -> bool:
    """Whether copies to and from one space never take longer than those of another, whatever the size.

    What else lives in the other one, such as the host, loses its neighbour: then nothing is known.
    """
    if near == far:
        return True
    if far == 0 or problem.spaces.count(far) > 1:
        return False
    tables = (problem.latency, problem.per_byte)
    others = [s for s in range(len(problem.latency)) if s not in (near, far)]
    return all(t[near][s] <= t[far][s] and t[s][near] <= t[s][far] for t in tables for s in others)


def _thinned(
    problem: Problem, found: list[set[int]], k: int, made: Sequence[Flow], read: Sequence[Flow], bonds: Sequence[Bond]
) -> bool:
    """Drop places of one task; whether there were any to drop."""
    seconds, spaces = problem.tasks[k].seconds, problem.spaces
    dropped = False
    for b in sorted((d for d in found[k] if _free(problem, d)), key=lambda d: seconds[d]):
        for a in sorted(found[k] - {b}):
            if b not in found[k] or seconds[a] <= seconds[b]:
                continue
            spare = seconds[a] - seconds[b] - sum(bond.saved[a] for bond in bonds)
            for flow in made:
                spare -= _leaving(problem, found, flow, spaces[a], spaces[b]) if spare > 0 else 0.0
            for flow in read:
                spare -= _coming(problem, found, flow, spaces[a], spaces[b]) if spare > 0 else 0.0
            if spare > 0:
                found[k].discard(a)
                dropped = True
    return dropped


def _leaving(problem: Problem, found: list[set[int]], flow: Flow, a: int, b: int) -> float:
    """Seconds of copies at most, if a value is made in space *b* and not in *a*."""
    wanted = {problem.spaces[d] for u in flow.users for d in found[u]} | ({0} if flow.output else set())
    return sum(max(0.0, problem.copy(flow.size, b, s) - problem.copy(flow.size, a, s)) for s in wanted)


def _coming(problem: Problem, found: list[set[int]], flow: Flow, a: int, b: int) -> float:
    """Seconds of copies at most, if one reader of a value is in space *b* and not in *a*."""
    sources = {0} if flow.producer is None else {problem.spaces[d] for d in found[flow.producer]}
    alone = len(flow.users) == 1 and not flow.output
    return max(problem.copy(flow.size, s, b) - (problem.copy(flow.size, s, a) if alone else 0.0) for s in sources)
