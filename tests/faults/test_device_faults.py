"""Kernel backends in trouble: every fault ends in a clear error or a correct run, and no memory is leaked."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnpy
from mnnpy.backends.base import NodeView, Support
from mnnpy.backends.kernels.cache import KernelCache
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.errors import BackendError, BackendUnavailableError
from tests.emulation.sessions import KINDS, device, opened, software_vulkan

ROOT = Path(__file__).parents[2]
ALL = pytest.mark.parametrize("kind", KINDS)
REAL = pytest.mark.parametrize("kind", ["opencl", "vulkan"])


def small() -> onnx.ModelProto:
    """Constants, a product, a reduction, element-wise ops, a symbolic batch."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 6)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal(6).astype(np.float32), "b"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Softmax", ["a"], ["s"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Add", ["r", "s"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])
    return helper.make_model(
        helper.make_graph(nodes, "small", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)]
    )


def batch(n: int = 4) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def truth() -> Callable[[np.ndarray], np.ndarray]:
    session = mnnpy.Session(small(), "reference")
    return lambda x: session.run(None, {"x": x})[0]


def session_on(kind: str, dev: KernelDevice, **options: Any) -> mnnpy.Session:
    with opened({kind: dev}):
        return mnnpy.Session(small(), kind, **options)


def check(session: mnnpy.Session, truth: Callable[[np.ndarray], np.ndarray], n: int = 4) -> None:
    np.testing.assert_allclose(session.run(None, {"x": batch(n)})[0], truth(batch(n)), atol=1e-5)


def settled(dev: KernelDevice) -> int:
    """Bytes that are still allocated once everything unreachable is gone."""
    gc.collect()
    return dev.driver.allocated


# -- nothing there --


