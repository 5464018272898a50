"""Label S: every OpenCL kernel of the table and of composites on oclgrind, which checks bounds and data races."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DRIVER = Path("/usr/lib/oclgrind/liboclgrind-rt-icd.so")

pytestmark = pytest.mark.skipif(not DRIVER.is_file(), reason="oclgrind is not installed: apt-get install oclgrind")

MAIN = "import sys\nfrom tests.conformance import targets\nfrom mnnpy.cli import main\nsys.exit(main(sys.argv[1:]))"
RACE = """
from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.driver import Binding, Launch
from mnnpy.backends.registry import open_device
from mnnpy.graph.dtypes import DType
b = KernelBuilder("race", (8, 1, 1))
y = b.buffer("y", DType.F32, "w")
shared = b.array(DType.F32, 8, "local")
b.write(shared, b.local_id(), b.local_id().cast(DType.F32))
if {barrier}:
    b.barrier()
b.store(y, b.local_id() + {offset}, b.read(shared, 7 - b.local_id()))
driver = open_device("opencl").driver
memory = driver.allocate(32)
(kernel,) = driver.compile([b.build()])
driver.submit(driver.record([Launch(kernel, (Binding(memory, 0, 32),), (), (1, 1, 1))]))
driver.synchronize()
"""


def checked(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """A process on oclgrind, and what oclgrind had to say."""
    vendors, log = folder / "vendors", folder / "log"
    vendors.mkdir()
    (vendors / "oclgrind.icd").write_text(f"{DRIVER}\n")
    environment = {
        **os.environ, "OCL_ICD_VENDORS": str(vendors), "OCLGRIND_DATA_RACES": "1", "OCLGRIND_LOG": str(log),
        "PYTHONPATH": str(ROOT), "PYOPENCL_NO_CACHE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done, log.read_text() if log.is_file() else ""


@pytest.mark.parametrize("backend", ["opencl", "opencl_as_gpu"])
def test_sample(tmp_path: Path, backend: str) -> None:
    no_race_and_no_stray_access(tmp_path, backend, "--sample")


@pytest.mark.full
@pytest.mark.parametrize("backend", ["opencl", "opencl_as_gpu"])
def test_whole_table(tmp_path: Path, backend: str) -> None:
    no_race_and_no_stray_access(tmp_path, backend)


def no_race_and_no_stray_access(tmp_path: Path, backend: str, *more: str) -> None:
    found = tmp_path / "found.json"
    words = ["conformance", "-b", backend, "--suite", "atomic", "--no-guards", "-q", "--json", str(found), *more]
    for file in ("expected.toml", "expected_oclgrind.toml"):
        words += ["--expect", str(HERE / file)]
    done, log = checked(tmp_path, "-c", MAIN, *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert log == ""
    (report,) = json.loads(found.read_text())
    assert {r["label"] for r in report["results"]} == {"S"}
    assert sum(r["status"] == "passed" for r in report["results"]) > (250 if more else 1350)


@pytest.mark.parametrize("backend", ["opencl", "opencl_as_gpu"])
def test_composites(tmp_path: Path, backend: str) -> None:
    done, log = checked(tmp_path, "tests/conformance/composites.py", backend)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert log == ""
    assert done.stdout.endswith(" agree\n")


@pytest.mark.parametrize(
    ("barrier", "offset", "words"), [(False, 0, "data race"), (True, 1, "Invalid write"), (True, 0, "")]
)
def test_the_checker_sees_faults(tmp_path: Path, barrier: bool, offset: int, words: str) -> None:
    done, log = checked(tmp_path, "-c", RACE.format(barrier=barrier, offset=offset))
    assert done.returncode == 0, done.stderr
    assert (words in log) if words else log == ""
