"""Label C: kernels of the table and of composites are accepted by compilers, for more devices than there are here.

Shaders by glslang and spirv-val, CUDA kernels by NVRTC as machine code of each generation.
"""

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
from mnnpy.backends.kernels.executor import Executor
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.backends.kernels.render import Renderer
from mnnpy.backends.kernels.render_cuda import CudaRenderer
from mnnpy.backends.kernels.render_glsl import GlslRenderer
from mnnpy.backends.vulkan.spirv import assemble, compiler
from mnnpy.conformance.cases import select
from mnnpy.conformance.run import Runner, prepare
from mnnpy.conformance.targets import Target, label_of
from mnnpy.errors import BackendError
from mnnpy.graph.ir import Array
from tests.conformance.composites import composites, kernels_of
from tests.conformance.nvrtc import compile_cubin, library
from tests.conformance.targets import expectations
from tests.emulation.emulator import emulated_cuda

FEATURES = frozenset({"atomics", "f16", "f64", "i64", "storage8", "storage16", "subgroups"})
DEVICES = {
    "gpu": Caps(FEATURES, max_group=1024, local_memory=48 << 10, lanes=4, subgroup=32),
    "small": Caps(frozenset({"i64", "storage8", "storage16"}), max_group=128, local_memory=16 << 10),
    "processor": Caps(FEATURES, max_group=1024, lanes=16, cpu_like=True, subgroup=8),
}


class Collector(Executor):
    """A driver that keeps kernels and runs nothing."""

    def __init__(self, caps: Caps) -> None:
        super().__init__("compiler", (MemoryError,))
        self.caps = caps
        self.kernels: list[Kernel] = []

    def _allocate(self, size: int) -> Array:
        return np.zeros(size, np.uint8)

    def _free(self, memory: Array) -> None: ...

    def _release(self, recording: Any) -> None: ...

    def upload(self, target: Binding, array: Array) -> None: ...

    def download(self, source: Binding, array: Array) -> None: ...

    def copy(self, source: Binding, target: Binding) -> None: ...

    def compile(self, kernels: Sequence[Kernel]) -> list[Any]:
        self.kernels += kernels
        return list(kernels)

    def record(self, launches: Sequence[Launch]) -> Any:
        return launches

    def submit(self, recording: Any) -> None: ...

    def synchronize(self) -> None: ...

    def time(self, recording: Any) -> list[float]:
        return []


def sources(caps: Caps, renderer: type[Renderer] = GlslRenderer, *, sample: bool) -> dict[str, str]:
    """Rendered kernel → the case that needs it first."""
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
                found.setdefault(renderer(kernel).source(), case.name)
            driver.kernels.clear()
    for name, (graph, _) in composites().items():
        assert ("FusedAttention" in kernels_of(device, graph)) == name.startswith("attention"), name
        for kernel in driver.kernels:
            found.setdefault(renderer(kernel).source(), name)
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
    cases = sources(DEVICES[name], sample=sample)

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


def compiled_by_nvrtc(*, sample: bool) -> int:
    """How many CUDA kernels there are; each becomes machine code of every generation."""
    if library() is None:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    cases = sources(emulated_cuda().driver.caps, CudaRenderer, sample=sample)
    jobs = [(source, generation) for source in cases for generation in (75, 80, 90, 120)]
    with ThreadPoolExecutor(2) as workers:
        said = list(workers.map(lambda job: compile_cubin(*job), jobs))
    bad = [f"{cases[s]} for sm_{g}: {words}\n{s}" for (s, g), words in zip(jobs, said, strict=True) if words]
    assert not bad, f"{len(bad)} of {len(jobs)}:\n" + "\n".join(bad[:3])
    return len(cases)


def test_sample_for_cuda() -> None:
    assert compiled_by_nvrtc(sample=True) > 120


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_whole_table_for_cuda() -> None:
    assert compiled_by_nvrtc(sample=False) > 400


def test_nvrtc_refuses_what_is_no_kernel() -> None:
    if library() is None:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    assert "error" in compile_cubin("no kernel;", 80)
