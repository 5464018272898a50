"""The native executor: memory plan, errors, threads, concurrent runs, fork."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

from mnnpy.backends.cpu import _native
from tests.unit.native_helpers import Array, assert_close


def make(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def network(sizes: tuple[int, ...], batch: int, threads: int = 1, isa: str | None = None) -> tuple[Any, Any]:
    """A chain of MatMul + Relu whose activations take turns in two arena slots; and the same in NumPy."""
    weights = [make(a, b) for a, b in itertools.pairwise(sizes)]
    slot = (batch * max(sizes) * 4 + 63) // 64 * 64
    tensors: list[Any] = [("f32", (batch, sizes[0]), "input", 0)]
    steps: list[Any] = []
    current = 0
    for k, w in enumerate(weights):
        tensors.append(("f32", w.shape, "constant", w))
        place = ("output", 0) if k == len(weights) - 1 else ("arena", k % 2 * slot)
        tensors.append(("f32", (batch, w.shape[1]), *place))
        steps.append(("MatMul", f"layer{k}", {"act": "Relu"}, [current, len(tensors) - 2], [len(tensors) - 1]))
        current = len(tensors) - 1

    def reference(x: Array) -> Array:
        y = x.astype(np.float64)
        for w in weights:
            y = np.maximum(y @ w, 0)
        return y

    program = _native.Program(tensors, steps, 2 * slot, threads, isa)
    program.set_output_types([np.float32])
    return program, reference


def test_chain_and_descriptions() -> None:
    program, reference = network((64, 128, 100, 10), 3)
    x = make(3, 64)
    [y] = program.run([x])
    assert_close(y, reference(x))
    out = np.empty_like(y)
    assert program.run([x], [out]) is None
    assert (out == y).all()
    rows = program.describe()
    assert [r["name"] for r in rows] == ["layer0", "layer1", "layer2"]
    assert rows[0]["op"] == "MatMul"
    assert rows[0]["inputs"][0] == ("f32", (3, 64))
    assert rows[0]["attrs"] == {"act": "Relu"}
    profile = program.profile([x], [out])
    assert [p[0] for p in profile] == [0, 1, 2]
    assert all(p[2] >= 0 for p in profile)
    memory = program.memory
    assert memory["constants"] == 0
    assert memory["weights"] == memory["packed"] > 0
    assert memory["arena"] >= 2 * 3 * 128 * 4


def test_constants_are_let_go() -> None:
    class Tracked(np.ndarray[Any, Any]):
        pass

    w = make(64, 64).view(Tracked)
    gone = weakref.ref(w)
    program = _native.Program(
        [("f32", (2, 64), "input", 0), ("f32", (64, 64), "constant", w), ("f32", (2, 64), "output", 0)],
        [("MatMul", "m", {}, [0, 1], [2])],
    )
    want = make(2, 64).astype(np.float64) @ w
    del w
    gc.collect()
    assert gone() is None
    y = np.empty((2, 64), np.float32)
    program.run([make(2, 64)], [y])
    assert_close(y, np.asarray(want))


def test_aliases_and_unpacked_constants() -> None:
    x, c = make(4, 6), make(24)
    tensors = [
        ("f32", (4, 6), "input", 0),
        ("f32", (24,), "constant", c),
        ("f32", (2, 6), "alias", (0, 48)),
        ("f32", (2, 6), "output", 0),
        ("f32", (4, 6), "arena", 64),
        ("f32", (24,), "alias", (4, 0)),
        ("f32", (24,), "output", 1),
    ]
    steps = [("Copy", "a", {}, [2], [3]), ("Copy", "b", {}, [1], [5]), ("Copy", "c", {}, [4], [6])]
    program = _native.Program(tensors, steps, 192)
    first, second = np.empty((2, 6), np.float32), np.empty(24, np.float32)
    program.run([x], [first, second])
    assert (first == x[2:]).all()
    assert (second == c).all()
    assert program.memory["constants"] == c.nbytes


def test_bad_plans_are_refused() -> None:
    x, y = ("f32", (4,), "input", 0), ("f32", (4,), "output", 0)
    copy = [("Copy", "n", {}, [0], [1])]
    with pytest.raises(ValueError, match="does not fit in the arena"):
        _native.Program([x, ("f32", (4,), "arena", 64)], copy, 64)
    with pytest.raises(ValueError, match="multiple of 64"):
        _native.Program([x, ("f32", (4,), "arena", 4)], copy, 64)
    with pytest.raises(ValueError, match="beyond its tensor"):
        _native.Program([x, ("f32", (4,), "alias", (0, 4))], [])
    with pytest.raises(ValueError, match="cycle"):
        _native.Program([("f32", (4,), "alias", (1, 0)), ("f32", (4,), "alias", (0, 0))], [])
    with pytest.raises(ValueError, match="writes an input"):
        _native.Program([x, y], [("Copy", "n", {}, [1], [0])])
    with pytest.raises(ValueError, match="names tensor 7"):
        _native.Program([x, y], [("Copy", "n", {}, [7], [1])])
    with pytest.raises(ValueError, match=r"no CPU kernel for Nothing 'n' .*f32.4.\) -> .*no kernel called Nothing"):
        _native.Program([x, y], [("Nothing", "n", {}, [0], [1])])
    with pytest.raises(ValueError, match="bytes"):
        _native.Program([x, ("f32", (4,), "constant", np.zeros(3, np.float32))], [])
    with pytest.raises(TypeError, match="attribute 'a'"):
        _native.Program([x, y], [("Copy", "n", {"a": {}}, [0], [1])])


def test_bad_buffers_are_refused() -> None:
    program = _native.Program(
        [("f32", (4, 4), "input", 0), ("f32", (4, 4), "output", 0)], [("Copy", "n", {}, [0], [1])]
    )
    x, y = make(4, 4), np.empty((4, 4), np.float32)
    program.run((x,), (y,))
    for inputs, outputs, error in (
        ([], [y], "got 0 inputs"),
        ([x], [], "got 0 outputs"),
        ([x[:2]], [y], "fewer than"),
        ([x], [y[:2]], "fewer than"),
        ([x.T], [y], "not C-contiguous"),
        ([x], [y.T], "not C-contiguous"),
        ([1], [y], "not a numpy array"),
    ):
        with pytest.raises(ValueError, match=error):
            program.run(inputs, outputs)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        program.run([x], [y])
    with pytest.raises(TypeError, match="outputs are missing"):
        program.run([x])


def test_programs_of_every_isa() -> None:
    for name in _native.available_isas():
        program, reference = network((8, 40, 3), 2, isa=name)
        assert program.isa == name
        assert_close(program.run([make(2, 8)])[0], reference(make(2, 8)))
    assert network((8, 8), 1)[0].isa == _native.isa() == _native.available_isas()[-1]
    with pytest.raises(ValueError, match="unknown instruction set 'mmx'; known are generic, avx2, avx512"):
        network((8, 8), 1, isa="mmx")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_concurrent_runs(threads: int) -> None:
    program, reference = network((256, 512, 512, 64), 96, threads)
    xs = [make(96, 256) + k for k in range(4)]
    wants = [reference(x) for x in xs]
    failures: list[Exception] = []

    def work(k: int) -> None:
        try:
            for _ in range(25):
                [y] = program.run([xs[k]])
                assert_close(y, wants[k], 1e-5)
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert not failures
    assert not any(w.is_alive() for w in workers)
    program.trim()
    assert_close(program.run([xs[0]])[0], wants[0], 1e-5)


def test_pools_of_several_sizes_at_once() -> None:
    """Workers stand back and come again while programs start and end; nobody waits for a wake-up that never comes."""
    kinds = (((256, 512, 512, 64), 96, 2), ((16, 8), 3, 2), ((128, 256, 32), 200, 7), ((64, 64), 64, 1))
    programs = [network(*kind) for kind in kinds]
    failures: list[Exception] = []
    rest = threading.Event()

    def work(k: int) -> None:
        program, reference = programs[k]
        x = make(kinds[k][1], kinds[k][0][0])
        want = reference(x)
        try:
            for turn in range(60):
                assert_close(program.run([x])[0], want, 1e-5)
                if turn % 10 == k:  # pauses longer than the workers spin
                    rest.wait(0.002)
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(k,)) for k in (0, 1, 2, 3, 0, 2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert not any(w.is_alive() for w in workers)
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is of POSIX systems")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_in_both_directions() -> None:
    program, reference = network((256, 512, 512, 64), 96, 2)
    x = make(96, 256)
    want = reference(x)
    assert_close(program.run([x])[0], want, 1e-5)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for _ in range(5):
                assert_close(program.run([x])[0], want, 1e-5)
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 30
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert done
    assert os.waitstatus_to_exitcode(status) == 0
    assert_close(program.run([x])[0], want, 1e-5)


def test_references_are_kept_balanced() -> None:
    program, _ = network((8, 8), 1)
    x, y = make(1, 8), np.empty((1, 8), np.float32)
    before = sys.getrefcount(x), sys.getrefcount(y), sys.getrefcount(None)
    for _ in range(1000):
        program.run([x], [y])
    after = sys.getrefcount(x), sys.getrefcount(y), sys.getrefcount(None)
    assert after[:2] == before[:2]
    assert abs(after[2] - before[2]) < 100
