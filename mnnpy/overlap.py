"""Steps of one plan at once on several devices, where none waits for the other.

The calling thread runs the steps of one device, of the host and of control flow; every other device has a worker
thread. A step starts when the last one that it reads from has finished, so workers never wait for each other, and what
a run computes does not depend on who is faster.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Protocol

__all__ = ["Crew", "Overlap", "Placed", "overlapping"]

Job = Callable[[], None]


class Placed(Protocol):
    """A step: what it reads and makes, and the device that it runs on (negative: the session itself)."""

    @property
    def lane(self) -> int: ...

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...


class Crew:
    """One worker thread per device, started when first needed; they end with their owner.

    A process that was forked starts its own ones.
    """

    def __init__(self) -> None:
        self._queues: dict[int, SimpleQueue[Job | None]] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._end = weakref.finalize(self, _dismiss, self._queues)

    def submit(self, lane: int, job: Job) -> None:
        """Run *job* on the worker of a device, after what was submitted there before."""
        if self._process != os.getpid():
            self._renew()
        queue = self._queues.get(lane)
        (queue if queue is not None else self._hire(lane)).put(job)

    def _hire(self, lane: int) -> SimpleQueue[Job | None]:
        with self._lock:
            queue = self._queues.get(lane)
            if queue is None:
                queue = SimpleQueue()
                threading.Thread(target=_serve, args=(queue,), name=f"mnnpy device {lane}", daemon=True).start()
                self._queues[lane] = queue
            return queue

    def _renew(self) -> None:
        """Forget what belongs to the parent process, whose lock may have been held."""
        self._end.detach()
        self._queues, self._lock, self._process = {}, threading.Lock(), os.getpid()
        self._end = weakref.finalize(self, _dismiss, self._queues)


def _serve(queue: SimpleQueue[Job | None]) -> None:
    while (job := queue.get()) is not None:
        job()
        del job  # what the last run held on to must not wait for the next one


def _dismiss(queues: dict[int, SimpleQueue[Job | None]]) -> None:
    for queue in queues.values():
        queue.put(None)


class Overlap:
    """Which steps wait for which, and which thread runs them."""

    def __init__(self, steps: Sequence[Placed], before: Sequence[set[int]], crew: Crew) -> None:
        self.crew = crew
        self.lanes = [s.lane for s in steps]
        devices = [lane for lane in self.lanes if lane >= 0]
        #: Whom the calling thread works for: the device of most steps, which saves it most changes of threads.
        self.own = max(sorted(set(devices)), key=devices.count)
        self.waits = [len(b) for b in before]
        self.readers: list[list[int]] = [[] for _ in steps]
        for k, others in enumerate(before):
            for other in others:
                self.readers[other].append(k)

    def run(self, execute: Callable[[int], None]) -> None:
        """Call *execute* for the number of each step. The first error ends the run; it is raised here."""
        _Run(self, execute).run()


class _Run:
    """One run of the steps."""

    def __init__(self, plan: Overlap, execute: Callable[[int], None]) -> None:
        self.plan, self.execute = plan, execute
        self.waits = list(plan.waits)
        self.flying = 0  #: steps that were started and have not finished
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self.inbox: SimpleQueue[int | None] = SimpleQueue()  #: steps for the calling thread; None: nothing is left

    def run(self) -> None:
        ready = [k for k, n in enumerate(self.waits) if n == 0]
        self.flying = len(ready)
        self.start(ready)
        while True:
            try:
                step = self.inbox.get()
                if step is None:
                    break
                self.work(step)
            except BaseException as error:  # an interrupt: what flies lands before the caller gets its arrays back
                if self.error is not None:
                    raise
                self.error = error
        failed, self.error = self.error, None
        if failed is not None:
            raise failed

    def start(self, steps: Sequence[int]) -> None:
        for k in steps:
            lane = self.plan.lanes[k]
            if lane < 0 or lane == self.plan.own:
                self.inbox.put(k)
            else:
                self.plan.crew.submit(lane, partial(self.work, k))

    def work(self, step: int) -> None:
        """Run a step unless one failed before; then start those that waited for it alone."""
        failed: BaseException | None = None
        try:
            if self.error is None:
                self.execute(step)
        except BaseException as error:
            failed = error
        ready: list[int] = []
        with self.lock:
            self.error = self.error or failed
            if self.error is None:
                for reader in self.plan.readers[step]:
                    self.waits[reader] -= 1
                    if self.waits[reader] == 0:
                        ready.append(reader)
            self.flying += len(ready) - 1
            over = self.flying == 0
        self.start(ready)
        if over:
            self.inbox.put(None)


def overlapping(steps: Sequence[Placed], crew: Callable[[], Crew]) -> Overlap | None:
    """How to run steps at once; None where all of them run on one device, or every one waits for the one before."""
    if len({s.lane for s in steps if s.lane >= 0}) < 2:
        return None
    maker = {name: k for k, s in enumerate(steps) for name in s.outputs}
    before = [{maker[n] for n in s.inputs if n in maker} for s in steps]
    all_before: list[int] = []  # bit sets
    free = False
    for k, others in enumerate(before):
        mask = 0
        for other in others:
            mask |= all_before[other] | 1 << other
        all_before.append(mask)
        free = free or any(
            s.lane >= 0 and steps[k].lane >= 0 and s.lane != steps[k].lane and not mask >> j & 1
            for j, s in enumerate(steps[:k])
        )
    return Overlap(steps, before, crew()) if free else None


