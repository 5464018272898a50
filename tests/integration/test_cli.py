"""The command: every subcommand on a small model; exit codes, messages, files."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mnnpy.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """y = relu(x @ w + b), batch symbolic."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape, np.float32), name)
        for name, shape in (("w", (6, 4)), ("b", (4,)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], name="multiply"),
        helper.make_node("Add", ["product", "b"], ["sum"], name="shift"),
        helper.make_node("Relu", ["sum"], ["y"], name="rectify"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        weights,
    )
    path = tmp_path_factory.mktemp("cli") / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return str(path)


def ok(capsys: Capture, *words: str) -> str:
    """Run, expect exit code 0, and give stdout."""
    code = main(list(words))
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def as_json(capsys: Capture, *words: str) -> object:
    return json.loads(ok(capsys, *words, "--json"))


def test_help_is_quick_and_names_all_commands() -> None:
    def run() -> float:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "mnnpy", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert all(name in done.stdout for name in COMMANDS)
        return time.perf_counter() - start

    assert min(run() for _ in range(5)) < 0.5  # 0.07 s on an idle machine


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: Capture) -> None:
    assert "usage: mnnpy" in ok(capsys, command, "--help")


def test_no_command_is_a_usage_error(capsys: Capture) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err


def test_backends(capsys: Capture) -> None:
    assert "reference" in ok(capsys, "backends")
    listed = as_json(capsys, "backends")
    assert isinstance(listed, list)
    assert {d["backend"] for d in listed} >= {"cpu", "null", "reference"}
    assert main(["backends", "--require", "abacus"]) == 1


def test_info(capsys: Capture, model: str) -> None:
    out = ok(capsys, "info", model)
    assert "MatMul" in out
    assert "batch×6" in out
    info = as_json(capsys, "info", model)
    assert isinstance(info, dict)
    assert info["parameters"] == 28
    assert info["symbols"] == ["batch"]


def test_ops_and_workload_formula(capsys: Capture) -> None:
    assert "Raster" in ok(capsys, "ops", "--class", "atomic")
    listed = as_json(capsys, "ops", "--backends", "3")
    assert isinstance(listed, dict)
    f = listed["workload"]
    kinds = f["transform"] + f["composite"] + f["control flow"]
    assert f["with decomposition"] == (f["atomic"] + 1) * 3 + kinds
    assert f["without decomposition"] == (f["atomic"] + kinds - f["control flow"]) * 3 + f["control flow"]
    assert main(["ops", "--class", "magic"]) == 2


