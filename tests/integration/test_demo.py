"""The OCR demo with trained models: it reads what was drawn, and all engines agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from mnnpy.cli import main  # noqa: E402
from mnnpy.demo import draw_picture, model_paths, run_demo  # noqa: E402
from mnnpy.errors import ModelError  # noqa: E402

pytestmark = [pytest.mark.models, pytest.mark.slow]

EXPECTED = (
    "mnnpy: one model, every accelerator",
    "Convolution, MatMul, Raster, Reduce",
    "Total: 1,234.56 EUR (19 % VAT)",
    "slanted lines are read as well",
    "and so is text on its head",
)


@pytest.fixture(autouse=True)
def need_models() -> None:
    try:
        model_paths()
    except ModelError as error:
        pytest.skip(str(error))


def test_reads_the_drawn_picture_on_the_cpu_backend(tmp_path: Path) -> None:
    target = tmp_path / "demo.png"
    engines = ["cpu", "onnxruntime"]
    report = run_demo(None, target, engines, threads=2, repeat=1)
    texts = {line.text for line in report.lines}
    assert texts >= set(EXPECTED)
    assert report.agree
    assert [e.engine for e in report.engines] == engines
    assert report.engines[0].difference < 1e-4
    with Image.open(target) as picture:
        assert picture.size == (1600, 480)


def test_reads_a_picture_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.png"
    draw_picture().crop((0, 0, 800, 150)).save(source)
    assert main(["demo", str(source), "-o", str(tmp_path / "out.png"), "-b", "cpu", "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [line["text"] for line in report["lines"]] == list(EXPECTED[:2])
