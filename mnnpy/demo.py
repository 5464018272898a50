"""The demo: three trained PP-OCR networks read a picture, on every usable backend.

The networks are those that the ``rapidocr`` wheel ships (``pip install --no-deps rapidocr``; only its model files are
used).
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import mnnpy
from mnnpy.cli.engines import ORT, Difference, Engine, MnnpyEngine, OrtEngine, difference, has_onnxruntime
from mnnpy.errors import ModelError
from mnnpy.options import Options

if TYPE_CHECKING:
    from PIL import Image

    from mnnpy.ocr import Line

__all__ = ["MODELS", "DemoReport", "EngineResult", "draw_picture", "model_paths", "run_demo"]

Array = NDArray[Any]

#: Role → file in the wheel.
MODELS = {
    "detection": "PP-OCRv6_det_small.onnx",
    "direction": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "recognition": "PP-OCRv6_rec_small.onnx",
}
#: Allowed difference of network outputs, relative to the largest value.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class EngineResult:
    """One engine on all network calls of the demo: median milliseconds, and how far off its results are."""

    engine: str
    milliseconds: float
    difference: float
    verdict: str


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What was read, and how the engines did."""

    lines: list[Line]
    engines: list[EngineResult]
    agree: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "lines": [asdict(line) for line in self.lines],
            "engines": [asdict(engine) for engine in self.engines],
            "agree": self.agree,
        }


