"""Kernels of the sampled cases: compiled for CUDA architectures, validated as SPIR-V [C], run under oclgrind [S].

What is compiled only is not run: these tests say that compilers accept the text, no more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mnnpy.backends.kernels.render_cuda import CudaRenderer
from mnnpy.backends.kernels.render_glsl import GlslRenderer
from tests.conformance.kernels import sources
from tests.conformance.nvrtc import compile_cubin, library
from tests.emulation.emulator import emulated_cuda
from tests.emulation.sessions import device

ROOT = Path(__file__).parents[2]
OCLGRIND = Path("/usr/lib/oclgrind/liboclgrind-rt-icd.so")


@pytest.mark.slow
@pytest.mark.skipif(library() is None, reason="NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
def test_cuda_kernels_compile_for_every_architecture() -> None:
    found = sources(CudaRenderer, emulated_cuda().driver.caps)
    assert len(found) > 100
    jobs = [(text, sm) for text in found for sm in (75, 80, 90, 120)]
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        said = list(workers.map(lambda job: compile_cubin(*job), jobs))
    bad = [f"{found[text]} sm_{sm}: {words}\n{text}" for (text, sm), words in zip(jobs, said, strict=True) if words]
    assert not bad, f"{len(bad)} of {len(jobs)}; the first: {bad[0]}"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("spirv-val") is None, reason="spirv-val is not installed (spirv-tools)")
@pytest.mark.parametrize("cpu_like", [True, False])
def test_shaders_are_valid(cpu_like: bool, tmp_path: Path) -> None:
    """Under the rules of the Vulkan version that devices are opened with."""
    from mnnpy.backends.vulkan.spirv import assemble

    found = sources(GlslRenderer, replace(device("vulkan").driver.caps, cpu_like=cpu_like))
    assert len(found) > 100
    for k, (text, words) in enumerate(assemble(list(found)).items()):
        path = tmp_path / f"{k}.spv"
        path.write_bytes(words)
        done = subprocess.run(
            ["spirv-val", "--target-env", "vulkan1.1", str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{found[text]}: {done.stdout}{done.stderr}\n{text}"


GRIND = """
import sys
from dataclasses import replace
import numpy as np
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.registry import get_backend
from mnnpy.conformance.cases import select
from mnnpy.conformance.run import judge, prepare
from mnnpy.backends.kernels.render_opencl import OpenCLRenderer
from mnnpy.backends.base import Segment
from tests.conformance.kernels import _lowered
(info,) = get_backend("opencl").devices()
assert "Oclgrind" in info.name, info
dev = get_backend("opencl").open(info)
dev.driver.caps = replace(dev.driver.caps, cpu_like={0})
seen, ran, wrong = set(), 0, []
for case in select(sample=True):
    ready = prepare(case)
    if sum(f.nbytes for f in ready.feeds) > 1 << 16:
        continue
    texts = {{OpenCLRenderer(k).source() for k in _lowered(ready.graph, dev.driver.caps)}}
    if texts <= seen:
        continue
    seen |= texts
    print("case", case.name, file=sys.stderr, flush=True)
    program = dev.compile(Segment(ready.graph))
    problem = judge(case, program.run(ready.feeds), ready.wanted)[0]
    program.close()
    ran += 1
    if problem:
        wrong.append(case.name + ": " + problem)
print(ran, len(seen))
print(*wrong, sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.skipif(not OCLGRIND.exists(), reason="oclgrind is not installed")
@pytest.mark.parametrize("cpu_like", [True, False])
def test_opencl_kernels_neither_race_nor_leave_their_buffers(cpu_like: bool, tmp_path: Path) -> None:
    pytest.importorskip("pyopencl")
    (tmp_path / "oclgrind.icd").write_text(f"{OCLGRIND}\n")
    env = {**os.environ, "OCL_ICD_VENDORS": str(tmp_path), "OCLGRIND_DATA_RACES": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GRIND.format(cpu_like)],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    complaints = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("case ")]
    if complaints:
        at = done.stderr.index(complaints[0])
        pytest.fail(done.stderr[max(0, done.stderr.rindex("case ", 0, at)) :][:3000])
    head, *wrong = done.stdout.strip().splitlines()
    ran, texts = map(int, head.split())
    assert ran > 100, "the table is larger"
    assert texts >= ran // 2
    assert not any(wrong), wrong[:5]