def _script(text: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.strip()


ASK = """
import mnnpy
from mnnpy.backends.registry import open_device
try:
    open_device({0!r})
except mnnpy.errors.BackendUnavailableError as error:
    print(error)
else:
    print("opened")
"""


@pytest.mark.parametrize(("kind", "package"), [("opencl", "pyopencl"), ("vulkan", "vulkan")])
def test_no_driver_on_the_machine(kind: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    nothing = str(tmp_path / "none.json")
    said = _script(ASK.format(kind), OCL_ICD_VENDORS=str(tmp_path), VK_ICD_FILENAMES=nothing, VK_DRIVER_FILES=nothing)
    assert f"device '{kind}:0'" in said
    assert "Debian" in said


@pytest.mark.parametrize(
    ("kind", "package"), [("opencl", "pyopencl"), ("vulkan", "vulkan"), ("cuda", "cupy"), ("metal", "Metal")]
)
def test_library_missing(kind: str, package: str) -> None:
    said = _script(f"import sys; sys.modules[{package!r}] = None\n" + ASK.format(kind))
    assert package in said
    assert f"mnnpy-engine[{kind}]" in said


def test_vulkan_loader_missing() -> None:
    """The bindings are installed, the system's loader is not: their import raises OSError."""
    block = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "vulkan":
            raise OSError("cannot load library 'libvulkan.so.1'")
sys.meta_path.insert(0, Block())
"""
    assert "libvulkan.so.1" in _script(block + ASK.format("vulkan"))


# -- the device fails --


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, KernelDevice], None]:
    """Makes a device disappear."""

    def lose(kind: str, dev: KernelDevice) -> None:
        driver: Any = dev.driver
        if kind in ("cuda", "metal"):
            driver._api.lost = True
        elif kind == "opencl":
            import pyopencl as cl

            from mnnpy.backends.opencl import driver as module

            def gone(*_: Any) -> None:
                raise cl.RuntimeError(cl._cl._ErrorRecord(msg="", code=-36, routine="clEnqueueNDRangeKernel"))

            monkeypatch.setattr(module, "enqueue_kernel", gone)
        else:
            import vulkan as vk

            def lost(*_: Any) -> None:
                raise vk.VkErrorDeviceLost

            monkeypatch.setattr(vk, "vkQueueSubmit", lost)

    return lose


@ALL
def test_device_lost(
    kind: str,
    truth: Callable[[np.ndarray], np.ndarray],
    losing: Callable[[str, KernelDevice], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dev = device(kind)
    session = session_on(kind, dev)
    check(session, truth)
    losing(kind, dev)
    for n in (4, 4, 5):  # again, and for a shape that is not compiled yet
        with pytest.raises(BackendError, match=r"was lost .* open a new session"):
            session.run(None, {"x": batch(n)})
    del session
    assert settled(dev) == 0
    monkeypatch.undo()
    check(session_on(kind, device(kind)), truth)


@ALL
def test_out_of_memory_at_each_allocation(
    kind: str, truth: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allocations are kept small, so that there are many of them."""

    def limited() -> KernelDevice:
        dev = device(kind)
        driver: Any = dev.driver
        driver.caps = replace(driver.caps, max_allocation=driver.caps.alignment)
        return dev

    count = 0
    dev = limited()
    allocate = type(dev.driver)._allocate  # type: ignore[attr-defined]
    fail_at = 0

    def counting(self: Any, size: int) -> Any:
        nonlocal count
        count += 1
        if count == fail_at:
            raise _out_of_memory(kind, self)
        return allocate(self, size)

    monkeypatch.setattr(type(dev.driver), "_allocate", counting)
    session = session_on(kind, dev)
    check(session, truth)
    assert count >= 4
    del session
    assert settled(dev) == 0
    for n in range(1, count + 1):
        count, fail_at = 0, n
        session = session_on(kind, dev)
        with pytest.raises(BackendError, match="bytes cannot be allocated on"):
            session.run(None, {"x": batch()})
        assert settled(dev) == 0
        check(session, truth)  # there is memory again
        del session
        assert settled(dev) == 0


def _out_of_memory(kind: str, driver: Any) -> Exception:
    if kind == "opencl":
        import pyopencl as cl

        return cl.MemoryError(cl._cl._ErrorRecord(msg="", code=-4, routine="clEnqueueFillBuffer"))
    if kind == "vulkan":
        import vulkan as vk

        return vk.VkErrorOutOfDeviceMemory()
    return driver._errors[0]("out of memory")


def test_vulkan_out_of_memory_inside_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory cannot be had the buffer made before is destroyed."""
    dev = device("vulkan")
    import vulkan as vk

    made, destroyed = [], []
    create, destroy = vk.vkCreateBuffer, vk.vkDestroyBuffer
    monkeypatch.setattr(vk, "vkCreateBuffer", lambda *a: made.append(1) or create(*a))
    monkeypatch.setattr(vk, "vkDestroyBuffer", lambda *a: destroyed.append(1) or destroy(*a))

    def refuse(*_: Any) -> None:
        raise vk.VkErrorOutOfDeviceMemory

    with monkeypatch.context() as inner:
        inner.setattr(vk, "vkAllocateMemory", refuse)
        with pytest.raises(BackendError, match="VkErrorOutOfDeviceMemory"):
            dev.driver.allocate(1000)
    assert len(made) == len(destroyed) == 1
    dev.driver.free(dev.driver.allocate(1000))
    assert len(made) == len(destroyed) == 2


@ALL
def test_kernel_that_does_not_build(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's words and the source are in the error."""
    from mnnpy.backends.kernels.render import Renderer

    dev = device(kind)
    source = Renderer.source
    monkeypatch.setattr(Renderer, "source", lambda self: source(self) + "\nthis is no kernel;\n")
    session = session_on(kind, dev)
    with pytest.raises(BackendError, match=r"(?s)kernel .*error.*this is no kernel;"):
        session.run(None, {"x": batch()})
    assert settled(dev) == 0


# -- what is on disk --


def test_cache_entries_must_be_whole_and_of_this_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path))
    ours, theirs = KernelCache("k", "driver 1"), KernelCache("k", "driver 2")
    ours.write("source", b"binary")
    assert ours.read("source") == b"binary"
    assert theirs.read("source") is None
    whole = ours.path("source").read_bytes()
    theirs.path("source").write_bytes(whole)  # under the name that the other driver looks for
    assert theirs.read("source") is None
    for broken in (whole[:-1], whole[:32], whole[:5], b"", whole[:-1] + b"?", whole + b"\0"):
        ours.path("source").write_bytes(broken)
        assert ours.read("source") is None
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(blocked))
    ours.write("source", b"binary")  # a folder that cannot be made: nothing is cached, nothing fails
    assert ours.read("source") is None