def test_run_saves_what_numpy_computes(capsys: Capture, model: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((3, 6), np.float32)
    np.save(tmp_path / "x.npy", x)
    out = ok(capsys, "run", model, "-b", "reference", "-i", f"x={tmp_path / 'x.npy'}", "-o", str(tmp_path / "y.npz"))
    assert "3×4" in out
    w, b = (numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer)
    with np.load(tmp_path / "y.npz") as saved:
        np.testing.assert_allclose(saved["y"], np.maximum(x @ w + b, 0), rtol=1e-5, atol=1e-6)


def test_run_takes_literals_and_is_seeded(capsys: Capture, model: str) -> None:
    report = as_json(capsys, "run", model, "-b", "reference", "-i", "x=[[0,0,0,0,0,0]]")
    assert isinstance(report, dict)
    assert report["outputs"][0]["shape"] == "1×4"
    first, second, other = (
        as_json(capsys, "run", model, "-q", "-b", "reference", "-s", "x:2x6", "--seed", s) for s in ("5", "5", "6")
    )
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert isinstance(other, dict)
    assert first["outputs"] == second["outputs"]
    assert first["outputs"] != other["outputs"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run", "MODEL", "--shape", "xx:1x6"], "did you mean 'x'"),
        (["run", "MODEL", "--shape", "x:1by6"], "write sizes"),
        (["run", "MODEL", "--input", "x"], "write NAME=VALUE"),
        (["run", "MODEL", "--input", "x=nonsense"], "neither"),
        (["run", "MODEL", "-b", "abacus"], "abacus"),
        (["run", "missing.onnx"], "missing.onnx"),
        (["run", "MODEL", "-o", "y.txt"], ".npz"),
        (["graph", "MODEL", "-o", "y.svg"], "--format"),
        (["bench", "MODEL", "-n", "0"], "--iters"),
        (["compare", "MODEL", "-b", "cpu", "--with", "cpu"], "itself"),
        (["convert", "MODEL", "out.pb"], ".mnnpy"),
    ],
)
def test_errors_are_one_line_without_traceback(capsys: Capture, model: str, words: list[str], part: str) -> None:
    assert main([model if w == "MODEL" else w for w in words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert part in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_verbose_shows_the_traceback() -> None:
    words = [sys.executable, "-m", "mnnpy", "-v", "run", "missing.onnx"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr


@pytest.mark.peers
def test_compare_with_onnxruntime(capsys: Capture, model: str) -> None:
    pytest.importorskip("onnxruntime")
    out = ok(capsys, "compare", model, "-b", "cpu", "-b", "reference", "-s", "x:5x6", "--ops")
    assert "DIFFERS" not in out
    assert "product" in out


def test_compare_names_the_first_divergence(capsys: Capture, model: str) -> None:
    """With an impossible tolerance every value differs, so the first op is the first divergence."""
    code = main(["compare", model, "-b", "cpu", "--with", "reference", "--tolerance", "-1", "--json", "-s", "x:5x6"])
    report = json.loads(capsys.readouterr().out)[0]
    assert code == 1
    assert report["first divergence"]["op"] == "MatMul"
    assert not report["agree"]


def test_bench_interleaves_engines(capsys: Capture, model: str) -> None:
    report = as_json(capsys, "bench", model, "-b", "cpu", "-b", "reference", "-n", "5", "--warmup", "1", "-t", "1")
    assert isinstance(report, dict)
    assert [e["engine"] for e in report["engines"]] == ["cpu", "reference"]
    for engine in report["engines"]:
        assert 0 < engine["min"] <= engine["median"] <= engine["p90"] <= engine["p99"]
    assert "MEDIAN" in ok(capsys, "bench", model, "-n", "3")


def test_profile_writes_a_chrome_trace(capsys: Capture, model: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    out = ok(capsys, "profile", model, "-s", "x:8x6", "-o", str(trace), "-n", "2")
    assert "ms per run" in out
    events = json.loads(trace.read_text())["traceEvents"]
    assert events
    assert all(e["ph"] == "X" and e["dur"] >= 0 and e["name"] for e in events)


def test_graph_in_three_forms(capsys: Capture, model: str, tmp_path: Path) -> None:
    text = ok(capsys, "graph", model, "--no-backends")
    assert "product = MatMul(x, w)" in text
    dot = ok(capsys, "graph", model, "--format", "dot", "-b", "reference")
    assert dot.startswith("digraph")
    assert dot.count("{") == dot.count("}")
    assert "reference" in dot
    target = tmp_path / "seen.onnx"
    ok(capsys, "graph", model, "-b", "reference", "-o", str(target))
    nodes = onnx.load(target, load_external_data=False).graph.node
    assert {p.value for n in nodes for p in n.metadata_props if p.key == "backend"} == {"reference"}
    assert "Graph" not in ok(capsys, "graph", model, "--stage", "planned", "-b", "cpu")


def test_convert_and_check(capsys: Capture, model: str, tmp_path: Path) -> None:
    target = str(tmp_path / "small.mnnpy")
    report = as_json(capsys, "convert", model, target, "--check", "-s", "x:3x6")
    assert isinstance(report, dict)
    assert report["agree"]
    assert "batch×6" in ok(capsys, "info", target)


@pytest.mark.slow
def test_conformance_of_some_cases(capsys: Capture) -> None:
    out = ok(capsys, "conformance", "-b", "reference", "-k", "^test_relu$|^test_clip$", "--coverage")
    assert "onnx: 2 passed of 2; 2 wholly on 'reference'" in out
    assert "| Clip | 1 |" in out
    assert main(["conformance", "-k", "no such case"]) == 2
