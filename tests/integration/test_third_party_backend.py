"""The example backend: installed into a folder of its own, found by its entry point, conforming, small."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "onnxruntime_backend"

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not installed"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that see the package; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("third-party")
    source, target = folder / "source", folder / "installed"
    shutil.copytree(EXAMPLE, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", target, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(target)])}


def python(environment: dict[str, str], *words: str, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_it_is_listed(environment: dict[str, str]) -> None:
    assert "CPUExecutionProvider" in python(environment, "-m", "mnnpy", "backends", "--require", "onnxruntime")


@pytest.mark.slow
def test_it_conforms_by_one_command(environment: dict[str, str], tmp_path: Path) -> None:
    words = (
        "-p",
        "mnnpy.testing.plugin",
        "--mnnpy-backend",
        "onnxruntime",
        "--mnnpy-sample",
        "-q",
        "-p",
        "no:cacheprovider",
    )
    out = python(environment, "-m", "pytest", *words, "--mnnpy-expect", str(EXAMPLE / "expect.toml"), folder=tmp_path)
    assert "'Raster' is no op of ONNX" in out, "what it does not take is said"
    wholly = int(out.partition("passed wholly on the target: ")[2].partition(",")[0])
    assert wholly >= 280, "of 377 node cases and the table"


def test_it_takes_whole_segments(environment: dict[str, str]) -> None:
    code = """
import numpy, onnx.helper as h, mnnpy
ops = (("MatMul", "xw", "p"), ("Relu", "p", "q"), ("Softmax", "q", "y"))
nodes = [h.make_node(op, list(ins), [out]) for op, ins, out in ops]
ends = [[h.make_tensor_value_info(n, 1, [3, k])] for n, k in (("x", 4), ("y", 5))]
graph = h.make_graph(nodes, "g", *ends, [h.make_tensor("w", 1, [4, 5], range(20))])
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
x = numpy.ones((3, 4), numpy.float32)
session = mnnpy.Session(model, "onnxruntime")
want = mnnpy.Session(model, "reference").run(None, {"x": x})
assert numpy.allclose(session.run(None, {"x": x})[0], want[0], atol=1e-6)
parts = session.parts({"x": x})
print([(backend, len(graph.nodes)) for backend, graph in parts])
"""
    assert python(environment, "-c", code).strip() == "[('onnxruntime', 3)]"


def test_it_is_small() -> None:
    lines = [line for path in EXAMPLE.rglob("*.py") for line in path.read_text().splitlines()]
    assert len(lines) < 300
