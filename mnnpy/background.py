"""Measuring while sessions are idle: ``tune="background"``.

One thread per process works through the plans that sessions made, one after the other. It measures only when no watched
session has run for some milliseconds: whatever a run disturbed is measured again. A plan that was found to be better
takes the place of the old one between two runs. The thread holds no session: it stops with the last one, a process that
was forked has none, and a session has a budget after which it is left alone.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from mnnpy.classes import dataclass
from mnnpy.errors import MnnpyError
from mnnpy.graph.ir import Array, TensorType, Type

if TYPE_CHECKING:
    from mnnpy.runtime import Executable, Plan

__all__ = ["Tuner", "Watch", "settled"]

#: Seconds of measuring that a session gets in all.
BUDGET = 10.0
#: Seconds without a run after which a process counts as idle.
IDLE = 0.02
#: Seconds between two looks whether it is.
LOOK = 0.01
#: Disturbed measurements in a row after which a plan is left as it is.
TRIES = 50


class _StoppedError(Exception):
    """The session is gone, or never idle."""


@dataclass(frozen=True, eq=False)
class _Job:
    """A plan to look at."""

    executable: weakref.ref[Executable]
    signature: Any
    types: Mapping[str, Type | None]
    known: Mapping[str, Any]
    tuner: Tuner


class _State:
    """What all sessions of a process share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.turn = threading.Lock()  #: held by the thread while it may hold locks of others
        self.jobs: deque[_Job] = deque(maxlen=256)  # a loop may make any number of plans
        self.thread: threading.Thread | None = None
        self.active = 0  #: runs that are on now
        self.started = 0  #: runs so far
        self.last = 0.0  #: when the last one ended
        self.held = False  #: whether a fork waits for its end with ``turn``


_state = _State()


class Watch:
    """Owned by a session alone: as long as it lives, its plans are worth the trouble."""

    def __init__(self) -> None:
        self.ran = False

    def watched(self, owner: Any, name: str) -> Callable[..., Any]:
        """The method *name* of *owner*, for an attribute of the instance: says when it runs."""
        method, whose = getattr(type(owner), name), weakref.ref(owner)

        @wraps(method)
        def run(*args: Any, **keywords: Any) -> Any:
            state = _state
            with state.lock:
                state.active += 1
                state.started += 1
            try:
                return method(whose(), *args, **keywords)
            finally:
                self.ran = True
                with state.lock:
                    state.active -= 1
                    state.last = time.perf_counter()
                    due = state.thread is None and any(map(_ready, state.jobs))
                if due:
                    _start()

        return run


class Tuner:
    """What a session's executables tell of new plans."""

    def __init__(self, watch: Watch) -> None:
        self.watch = weakref.ref(watch)
        self.left = BUDGET
        self.swaps = 0

    def planned(
        self, executable: Executable, signature: Any, types: Mapping[str, Type | None], known: Mapping[str, Any]
    ) -> None:
        """A plan was made: look at it when there is time."""
        with _state.lock:
            _state.jobs.append(_Job(weakref.ref(executable), signature, dict(types), dict(known), self))


def _start() -> None:
    state = _state
    with state.lock:
        if state.thread is not None or not state.jobs:
            return
        state.thread = threading.Thread(target=_work, args=(state,), name="mnnpy tuning", daemon=True)
        state.thread.start()


def settled(timeout: float = 60.0) -> bool:
    """Wait until nothing is left to measure in this process; False where that takes longer than *timeout* seconds."""
    until = time.perf_counter() + timeout
    while time.perf_counter() < until:
        with _state.lock:
            if _state.thread is None and not any(_ready(j) for j in _state.jobs):
                return True
        time.sleep(LOOK)
    return False


def _ready(job: _Job) -> bool:
    watch = job.tuner.watch()
    return watch is not None and watch.ran


def _work(state: _State) -> None:
    """The thread: ends when there is nothing to do."""
    while True:
        with state.lock:
            for job in [j for j in state.jobs if j.tuner.watch() is None]:
                state.jobs.remove(job)
            found = next((j for j in state.jobs if _ready(j)), None)
            if found is None:
                state.thread = None  # the next run starts another one, if there is anything to do
                return
            state.jobs.remove(found)
        with state.turn:
            try:
                _tune(found, _Pace(state, found.tuner))
            except _StoppedError:
                pass
            except (MnnpyError, ArithmeticError, ValueError, RuntimeError, MemoryError, OSError) as error:
                warnings.warn(f"tuning in the background was given up: {error}", RuntimeWarning, stacklevel=1)
        del found