def model_paths() -> dict[str, Path]:
    """Role → model file of the installed wheel; raises ModelError with the remedy."""
    spec = importlib.util.find_spec("rapidocr")
    folders = [Path(f) / "models" for f in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        paths = {role: folder / file for role, file in MODELS.items()}
        if all(p.is_file() for p in paths.values()):
            return paths
    where = (
        f"{folders[0]} lacks some of {', '.join(MODELS.values())}" if folders else "the rapidocr wheel is not installed"
    )
    raise ModelError(f"no OCR models: {where}; run: pip install --no-deps 'rapidocr>=3.10'")


def draw_picture() -> Image.Image:
    """A picture with a few lines of text, one of them slanted and one upside down."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (800, 480), "#fbf8f0")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 800, 74), fill="#1f3a5f")
    for x, y, size, colour, text in (
        (32, 16, 34, "#ffffff", "mnnpy: one model, every accelerator"),
        (40, 104, 26, "#222222", "Convolution, MatMul, Raster, Reduce"),
        (40, 160, 22, "#a02020", "Total: 1,234.56 EUR (19 % VAT)"),
        (40, 212, 20, "#205020", "Order no. 2024-0815 / shipped by rail"),
    ):
        draw.text((x, y), text, fill=colour, font=ImageFont.load_default(size))
    for text, size, turn, place in (
        ("slanted lines are read as well", 26, 12.0, (300, 235)),
        ("and so is text on its head", 26, 180.0, (40, 400)),
    ):
        font = ImageFont.load_default(size)
        left, top, right, bottom = font.getbbox(text)
        label = Image.new("L", (int(right - left) + 16, int(bottom - top) + 16))
        ImageDraw.Draw(label).text((8 - left, 8 - top), text, fill=255, font=font)
        label = label.rotate(turn, expand=True, resample=Image.Resampling.BICUBIC)
        picture.paste("#303060", place, label)
    return picture


def run_demo(
    picture: Path | None,
    output: Path,
    backends: Sequence[str] = (),
    *,
    threads: int = 0,
    repeat: int = 3,
    log: Callable[[str], None] = lambda _: None,
) -> DemoReport:
    """Read *picture* (or a drawn one), write it with the found lines marked to *output*, and compare engines.

    The first backend reads the picture; the calls of its networks are recorded and replayed on the others.
    *backends* are names of mnnpy backends or ``onnxruntime``; by default all usable ones.
    """
    if importlib.util.find_spec("PIL") is None:
        raise ModelError("the demo draws and reads pictures with Pillow: pip install 'mnnpy-engine[demo]'")
    from PIL import Image

    paths = model_paths()
    names = list(backends) or _usable()
    image = Image.open(picture).convert("RGB") if picture else draw_picture()
    engines: dict[str, dict[str, Engine]] = {}
    for name in names:
        log(f"loading three networks on {name}")
        engines[name] = {role: _open(path, name, threads) for role, path in paths.items()}
    lines, calls = _read(image, paths, engines[names[0]])
    _annotate(image, lines).save(output)
    right = ORT if ORT in names else "reference" if "reference" in names else names[0]
    log(f"replaying {len(calls)} network calls on {', '.join(names)}")
    wanted = [engines[right][role].run(feeds)[0] for role, feeds in calls]
    results = [
        _replay(name, engines[name], calls, wanted, right, 1 if name == "reference" else repeat + 1) for name in names
    ]
    return DemoReport(lines, results, all(not r.verdict.startswith("DIFFERS") for r in results))


def _usable() -> list[str]:
    """Usable backends that compute, cpu first; and onnxruntime if it is installed."""
    found = dict.fromkeys(d.backend for d in mnnpy.backends() if d.available and d.backend != "null")
    names = sorted(found, key=lambda n: (n == "reference", n != "cpu", n))
    return [*names, ORT] if has_onnxruntime() else names


def _open(path: Path, name: str, threads: int) -> Engine:
    if name == ORT:
        return OrtEngine(path, threads)
    return MnnpyEngine(path, name, Options(threads=threads))


Calls = list[tuple[str, dict[str, Array]]]


def _read(image: Image.Image, paths: dict[str, Path], engines: dict[str, Engine]) -> tuple[list[Line], Calls]:
    """Read with recording networks; returns the lines and every network call as (role, feeds)."""
    from mnnpy.ocr import Network, Reader

    calls: Calls = []

    def network(role: str) -> Network:
        def call(x: Array) -> Array:
            calls.append((role, {"x": x}))
            return np.asarray(engines[role].run({"x": x})[0])

        return call

    reader = Reader(
        network("detection"), network("direction"), network("recognition"), _characters(paths["recognition"])
    )
    return reader.read(image), calls


def _characters(path: Path) -> list[str]:
    """The recogniser's classes, from the metadata of its file."""
    import onnx

    for entry in onnx.load(path, load_external_data=False).metadata_props:
        if entry.key == "character":
            return str(entry.value).split("\n")
    raise ModelError(f"'{path}' has no 'character' entry in its metadata: it is no PP-OCR recognition model")


def _replay(
    name: str, engines: dict[str, Engine], calls: Calls, wanted: list[Array], right: str, repeat: int
) -> EngineResult:
    """Time all calls on one engine, and compare its results with *wanted*."""
    worst, same_text = Difference(0.0, 0.0), True
    samples = []
    for k in range(repeat):
        seconds = 0.0
        for (role, feeds), want in zip(calls, wanted, strict=True):
            start = time.perf_counter()
            got = np.asarray(engines[role].run(feeds)[0])
            seconds += time.perf_counter() - start
            if k == 0:
                worst = max(worst, difference(got, want), key=lambda d: (d.problem != "", d.relative))
                if role == "recognition" and not worst.problem:
                    same_text &= bool(np.array_equal(_path(got), _path(want)))
        samples.append(seconds)
    verdict = _verdict(name, right, worst, same_text)
    return EngineResult(name, 1e3 * median(samples[1:] or samples), worst.relative, verdict)


def _path(probabilities: Array) -> Array:
    best: Array = probabilities.argmax(axis=-1)
    return best


def _verdict(name: str, right: str, worst: Difference, same_text: bool) -> str:
    if name == right:
        return "what the others are compared with"
    if not worst.fits(TOLERANCE):
        return f"DIFFERS {worst.problem}".rstrip()
    return "same text" if same_text else "DIFFERS in the text"


def _annotate(image: Image.Image, lines: list[Line]) -> Image.Image:
    """The picture with boxes, and beside it what was read at the same height."""
    from PIL import Image, ImageDraw, ImageFont

    out = Image.new("RGB", (2 * image.width, image.height), "white")
    out.paste(image, (0, 0))
    draw = ImageDraw.Draw(out)
    last = -100.0
    for line in lines:
        draw.polygon(line.corners, outline="#e03030", width=2)
        height = float(np.hypot(*np.subtract(line.corners[3], line.corners[0])))
        size = max(12.0, min(0.7 * height, 1.7 * image.width / max(8, len(line.text))))
        font = ImageFont.load_default(size)
        last = max(last, min(y for _, y in line.corners))
        draw.text((image.width + 16, last), line.text, fill="black", font=font)
        last += size + 4
        note = f"{100 * line.score:.1f} %"
        draw.text((image.width + 16, last), note, fill="#808080", font=ImageFont.load_default(11))
        last += 14
    return out
