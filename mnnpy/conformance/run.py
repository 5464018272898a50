"""Runs cases of the atomic table on a target and judges the results against the reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mnnpy.backends.base import Device, NodeView, Program, Segment
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.conformance.cases import Case
from mnnpy.conformance.expectations import Expectations
from mnnpy.conformance.guards import GuardDriver, GuardError, fenced, intact
from mnnpy.conformance.targets import Target
from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.lower import view_of
from mnnpy.decompose.raster import Region, row_major
from mnnpy.errors import MnnpyError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, Value, tensor_type_of
from mnnpy.options import OPTIMIZATIONS

__all__ = ["STATUSES", "Result", "Runner", "judge", "prepare", "run_table"]

#: Every status a result may have. ``unsupported`` is permanent and has a reason; ``xfailed`` is a listed failure that
#: is to go away, ``xpassed`` one that did go away and must leave the list. ``failed`` and ``xpassed`` fail a run.
STATUSES = ("passed", "failed", "unsupported", "xfailed", "xpassed", "skipped", "supported")

#: Allowed error over the output's largest value: the tier ``normal`` for f32, two units in the last place for others.
TOLERANCE = {DType.F16: 2e-3, DType.BF16: 1.6e-2, DType.F32: 3e-5, DType.F64: 1e-11}
#: Allowed relative error of each element of element-wise ops, in units of the last place.
ULPS = {DType.F16: 2.0, DType.BF16: 2.0, DType.F32: 64.0, DType.F64: 1024.0}
_MANTISSA = {DType.F16: 10, DType.BF16: 7, DType.F32: 23, DType.F64: 52}


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one case on one target."""

    name: str  #: ``op[params]-backend``
    op: str
    dtype: str
    layout: str
    suite: str
    backend: str
    label: str
    status: str
    reason: str = ""
    where: str = ""  #: ``device``, ``host`` (an op ran on the reference), or empty
    error: float | None = None  #: largest difference over the largest value
    element_error: float | None = None  #: largest difference of an element over its own value
    guards: str = ""  #: what guard bytes lay around: ``every buffer``, ``operands``, ``inputs`` or nothing
    seconds: float = 0.0
    measured: float | None = None  #: seconds of one run (mode perf)

    def row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Prepared:
    """A case as a segment: what is fed, what must come out."""

    graph: Graph
    feeds: list[Array]
    wanted: list[Array]


def prepare(case: Case) -> Prepared:
    """The segment of a case with its operands, and the reference's results."""
    feeds = case.feeds()
    wanted = [np.asarray(w) for w in evaluate(case.op, feeds, case.attrs)]
    names = tuple("" if f is None else f"x{k}" for k, f in enumerate(feeds))
    outs = tuple(f"y{k}" for k in range(len(wanted)))
    arrays = {n: f for n, f in zip(names, feeds, strict=True) if f is not None}
    types: dict[str, Any] = {n: tensor_type_of(a) for n, a in (*arrays.items(), *zip(outs, wanted, strict=True))}
    nodes = [Node(case.op, names, outs, case.attrs, "case")]
    constants: dict[str, Array] = {}
    if case.layout == "constant":
        constants = {n: arrays.pop(n) for n in list(arrays)[1:]}
    elif case.layout == "behind":
        source = np.ascontiguousarray(arrays["x0"].T)
        node, types["t"] = _transposition("t", "x0", source), tensor_type_of(source)
        nodes.insert(0, node)
        arrays = {"t": source, **{n: a for n, a in arrays.items() if n != "x0"}}
    elif case.layout == "before":
        nodes.append(_transposition("y0", "z", wanted[0]))
        wanted = [np.ascontiguousarray(wanted[0].T), *wanted[1:]]
        outs = ("z", *outs[1:])
        types["z"] = tensor_type_of(wanted[0])
    inputs = tuple(Value(n, types[n]) for n in arrays)
    outputs = tuple(Value(n, types[n]) for n in outs)
    return Prepared(Graph("case", inputs, outputs, tuple(nodes), constants, types), list(arrays.values()), wanted)


def _transposition(source: str, target: str, array: Array) -> Node:
    """A raster that reverses the axes of *source*, which holds *array*."""
    shape = array.shape[::-1]
    region = Region(0, shape, 0, tuple(reversed(row_major(array.shape))), 0, row_major(shape))
    return Node("Raster", (source,), (target,), {"regions": (region,), "shape": shape, "fill": None}, "transpose")


