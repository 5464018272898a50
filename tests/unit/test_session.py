"""The Session API: inputs, errors, bindings, concurrency."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

import mnnpy
from mnnpy.errors import BackendUnavailableError, InputError, MnnpyError
from tests.models import MODELS, Net


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def mlp() -> tuple[object, dict[str, np.ndarray], np.ndarray]:
    n = Net()
    x = n.input(3, 8, symbolic=("batch", 8))
    w1, w2 = n.w(8, 16), n.w(16, 4)
    model, feeds = n.finish(n.op("MatMul", n.op("Relu", n.op("MatMul", x, w1)), w2))
    from onnx import numpy_helper

    a, b = (numpy_helper.to_array(t) for t in model.graph.initializer)
    return model, feeds, np.maximum(feeds[x] @ a, 0) @ b


def test_run_all_and_named_outputs(backend: str) -> None:
    model, feeds, want = mlp()
    session = mnnpy.Session(model, backend)
    name = session.get_outputs()[0].name
    for got in (session.run(None, feeds), session.run([name], feeds), session(*feeds.values())):
        np.testing.assert_allclose(got[0], want, rtol=1e-5, atol=1e-5)
    assert session.get_inputs()[0].shape == ("batch", 8)
    assert session.get_inputs()[0].type == "tensor(float)"


def test_other_batch_sizes_get_their_own_plan() -> None:
    model, feeds, _ = mlp()
    session = mnnpy.Session(model)
    (name,) = feeds
    for batch in (1, 5, 0, 3):
        assert session.run(None, {name: np.ones((batch, 8), np.float32)})[0].shape == (batch, 4)


def test_plans_are_bounded() -> None:
    model, feeds, _ = mlp()
    session = mnnpy.Session(model, max_plans=2)
    (name,) = feeds
    for batch in range(1, 6):
        session.run(None, {name: np.ones((batch, 8), np.float32)})
    assert len({r["plan"] for r in session.explain().rows}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, n: {}, "missing input"),
        (lambda f, n: {n[:-1] + "_": f[n]}, "unknown input"),
        (lambda f, n: {n: f[n].astype(np.float64)}, "must be float32, got float64"),
        (lambda f, n: {n: f[n][0]}, "rank 2"),
        (lambda f, n: {n: np.ones((3, 9), np.float32)}, "dimension 1"),
        (lambda f, n: {n: "text"}, "must be float32"),
        (lambda f, n: {n: [[1.0], [2.0, 3.0]]}, "not convertible"),
        (lambda f, n: {**f, "extra": f[n]}, "unknown input 'extra'"),
    ],
)
def test_bad_inputs_are_named(change: object, message: str) -> None:
    model, feeds, want = mlp()
    session = mnnpy.Session(model)
    (name,) = feeds
    with pytest.raises(InputError, match=message):
        session.run(None, change(feeds, name))  # type: ignore[operator]
    np.testing.assert_allclose(session.run(None, feeds)[0], want, rtol=1e-5, atol=1e-5)


def test_unknown_keyword_option_output_and_backend() -> None:
    model, feeds, _ = mlp()
    with pytest.raises(TypeError, match="did you mean 'threads'"):
        mnnpy.Session(model, thread=2)
    with pytest.raises(InputError, match="precision"):
        mnnpy.Session(model, precision="fast")
    with pytest.raises(InputError, match="did you mean 'layout'"):
        mnnpy.Session(model, optimize=frozenset({"layuot"}))
    with pytest.raises(InputError, match="unknown output"):
        mnnpy.Session(model).run(["nope"], feeds)
    with pytest.raises(BackendUnavailableError, match="did you mean 'cpu'"):
        mnnpy.Session(model, "cup")


def test_symbols_must_agree_between_inputs() -> None:
    n = Net()
    a, b = n.input(2, 3, symbolic=("n", 3)), n.input(2, 3, symbolic=("n", 3))
    model, feeds = n.finish(n.op("Add", a, b))
    session = mnnpy.Session(model)
    feeds[b] = np.ones((4, 3), np.float32)
    with pytest.raises(InputError, match="n=4"):
        session.run(None, feeds)


def test_non_contiguous_and_dlpack_inputs(backend: str) -> None:
    model, feeds, want = mlp()
    session = mnnpy.Session(model, backend)
    (name,) = feeds
    wide = np.zeros((3, 16), np.float32)
    wide[:, ::2] = feeds[name]
    np.testing.assert_allclose(session.run(None, {name: wide[:, ::2]})[0], want, rtol=1e-5, atol=1e-5)

    class Capsule:
        def __dlpack__(self, **kw: object) -> object:
            return feeds[name].__dlpack__(**kw)

        def __dlpack_device__(self) -> tuple[int, int]:
            return feeds[name].__dlpack_device__()

    np.testing.assert_allclose(session.run(None, {name: Capsule()})[0], want, rtol=1e-5, atol=1e-5)


def test_binding_sees_changes_in_place(backend: str) -> None:
    model, feeds, want = mlp()
    session = mnnpy.Session(model, backend)
    (name,) = feeds
    x = feeds[name].copy()
    binding = session.binding()
    binding.bind_input(name, x)
    (got,) = session.run_with_binding(binding).values()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    x *= 2
    (got,) = session.run_with_binding(binding).values()
    np.testing.assert_allclose(got, want * 2, rtol=1e-5, atol=1e-5)


def test_bound_outputs_are_written(backend: str) -> None:
    model, feeds, want = mlp()
    session = mnnpy.Session(model, backend)
    (name,) = feeds
    x, y = feeds[name].copy(), np.zeros_like(want, dtype=np.float32)
    (out,) = (o.name for o in session.get_outputs())
    binding = session.binding()
    binding.bind_input(name, x)
    binding.bind_output(out, y)
    for factor in (1, 2):
        x *= factor
        assert session.run_with_binding(binding)[out] is y
        np.testing.assert_allclose(y, want * factor, rtol=1e-5, atol=1e-5)
    binding.bind_output(out, np.zeros((7, 7), np.float32))
    with pytest.raises(InputError, match=r"\[7, 7\] is bound"):
        session.run_with_binding(binding)
    with pytest.raises(InputError, match="writable"):
        binding.bind_output(out, y[:, ::2])
    with pytest.raises(InputError, match="unknown output"):
        binding.bind_output("nothing", y)


def test_an_output_may_be_bound_to_an_input(backend: str) -> None:
    n = Net()
    x = n.input(40, 300)  # wide enough that a product written over its operand is wrong
    model, feeds = n.finish(n.op("MatMul", x, n.w(300, 300)))
    session = mnnpy.Session(model, backend)
    (want,) = session.run(None, feeds)
    data = feeds[x].copy()
    binding = session.binding()
    binding.bind_input(x, data)
    binding.bind_output(session.get_outputs()[0].name, data)
    session.run_with_binding(binding)
    np.testing.assert_allclose(data, want, rtol=1e-5, atol=1e-5)


def test_results_do_not_alias_inputs_or_each_other() -> None:
    n = Net()
    x = n.input(2, 6)
    a = n.op("Reshape", x, n.ints(3, 4))
    model, feeds = n.finish(a, n.op("Reshape", a, n.ints(12)), n.op("Identity", x))
    before = feeds[x].copy()
    results = mnnpy.Session(model).run(None, feeds)
    for r in results:
        r[...] = -1.0
    np.testing.assert_array_equal(feeds[x], before)


def test_many_threads_share_one_session(backend: str) -> None:
    model, feeds = MODELS["residual_block"]()
    session = mnnpy.Session(model, backend)
    want = session.run(None, feeds)[0]
    wrong: list[str] = []

    def work(seed: int) -> None:
        for k in range(10):
            scaled = {n: v * (1 + (seed + k) % 2) for n, v in feeds.items()}
            got = session.run(None, scaled)[0]
            if (seed + k) % 2 == 0 and not np.allclose(got, want, atol=1e-4):
                wrong.append(f"{seed}.{k}")

    threads = [threading.Thread(target=work, args=(s,)) for s in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not wrong


def test_explain_and_profile(backend: str) -> None:
    model, feeds, _ = mlp()
    session = mnnpy.Session(model, backend)
    explanation = session.explain(feeds)
    assert {r["backend"] for r in explanation.rows} == {backend}
    assert "MatMul" in str(explanation)
    trace = session.profile(feeds, repeat=2)
    assert all(e["ph"] == "X" and e["dur"] >= 0 for e in trace["traceEvents"])
    assert len(trace["traceEvents"]) == 2 * len(explanation.rows)


def test_null_plans_and_refuses_to_run() -> None:
    model, feeds, _ = mlp()
    session = mnnpy.Session(model, "null")
    with pytest.raises(MnnpyError, match="null"):
        session.run(None, feeds)


def test_compile_and_files(tmp_path: Path, backend: str) -> None:
    model, feeds, want = mlp()
    path = tmp_path / "m.mnnpy"
    mnnpy.convert(model, path)
    for source in (str(path), path, model.SerializeToString()):  # type: ignore[attr-defined]
        call = mnnpy.compile(source, backend)
        np.testing.assert_allclose(call(*feeds.values()), want, rtol=1e-5, atol=1e-5)


def test_the_gil_is_released_while_running() -> None:
    n = Net()
    x = n.input(512, 512)
    y = x
    for _ in range(12):
        y = n.op("MatMul", y, n.w(512, 512))
    model, feeds = n.finish(y)
    session = mnnpy.Session(model, threads=1)
    session.run(None, feeds)
    stop = threading.Event()
    spins = [0]

    def count() -> None:
        while not stop.is_set():
            spins[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    progress = []
    for _ in range(3):
        before = spins[0]
        begin = time.perf_counter()
        session.run(None, feeds)
        progress.append((spins[0] - before) / (time.perf_counter() - begin))
    stop.set()
    counter.join()
    assert max(progress) > 1000, "a Python thread made no progress during inference"


def test_a_declined_rule_is_named_among_the_fallbacks() -> None:
    n = Net()
    x = n.input(1, 9, 9)
    model, feeds = n.finish(n.op("Det", x))  # above 8×8 the rule declines
    session = mnnpy.Session(model)
    np.testing.assert_allclose(session.run(None, feeds)[0], np.linalg.det(feeds[x]), rtol=1e-4)
    (row,) = session.explain().fallbacks
    assert (row["op"], row["backend"]) == ("Det", "reference")
    assert "fallback: Det" in str(session.explain())
