"""tune="background": measuring while nobody runs, and plans that change between two runs."""

from __future__ import annotations

import gc
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mnnpy
from mnnpy import background
from mnnpy.backends.cpu import select
from mnnpy.background import settled
from mnnpy.search.cost import Peaks
from mnnpy.search.records import Records
from tests.models import Net
from tests.unit.search_devices import Picky, branches


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Records]:
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path))
    records = Records(f"this machine {tmp_path}", tmp_path / "cpu.jsonl")
    monkeypatch.setattr(select, "records", lambda: records)
    monkeypatch.setattr(select, "SHORTLIST", 1e9)
    monkeypatch.setattr(select, "MATTERS", 0.0)
    yield records
    gc.collect()
    assert settled(30)


def conv_net() -> tuple[Any, dict[str, np.ndarray]]:
    n = Net()
    y = n.op("Relu", n.op("Conv", n.input(1, 32, 20, 18), n.w(48, 32, 3, 3), n.w(48), pads=[1, 1, 1, 1]))
    return n.finish(n.op("Conv", y, n.w(40, 48, 3, 3), pads=[1, 1, 1, 1]))


def rows(session: mnnpy.Session) -> list[tuple[str, str]]:
    return [(r["algorithm"], r["why"]) for r in session.explain().rows if r["op"] == "Convolution"]


