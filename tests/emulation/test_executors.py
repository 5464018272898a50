"""What executors do around kernels: libraries, hazards, limits, recordings; on emulated APIs [E] and real ones [R]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnpy
from mnnpy.backends.kernels.driver import Binding, Caps, Launch
from mnnpy.backends.kernels.hazards import Hazards
from mnnpy.backends.kernels.ir import Buffer, Kernel
from mnnpy.backends.kernels.lowering import Declined, Lowering
from mnnpy.backends.kernels.templates import library
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from tests.emulation.sessions import KINDS, device, opened

ALL = pytest.mark.parametrize("kind", KINDS)
EMULATED = pytest.mark.parametrize("kind", ["cuda", "metal"])
RNG = np.random.default_rng(3)


def product(a: tuple[int, ...], c: tuple[int, ...], *, bias: bool, constant: bool = True) -> Any:
    """Relu(A·C + bias) · 2 with element-wise ops before and after, so that launches surround the product."""
    feeds = {"a": RNG.standard_normal(a).astype(np.float32)}
    right = RNG.standard_normal(c).astype(np.float32)
    weights = [numpy_helper.from_array(RNG.standard_normal(c[-1]).astype(np.float32), "bias")]
    inputs = [helper.make_tensor_value_info("a", TensorProto.FLOAT, a)]
    if constant:
        weights.append(numpy_helper.from_array(right, "c"))
    else:
        feeds["c"] = right
        inputs.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, c))
    nodes = [helper.make_node("Neg", ["a"], ["n"]), helper.make_node("MatMul", ["n", "c"], ["p"])]
    nodes += [helper.make_node("Add", ["p", "bias"], ["q"]), helper.make_node("Relu", ["q"], ["y"])] if bias else []
    out = "y" if bias else "p"
    shape = np.matmul(feeds["a"], right).shape
    graph = helper.make_graph(
        nodes, "product", inputs, [helper.make_tensor_value_info(out, TensorProto.FLOAT, shape)], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), feeds


@EMULATED
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("a", "c", "constant", "calls"),
    [
        ((9, 16), (16, 12), True, 1),
        ((2, 9, 16), (16, 12), False, 1),  # rows of a batch are rows of one product
        ((2, 9, 16), (2, 16, 12), False, 1),
        ((3, 2, 9, 16), (2, 16, 12), False, 0),  # steps that the libraries do not know: our kernel
    ],
)
def test_products_by_the_library(
    kind: str,
    a: tuple[int, ...],
    c: tuple[int, ...],
    constant: bool,
    calls: int,
    bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "WORTH", 1)
    model, feeds = product(a, c, bias=bias, constant=constant)
    dev = device(kind)
    with opened({kind: dev}):
        session = mnnpy.Session(model, kind)
    api: Any = dev.driver._api  # type: ignore[attr-defined]
    (want,) = mnnpy.Session(model, "reference").run(None, feeds)
    for _ in range(2):
        np.testing.assert_allclose(session.run(None, feeds)[0], want, rtol=1e-4, atol=1e-5)
    assert api.products == 2 * calls
    program: Any = session._executable.plan([feeds[n] for n in session.graph.input_names]).direct
    assert all(seconds >= 0 for *_, seconds in program.profile(list(feeds.values())))


@dataclass
class _Handle:
    kernel: Kernel


def launch(*accesses: tuple[Any, int, int, str]) -> Launch:
    buffers = tuple(Buffer(f"b{k}", DType.F32, a[3]) for k, a in enumerate(accesses))
    kernel = Kernel("k", buffers, (), (1, 1, 1), (), ())
    return Launch(_Handle(kernel), tuple(Binding(m, at, size) for m, at, size, _ in accesses), (), (1, 1, 1))


def test_barriers_only_between_launches_that_depend() -> None:
    x, y = object(), object()
    seen = Hazards()
    assert not seen.conflict(launch((x, 0, 64, "r"), (x, 64, 64, "w")))
    assert not seen.conflict(launch((x, 0, 64, "r"), (x, 128, 64, "w")))  # reads twice, writes elsewhere
    assert not seen.conflict(launch((y, 64, 64, "r")))  # another allocation
    assert seen.conflict(launch((x, 120, 16, "r")))  # reads what was written
    assert not seen.conflict(launch((x, 64, 64, "r")))  # settled by that barrier
    assert seen.conflict(launch((x, 130, 2, "w")))  # writes what is being read
    assert seen.conflict(launch((x, 131, 1, "rw")))  # writes what was written


def test_kernels_beyond_the_limits_are_declined() -> None:
    buffers = tuple(Buffer(f"b{k}", DType.F32, "r") for k in range(5))
    kernel = Kernel("wide", buffers, tuple((f"s{k}", DType.I32) for k in range(33)), (8, 8, 8), (), ())
    limits = {"max_group": 256, "max_axes": (8, 4, 8), "max_bindings": 4}
    for name, message in (
        ("max_group", "needs 512 work items a group, the device has 256"),
        ("max_axes", "needs 8 work items along y, the device has 4"),
        ("max_bindings", "needs 5 buffers, the device has 4"),
        ("", "needs 33 scalars"),
    ):
        caps = replace(Caps(max_group=512), **{name: limits[name]} if name else {})  # type: ignore[arg-type]
        with pytest.raises(Declined, match=message):
            Lowering(caps, {}, {})._fits(kernel)


@ALL
def test_memory_in_several_allocations(kind: str) -> None:
    """Where a device limits the size of one, constants and values are spread."""
    model, feeds = product((40, 64), (64, 64), bias=True)
    (want,) = mnnpy.Session(model, "reference").run(None, feeds)
    dev = device(kind)
    driver: Any = dev.driver
    sizes: list[int] = []
    allocate = driver._allocate
    driver._allocate = lambda size: sizes.append(size) or allocate(size)
    driver.caps = replace(driver.caps, max_allocation=16384)
    with opened({kind: dev}):
        session = mnnpy.Session(model, kind)
    np.testing.assert_allclose(session.run(None, feeds)[0], want, rtol=1e-4, atol=1e-4)
    assert len(sizes) > 2
    assert max(sizes) <= 16384


@ALL
def test_a_recording_is_submitted_many_times(kind: str) -> None:
    """Later runs see their own inputs; nothing is recorded again."""
    model, feeds = product((3, 4), (4, 5), bias=True)
    dev = device(kind)
    with opened({kind: dev}):
        session = mnnpy.Session(model, kind)
    reference = mnnpy.Session(model, "reference")
    session.run(None, feeds)

    def again(*_: Any) -> None:
        raise AssertionError("recorded again")

    dev.driver.record = again  # type: ignore[method-assign]
    for k in range(4):
        scaled = {"a": feeds["a"] * (k - 1)}
        np.testing.assert_allclose(session.run(None, scaled)[0], reference.run(None, scaled)[0], rtol=1e-5, atol=1e-6)


def test_vulkan_staging() -> None:
    """As on a card: device memory is not mapped, transfers go through staging memory in parts."""
    from mnnpy.backends.vulkan import driver as module

    dev = device("vulkan")
    driver: Any = dev.driver
    driver._unified = False
    old, module._STAGE = module._STAGE, 64
    try:
        tensor = dev.upload(RNG.standard_normal((9, 7)).astype(np.float32))
        assert tensor.binding.memory.mapped is None
        other = dev.upload(np.zeros((9, 7), np.float32))
        with driver.turn:
            driver.copy(tensor.binding, other.binding)
        np.testing.assert_array_equal(tensor.numpy(), other.numpy())
        model, feeds = product((9, 16), (16, 12), bias=True)
        with opened({"vulkan": dev}):
            got = mnnpy.Session(model, "vulkan").run(None, feeds)[0]
        np.testing.assert_allclose(got, mnnpy.Session(model, "reference").run(None, feeds)[0], rtol=1e-4, atol=1e-5)
    finally:
        module._STAGE = old


def test_vulkan_queue_family() -> None:
    import vulkan as vk

    from mnnpy.backends.vulkan.instance import _family

    both, compute = vk.VK_QUEUE_GRAPHICS_BIT | vk.VK_QUEUE_COMPUTE_BIT, vk.VK_QUEUE_COMPUTE_BIT
    assert _family([(both, 64), (compute, 64)]) == 1
    assert _family([(both, 64), (compute, 0)]) == 0  # profiling needs time stamps
    assert _family([(vk.VK_QUEUE_GRAPHICS_BIT, 64), (compute, 0)]) == 1
    assert _family([(vk.VK_QUEUE_TRANSFER_BIT, 64)]) is None


@ALL
def test_launches_are_timed_one_by_one(kind: str) -> None:
    model, feeds = product((9, 16), (16, 12), bias=True)
    dev = device(kind)
    with opened({kind: dev}):
        session = mnnpy.Session(model, kind)
    (want,) = session.run(None, feeds)
    program: Any = session._executable.plan([feeds["a"]]).direct
    rows = program.profile([feeds["a"]])
    assert len(rows) == len(program.describe())
    assert all(0 <= seconds < 10 for *_, seconds in rows)
    assert sum(seconds for *_, seconds in rows) > 0
    np.testing.assert_array_equal(session.run(None, feeds)[0], want)


def test_cuda_capture_that_fails_ends_the_capture() -> None:
    dev = device("cuda")
    api: Any = dev.driver._api  # type: ignore[attr-defined]
    model, feeds = product((3, 4), (4, 5), bias=True)
    with opened({"cuda": dev}):
        launch_, calls = api.launch, []

        def failing(*arguments: Any) -> None:
            calls.append(1)
            if len(calls) == 2:
                raise api.errors[0]("cudaErrorInvalidValue")
            launch_(*arguments)

        api.launch = failing
        with pytest.raises(BackendError, match=r"capturing launches: .*cudaErrorInvalidValue"):
            mnnpy.Session(model, "cuda").run(None, feeds)
        assert api._graph is None
        api.launch = launch_
        mnnpy.Session(model, "cuda").run(None, feeds)
