"""Assignment to devices: equal to brute force on random machines and graphs, memory limits included."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.search.assign import Flow, Problem, Task, cost, resident, solve


def brute_force(problem: Problem) -> float:
    """Seconds of the best assignment, infinite where there is none."""
    best = inf
    for devices in product(*([d for d, s in enumerate(t.seconds) if s < inf] for t in problem.tasks)):
        if all(resident(problem, devices, d) <= limit for d, limit in enumerate(problem.limits)):
            best = min(best, cost(problem, devices))
    return best


@st.composite
def problems(draw: st.DrawFn, limited: bool) -> Problem:
    """Up to 12 tasks (as many as brute force can take) on 2 or 3 devices: a host, and others behind buses."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    devices = draw(st.integers(2, 3))
    count = draw(st.integers(1, 12 if devices == 2 else 8))
    tasks = []
    for _ in range(count):
        seconds = rng.exponential(1.0, devices)
        seconds[1:][rng.random(devices - 1) < 0.2] = inf  # an op that the device lacks
        tasks.append(Task(tuple(seconds), float(rng.integers(0, 20)), float(rng.integers(0, 10))))
    flows = []
    for k in range(-1, count):
        later = [u for u in range(k + 1, count) if rng.random() < 2.0 / count]
        if k + 1 < count and not later:
            later = [int(rng.integers(k + 1, count))]
        flows.append(
            Flow(None if k < 0 else k, tuple(later), float(rng.exponential(1.0)), k == count - 1 or rng.random() < 0.1)
        )
    shared = rng.random() < 0.3  # two devices in one memory
    spaces = (0, 0 if shared else 1, 2)[:devices]
    scale = rng.choice([0.0, 0.1, 1.0])
    latency = rng.exponential(scale, (3, 3)) if scale else np.zeros((3, 3))
    per_byte = rng.exponential(scale, (3, 3)) if scale else np.zeros((3, 3))
    limits = (inf, *(float(rng.integers(0, 12 * count)) for _ in range(devices - 1))) if limited else ()
    return Problem(tuple(tasks), tuple(flows), spaces, tuple(map(tuple, latency)), tuple(map(tuple, per_byte)), limits)


@settings(max_examples=150, deadline=None)
@given(problems(limited=False))
def test_equals_brute_force(problem: Problem) -> None:
    found = solve(problem)
    assert found is not None
    assert found.exact
    np.testing.assert_allclose(found.seconds, brute_force(problem), rtol=1e-9)
    np.testing.assert_allclose(found.seconds, cost(problem, found.devices), rtol=1e-9)


@settings(max_examples=150, deadline=None)
@given(problems(limited=True))
def test_equals_brute_force_within_memory(problem: Problem) -> None:
    found = solve(problem, nodes=100_000)
    assert found is not None  # the host has no limit
    assert all(resident(problem, found.devices, d) <= limit for d, limit in enumerate(problem.limits))
    np.testing.assert_allclose(found.seconds, brute_force(problem), rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(problems(limited=True))
def test_repairs_keep_the_limits_and_the_bound(problem: Problem) -> None:
    found = solve(problem, nodes=1)
    assert found is not None
    assert all(resident(problem, found.devices, d) <= limit for d, limit in enumerate(problem.limits))
    assert found.bound <= brute_force(problem) * (1 + 1e-9)
    assert found.seconds >= found.bound * (1 - 1e-9)


def test_no_device_can() -> None:
    assert solve(Problem((Task((inf, inf)),), (), (0, 1), ((0.0,) * 2,) * 2, ((0.0,) * 2,) * 2)) is None
    small = Problem((Task((1.0,), weights=5.0),), (), (0,), ((0.0,),), ((0.0,),), limits=(4.0,))
    assert solve(small) is None
