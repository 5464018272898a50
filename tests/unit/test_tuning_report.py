"""``mnnpy tune`` and ``mnnpy explain``: data, files, messages; the page in a headless browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnpy
from mnnpy.backends.base import Device
from mnnpy.backends.registry import open_device
from mnnpy.cli import main
from mnnpy.cli.tune import Live, seconds_of
from mnnpy.errors import InputError
from mnnpy.options import Options
from mnnpy.search.observe import Event, Task
from mnnpy.tuning import Watch, html_page, tune
from mnnpy.tuning.charts import errors, op_rows, scatter
from mnnpy.tuning.collect import hand_over
from mnnpy.tuning.drawing import LANES, TALL, drawing, duration, ranks, sections

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
Capture = pytest.CaptureFixture[str]


def fire(weights: list[Any], name: str, value: str, channels: int) -> list[onnx.NodeProto]:
    """A squeeze and two expansions side by side, concatenated."""

    def conv(tag: str, read: str, into: int, out: int, size: int) -> list[onnx.NodeProto]:
        rng = np.random.default_rng(len(weights))
        w = rng.standard_normal((out, into, size, size), np.float32) / (into * size * size) ** 0.5
        weights.append(numpy_helper.from_array(w, f"{name}.{tag}.w"))
        pads = {"pads": [size // 2] * 4}
        return [
            helper.make_node("Conv", [read, f"{name}.{tag}.w"], [f"{name}.{tag}.c"], name=f"{name}.{tag}", **pads),
            helper.make_node("Relu", [f"{name}.{tag}.c"], [f"{name}.{tag}"]),
        ]

    nodes = conv("squeeze", value, channels, 16, 1)
    nodes += conv("one", f"{name}.squeeze", 16, 32, 1) + conv("three", f"{name}.squeeze", 16, 32, 3)
    return [*nodes, helper.make_node("Concat", [f"{name}.one", f"{name}.three"], [name], axis=1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three blocks of convolutions with branches; batch symbolic."""
    weights: list[Any] = []
    nodes = [n for k in range(3) for n in fire(weights, f"f{k}", "x" if k == 0 else f"f{k - 1}", 8 if k == 0 else 64)]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", c, 28, 28]) for n, c in (("x", 8), ("f2", 64))
    ]
    graph = helper.make_graph(nodes, "blocks <&>", ends[:1], ends[1:], weights)
    path = tmp_path_factory.mktemp("tune") / "blocks.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def twins() -> list[Device]:
    """The cpu, and the same under another name."""
    first, second = open_device("cpu", threads=1), open_device("cpu", threads=1)
    second.info = replace(second.info, backend="twin <b>")
    return [first, second]


@pytest.fixture(scope="module")
def found(model: Path) -> dict[str, Any]:
    """What a search on two devices finds."""

    def feeds(inputs: Sequence[Any]) -> dict[str, Any]:
        return {"x": np.ones((1, 8, 28, 28), np.float32)}

    report = tune(model, twins(), Options(tune=3.0, threads=1, cache=False), feeds, Watch())
    report["model"]["file"] = model.name
    return report


def test_what_a_search_finds(found: dict[str, Any]) -> None:
    assert found["model"]["nodes"] == 21
    assert found["model"]["inputs"] == {"x": "float32[1, 8, 28, 28]"}
    assert {w["way"] for w in found["ways"]} == {"cpu", "twin <b>"}
    taken, other = found["ways"]
    assert taken["chosen"]
    assert taken["reason"] == "fastest measured"
    assert 0 < taken["measured"] <= 1.02 * other["measured"]
    assert taken["now"] > 0
    assert len(found["layers"]) == 9
    assert [la["node"] for la in found["layers"][:3]] == ["f0.squeeze", "f0.one", "f0.three"]
    assert {la["backend"] for la in found["layers"]} == {taken["way"]}
    for layer in found["layers"]:
        assert layer["op"] == "Convolution"
        assert set(layer["predicted_us"]) == {"cpu", "twin <b>"}
        assert layer["measured_us"] == pytest.approx(sum(s["measured_us"] for s in layer["steps"]), abs=0.05)
        assert layer["algorithm"].startswith("conv-")
    # The concatenation belongs to the last branch that it reads from, so the next block reads from both branches.
    assert [0, 1] in found["edges"]
    assert [0, 2] in found["edges"]
    assert [2, 3] in found["edges"]
    assert {p["way"] for p in found["points"]} == {"cpu", "twin <b>"}
    assert len(found["points"]) == 18
    (graph,) = (t for t in found["tasks"] if not t["device"])
    assert graph["task"] == "graph blocks <&>"
    assert {c["name"]: c["runs"] > 0 for c in graph["candidates"]} == {"cpu": True, "twin <b>": True}
    assert found["tuning"]["schema"] == 1
    assert found["search"]["decided"] + found["search"]["recalled"] == len(found["tasks"])
    json.dumps(found)


