"""Steps of a plan at once on several devices."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.registry import all_devices
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, TensorType, Value
from mnnpy.overlap import Crew, Overlap, overlapping
from mnnpy.search.partition import Assignment, form_parts
from tests.unit.search_devices import Picky, branches

CONVOLUTIONS, REST = {"Convolution"}, None


@dataclass
class Fake:
    """A step."""

    lane: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def overlap(*steps: Fake) -> Overlap | None:
    return overlapping(steps, Crew)


def test_one_device_or_a_chain_has_nothing_to_overlap() -> None:
    assert overlap(Fake(0, ("x",), ("a",)), Fake(0, ("x",), ("b",)), Fake(-1, ("x",), ("c",))) is None
    assert overlap(Fake(0, ("x",), ("a",)), Fake(1, ("a",), ("b",)), Fake(0, ("b",), ("c",))) is None
    assert overlap(Fake(0, ("x",), ("a",)), Fake(1, ("x",), ("b",))) is not None


@pytest.mark.parametrize("seed", range(5))
def test_dependencies_hold(seed: int) -> None:
    """Random graphs on three devices: every step finds what it reads, whoever is slow."""
    rng = np.random.default_rng(seed)
    steps = []
    for k in range(40):
        reads = tuple({f"v{int(j)}" for j in rng.integers(0, k, min(k, 3))}) if k else ()
        steps.append(Fake(int(rng.integers(-1, 3)), reads, (f"v{k}",)))
    naps = rng.integers(0, 3, len(steps)) / 2000
    found = overlap(*steps)
    assert found is not None
    values: dict[str, int] = {}

    def execute(number: int) -> None:
        time.sleep(naps[number])
        values[steps[number].outputs[0]] = 1 + sum(values[n] for n in steps[number].inputs)

    expected: dict[str, int] = {}
    for step in steps:
        expected[step.outputs[0]] = 1 + sum(expected[n] for n in step.inputs)
    for _ in range(3):
        values.clear()
        found.run(execute)
        assert values == expected


def test_the_first_error_is_raised_and_ends_the_run() -> None:
    ran: list[int] = []

    def execute(number: int) -> None:
        ran.append(number)
        if number == 1:
            raise BackendError("device 1 is lost")

    found = overlap(Fake(0, (), ("a",)), Fake(1, (), ("b",)), Fake(0, ("a", "b"), ("c",)), Fake(1, ("c",), ("d",)))
    assert found is not None
    for _ in range(20):
        ran.clear()
        with pytest.raises(BackendError, match="device 1 is lost"):
            found.run(execute)
        assert 2 not in ran
        assert 3 not in ran


def test_what_flies_lands_before_the_caller_goes_on() -> None:
    landed = threading.Event()
    started = threading.Event()

    def execute(number: int) -> None:
        if number == 1:
            started.set()
            time.sleep(0.1)
            landed.set()
        else:
            started.wait(5)
            raise BackendError("here")

    found = overlap(Fake(0, (), ("a",)), Fake(1, (), ("b",)), Fake(0, (), ("c",)))
    assert found is not None
    with pytest.raises(BackendError, match="here"):
        found.run(execute)
    assert landed.is_set()


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("mnnpy device")]


def test_workers_end_with_their_owner() -> None:
    before = len(workers())
    crew = Crew()
    ran = threading.Event()
    crew.submit(3, ran.set)
    assert ran.wait(5)
    (thread,) = [t for t in workers() if t.name == "mnnpy device 3"][-1:]
    gone = weakref.ref(crew)
    del crew
    assert gone() is None
    thread.join(5)
    assert not thread.is_alive()
    assert len(workers()) <= before


def session(first: Picky, second: Picky, **options: Any) -> tuple[mnnpy.Session, dict[str, Any]]:
    model, feeds = branches(320)
    made = mnnpy.Session(model, [first, second], threads=1, placement="order", **options)  # type: ignore[list-item]
    return made, feeds


def test_two_devices_work_at_the_same_time() -> None:
    """Each program waits for the other one to have begun: one after the other they would never end."""
    begun = {"one": threading.Event(), "two": threading.Event()}
    met: list[bool] = []

    def meet(mine: str, other: str) -> Any:
        def before() -> None:
            begun[mine].set()
            met.append(begun[other].wait(10))

        return before

    one = Picky("one", CONVOLUTIONS, meet("one", "two"))
    two = Picky("two", REST, meet("two", "one"))
    made, feeds = session(one, two)
    assert [d.info.backend for d in made._context.devices] == ["one", "two"]
    (y,) = made.run(None, feeds)
    assert met[:2] == [True, True]
    model, _ = branches(320)
    np.testing.assert_allclose(y, mnnpy.Session(model, "cpu", threads=1).run(None, feeds)[0], rtol=1e-4, atol=1e-5)


def test_overlap_saves_time() -> None:
    """Two naps of 60 ms take about one: less than both together."""
    one, two = (Picky(n, ops, lambda: time.sleep(0.06)) for n, ops in (("one", CONVOLUTIONS), ("two", REST)))
    made, feeds = session(one, two)
    made.run(None, feeds)
    plan = made._executable.plans()[0]
    assert [s.device for s in plan.steps] == ["one", "two", "two"]
    naps = 0.06 * 3
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        made.run(None, feeds)
        times.append(time.perf_counter() - begin)
    assert min(times) < naps - 0.03


def test_errors_of_a_device_reach_the_caller() -> None:
    def lost() -> None:
        raise BackendError("device 'one' is lost")

    one, two = Picky("one", CONVOLUTIONS), Picky("two", REST)
    made, feeds = session(one, two)
    (y,) = made.run(None, feeds)
    one.before = lost
    for _ in range(3):
        with pytest.raises(BackendError, match="device 'one' is lost"):
            made.run(None, feeds)
    one.before = lambda: None
    np.testing.assert_array_equal(made.run(None, feeds)[0], y)


@pytest.mark.skipif(
    not any(d.backend == "opencl" and d.available for d in all_devices()),
    reason="no OpenCL device",
)
def test_cpu_and_opencl() -> None:
    model, feeds = branches(320)
    one, two = Picky("opencl", CONVOLUTIONS, inner="opencl"), Picky("cpu", REST)
    made = mnnpy.Session(model, [one, two], threads=1, placement="order")  # type: ignore[list-item]
    (first,) = made.run(None, feeds)
    assert made._executable.plans()[0].overlap is not None
    expected = mnnpy.Session(model, "cpu", threads=1).run(None, feeds)[0]
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-5)
    results: list[Any] = []

    def many() -> None:
        results.extend(made.run(None, feeds)[0] for _ in range(10))

    threads = [threading.Thread(target=many) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 30
    for found in results:
        np.testing.assert_array_equal(found, first)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_workers_of_its_own() -> None:
    made, feeds = session(Picky("one", CONVOLUTIONS), Picky("two", REST))
    (y,) = made.run(None, feeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: that is the point
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if np.array_equal(made.run(None, feeds)[0], y) else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the forked process hangs")


# -- parts --


def diamond(size: int = 8) -> Graph:
    """p → (a, b) → c, all unary but the last."""
    t = TensorType(DType.F32, (size,))
    nodes = [
        Node("Unary", ("x",), ("p",), {"fn": "Neg"}),
        Node("Unary", ("p",), ("a",), {"fn": "Abs"}),
        Node("Unary", ("p",), ("b",), {"fn": "Exp"}),
        Node("Binary", ("a", "b"), ("c",), {"fn": "Add"}),
    ]
    return Graph("diamond", (Value("x", t),), (Value("c", t),), tuple(nodes), {}, dict.fromkeys("xpabc", t))


def parts(graph: Graph, devices: Sequence[int], seconds: Sequence[float] | None) -> list[tuple[int, list[str]]]:
    found = form_parts(graph, [Assignment(d, "") for d in devices], seconds)
    return [(p.device, [o for n in p.graph.nodes for o in n.outputs]) for p in found]


def test_a_part_is_divided_where_another_device_would_wait_in_vain() -> None:
    graph, devices = diamond(), [0, 0, 1, 0]
    assert parts(graph, devices, None) == [(0, ["p", "a"]), (1, ["b"]), (0, ["c"])]
    assert parts(graph, devices, [1, 1, 1, 1]) == [(0, ["p"]), (0, ["a"]), (1, ["b"]), (0, ["c"])]
    # a chunk of device 1 is swept up with what waits for device 0
    assert parts(graph, [0, 0, 1, 1], None) == [(0, ["p", "a"]), (1, ["b", "c"])]
    assert parts(graph, [0, 0, 1, 1], [1, 1, 1, 1]) == [(0, ["p"]), (0, ["a"]), (1, ["b"]), (1, ["c"])]


def test_little_is_not_worth_a_division() -> None:
    graph, devices = diamond(), [0, 0, 1, 0]
    whole = [(0, ["p", "a"]), (1, ["b"]), (0, ["c"])]
    assert parts(graph, devices, [1, 1e-5, 1, 1]) == whole
    assert parts(graph, devices, [1, 1, 1e-5, 1]) == whole
    assert parts(diamond(1 << 24), devices, [1, 1e-3, 1e-3, 1]) == whole  # p would be written and read again