def fastest(name: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make an algorithm measure as the fastest one; returns when measurements began, from now on."""
    real = select._timed
    begun: list[float] = []

    def timed(program: Any, inputs: list[Any], output: Any) -> Callable[[], float]:
        run, won = real(program, inputs, output), program.describe()[0]["algorithm"].endswith(name)

        def once() -> float:
            begun.append(time.perf_counter())
            seconds = run()
            return 1e-6 if won else 1.0 + seconds

        return once

    monkeypatch.setattr(select, "_timed", timed)
    return begun


@pytest.mark.parametrize("algorithm", ["direct", "winograd2"])
def test_plans_change_between_runs_and_answers_do_not(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = conv_net()
    fastest(algorithm, monkeypatch)
    session = mnnpy.Session(model, threads=1, tune="background")
    assert {why for _, why in rows(session)} == {"cost model"}
    (before,) = session.run(None, feeds)
    assert settled(30)
    assert {why for _, why in rows(session)} == {"fastest measured"}
    assert all(algorithm in a for a, _ in rows(session))
    (after,) = session.run(None, feeds)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    again = mnnpy.Session(model, threads=1, tune="background")  # knows it at once, and has nothing to do
    assert rows(again) == rows(session)
    again.run(None, feeds)
    assert settled(30)
    assert again._context.tuner is not None
    assert again._context.tuner.left == background.BUDGET


def test_nothing_is_measured_before_the_first_run_or_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = conv_net()
    begun = fastest("direct", monkeypatch)
    session = mnnpy.Session(model, threads=1, tune="background")
    time.sleep(3 * background.IDLE)
    assert not begun
    monkeypatch.setattr(background, "IDLE", 0.25)
    until = time.perf_counter() + 0.5
    while time.perf_counter() < until:  # never idle for so long
        session.run(None, feeds)
        time.sleep(0.001)
    busy = time.perf_counter()
    assert settled(30)
    assert begun
    assert min(begun) > busy + 0.2


def test_what_a_run_disturbed_is_measured_again() -> None:
    state = background._State()
    watch = background.Watch()
    pace = background._Pace(state, background.Tuner(watch))
    results = [1.0, 2.0, 3.0]

    def disturbed() -> float:
        if len(results) > 1:
            state.started += 1
        return results.pop(0)

    with state.turn:
        assert pace.quiet(disturbed) == 3.0
    assert pace.waited > 0
    assert not results


def test_bindings_take_up_better_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = conv_net()
    fastest("winograd2", monkeypatch)
    monkeypatch.setattr(background, "IDLE", 1.0)  # until all is bound
    session = mnnpy.Session(model, threads=1, tune="background")
    ((name, x),) = feeds.items()
    binding = session.binding()
    binding.bind_input(name, x)
    target = np.empty_like(session.run(None, feeds)[0])
    binding.bind_output(session.get_outputs()[0].name, target)
    session.run_with_binding(binding)
    first, call = target.copy(), binding._call
    assert settled(30)
    session.run_with_binding(binding)
    assert binding._call is not call
    np.testing.assert_allclose(target, first, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(target, session.run(None, feeds)[0])
    call = binding._call
    session.run_with_binding(binding)
    assert binding._call is call


def test_it_ends_with_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = conv_net()
    going, release = threading.Event(), threading.Event()
    calls = []

    def timed(program: Any, inputs: list[Any], output: Any) -> Callable[[], float]:
        def once() -> float:
            calls.append(1)
            going.set()
            release.wait(10)
            return 1.0

        return once

    monkeypatch.setattr(select, "_timed", timed)
    session = mnnpy.Session(model, threads=1, tune="background")
    session.run(None, feeds)
    executable = weakref.ref(session._executable)
    assert going.wait(10)
    gone = weakref.ref(session)
    del session
    assert gone() is None  # no cycle keeps it
    release.set()
    assert settled(10)
    gc.collect()
    assert executable() is None
    assert len(calls) == 1
    assert not [t for t in threading.enumerate() if t.name == "mnnpy tuning"]


def test_sessions_without_it_are_untouched() -> None:
    model, feeds = conv_net()
    for tune in ("off", "cache", 0.0):
        session = mnnpy.Session(model, threads=1, tune=tune)
        session.run(None, feeds)
        assert "run" not in vars(session)
        assert session._context.tuner is None
    assert background._state.thread is None


def test_a_spent_budget_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = conv_net()
    begun = fastest("direct", monkeypatch)
    session = mnnpy.Session(model, threads=1, tune="background")
    assert session._context.tuner is not None
    session._context.tuner.left = 0.0
    session.run(None, feeds)
    assert settled(30)
    assert not begun


PREFERRED = Peaks({"f32": 1e12}, 1e11, 1e11)
OTHER = Peaks({"f32": 5e11}, 5e10, 5e10)


def test_the_choice_among_devices_is_made_too() -> None:
    """The device that the model prefers turns out to be slow: the plan moves, while other threads run it."""
    model, feeds = branches(64)
    slow, fast = Picky("one", None, lambda: time.sleep(0.03), peaks=PREFERRED), Picky("two", None, peaks=OTHER)
    session = mnnpy.Session(model, [slow, fast], threads=1, tune="background")  # type: ignore[list-item]
    (before,) = session.run(None, feeds)
    assert session.explain().decisions[0]["way"] == "one"
    assert settled(30)
    assert session.explain().decisions[0]["way"] == "two"
    assert session.explain().decisions[0]["reason"] == "fastest measured"
    np.testing.assert_array_equal(session.run(None, feeds)[0], before)


def test_runs_go_on_while_plans_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = conv_net()
    fastest("winograd2", monkeypatch)
    session = mnnpy.Session(model, threads=1, tune="background")
    (before,) = session.run(None, feeds)
    stop = threading.Event()
    results: list[Any] = []
    errors: list[BaseException] = []

    def runs() -> None:
        try:
            while not stop.is_set():
                results.append(session.run(None, feeds)[0])
                time.sleep(0.03)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=runs) for _ in range(2)]
    for t in threads:
        t.start()
    time.sleep(1.0)
    stop.set()
    for t in threads:
        t.join()
    assert not errors
    assert settled(30)
    assert all("winograd2" in a for a, _ in rows(session))
    for found in results:
        np.testing.assert_allclose(found, before, rtol=1e-3, atol=1e-4)


def test_a_plan_that_computes_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = conv_net()
    fastest("direct", monkeypatch)
    session = mnnpy.Session(model, threads=1, tune="background")
    (before,) = session.run(None, feeds)
    real = background._differs

    def spoil(old: Any, new: Any) -> bool:
        run = new.run
        monkeypatch.setattr(type(new), "run", lambda p, f: [r + 1 for r in run(f)] if p is new else p.direct.run(f))
        return real(old, new) or True

    monkeypatch.setattr(background, "_differs", spoil)
    messages: list[str] = []
    monkeypatch.setattr(background.warnings, "warn", lambda text, *a, **k: messages.append(str(text)))
    assert settled(30)
    assert ["something else" in m for m in messages] == [True]
    assert {why for _, why in rows(session)} == {"cost model"}
    np.testing.assert_array_equal(session.run(None, feeds)[0], before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_no_thread_and_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = conv_net()
    fastest("winograd2", monkeypatch)
    session = mnnpy.Session(model, threads=1, tune="background")
    (before,) = session.run(None, feeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: that is the point
        child = os.fork()
    if child == 0:
        code = 1
        try:
            alone = threading.active_count() == 1 and background._state.thread is None
            same = all(np.allclose(session.run(None, feeds)[0], before, 1e-3, 1e-4) for _ in range(3))
            code = 0 if alone and same else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    status = None
    while status is None and time.monotonic() < deadline:
        done, found = os.waitpid(child, os.WNOHANG)
        status = found if done else None
        time.sleep(0.01)
    if status is None:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert status == 0
    assert settled(30)
    assert all("winograd2" in a for a, _ in rows(session))