def judge(case: Case, got: Sequence[Any], wanted: Sequence[Array]) -> tuple[str, float, float]:
    """(what is wrong, or empty; max-normalised error; element-wise error) over all outputs."""
    if len(got) != len(wanted):
        return f"{len(got)} outputs instead of {len(wanted)}", np.inf, np.inf
    worst = elements = 0.0
    for k, (g, w) in enumerate(zip(got, wanted, strict=True)):
        problem, error, element = _judge(case, np.asarray(g), w)
        if problem:
            return f"output {k}: {problem}", error, element
        worst, elements = max(worst, error), max(elements, element)
    return "", worst, elements


def _judge(case: Case, g: Array, w: Array) -> tuple[str, float, float]:
    if g.shape != w.shape or g.dtype != w.dtype:
        return f"{g.dtype}{list(g.shape)} instead of {w.dtype}{list(w.shape)}", np.inf, np.inf
    if not w.size:
        return "", 0.0, 0.0
    dtype = DType.of(w.dtype)
    if case.rule == "shape":
        low, high = (0.0, 1.0) if case.attrs["fn"] == "Uniform" else (-10.0, 10.0)
        return ("" if ((g >= low) & (g <= high)).all() and g.min() < g.max() else "values out of range"), 0.0, 0.0
    if not dtype.is_float or dtype not in TOLERANCE:
        a, b = (g, w) if not dtype.is_float else (g.astype(np.float32), w.astype(np.float32))
        differ = (a != b) & ~((a != a) & (b != b))
        return (
            f"{np.count_nonzero(differ)} of {w.size} elements differ{_first(differ, g, w)}" if differ.any() else "",
            0.0,
            0.0,
        )
    a, b = g.astype(np.float64), w.astype(np.float64)
    if case.rule != "exact" and (limit := _largest(dtype)):
        # A value that rounds to infinity in one order of operations may just not do so in another.
        a, b = (np.where(np.isinf(v) & np.isfinite(o) & (np.abs(o) > 0.999 * limit), o, v) for v, o in ((a, b), (b, a)))
    strange = (np.isnan(a) != np.isnan(b)) | (np.isinf(b) | np.isinf(a)) & (a != b) & ~np.isnan(b)
    if strange.any():
        return f"{np.count_nonzero(strange)} NaN or infinities differ{_first(strange, g, w)}", np.inf, np.inf
    finite = np.isfinite(b)
    difference, size = np.abs(a[finite] - b[finite]), np.abs(b[finite])
    if not difference.size:
        return "", 0.0, 0.0
    top = max(float(size.max()), 1e-30)
    error = float(difference.max()) / top
    element = float((difference / np.maximum(size, np.finfo(np.float32).tiny)).max())
    unit = 2.0 ** -_MANTISSA[dtype]
    if case.rule == "exact":
        bad = difference > 0
    elif case.rule == "element":
        bad = difference > ULPS[dtype] * unit * np.maximum(size, min(1.0, top))
    else:
        bad = difference > TOLERANCE[dtype] * max(top, _scale(case))
    if not bad.any():
        return "", error, element
    place = np.zeros(b.shape, bool)
    place[finite] = bad
    return (
        f"{np.count_nonzero(bad)} of {w.size} elements differ, error {error:.2e} of the largest{_first(place, g, w)}",
        error,
        element,
    )


def _scale(case: Case) -> float:
    """Sums of few random terms may nearly cancel: their error is that of the terms."""
    return 0.0 if case.op in ("Pool", "Random") else 1.0


def _largest(dtype: DType) -> float:
    return {DType.F16: 65504.0, DType.BF16: 3.38e38, DType.F32: 3.4e38}.get(dtype, 0.0)


def _first(where: Array, g: Array, w: Array) -> str:
    at = tuple(int(i) for i in np.argwhere(where)[0])
    return f"; first at {list(at)}: {g[at]} instead of {w[at]}"


