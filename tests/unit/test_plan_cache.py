"""Plans kept on disk: hits give equal results without reading the graph, and whatever does not fit counts as absent."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnpy
from mnnpy import plan_cache, store
from mnnpy.plan_cache import PlanCache
from mnnpy.store import Store

RNG = np.random.default_rng(3)
FEEDS = {"x": RNG.standard_normal((3, 64)).astype(np.float32)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test alone; nothing may warn that the test does not expect."""
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path / "cache"))
    plan_cache._store.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield tmp_path / "cache" / "plans"


def network(width: int = 64, batch: Any = "n", scale: float = 1.0) -> onnx.ModelProto:
    """Three products with bias and activation; the second weight is stored transposed."""
    rng = np.random.default_rng(width)
    arrays = {
        "w1": rng.standard_normal((64, width)),
        "b1": rng.standard_normal(width) * scale,
        "w2": rng.standard_normal((32, width)),
        "w3": rng.standard_normal((32, 8)),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2"], ["g"], transB=1),
        helper.make_node("Sigmoid", ["g"], ["s"]),
        helper.make_node("MatMul", ["s", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(path: Path, model: onnx.ModelProto, **keywords: Any) -> Path:
    onnx.save(model, path, **keywords)
    return path


def run(model: Any, feeds: Any = None, **options: Any) -> tuple[list[Any], bool]:
    """The results, and whether they came without reading the model's graph."""
    session = mnnpy.Session(model, threads=1, tune="off", **options)
    return session.run(None, FEEDS if feeds is None else feeds), session._executable._graph is None


def check_hit(model: Any, feeds: Any = None) -> None:
    first, read = run(model, feeds)
    again, hit = run(model, feeds)
    assert not read
    assert hit
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    plain, read = run(model, feeds, cache=False)
    assert not read
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("batch", ["n", 3])
def test_a_hit_gives_equal_results_without_the_graph(tmp_path: Path, batch: Any) -> None:
    check_hit(saved(tmp_path / "m.onnx", network(batch=batch)))


def test_models_given_as_bytes_hit() -> None:
    check_hit(network().SerializeToString())


def test_a_small_file_is_known_by_its_contents(tmp_path: Path) -> None:
    run(saved(tmp_path / "a.onnx", network()))
    assert run(saved(tmp_path / "b.onnx", network()))[1]
    assert not run(saved(tmp_path / "b.onnx", network(scale=2.0)))[1]


def test_a_large_file_is_mapped_and_known_by_its_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "SETTLED", -1e9)
    path = saved(tmp_path / "m.onnx", network(width=4096))
    assert path.stat().st_size > plan_cache.MAPPED
    check_hit(path)
    times = path.stat()
    saved(path, network(width=4096, scale=2.0))
    assert path.stat().st_size == times.st_size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # what it cannot set back is the time of the change
    changed, hit = run(path)
    assert not hit
    np.testing.assert_array_equal(changed[0], run(path, cache=False)[0][0])


def test_a_large_file_changed_a_moment_ago_is_known_by_its_contents(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", network(width=4096))
    check_hit(path)
    other = run(saved(path, network(width=4096, scale=2.0)))
    assert not other[1]
    np.testing.assert_array_equal(other[0][0], run(path, cache=False)[0][0])


def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "SETTLED", -1e9)
    keywords = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    path = saved(tmp_path / "m.onnx", network(), **keywords)
    check_hit(path)
    weights = tmp_path / "w.bin"
    data = bytearray(weights.read_bytes())
    data[5000:9000] = bytes(4000)
    weights.write_bytes(data)
    changed, hit = run(path)
    assert not hit
    np.testing.assert_array_equal(changed[0], run(path, cache=False)[0][0])
    run(path)
    weights.unlink()
    with pytest.raises(mnnpy.ModelError, match=r"w\.bin"):
        run(path)


def test_each_shape_has_its_plan(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", network())
    for rows in (1, 5, 1, 5):
        feeds = {"x": np.ones((rows, 64), np.float32)}
        got = run(path, feeds)
        np.testing.assert_array_equal(got[0][0], run(path, feeds, cache=False)[0][0])
    assert got[1]


def test_the_interface_is_that_of_the_model(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", network())
    first = mnnpy.Session(path, threads=1)
    first.run(None, FEEDS)
    again = mnnpy.Session(path, threads=1)
    assert (again.get_inputs(), again.get_outputs()) == (first.get_inputs(), first.get_outputs())
    with pytest.raises(mnnpy.InputError, match="did you mean"):
        again.run(None, {"xx": FEEDS["x"]})
    with pytest.raises(mnnpy.InputError, match="shape"):
        again.run(None, {"x": np.ones((3, 63), np.float32)})
    assert again._executable._graph is None
    assert str(again.graph) == str(first.graph)


def test_explain_parts_and_profile_of_a_kept_plan(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", network())
    first = mnnpy.Session(path, threads=1, tune="off")
    first.run(None, FEEDS)
    again = mnnpy.Session(path, threads=1, tune="off")
    again.run(None, FEEDS)
    assert again._executable._graph is None
    assert str(again.explain()) == str(first.explain())
    assert [r["op"] for r in again.explain().rows]
    assert again.explain().rows == first.explain().rows
    assert str(again.parts(FEEDS)[0][1]) == str(first.parts(FEEDS)[0][1])
    labels = [[(e["name"], e["args"]) for e in s.profile(FEEDS)["traceEvents"]] for s in (first, again)]
    assert labels[0] == labels[1]


def test_values_that_decide_shapes_are_part_of_the_key(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Reshape", ["r", "shape"], ["y"])],
        "reshape",
        [helper.make_tensor_value_info("x", 1, ["n", 64]), helper.make_tensor_value_info("shape", 7, [2])],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = saved(tmp_path / "m.onnx", model)
    for shape in ([6, 32], [32, 6], [6, 32]):
        feeds = {**FEEDS, "shape": np.array(shape, np.int64)}
        (y,), hit = run(path, feeds)
        assert y.shape == tuple(shape)
    assert hit


def test_control_flow_is_planned_anew_and_right(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["a", "a"], ["b"]), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("i", 7, []), ("c", 9, []), ("a", 1, [3, 64]))],
        [helper.make_tensor_value_info("d", 9, []), helper.make_tensor_value_info("b", 1, [3, 64])],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)],
        "loop",
        [helper.make_tensor_value_info("trips", 7, []), helper.make_tensor_value_info("x", 1, [3, 64])],
        [helper.make_tensor_value_info("y", 1, [3, 64])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = saved(tmp_path / "m.onnx", model)
    for trips in (2, 3, 2):
        (y,), _ = run(path, {"trips": np.array(trips), "x": FEEDS["x"]})
        np.testing.assert_array_equal(y, FEEDS["x"] * 2**trips)


@pytest.mark.parametrize(
    "options",
    [{"precision": "high"}, {"isa": "generic"}, {"algorithms": {"MatMul": "direct"}}, {"optimize": frozenset()},
     {"memory_limit": 1 << 30}],
)  # fmt: skip
def test_other_options_miss(tmp_path: Path, options: dict[str, Any]) -> None:
    path = saved(tmp_path / "m.onnx", network())
    run(path)
    assert run(path)[1]
    assert not run(path, **options)[1]
    assert run(path, **options)[1]


def test_other_threads_code_and_format_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "m.onnx", network())
    run(path)
    session = mnnpy.Session(path, threads=2, tune="off")
    assert session._executable._graph is not None
    with monkeypatch.context() as patch:
        patch.setattr(plan_cache, "FORMAT", plan_cache.FORMAT + 1)
        assert not run(path)[1]
    with monkeypatch.context() as patch:
        patch.setattr(plan_cache, "_code", lambda: "newer")
        assert not run(path)[1]
    assert run(path)[1]


def test_without_the_option_nothing_is_kept(tmp_path: Path, folder: Path) -> None:
    path = saved(tmp_path / "m.onnx", network())
    run(path, cache=False)
    assert not folder.exists()


def entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".plan", ".model"))


