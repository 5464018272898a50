"""The targets of the conformance tests: built-in backends, and the emulated ones that no backend lists."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from mnnpy.backends.base import Device
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.registry import open_device
from mnnpy.conformance.expectations import Expectations, load_expectations
from mnnpy.conformance.run import Runner
from mnnpy.conformance.targets import Target, open_target, register_target
from mnnpy.errors import BackendUnavailableError
from tests.emulation import emulator

#: Backend → label that its results have on a machine without a GPU.
TARGETS = {
    "cpu": "R", "reference": "R", "opencl": "R", "opencl_as_gpu": "R", "vulkan": "R", "cuda": "E", "metal": "E",
}  # fmt: skip
LAVAPIPE = Path("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json")


def _opencl_as_gpu() -> Device:
    """The OpenCL device with the capabilities of a GPU: kernels with local memory and barriers really run."""
    device = open_device("opencl")
    assert isinstance(device, KernelDevice)
    caps = replace(device.driver.caps, cpu_like=False, lanes=4, max_group=256, local_memory=32 << 10)
    device.driver.caps = caps
    return device


register_target("opencl_as_gpu", _opencl_as_gpu)
register_target("cuda", emulator.emulated_cuda)
register_target("metal", emulator.emulated_metal)


@cache
def _open(name: str) -> Target | str:
    if TARGETS[name] == "E" and (reason := emulator.available()):
        return reason
    if name == "vulkan" and LAVAPIPE.is_file():
        os.environ.setdefault("VK_ICD_FILENAMES", str(LAVAPIPE))  # drivers of absent GPUs are noisy
    try:
        return open_target(name, threads=1)
    except BackendUnavailableError as error:
        return str(error)


def target(name: str) -> Target:
    """The opened target; skips with the reason where there is none."""
    found = _open(name)
    if isinstance(found, str):
        pytest.skip(found)
    assert found.label == TARGETS[name] or TARGETS[name] == "R", "an emulated device is nothing else"
    return found


@cache
def expectations() -> Expectations:
    return load_expectations(Path(__file__).with_name("expected.toml"))


@cache
def runner(name: str) -> Runner:
    """One runner per target and process: kernels are compiled once."""
    return Runner(target(name), expectations())
