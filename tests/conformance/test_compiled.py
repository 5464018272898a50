"""Label C: every shader of the table is accepted by glslang and by spirv-val, for more devices than there are here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnnpy.backends.base import DeviceInfo
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.kernels.driver import Binding, Caps, Launch
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.backends.kernels.render_glsl import GlslRenderer
from mnnpy.backends.vulkan.spirv import assemble, compiler
from mnnpy.conformance.cases import select
from mnnpy.conformance.run import Runner, prepare
from mnnpy.conformance.targets import Target, label_of
from mnnpy.errors import BackendError
from mnnpy.graph.ir import Array
from tests.conformance.targets import expectations

FEATURES = frozenset({"atomics", "f16", "f64", "i64", "storage8", "storage16", "subgroups"})
DEVICES = {
    "gpu": Caps(FEATURES, max_group=1024, local_memory=48 << 10, lanes=4, subgroup=32),
    "small": Caps(frozenset({"i64", "storage8", "storage16"}), max_group=128, local_memory=16 << 10),
    "processor": Caps(FEATURES, max_group=1024, lanes=16, cpu_like=True, subgroup=8),
}


class Collector:
    """A driver that keeps kernels and runs nothing."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.kernels: list[Kernel] = []
        self.allocated = 0

    def allocate(self, size: int) -> Array:
        return np.zeros(size, np.uint8)

    def free(self, memory: Array) -> None: ...

    def upload(self, target: Binding, array: Array) -> None: ...

    def download(self, source: Binding, array: Array) -> None: ...

    def compile(self, kernels: Sequence[Kernel]) -> list[Any]:
        self.kernels += kernels
        return list(kernels)

    def record(self, launches: Sequence[Launch]) -> Any:
        return launches

    def submit(self, recording: Any) -> None: ...

    def synchronize(self) -> None: ...

    def time(self, recording: Any) -> list[float]:
        return []

    def release(self, recording: Any) -> None: ...


def shaders(caps: Caps, *, sample: bool) -> dict[str, str]:
    """GLSL → the case that needs it first."""
    found: dict[str, str] = {}
    driver = Collector(caps)
    device = KernelDevice(DeviceInfo("vulkan", "compiler", facts={"label": "C"}), driver)
    runner = Runner(Target("vulkan", device, label_of(device.info)), guards=False)
    assert runner.target.label == "C"
    for case in select(sample=sample):
        graph = prepare(case).graph
        if not runner.declined(graph):
            runner.program(graph)
            for kernel in driver.kernels:
                found.setdefault(GlslRenderer(kernel).source(), case.name)
            driver.kernels.clear()
    return found


def validated(folder: Path, name: str, *, sample: bool) -> int:
    """How many shaders there are; those that fail are exactly the listed ones."""
    try:
        compiler()
    except BackendError as error:
        pytest.skip(str(error))
    tool = shutil.which("spirv-val")
    if tool is None:
        pytest.skip("spirv-val is not installed: apt-get install spirv-tools")
    cases = shaders(DEVICES[name], sample=sample)

    def problem(numbered: tuple[int, str]) -> str:
        number, source = numbered
        path = folder / f"{number}.spv"
        try:
            path.write_bytes(assemble([source])[source])
        except BackendError as error:
            return str(error)[:1000]
        done = subprocess.run([tool, "--target-env", "vulkan1.1", path], capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else ""

    with ThreadPoolExecutor(2) as workers:
        problems = dict(zip(cases.values(), workers.map(problem, enumerate(cases)), strict=True))
    listed = {c for c in problems if expectations().expected_failure(f"{c}-compiled_{name}")}
    bad = [f"{c}: {p}" for c, p in problems.items() if p and c not in listed]
    assert not bad, f"{len(bad)} of {len(cases)}:\n" + "\n".join(bad[:10])
    gone = [c for c in listed if not problems[c]]
    assert not gone, f"these compile now; take them off the list: {gone}"
    return len(cases)


@pytest.mark.parametrize("name", DEVICES)
def test_sample(tmp_path: Path, name: str) -> None:
    assert validated(tmp_path, name, sample=True) > 120


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", DEVICES)
def test_whole_table(tmp_path: Path, name: str) -> None:
    assert validated(tmp_path, name, sample=False) > 400