def test_vulkan_caches_truncated(
    tmp_path: Path, truth: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path))
    check(session_on("vulkan", device("vulkan")), truth)
    files = [p for p in tmp_path.rglob("*.bin") if p.parent.name in ("spirv", "vulkan")]
    assert {p.parent.name for p in files} == {"spirv", "vulkan"}
    whole = {p: p.read_bytes() for p in files}
    for p, data in whole.items():
        p.write_bytes(data[: len(data) // 8 * 4])
    check(session_on("vulkan", device("vulkan")), truth)
    for p, data in whole.items():
        if p.parent.name == "spirv":
            assert p.read_bytes() == data


def test_opencl_binaries(
    tmp_path: Path, truth: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on drivers without a cache of their own: used when whole, built anew when damaged or refused."""
    monkeypatch.setenv("MNNPY_CACHE_DIR", str(tmp_path))

    def run() -> set[bool]:
        """Which programs came from disk."""
        dev = device("opencl")
        driver: Any = dev.driver
        driver.binaries = KernelCache("opencl", "test")
        found: list[bool] = []
        cached = driver._cached
        driver._cached = lambda source: found.append((program := cached(source)) is not None) or program
        check(session_on("opencl", dev), truth)
        return set(found)

    assert run() == {False}
    assert run() == {True}
    files = list((tmp_path / "opencl").glob("*.bin"))
    for p in files:
        p.write_bytes(p.read_bytes()[:-100])
    assert run() == {False}
    assert run() == {True}
    monkeypatch.setattr(KernelCache, "read", lambda *_: b"no binary of this driver")
    assert run() == {False}


# -- several at once --


def test_two_backends_in_one_process(truth: Callable[[np.ndarray], np.ndarray]) -> None:
    one, other = session_on("opencl", device("opencl")), session_on("vulkan", device("vulkan"))
    for n in (1, 4, 3):
        check(one, truth, n)
        check(other, truth, n)


@ALL
def test_one_session_over_two_devices(kind: str, truth: Callable[[np.ndarray], np.ndarray]) -> None:
    dev = device(kind)
    supports = dev.supports

    def some(view: NodeView) -> Support:
        return Support(False, "not here") if view.node.op in ("Reduce", "Softmax") else supports(view)

    dev.supports = some  # type: ignore[method-assign]
    with opened({kind: dev}):
        session = mnnpy.Session(small(), [kind, "reference"])
    check(session, truth)
    assert {b for b, _ in session.parts({"x": batch()})} == {kind, "reference"}


@ALL
def test_threads_on_one_session(kind: str, truth: Callable[[np.ndarray], np.ndarray]) -> None:
    """Shapes in different orders; plans are made, evicted and freed while others run."""
    dev = device(kind)
    _hammer(session_on(kind, dev, max_plans=2), {n: truth(batch(n)) for n in (1, 2, 3, 5)})
    assert settled(dev) == 0


def _hammer(session: mnnpy.Session, want: dict[int, np.ndarray]) -> None:
    def work(worker: int) -> int:
        order = np.random.default_rng(worker).permutation(np.repeat(list(want), 3))
        for n in order:
            np.testing.assert_allclose(session.run(None, {"x": batch(int(n))})[0], want[int(n)], atol=1e-5)
        return len(order)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 48


@ALL
def test_sessions_in_threads(kind: str, truth: Callable[[np.ndarray], np.ndarray]) -> None:
    want = {n: truth(batch(n)) for n in (1, 2, 3, 4)}
    sessions = {n: session_on(kind, device(kind)) for n in want}

    def work(n: int) -> bool:
        for _ in range(3):
            np.testing.assert_allclose(sessions[n].run(None, {"x": batch(n)})[0], want[n], atol=1e-5)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, list(want)))


FORK = """
import os, signal, sys
import numpy as np
import mnnpy
from mnnpy.errors import BackendError, BackendUnavailableError
from tests.faults.test_device_faults import batch, session_on, small
from tests.emulation.sessions import device
kind = sys.argv[1] if len(sys.argv) > 1 else {0!r}
dev = device(kind)
session = session_on(kind, dev)
want = session.run(None, {{"x": batch()}})[0]
child = os.fork()
if not child:
    signal.alarm(60)
    try:
        session.run(None, {{"x": batch()}})
    except BackendError as error:
        assert "forked" in str(error), error
    else:
        os._exit(3)
    if kind in ("opencl", "vulkan"):
        try:
            mnnpy.Session(small(), kind)
        except BackendUnavailableError as error:
            assert "forked" in str(error) and "spawn" in str(error), error
        else:
            os._exit(4)
    del session, dev
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
np.testing.assert_array_equal(session.run(None, {{"x": batch()}})[0], want)
print("fine")
"""


@ALL
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_after_use(kind: str) -> None:
    device(kind)  # skips where there is none
    assert _script(FORK.format(kind)) == "fine"


# -- garbage --


@ALL
def test_program_outlives_its_driver(kind: str, truth: Callable[[np.ndarray], np.ndarray]) -> None:
    dev = device(kind)
    session = session_on(kind, dev)
    check(session, truth)
    dev.driver.close()  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match="was closed; open a new session"):
        session.run(None, {"x": batch()})
    del session
    assert settled(dev) == 0
    driver = dev.driver
    del dev, driver
    gc.collect()


@ALL
def test_cycles_are_collected(kind: str, truth: Callable[[np.ndarray], np.ndarray]) -> None:
    """Driver and programs in one cycle: finalised in any order."""
    for _ in range(2):
        dev = device(kind)
        session = session_on(kind, dev)
        check(session, truth)
        dev.driver.cycle = session  # type: ignore[attr-defined]
        session.cycle = dev  # type: ignore[attr-defined]
        api = getattr(dev.driver, "_api", None)
        del session, dev
        gc.collect()
        assert api is None or api.live == 0


@ALL
def test_garbage_in_the_middle_of_a_call(kind: str, truth: Callable[[np.ndarray], np.ndarray]) -> None:
    """A program that dies while the queue is in use is freed when the queue is free again."""
    dev = device(kind)
    session = session_on(kind, dev)
    check(session, truth)
    held = dev.driver.allocated
    assert held > 0
    with dev.driver.turn:
        del session
        gc.collect()
        assert dev.driver.allocated == held
    assert dev.driver.allocated == 0


@ALL
def test_collector_in_another_thread(kind: str, truth: Callable[[np.ndarray], np.ndarray]) -> None:
    dev = device(kind)
    first, second = session_on(kind, dev), session_on(kind, dev)
    check(first, truth)
    check(second, truth)
    box = [first]
    del first
    thread = threading.Thread(target=box.clear)
    thread.start()
    for _ in range(5):
        check(second, truth)
    thread.join()
    del second
    assert settled(dev) == 0


# -- which device --


def test_devices_by_name() -> None:
    dev = device("opencl")
    from mnnpy.backends.registry import open_device

    part = dev.info.facts["platform"].split()[0].upper()
    assert open_device(f"opencl:{part}").info == dev.info
    assert open_device(f"opencl:{dev.info.name}").info == dev.info
    assert open_device(f"opencl:{dev.info.index}").info == dev.info
    with pytest.raises(BackendUnavailableError, match="no device 'no such thing'; it has 0"):
        open_device("opencl:no such thing")


@REAL
def test_device_that_is_gone(kind: str) -> None:
    """A description that fits nothing any more."""
    dev = device(kind)
    from mnnpy.backends.registry import get_backend

    with pytest.raises(BackendUnavailableError, match="'elsewhere' is gone"):
        get_backend(kind).open(replace(dev.info, name="elsewhere", index=7))


@pytest.fixture(scope="module", autouse=True)
def _software() -> None:
    software_vulkan()
