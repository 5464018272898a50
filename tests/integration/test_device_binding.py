"""Inputs and outputs that stay in device memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import mnnpy
from mnnpy.binding import DeviceTensor
from mnnpy.errors import InputError
from tests.emulation.emulator import FakeBlock
from tests.emulation.sessions import KINDS, device, opened

ALL = pytest.mark.parametrize("kind", KINDS)


def two_outputs() -> Any:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["y"]),
        helper.make_node("ReduceSum", ["y"], ["z"], keepdims=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])
    outs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, []),
    ]
    graph = helper.make_graph(nodes, "two", [x], outs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


X = np.arange(12, dtype=np.float32).reshape(3, 4) / 4


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """Which transfers between host and device a driver makes from now on."""

    def watch(driver: Any) -> list[str]:
        seen: list[str] = []
        for name in ("upload", "download"):
            real = getattr(driver, name)
            monkeypatch.setattr(driver, name, lambda *a, _n=name, _r=real: seen.append(_n) or _r(*a))
        return seen

    return watch


@ALL
def test_results_feed_the_next_session(kind: str, counting: Callable[[Any], list[str]]) -> None:
    dev = device(kind)
    with opened({kind: dev}):
        first, second = mnnpy.Session(two_outputs(), kind), mnnpy.Session(two_outputs(), kind)
    x = dev.upload(X)
    one, two = first.binding(), second.binding()
    one.bind_input("x", x)
    one.bind_output("y", on_device=True)
    one.bind_output("z", on_device=True)
    y = first.run_with_binding(one)["y"]
    assert isinstance(y, DeviceTensor)
    two.bind_input("x", y)
    two.bind_output("y", on_device=True)
    two.bind_output("z", on_device=True)
    second.run_with_binding(two)
    seen = counting(dev.driver)
    for _ in range(3):
        first.run_with_binding(one)
        found = second.run_with_binding(two)
    assert seen == []
    np.testing.assert_allclose(found["y"].numpy(), X**4, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(found["z"]), (X**4).sum(), rtol=1e-5)
    assert seen == ["download", "download"]
    del first, second, one, two, found, x, y
    gc.collect()
    assert dev.driver.allocated == 0


@ALL
def test_only_what_is_asked_for_is_downloaded(kind: str, counting: Callable[[Any], list[str]]) -> None:
    dev = device(kind)
    with opened({kind: dev}):
        session = mnnpy.Session(two_outputs(), kind)
    seen = counting(dev.driver)
    (z,) = session.run(["z"], {"x": X})
    np.testing.assert_allclose(z, (X**2).sum(), rtol=1e-6)
    assert seen == ["upload", "download"]


@ALL
def test_mixed_sides(kind: str) -> None:
    """One output into the caller's array, one new; the input on the device; then all on the host again."""
    dev = device(kind)
    with opened({kind: dev}):
        session = mnnpy.Session(two_outputs(), kind)
    binding = session.binding()
    binding.bind_input("x", dev.upload(X))
    y = np.empty((3, 4), np.float32)
    binding.bind_output("y", y)
    found = session.run_with_binding(binding)
    assert found["y"] is y
    np.testing.assert_allclose(y, X * X)
    np.testing.assert_allclose(found["z"], (X * X).sum(), rtol=1e-6)
    binding.bind_input("x", 2 * X)
    session.run_with_binding(binding)
    np.testing.assert_allclose(y, 4 * X * X)
    target = dev.upload(np.zeros((3, 4), np.float32))
    binding.bind_output("y", target)
    session.run_with_binding(binding)
    np.testing.assert_allclose(target.numpy(), 4 * X * X)


def test_misfits() -> None:
    dev, other = device("opencl"), device("opencl")
    with opened({"opencl": dev}):
        session = mnnpy.Session(two_outputs(), "opencl")
    binding = session.binding()
    with pytest.raises(InputError, match="shape"):
        binding.bind_input("x", dev.upload(X[:2]))
    with pytest.raises(InputError, match="float32"):
        binding.bind_input("x", dev.upload(X.astype(np.float64)))
    binding.bind_input("x", X)
    binding.bind_output("y", other.upload(X))
    with pytest.raises(InputError, match="another device or session"):
        session.run_with_binding(binding)
    binding.bind_output("y", dev.upload(X[:2]))
    with pytest.raises(InputError, match=r"'y' is float32\[3, 4\], but float32\[2, 4\]"):
        session.run_with_binding(binding)
    binding.bind_output("y")
    binding.bind_input("x", other.upload(X))  # comes through the host
    np.testing.assert_allclose(session.run_with_binding(binding)["y"], X * X)


def test_backends_without_device_memory() -> None:
    session = mnnpy.Session(two_outputs(), "reference")
    binding = session.binding()
    binding.bind_input("x", device("opencl").upload(X))
    np.testing.assert_allclose(session.run_with_binding(binding)["y"], X * X)
    binding.bind_output("y", on_device=True)
    with pytest.raises(InputError, match=r"cannot stay in device memory.*reference"):
        session.run_with_binding(binding)


class Foreign:
    """An array of another CUDA library (in the emulator's memory)."""

    def __init__(self, array: np.ndarray) -> None:
        self.block = FakeBlock(array.nbytes)
        self.block.bytes()[: array.nbytes] = array.reshape(-1).view(np.uint8)
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (self.block.ptr, False), "version": 3,
            "strides": None,
        }  # fmt: skip


def test_cuda_arrays_of_other_libraries(counting: Callable[[Any], list[str]]) -> None:
    dev = device("cuda")
    with opened({"cuda": dev}):
        session = mnnpy.Session(two_outputs(), "cuda")
    binding = session.binding()
    foreign = Foreign(X)
    binding.bind_input("x", foreign)
    binding.bind_output("y", on_device=True)
    binding.bind_output("z", on_device=True)
    seen = counting(dev.driver)
    found = session.run_with_binding(binding)
    foreign.block.bytes()[: X.nbytes] = (3 * X).reshape(-1).view(np.uint8)
    found = session.run_with_binding(binding)
    assert seen == []
    interface = found["y"].__cuda_array_interface__
    assert interface["shape"] == (3, 4)
    assert interface["typestr"] == "<f4"
    np.testing.assert_allclose(np.from_dlpack(found["y"]), 9 * X * X)
    assert seen == []


@pytest.mark.parametrize("kind", ["opencl", "vulkan", "metal"])
def test_memory_that_cannot_be_exchanged(kind: str) -> None:
    tensor = device(kind).upload(X)
    with pytest.raises(BufferError, match=r"use numpy\(\)"):
        tensor.__dlpack__()
    assert not hasattr(tensor, "__cuda_array_interface__")
    np.testing.assert_array_equal(np.asarray(tensor), X)
    with pytest.raises(ValueError, match="without a copy"):
        tensor.__array__(copy=False)