def test_what_is_fused_hands_its_prediction_over() -> None:
    """Queries, keys and values of one operand run as one product, two products of attention as one op."""
    ran = (True, True, False, False, False, True)
    layers = [layer(k, measured=10.0 if r else None) for k, r in enumerate(ran)]
    hand_over(layers, {(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 5), (4, 5)})
    assert [la.get("merged_into") for la in layers] == [None, None, 1, 1, 5, None]
    assert [la["predicted_us"] for la in layers] == [{"cpu": 12.0}, {"cpu": 36.0}, {}, {}, {}, {"cpu": 24.0}]


# -- the command --


def run(capsys: Capture, *words: str, code: int = 0) -> tuple[str, str]:
    got = main(list(words))
    out, err = capsys.readouterr()
    assert got == code, err
    return out, err


def test_the_command(model: Path, tmp_path: Path, capsys: Capture) -> None:
    plan, page = tmp_path / "plan.json", tmp_path / "report.html"
    words = ["tune", str(model), "--backends", "cpu", "--budget", "2s", "--shapes", "x=2x8x28x28", "-t", "1"]
    out, err = run(capsys, *words, "-o", str(plan), "--html", str(page), "-v")
    head, *lines = out.splitlines()
    assert head.split()[:3] == ["OP", "ALGORITHM", "BACKEND"]
    assert sum(line.startswith("Convolution") for line in lines) == 9
    assert any(line.startswith("→ cpu ") for line in lines)
    assert re.search(r"^search: [\d.]+ s, \d+ decided in \d+ runs, ", out, re.MULTILINE)
    assert "\r" not in err, "no live line where nobody looks"
    assert re.search(r"^ +[\d.]+ s  \w+ [\d.]+ µs, .*: Convolution f32\[2,.* on cpu$", err, re.MULTILINE)
    results = json.loads(plan.read_text())
    decisions = [r for r in results["records"] if r["decision"]]
    assert decisions
    assert "<title>Tuning of blocks.onnx</title>" in page.read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of it is foreign to a session here
        mnnpy.Session(model, "cpu", threads=1, tuning=plan)
    again = json.loads(run(capsys, *words, "--json")[0])
    assert again["search"]["decided"] == 0
    assert again["search"]["recalled"] == len(decisions)
    assert all(t["earlier"] for t in again["tasks"])


@pytest.mark.parametrize("text, seconds", [("10s", 10), ("500ms", 0.5), ("2min", 120), ("3", 3), (" .5 s", 0.5)])
def test_budgets(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "ten", "1h", "-1s"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="write a time as in 10s"):
        seconds_of(text)


def test_a_terminal_sees_one_line_per_task(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((60, 24)))
    live = Live(type("Args", (), {"quiet": False, "verbose": False})())  # type: ignore[arg-type]
    task = Task("key", "Convolution f32[1,8,28,28]", "cpu")
    for event in (("begun", "direct"), ("measured", "direct", 2e-3), ("measured", "winograd4", 1e-3)):
        live(Event(event[0], task, *event[1:]))  # type: ignore[arg-type]
    live(Event("banned", task, "wrong"))
    live(Event("decided", task, "winograd4", 1e-3))
    live.close()
    written = capsys.readouterr().err
    stays = [line.rpartition("\r")[2].removesuffix("\033[K") for line in written.split("\n")]
    first, second = (s.partition(" s  ")[2] for s in stays[:2])
    assert first == "'wrong' computes something else than the others; banned: Convolution"[:49]
    assert second == "winograd4 1 ms, of 2 in 2 runs: Convolution f32[1,8,28,28] on cpu"[:49]
    assert stays[2:] == [""]
    assert "winograd4 1 ms  direct 2 ms: Convolution" in written
    assert all(len(part.removesuffix("\033[K")) < 60 for line in written.split("\n") for part in line.split("\r"))


def test_explain(model: Path, capsys: Capture) -> None:
    out, _ = run(capsys, "explain", str(model), "-b", "cpu", "-s", "x:1x8x28x28", "-t", "1")
    head, *lines = out.splitlines()
    assert head.split()[:4] == ["PLAN", "OP", "ALGORITHM", "BACKEND"]
    assert sum(" Convolution " in line for line in lines) == 9
    rows = json.loads(run(capsys, "explain", str(model), "--backends", "cpu", "--json")[0])["rows"]
    assert {r["backend"] for r in rows} == {"cpu"}


