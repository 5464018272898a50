"""Threads, forks, garbage, interruption: a Session in the wild."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import mnnpy
from tests.faults.test_bad_inputs import F, add_model, make, node, ones
from tests.models import MODELS

ROOT = Path(__file__).parents[2]


def _script(text: str, timeout: float = 120) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.strip()


def test_one_session_many_threads_and_shapes() -> None:
    """Eight threads, shapes in different orders, plans made and evicted under way."""
    build, _ = MODELS["upsample_head"]()
    session = mnnpy.Session(build, threads=2, max_plans=3)
    name = session.get_inputs()[0].name
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal((1 + k % 3, 6, 8 + 2 * k, 10)).astype(np.float32) for k in range(6)]
    want = [mnnpy.Session(build, threads=1).run(None, {name: x})[0] for x in feeds]

    def work(worker: int) -> int:
        order = np.random.default_rng(worker).permutation(np.repeat(np.arange(6), 5))
        for k in order:
            (y,) = session.run(None, {name: feeds[k]})
            np.testing.assert_allclose(y, want[k], atol=1e-4)
        return len(order)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 240


def test_errors_in_one_thread_leave_the_others_alone() -> None:
    session = mnnpy.Session(add_model(), threads=2)

    def work(worker: int) -> int:
        bad = 0
        for k in range(40):
            a = ones(1 + k % 5, 3)
            try:
                (y,) = session.run(None, {"a": a, "b": a if (k + worker) % 3 else ones(9, 3)})
                assert (y == 2).all()
                assert y.shape == a.shape
            except mnnpy.InputError:
                bad += 1
        return bad

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) > 80


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_after_use() -> None:
    """Children of a process whose thread pool has run make a pool of their own; nothing hangs."""
    _script(
        "import os, numpy as np, mnnpy\n"
        "from tests.models import MODELS\n"
        "m, feeds = MODELS['residual_block']()\n"
        "s = mnnpy.Session(m, threads=2)\n"
        "want = s.run(None, feeds)[0]\n"
        "for _ in range(3):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        same = np.array_equal(s.run(None, feeds)[0], want)\n"
        "        new = np.array_equal(mnnpy.Session(m, threads=2).run(None, feeds)[0], want)\n"
        "        os._exit(0 if same and new else 3)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "    assert np.array_equal(s.run(None, feeds)[0], want)\n"
    )


def test_sessions_are_collected() -> None:
    """200 sessions come and go: memory stays where it was."""
    out = _script(
        "import gc, mnnpy\n"
        "from tests.models import MODELS\n"
        "def rss():\n"
        "    gc.collect()\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20\n"
        "models = [MODELS[n]() for n in ('residual_block', 'transformer_block', 'upsample_head', 'speech_conv')]\n"
        "marks = []\n"
        "for k in range(200):\n"
        "    m, feeds = models[k % 4]\n"
        "    mnnpy.Session(m, threads=2).run(None, feeds)\n"
        "    if k in (59, 129, 199): marks.append(rss())\n"
        "print(*marks)\n"
    )
    first, middle, last = map(float, out.split())
    assert last - first < 8, f"RSS grew from {first:.1f} over {middle:.1f} to {last:.1f} MiB"


def test_sessions_leave_no_cycles_behind() -> None:
    """A session goes when its last reference goes, without waiting for the collector."""
    import weakref

    gc.collect()
    gc.disable()
    try:
        session = mnnpy.Session(add_model((2, 3)), threads=1)
        session.run(None, {"a": ones(2, 3), "b": ones(2, 3)})
        alive = weakref.ref(session._executable)
        del session
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interruption_leaves_the_session_usable() -> None:
    """KeyboardInterrupt during planning and running, at random moments."""
    build, feeds = MODELS["upsample_head"]()
    session = mnnpy.Session(build, threads=2)
    name = session.get_inputs()[0].name
    rng = np.random.default_rng(1)
    stop = time.monotonic() + 3
    hits = runs = 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        while time.monotonic() < stop:
            x = np.resize(feeds[name], (1, 6, int(rng.integers(4, 40)) * 2, 10))
            try:
                signal.setitimer(signal.ITIMER_REAL, float(rng.uniform(1e-4, 2e-2)))
                session.run(None, {name: x})
                signal.setitimer(signal.ITIMER_REAL, 0)
                runs += 1
            except KeyboardInterrupt:
                hits += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits > 5
    want = mnnpy.Session(build, threads=1).run(None, feeds)[0]
    np.testing.assert_allclose(session.run(None, feeds)[0], want, atol=1e-4)


def test_python_threads_run_during_inference() -> None:
    """The GIL is free while kernels run: a counting thread keeps a good part of its idle rate (weak bound)."""
    nodes = [node("MatMul", ["x", "w"], ["a"])] + [node("MatMul", [c, "w"], [chr(ord(c) + 1)]) for c in "abcdefgh"]
    model = make(nodes, {"x": (F, [512, 512])}, ["i"], {"w": (np.eye(512) * 0.9).astype(np.float32)})
    session = mnnpy.Session(model, threads=1)
    feeds = {"x": ones(512, 512)}
    session.run(None, feeds)

    def rate(seconds: float) -> float:
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            count += 1
        return count / seconds

    def measure() -> float:
        idle = rate(0.3)
        done = threading.Event()

        def infer() -> None:
            while not done.is_set():
                session.run(None, feeds)

        worker = threading.Thread(target=infer)
        worker.start()
        busy = rate(0.5)
        done.set()
        worker.join()
        return busy / idle

    # Held for whole inferences the GIL would leave next to nothing; other load on the machine only lowers it.
    assert max(measure() for _ in range(3)) > 0.25