@pytest.mark.parametrize("suffix", [".plan", ".model"])
def test_damaged_entries_count_as_absent(tmp_path: Path, folder: Path, suffix: str) -> None:
    path = saved(tmp_path / "m.onnx", network())
    want = run(path)[0]
    (entry,) = (p for p in entries(folder) if p.suffix == suffix)
    good = entry.read_bytes()
    damages = [good[:size] for size in (0, 1, 63, 64, 65, len(good) // 2, len(good) - 1)]
    flipped = (0, 9, 40, 70, len(good) // 2, len(good) - 1)
    damages += [good[:at] + bytes([good[at] ^ 0x5A]) + good[at + 1 :] for at in flipped]
    damages += [good + b"x", b"something else"]
    for bad in damages:
        entry.write_bytes(bad)
        plan_cache._store.cache_clear()
        with pytest.warns(RuntimeWarning, match="is damaged"):
            got, _ = run(path)
        entry.write_bytes(bad)
        run(path)  # one warning a process
        np.testing.assert_array_equal(got[0], want[0])
        assert entry.read_bytes() == good, "written anew"
    assert run(path)[1]


@pytest.mark.parametrize(
    "change",
    [(b'"arena":', b'"arenA":'), (b'"f32"', b'"f99"'), (b'"input"', b'"inpxt"'), (b'["file",0,', b'["file",7,'),
     (b'"direct":true', b'"dirEct":true')],
)  # fmt: skip
def test_entries_of_another_meaning_count_as_absent(tmp_path: Path, folder: Path, change: tuple[bytes, bytes]) -> None:
    """Their digest is right, what they say is not."""
    path = saved(tmp_path / "m.onnx", network())
    want = run(path)[0]
    (entry,) = (p for p in entries(folder) if p.suffix == ".plan")
    good = entry.read_bytes()[64:]
    assert change[0] in good
    Store(folder).write(entry.name, [good.replace(*change)])
    plan_cache._store.cache_clear()
    with pytest.warns(RuntimeWarning, match="is ignored"):
        got, hit = run(path)
    assert not hit
    np.testing.assert_array_equal(got[0], want[0])
    assert run(path)[1]


def test_weights_are_not_stored_a_second_time(tmp_path: Path, folder: Path) -> None:
    path = saved(tmp_path / "m.onnx", network(width=4096))
    run(path)
    assert sum(p.stat().st_size for p in entries(folder)) < 20_000 < path.stat().st_size


def test_plans_with_many_constants_of_their_own_are_not_kept(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_cache, "INLINE", 0)
    model = network()
    model.graph.initializer[3].CopyFrom(helper.make_tensor("w3", TensorProto.INT32, [32, 8], range(256)))
    model.graph.node.insert(4, helper.make_node("Cast", ["w3"], ["w4"], to=1))
    model.graph.node[5].input[1] = "w4"
    path = saved(tmp_path / "m.onnx", model)
    want = run(path)[0]
    assert not folder.exists()
    monkeypatch.undo()
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(folder.parent))
    check_hit(path)
    np.testing.assert_array_equal(run(path)[0][0], want[0])


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path / "file"))
    path = saved(tmp_path / "m.onnx", network())
    results = [run(path) for _ in range(2)]
    assert not any(hit for _, hit in results)
    np.testing.assert_array_equal(results[0][0][0], results[1][0][0])