def test_explain_names_the_other_devices(model: Path) -> None:
    session = mnnpy.Session(model, twins(), threads=1, tune="off")
    found = session.explain({"x": np.ones((1, 8, 28, 28), np.float32)})
    (decision,) = found.decisions
    assert decision["reason"] == "cost model"
    assert re.fullmatch(r"(cpu|twin <b>): cost model \(.* predicted, .* predicted\)", decision["text"])
    assert {r["reason"] for r in found.rows} == {decision["text"]}


# -- drawing --


def test_times_for_people() -> None:
    assert [duration(us) for us in (None, 0.4, 12.34, 999.4, 1500, 2.5e6)] == [
        "", "0.4 µs", "12.3 µs", "999 µs", "1.5 ms", "2.5 s",
    ]  # fmt: skip


def test_sections_hold_every_layer_once_and_in_order() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 5, 90):
        edges = [[int(rng.integers(0, k)), k] for k in range(1, count) for _ in range(2)]
        where = ranks(count, edges)
        assert all(where[a] < where[b] for a, b in edges)
        parts = sections(count, edges)
        flat = [k for rows in parts for row in rows for k in row]
        assert sorted(flat) == list(range(count))
        assert [where[k] for k in flat] == sorted(where)
        assert all(len(row) <= LANES for rows in parts for row in rows)
        assert all(0 < len(rows) <= TALL for rows in parts)


def layer(number: int, backend: str = "cpu", measured: float | None = 10.0) -> dict[str, Any]:
    steps = [] if measured is None else [{"op": "MatMul", "algorithm": "a", "measured_us": measured}]
    return {
        "id": number, "op": "MatMul", "node": f"n{number}", "ops": ["MatMul"], "backend": backend, "shape": "f32[4]",
        "predicted_us": {backend: 12.0}, "measured_us": measured, "alone_us": None, "why": "", "reason": "</script>",
        "algorithm": "a", "steps": steps,
    }  # fmt: skip