class Runner:
    """Runs cases on one target, with guard bytes unless told otherwise; keeps the device and its kernels."""

    def __init__(self, target: Target, expectations: Expectations | None = None, *, guards: bool = True) -> None:
        self.target = target
        self.expectations = expectations or Expectations()
        self.guards = guards
        self.device: Device = target.device
        self._guard: GuardDriver | None = None
        if guards and isinstance(target.device, KernelDevice):
            self._guard = GuardDriver(target.device.driver)
            self.device = KernelDevice(target.info, self._guard)

    def run(self, case: Case) -> Result:
        """Run one case; never raises for what a backend does wrong."""
        begin = time.perf_counter()
        name = f"{case.name}-{self.target.name}"
        listed = self.expectations.unsupported(name)
        found: dict[str, Any]
        if listed:
            found = {"status": "unsupported", "reason": listed}
        else:
            try:
                found = self._run(case)
            except GuardError as error:
                found = {"status": "failed", "reason": f"guard bytes: {error}"}
            except MnnpyError as error:
                found = {"status": "failed", "reason": f"{type(error).__name__}: {str(error)[:600]}"}
            except Exception as error:
                found = {"status": "failed", "reason": f"crash: {type(error).__name__}: {str(error)[:600]}"}
            found = self.expectations.applied(name, found)
        seconds = time.perf_counter() - begin
        return Result(
            name, case.op, str(case.dtype), case.layout, "atomic", self.target.name, self.target.label,
            seconds=round(seconds, 6), **found,
        )  # fmt: skip

    def declined(self, graph: Graph) -> str:
        """Why the device does not take the segment; empty where it does."""
        for node in graph.nodes:
            view: NodeView = view_of(node, graph.types, graph.constants)
            support = self.device.supports(view)
            if not support:
                return support.reason or "no reason given"
        return ""

    def program(self, graph: Graph) -> Program:
        """The compiled segment."""
        return self.device.compile(Segment(graph, threads=1, optimize=OPTIMIZATIONS))

    def supports(self, case: Case) -> Result:
        """Whether the device would take the case, without running it (mode support)."""
        reason = self.declined(prepare(case).graph)
        status = "unsupported" if reason else "supported"
        name = f"{case.name}-{self.target.name}"
        return Result(
            name, case.op, str(case.dtype), case.layout, "atomic", self.target.name, self.target.label, status, reason
        )

    def _run(self, case: Case) -> dict[str, Any]:
        ready = prepare(case)
        reason = self.declined(ready.graph)
        if reason:
            return {"status": "unsupported", "reason": reason}
        program = self.program(ready.graph)
        try:
            got, guards, problem = self._call(program, ready)
        finally:
            getattr(program, "close", lambda: None)()
        if problem:
            return {"status": "failed", "reason": problem, "guards": guards}
        problem, error, element = judge(case, got, ready.wanted)
        status = "failed" if problem else "passed"
        return {
            "status": status,
            "reason": problem,
            "where": "device",
            "error": error,
            "element_error": element,
            "guards": guards,
        }

    def _call(self, program: Program, ready: Prepared) -> tuple[list[Any], str, str]:
        """(results, what was guarded, what the guards saw)."""
        if not self.guards:
            return program.run(ready.feeds), "", ""
        if self._guard is not None:
            return program.run(ready.feeds), "every buffer", ""
        inputs = [fenced(f) for f in ready.feeds]
        into = getattr(program, "run_into", None)
        blocks = list(inputs)
        if into is not None:
            outputs = [fenced(np.zeros_like(w)) for w in ready.wanted]
            blocks += outputs
            into([a for a, _ in inputs], [a for a, _ in outputs])
            got = [a for a, _ in outputs]
        else:
            got = program.run([a for a, _ in inputs])
        problem = ""
        for k, (array, block) in enumerate(blocks):
            kind, number = ("input", k) if k < len(inputs) else ("output", k - len(inputs))
            if not intact(array, block):
                problem = f"guard bytes around {kind} {number} were overwritten"
            elif kind == "input" and array.tobytes() != ready.feeds[k].tobytes():
                problem = f"input {number} was changed"
        return got, "operands" if into is not None else "inputs", problem


def run_table(
    runner: Runner,
    cases: Iterable[Case],
    *,
    support: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Results of all cases in order."""
    chosen = list(cases)
    results = []
    for k, case in enumerate(chosen):
        results.append(runner.supports(case) if support else runner.run(case))
        if progress is not None:
            progress(k + 1, len(chosen))
    return results