def test_a_full_disk(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Any) -> Path:
        raise OSError(28, "No space left on device")

    path = saved(tmp_path / "m.onnx", network())
    monkeypatch.setattr(Path, "replace", full)
    assert [run(path)[1] for _ in range(2)] == [False, False]
    assert list(folder.iterdir()) == [], "no halves stay"


def test_the_folder_is_bounded_and_what_was_used_stays(tmp_path: Path) -> None:
    kept = Store(tmp_path / "s", limit=5000)
    for k in range(4):
        assert kept.write(f"e{k}", [bytes(1000)])
        os.utime(tmp_path / "s" / f"e{k}", (k, k))
    assert kept.read("e0") is not None  # a use, long after the last one
    assert kept.write("e4", [bytes(1000)])
    found = {p.name for p in (tmp_path / "s").iterdir()}
    assert found == {"e0", "e2", "e3", "e4"}


def test_processes_share_a_folder(tmp_path: Path, folder: Path) -> None:
    """Several at once that all write, then one that only reads."""
    path = saved(tmp_path / "m.onnx", network())
    np.save(tmp_path / "x.npy", FEEDS["x"])
    script = (
        "import sys, numpy as np, mnnpy\n"
        f"x = np.load({str(tmp_path / 'x.npy')!r})\n"
        f"s = mnnpy.Session({str(path)!r}, threads=1, tune='off')\n"
        "sys.stdout.write(s.run(None, {'x': x})[0].tobytes().hex() + ' ' + str(s._executable._graph is None))"
    )

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-W", "error", "-c", script], stdout=subprocess.PIPE, text=True)

    first = [p.communicate(timeout=120)[0].split() for p in [start() for _ in range(3)]]
    last = start().communicate(timeout=120)[0].split()
    assert last[1] == "True"
    assert {f[0] for f in first} == {last[0]}
    assert {p.suffix for p in folder.iterdir()} == {".plan", ".model"}, "no halves stay"