def test_a_large_graph_is_mostly_closed() -> None:
    layers = [layer(k, "cpu" if k < 100 else "opencl") for k in range(200)]
    text = drawing(layers, [[k - 1, k] for k in range(1, 200)], {"cpu": 0, "opencl": 1})
    assert text.count('<g class="layer k0"') == text.count('<g class="layer k1"') == 100
    assert text.count("<details open>") == 6
    assert text.count("<details>") == -(-200 // TALL) - 6
    assert "&lt;/script&gt;" in text
    assert "</script>" not in text


def test_points_lie_where_their_times_are() -> None:
    points = [
        {"op": "MatMul", "node": "n", "way": "cpu", "backend": "cpu", "predicted_us": p, "measured_us": m}
        for p, m in ((10.0, 10.0), (100.0, 50.0), (10.0, 12.0))
    ]
    assert errors(points) == pytest.approx([0.0, 1 / 6, 1.0])
    text = scatter(points, {"cpu": 0})
    (x, y), (x2, y2), _ = (
        (float(a), float(b)) for a, b in re.findall(r'<circle class="mark" cx="([\d.]+)" cy="([\d.]+)"', text)
    )
    assert x2 > x
    assert y2 < y, "up is more"
    line = re.search(r'<path class="same" d="M([\d.]+) ([\d.]+)L', text)
    assert line is not None
    assert (x, y) == (float(line[1]), float(line[2])), "on the line, at its lower end"
    assert "2 lie within 25 %, the median error is 17 %" in text


def test_time_by_op() -> None:
    layers = [layer(0), layer(1, "opencl", 30.0), layer(2, measured=None)]
    assert op_rows(layers) == [("MatMul", 2, 40.0, {"cpu": 10.0, "opencl": 30.0})]


# -- the page --


class Outline(HTMLParser):
    """Tags that stand open in the end, headings, tables with captions, marks with labels, and what is loaded."""

    VOID = frozenset({"meta", "link", "br", "path", "circle", "rect", "polygon"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_the_page_is_sound(found: dict[str, Any]) -> None:
    text = html_page(found)
    page = Outline(text)
    assert page.stack == []
    tags = [t for t, _ in page.found]
    assert tags.count("h1") == 1
    assert tags.count("h2") == 6
    assert tags.count("table") == tags.count("caption") == 5
    for tag, attrs in page.found:
        assert not {"src", "srcset", "action"} & set(attrs), "nothing is loaded"
        assert tag != "link" or attrs["href"] == "data:,"
        if "data-tip" in attrs:
            assert attrs["aria-label"]
            assert "tabindex" in attrs
    assert "http" not in text.replace("http-equiv", "")
    assert "Tuning of blocks.onnx" in text
    assert html.escape("blocks <&>") in text
    assert "<b>:" not in text
    assert "twin <b>" not in text, "names are escaped"


PROBE = """<script>
const seen = {};
window.addEventListener("error", (e) => { seen.error = String(e.message); });
window.addEventListener("load", () => {
  const root = document.documentElement, q = (s) => document.querySelectorAll(s);
  seen.width = window.innerWidth;
  seen.overflow = root.scrollWidth - window.innerWidth;
  seen.boxes = q(".flow .layer").length;
  seen.points = q("#scatter .point").length;
  seen.tables = q("table").length;
  seen.small = Math.min(...[...q("svg text")].map((t) => t.getBoundingClientRect().height).filter((h) => h));
  const tip = document.getElementById("tip"), shown = () => !tip.hidden && tip.textContent;
  seen.before = shown();
  q(".flow .layer")[1].dispatchEvent(new Event("click", { bubbles: true }));
  seen.layer = shown();
  const at = tip.getBoundingClientRect();
  seen.inside = at.left >= 0 && at.right <= window.innerWidth && at.bottom <= window.innerHeight;
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  seen.closed = tip.hidden;
  q("#scatter .point")[0].dispatchEvent(new Event("pointerover", { bubbles: true }));
  seen.point = shown();
  q("[data-open='0']")[0].click();
  seen.open = q(".flow details[open]").length;
  const head = [...q("#layers th")].find((h) => h.textContent === "Measured");
  head.querySelector("button").click();
  seen.sorted = [...q("#layers tbody tr")].map((r) => +r.cells[head.cellIndex].dataset.v);
  seen.order = head.getAttribute("aria-sort");
  const out = parent.document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  parent.document.body.append(out);
});
</script>"""


def browse(text: str, folder: Path, width: int) -> tuple[str, str]:
    """A page in a frame of some width (windows have a least one), after its scripts ran, and what the browser said."""
    assert CHROMIUM is not None
    page = folder / "frame.html"
    size = f'width="{width}" height="844"'
    page.write_text(f'<!doctype html><body><iframe {size} srcdoc="{html.escape(text, quote=True)}"></iframe></body>')
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-extensions",
             "--enable-logging=stderr", "--window-size=1400,1000", f"--user-data-dir={folder}/profile",
             "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in the PATH")
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(found: dict[str, Any], tmp_path: Path, width: int) -> None:
    dom, log = browse(html_page(found).replace("</body>", PROBE + "</body>"), tmp_path, width)
    assert "CONSOLE" not in log
    match = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert match is not None, log
    seen = json.loads(html.unescape(match[1]))
    assert "error" not in seen
    assert seen["width"] == width
    assert seen["overflow"] <= 0, "the page itself does not scroll sideways"
    assert seen["boxes"] == len(found["layers"])
    assert seen["points"] == len(found["points"])
    assert seen["tables"] == 5
    assert seen["small"] >= 9, "text in drawings stays readable"
    assert seen["before"] is False
    assert f"2. Convolution on {found['layers'][1]['backend']}" in seen["layer"]
    assert "f0.one" in seen["layer"]
    assert "predicted" in seen["layer"]
    assert "measured" in seen["layer"]
    assert seen["inside"]
    assert seen["closed"]
    assert "Convolution on" in seen["point"]
    assert seen["open"] == 0
    assert seen["order"] == "descending"
    assert seen["sorted"] == sorted((la["measured_us"] for la in found["layers"]), reverse=True)


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def ratio(one: str, other: str) -> float:
    """Contrast of two colours (WCAG 2.2)."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_both_themes() -> None:
    """Text at 4.5 to 1 and coloured marks at 3 to 1 against what they lie on (WCAG 2.2, 1.4.3 and 1.4.11)."""
    style = (Path(mnnpy.__file__).parent / "tuning" / "page.css").read_text()
    themes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", part)) for part in style.split("@media")[:2]]
    assert len(themes) == 2
    for theme in themes:
        for under in ("paper", "panel"):
            assert all(ratio(theme[name], theme[under]) >= 4.5 for name in ("ink", "soft"))
            assert all(ratio(theme[f"c{k}"], theme[under]) >= 3 for k in range(6))
