"""``mnnpy report``: what is collected, the page, the overview."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from mnnpy.cli import main
from mnnpy.conformance.perf import perf_cases
from mnnpy.errors import InputError
from mnnpy.hardware import collect, find_models, html_page, overview

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that works and one that does not."""
    folder = tmp_path_factory.mktemp("models")
    ends = [[helper.make_tensor_value_info(n, 1, ["batch", 4])] for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", *ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "relu.onnx")
    (folder / "broken.onnx").write_bytes(b"no model")
    return folder


def test_the_command(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", "-q", "--quick", "-k", "Select", "-b", "cpu", "--models", str(models), "--output", str(tmp_path)]
    assert main(words) == 0
    assert "cpu [R] cpu: 7 passed" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    (device,) = report["devices"]
    assert device["label"] == "R"
    assert device["conformance"]["statuses"] == {"passed": 7}
    assert len(device["timings"]) == len(perf_cases())
    assert all(t["label"] == "R" and (t["best"] > 0 or t["reason"]) for t in device["timings"])
    assert device["launches"]["run_of_one"] > 0
    rows = {m["model"]: m for m in device["models"]}
    assert rows["relu.onnx"]["best"] > 0
    assert rows["relu.onnx"]["error"] == 0
    assert rows["broken.onnx"]["reason"]
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page.partition('<script type="application/json"')[0], "nothing is loaded from elsewhere"
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data.replace("<\\/", "</")) == report


def made(label: str, name: str = "<GPU> & co") -> dict[str, Any]:
    report = collect(["reference"], [], cases=[], timed=[], seconds=0)
    (device,) = report["devices"]
    device |= {"label": label, "facts": {**device["facts"], "device": name}}
    device["conformance"] |= {
        "statuses": {"passed": 3, "failed": 1}, "cases": 4, "by_op": {"Unary": {"passed": 3, "failed": 1}},
        "failed": [{"case": "Unary[x]-y", "reason": "</script><b>", "label": label}],
    }  # fmt: skip
    return report


def test_texts_of_drivers_are_escaped() -> None:
    page = html_page(made("H"))
    assert "&lt;GPU&gt; &amp; co" in page
    assert "<GPU>" not in page.partition('<script type="application/json"')[0]
    assert page.count("</script>") == 1


def test_what_cannot_be_opened_is_reported() -> None:
    report = collect(["no such backend"], [])
    assert "there is no backend" in report["devices"][0]["unavailable"]
    assert "there is no backend" in html_page(report)


def test_overview_shows_hardware_only() -> None:
    assert "Nothing came in yet" in overview([])
    assert "Nothing came in yet" in overview([made("R"), made("E")])
    shown = overview([made("R"), made("H", "Some GPU")])
    assert "Nothing" not in shown
    assert "| Some GPU | reference | H |" in shown
    assert "3 of 4 | 1 |" in shown


def test_the_page_in_docs_is_the_generated_one() -> None:
    found = [json.loads(p.read_text()) for p in sorted((ROOT / "docs" / "hardware").glob("*.json"))]
    assert (ROOT / "docs" / "hardware.md").read_text() == overview(found)


def test_models_that_are_not_there() -> None:
    with pytest.raises(InputError, match="no such file"):
        find_models(["nowhere"])