def test_somebody_elses_ops_switch_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnnpy.decompose import registry

    path = saved(tmp_path / "m.onnx", network())
    run(path)
    monkeypatch.setattr(registry, "extended", False)
    assert run(path)[1]
    monkeypatch.setattr(registry, "_OPS", dict(registry._OPS))
    registry.op("Foreign", registry.OpClass.COMPOSITE)(lambda x: x.type)
    assert registry.extended
    assert not run(path)[1]


def test_plans_that_ran_out_of_time_for_measuring_are_not_kept(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnnpy.backends.cpu import select

    def starved(self: Any, key: str, view: Any, ranked: dict[str, float]) -> Any:
        return select.Choice(next(iter(ranked)), "cost model", 0.0, None, tuple(ranked), final=False)

    monkeypatch.setattr(select.Selector, "_settled", lambda *_: None)
    monkeypatch.setattr(select.Selector, "_measured", starved)
    path = saved(tmp_path / "m.onnx", network())
    run(path)
    assert not folder.exists()


def test_all_modules_that_plan_are_part_of_the_key() -> None:
    """Folders of whatever is imported to plan a model are looked at."""
    script = (
        "import sys, onnx, mnnpy, mnnpy.decompose.registry as r\n"
        "r.ops()\n"
        "import mnnpy.backends.cpu.provider, mnnpy.backends.cpu.select, mnnpy.backends.cpu.program\n"
        "import mnnpy.session, mnnpy.convert.onnx, mnnpy.decompose.patterns\n"
        "[o.rules for o in r.ops().values()], [o.reference for o in r.ops().values()]\n"
        "mnnpy.backends.cpu.provider.lower(mnnpy.Graph('g', (), (), ()), mnnpy.Options().optimize)\n"
        "print('\\n'.join(m for m in sys.modules if m.startswith('mnnpy.')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = {m.removeprefix("mnnpy.") for m in done.stdout.split()}
    folders = {m.replace(".", "/") for m in modules if any(o.startswith(f"{m}.") for o in modules)}
    assert len(modules) > 80
    assert folders - {"convert"} <= set(plan_cache._CODE)


def test_models_that_are_no_files_are_not_kept(folder: Path) -> None:
    run(network())
    assert not folder.exists()
    assert PlanCache.of(network(), [object()], mnnpy.Options(), 1) is None


def test_the_digest_tells_parts_apart() -> None:
    assert store.digest("ab", "c") != store.digest("a", "bc")
    assert store.digest("ab") == store.digest(b"ab")