class _Pace:
    """Lets a measurement happen when nothing else does; see ``search.measure``."""

    def __init__(self, state: _State, tuner: Tuner) -> None:
        self.state, self.tuner, self.waited = state, tuner, 0.0

    def now(self) -> float:
        """``time.perf_counter`` without what was waited."""
        return time.perf_counter() - self.waited

    def quiet(self, run: Callable[[], float]) -> float:
        """What *run* returned while no session ran."""
        for _ in range(TRIES):
            begin = time.perf_counter()
            self.state.turn.release()  # a fork may happen from here on
            try:
                started = self._idle()
                waited = time.perf_counter()
                result = run()
            finally:
                self.state.turn.acquire()
            if self.state.started == started:
                self.waited += waited - begin
                return result
            self.waited += time.perf_counter() - begin
        raise _StoppedError

    def _idle(self) -> int:
        """Wait for an idle moment; returns how many runs there were until then."""
        while True:
            if self.tuner.watch() is None:
                raise _StoppedError
            with self.state.lock:
                if not self.state.active and time.perf_counter() - self.state.last > IDLE:
                    return self.state.started
            time.sleep(LOOK)


def _tune(job: _Job, pace: _Pace) -> None:
    """Make the plan again, measuring this time, and put it in the place of the old one if it differs."""
    from mnnpy.search.measure import PACE

    executable = job.executable()
    old = None if executable is None else executable.current(job.signature)
    if executable is None or old is None or job.tuner.left <= 0 or not _open(old):
        return
    token = PACE.set(pace)
    begin = pace.now()
    try:
        pace.quiet(lambda: 0.0)
        new = executable.retuned(job.types, job.known, job.tuner.left)
        if new is not None and _differs(old, new) and _same_answers(old, new, job, pace):
            job.tuner.swaps += executable.swap(job.signature, old, new)
    finally:
        PACE.reset(token)
        job.tuner.left -= pace.now() - begin


def _open(plan: Plan) -> bool:
    """Whether anything in a plan was decided without a measurement that could have been made."""
    if plan.decision is not None and not plan.decision.key and len(plan.decision.predicted) > 1:
        return True
    return any(r.get("open") for s in plan.steps if s.program is not None for r in s.program.describe())


def _differs(old: Plan, new: Plan) -> bool:
    """Whether the new plan does anything in another way."""

    def told(plan: Plan) -> list[Any]:
        return [
            (s.device, s.outputs, [(r["node"], r["algorithm"]) for r in s.program.describe()] if s.program else None)
            for s in plan.steps
        ]

    return told(old) != told(new)


def _same_answers(old: Plan, new: Plan, job: _Job, pace: _Pace) -> bool:
    """Whether both plans compute the same on made-up inputs; True where that cannot be tried."""
    from mnnpy.search.agree import agree

    feeds = _made_up(old.inputs, job)
    if feeds is None or any(p.late is not None or any(s.program is None for s in p.steps) for p in (old, new)):
        return True

    def results(plan: Plan) -> list[Any]:
        found: list[Any] = []

        def run() -> float:
            found[:] = plan.run(feeds)
            return 0.0

        pace.quiet(run)
        return found

    before = results(old)
    if agree(before, results(new)) or not agree(before, results(old)):  # what is random cannot be compared
        return True
    warnings.warn(
        "a plan that was tuned in the background computes something else than the one before, which stays in use; "
        "please report the model",
        RuntimeWarning,
        stacklevel=1,
    )
    return False


def _made_up(names: Sequence[str], job: _Job) -> list[Array] | None:
    """Inputs of the types of a plan, with the values that it was made for."""
    from mnnpy.search.planner import filled

    feeds: list[Array] = []
    for name in names:
        t = job.types.get(name)
        array = job.known[name] if name in job.known else filled(t) if isinstance(t, TensorType) else None
        if array is None:
            return None
        feeds.append(array)
    return feeds


# -- forks --


def _before_fork() -> None:
    if _state.thread is not None and _state.thread is not threading.current_thread():
        _state.held = _state.turn.acquire(timeout=1.0)


def _in_parent() -> None:
    if _state.held:
        _state.held = False
        _state.turn.release()


def _in_child() -> None:
    """The child has no thread; what its sessions run is counted from here on."""
    global _state
    _state = _State()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
