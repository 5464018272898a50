"""Engines that ``compare``, ``bench`` and ``demo`` put side by side: mnnpy on a backend, or onnxruntime."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mnnpy.errors import BackendUnavailableError, InputError
from mnnpy.graph.ir import Graph, Value
from mnnpy.options import Options
from mnnpy.session import Session, load_graph

__all__ = ["ORT", "Difference", "Engine", "MnnpyEngine", "OrtEngine", "difference", "has_onnxruntime", "open_engine"]

Array = NDArray[Any]

#: The name under which onnxruntime is an engine.
ORT = "onnxruntime"


class Engine(Protocol):
    """Something that runs a model."""

    name: str

    def run(self, feeds: Mapping[str, Any]) -> list[Any]: ...

    def values(self, feeds: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Intermediate values by name, as far as the engine knows them."""
        ...


class MnnpyEngine:
    """mnnpy on one backend."""

    def __init__(self, model: Any, backend: str, options: Options) -> None:
        self.name, self._backend, self._options = backend, backend, options
        self.graph: Graph = load_graph(model)
        self.session = Session(self.graph, backend, options)

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        return self.session.run(None, feeds)

    def values(self, feeds: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        known = {o for n in self.graph.nodes for o in n.outputs if o}
        wanted = [n for n in names if n in known]
        outputs = tuple(Value(n, self.graph.types.get(n)) for n in wanted)
        session = Session(self.graph.replace(outputs=outputs), self._backend, self._options)
        return dict(zip(wanted, session.run(None, feeds), strict=True))


class OrtEngine:
    """onnxruntime's CPU provider."""

    name = ORT

    def __init__(self, model: str | Path, threads: int) -> None:
        if not has_onnxruntime():
            raise BackendUnavailableError("onnxruntime is not installed; pip install onnxruntime to compare with it")
        if Path(model).suffix == ".mnnpy":
            raise InputError(f"{model}: onnxruntime reads .onnx files; give the ONNX file it was converted from")
        self._model, self._threads = Path(model), threads
        self._session = self._open(str(model))

    def _open(self, model: str | bytes) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Its idle threads would otherwise spin for some 40 ms after a run, and slow down the engine whose turn is next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._threads:
            options.intra_op_num_threads = self._threads
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        results: list[Any] = self._session.run(None, dict(feeds))
        return results

    def values(self, feeds: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        import onnx

        model = onnx.load(self._model)
        known = {o for n in model.graph.node for o in n.output}
        declared = {o.name for o in model.graph.output}
        wanted = [n for n in names if n in known]
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in declared)
        session = self._open(model.SerializeToString())
        return dict(zip(wanted, session.run(wanted, dict(feeds)), strict=True))


def has_onnxruntime() -> bool:
    """Whether onnxruntime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def open_engine(name: str, args: argparse.Namespace, options: Options) -> Engine:
    """The engine called *name* with the model of the command line."""
    if name == ORT:
        return OrtEngine(args.model, options.threads)
    return MnnpyEngine(args.model, name, options)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two values are apart: *relative* is the largest difference over the largest wanted magnitude."""

    absolute: float
    relative: float
    problem: str = ""  #: where the two cannot be compared: shapes, dtypes, kinds

    def fits(self, tolerance: float) -> bool:
        return not self.problem and self.relative <= tolerance


def difference(got: Any, wanted: Any) -> Difference:
    """Compare two results; NaN and infinities must be in the same places."""
    if isinstance(wanted, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(wanted):
            return Difference(np.inf, np.inf, "sequences of different length")
        parts = [difference(g, w) for g, w in zip(got, wanted, strict=True)]
        return max(parts, key=lambda d: (d.problem != "", d.relative), default=Difference(0.0, 0.0))
    if got is None or wanted is None:
        return Difference(0.0, 0.0) if got is wanted else Difference(np.inf, np.inf, "only one of them is absent")
    a, b = np.asarray(got), np.asarray(wanted)
    if a.shape != b.shape:
        return Difference(np.inf, np.inf, f"shape {a.shape} instead of {b.shape}")
    if b.dtype.kind in "OUS":
        same = [str(x) for x in a.ravel()] == [str(x) for x in b.ravel()]
        return Difference(0.0, 0.0) if same else Difference(np.inf, np.inf, "texts differ")
    if a.size == 0:
        return Difference(0.0, 0.0)
    wide = np.complex128 if b.dtype.kind == "c" else np.float64
    x, y = a.astype(wide), b.astype(wide)
    finite = np.isfinite(y)
    if not np.array_equal(finite, np.isfinite(x)) or not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return Difference(np.inf, np.inf, "NaN or infinity in different places")
    if not finite.any():
        return Difference(0.0, 0.0)
    worst = float(np.abs(x[finite] - y[finite]).max())
    scale = float(np.abs(y[finite]).max())
    return Difference(worst, worst / scale if scale else (0.0 if worst == 0 else np.inf))
