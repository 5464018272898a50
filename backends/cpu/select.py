"""Chooses an algorithm for every product and convolution: forced, from records, by measuring, or by the cost model.

Candidates are what ``algorithms.TABLE`` offers, the precision allows and the native factory accepts. The cost model
ranks them. Where several are close and the layer matters, the real kernels are measured, once per distinct layer, those
layers first where most time is at stake; decisions are kept on disk per machine and build. With ``precision="high"``
there is nothing to choose: direct algorithms only. With ``precision="low"`` products and convolutions carry that
attribute too, and f32 algorithms stay candidates, as they may be faster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from math import inf, isfinite, isnan, nan
from typing import Any

import numpy as np

from mnnpy.backends.base import Candidate, NodeView
from mnnpy.backends.cpu import _native
from mnnpy.backends.cpu.algorithms import TABLE, Algorithm, selectable
from mnnpy.backends.cpu.calibrate import calibrated, peaks
from mnnpy.backends.cpu.machine import fingerprint
from mnnpy.classes import dataclass, field
from mnnpy.graph.ir import Graph, Node, TensorType
from mnnpy.search.agree import wrong
from mnnpy.search.buckets import ALIKE, buckets, nearest
from mnnpy.search.cost import Peaks, bound, predict
from mnnpy.search.measure import measure, now
from mnnpy.search.observe import Observer, Task, teller
from mnnpy.search.records import Record, Records
from mnnpy.store import cache_folder

__all__ = ["Choice", "accepted", "family", "records", "select_algorithms"]

#: Ops beside those of the table whose kernels use bf16 products with precision="low" where they can.
LOW = frozenset({"FusedAttention", "LSTM", "GRU", "RNN"})
#: Seconds of a layer below which its algorithm is left to the cost model without measuring.
MATTERS = 20e-6
#: Candidates predicted to take this much longer than the best one are not measured.
SHORTLIST = 1.6
#: Share of the budget that one layer may use up.
SHARE = 0.5
#: Budgets after which a measurement that began is cut short.
LATE = 1.5
#: Seconds more that the first layers of a small budget get.
GRACE = 0.25
MEASURED = "fastest measured"
#: An algorithm that rounds more than the direct one must be this much faster to be taken.
GAIN = 1.03


@dataclass(frozen=True, slots=True)
class Choice:
    """The algorithm of one node and why; seconds, *measured* only where it was."""

    algorithm: str
    reason: str
    predicted: float | None  #: None where there was nothing to compare with
    measured: float | None = None
    candidates: tuple[str, ...] = ()
    final: bool = True  #: False where time ran out: another session will measure
    key: str = ""  #: of the record that it rests on
    open: bool = False  #: whether it would be measured if there were time


@cache
def records() -> Records:
    """The records of this machine's CPU."""
    return Records(fingerprint(), cache_folder() / "cpu.jsonl")


_accepted: dict[tuple[str, str], bool] = {}


def accepted(view: NodeView, algorithm: str, isa: str) -> bool:
    """Whether a native kernel of *isa* takes *view* with this algorithm; asked once per kind of node."""
    node = view.node
    key = (_key(view, 0, isa), algorithm)
    known = _accepted.get(key)
    if known is None:
        attrs = {**node.attrs, "algorithm": algorithm}
        if len(node.inputs) > 1 and node.inputs[1] in view.constants:
            attrs["weights"] = "constant"
        inputs, outputs = _descriptions(view.inputs), _descriptions(view.outputs)
        if len(_accepted) > 1 << 16:
            _accepted.clear()
        known = _accepted[key] = bool(_native.supports(node.op, attrs, inputs, outputs, isa)[0])
    return known


def _descriptions(types: Iterable[TensorType | None]) -> list[tuple[str, tuple[Any, ...]] | None]:
    return [None if t is None else (str(t.dtype), tuple(t.shape or ())) for t in types]


def _key(view: NodeView, threads: int, isa: str) -> str:
    """All that the time of a layer depends on."""
    node = view.node
    attrs = {k: v for k, v in sorted(node.attrs.items()) if k not in ("algorithm", "weight_scale")}
    constant = [k for k, n in enumerate(node.inputs) if n in view.constants]
    types = [str(t) for t in (*view.inputs, *view.outputs)]
    return json.dumps([node.op, attrs, types, constant, threads, isa], separators=(",", ":"), default=str)


def _sizes(view: NodeView, threads: int, isa: str) -> tuple[str, tuple[int, ...]]:
    """A layer without its sizes, and the buckets of these; the weights belong to the layer."""
    node = view.node
    attrs = {k: v for k, v in sorted(node.attrs.items()) if k not in ("algorithm", "weight_scale")}
    fixed = [n in view.constants for n in node.inputs]
    weights = [str(t) for t, f in zip(view.inputs, fixed, strict=True) if f]
    rest = [t for t, f in zip(view.inputs, fixed, strict=True) if not f and t is not None]
    rest += [t for t in view.outputs if t is not None]
    ranks = [(str(t.dtype), len(t.shape or ())) for t in rest]
    kind = json.dumps([node.op, attrs, weights, fixed, ranks, threads, isa], separators=(",", ":"), default=str)
    return kind, buckets(t.shape or () for t in rest)


def select_algorithms(
    graph: Graph,
    precision: str,
    threads: int,
    budget: float = 0.0,
    forced: Mapping[str, str] | None = None,
    isa: str | None = None,
    known: bool = True,
    observer: Observer | None = None,
    shipped: Mapping[str, Record] | None = None,
) -> tuple[Graph, dict[str, Choice]]:
    """*graph* with the attribute ``algorithm`` on products and convolutions, and the choices by first output.

    *budget*: seconds that may be spent on measuring. *forced*: op → algorithm, taken wherever a kernel accepts it.
    *isa*: the highest instruction set of kernels, None for the best. *known*: whether earlier measurements count.
    *observer* hears what is measured. *shipped*: what was measured on a machine like this one, by key.
    """
    if precision == "low":
        low = {"precision": "low"}
        nodes = [n.replace(attrs={**n.attrs, **low}) if n.op in TABLE or n.op in LOW else n for n in graph.nodes]
        graph = graph.replace(nodes=tuple(nodes))
    views = [v for v in (_view(n, graph) for n in graph.nodes if n.op in TABLE) if selectable(v)]
    if not views:
        return graph, {}
    isa = isa or _native.isa()
    selector = Selector(precision, threads, budget, dict(forced or {}), records(), isa, known, observer, shipped or {})
    choices = selector.run(views)
    chosen = []
    for node in graph.nodes:
        choice = choices.get(node.outputs[0]) if node.op in TABLE else None
        if choice is not None:
            node = node.replace(attrs={**node.attrs, "algorithm": choice.algorithm})
        chosen.append(node)
    return graph.replace(nodes=tuple(chosen)), choices


def _view(node: Node, graph: Graph) -> NodeView:
    def tensor(name: str) -> TensorType | None:
        t = graph.types.get(name) if name else None
        return t if isinstance(t, TensorType) else None

    constants = {n: graph.constants[n] for n in node.inputs if n in graph.constants}
    return NodeView(node, tuple(map(tensor, node.inputs)), tuple(map(tensor, node.outputs)), constants)


@dataclass(slots=True)
class Selector:
    """Budget, records and decisions of one compilation."""

    precision: str
    threads: int
    budget: float
    forced: dict[str, str]
    records: Records
    isa: str
    known: bool = True
    observer: Observer | None = None
    shipped: Mapping[str, Record] = field(default_factory=dict)
    _peaks: Peaks | None = None
    _calibrated: bool | None = None

    @property
    def peaks(self) -> Peaks:
        """What this machine reaches; measured now if it never was, so only where there is a choice to make."""
        if self._peaks is None:
            self._peaks = peaks(self.records.fingerprint, self.threads, self.isa)
        return self._peaks

    @property
    def calibrated(self) -> bool:
        """Whether that would measure nothing."""
        if self._calibrated is None:
            self._calibrated = calibrated(self.records.fingerprint, self.threads, self.isa)
        return self._calibrated or self._peaks is not None

    def run(self, views: list[NodeView]) -> dict[str, Choice]:
        """A choice for each node, by its first output."""
        same: dict[str, list[NodeView]] = {}
        for view in views:
            same.setdefault(_key(view, self.threads, self.isa), []).append(view)
        choices: dict[str, Choice] = {}
        doubtful: list[tuple[str, dict[str, float]]] = []
        for key, group in same.items():
            ranked = self.rank(group[0])
            choice = self._settled(key, group[0], ranked)
            if choice is None:
                doubtful.append((key, ranked))
            else:
                choices[key] = choice
        stake = {key: min(ranked.values()) * len(same[key]) for key, ranked in doubtful}
        for key, ranked in sorted(doubtful, key=lambda d: -stake[d[0]]):
            choices[key] = self._measured(key, same[key][0], ranked)
        return {view.node.outputs[0]: choices[key] for key, group in same.items() for view in group}

    def rank(self, view: NodeView) -> dict[str, float]:
        """Predicted seconds of all candidates, the preferred one first; ``direct`` is always among them.

        On a machine whose peaks nobody needed to measure so far, NaN and infinities where the choice is clear without
        them: a single candidate, or nothing will be measured and none needs less of anything than the direct one.
        """
        entries = [e for e in TABLE[view.node.op] if self.precision in e.precisions and e.applies(view)]
        entries = [e for e in entries if e.name == "direct" or accepted(view, e.name, self.isa)]
        if not self.calibrated and (len(entries) == 1 or (self.budget <= 0 and _direct_is_least(entries, view))):
            return {entries[0].name: nan, **{e.name: inf for e in entries[1:]}}
        times = {e.name: self._predicted(e.candidate(view), view) for e in entries}
        times = {name: seconds for name, seconds in times.items() if seconds < inf}
        best = fastest(times)
        return dict(sorted(times.items(), key=lambda item: (item[0] != best, item[1])))

    def _predicted(self, candidate: Candidate, view: NodeView) -> float:
        """By the roofline, corrected by what was measured here."""
        seconds = predict(candidate, self.peaks)
        if not self.known or seconds == inf:
            return seconds
        group = family(view.node.op, self.isa, self.threads)
        return seconds * self.records.corrections().factor(
            group, candidate.algorithm, candidate.flops, candidate.bytes
        )

    def _settled(self, key: str, view: NodeView, ranked: dict[str, float]) -> Choice | None:
        """A choice that needs no measuring, or None."""
        names = tuple(ranked)
        best = names[0]
        wanted = self.forced.get(view.node.op)
        if wanted is not None and (wanted in ranked or self._takes(view, wanted)):
            return Choice(wanted, "forced", _known(ranked.get(wanted, 0.0)), None, names)
        if self.precision == "high":
            return Choice(best, "precision=high", _known(ranked[best]), None, names)
        if len(names) == 1:
            return Choice(best, "only candidate", _known(ranked[best]), None, names)
        if isnan(ranked[best]):
            return Choice(best, "cost model", None, None, names)
        close = {n: s for n, s in ranked.items() if s <= SHORTLIST * ranked[best]}
        if len(close) == 1 or ranked[best] < MATTERS:
            return Choice(best, "cost model", ranked[best], None, names)
        record = (self.shipped.get(key) or self.records.get(key)) if self.known else None
        if record is not None and record.decision in ranked:
            seconds = min(record.samples[record.decision])
            teller(self.observer, _task(key, view, ranked))("recalled", record.decision, seconds, record)
            return Choice(record.decision, record.reason, ranked[record.decision], seconds, names, key=key)
        if self.budget <= 0:
            return self._unmeasured(view, ranked)
        return None

    def _unmeasured(self, view: NodeView, ranked: dict[str, float], *, final: bool = True) -> Choice:
        """What a layer of similar sizes was measured to do best, else what the cost model likes."""
        names = tuple(ranked)
        similar = self._similar(view, 0)
        if similar is not None and similar.decision in ranked:
            return Choice(similar.decision, ALIKE, ranked[similar.decision], None, names, final, open=True)
        return Choice(names[0], "cost model", ranked[names[0]], None, names, final, open=True)

    def _similar(self, view: NodeView, reach: int) -> Record | None:
        """What was measured for a layer that differs in sizes alone, and in these by *reach* steps at most."""
        if not self.known:
            return None
        kind, sizes = _sizes(view, self.threads, self.isa)
        return nearest(self.shipped.values(), kind, sizes, reach) or self.records.near(kind, sizes, reach)

    def _takes(self, view: NodeView, algorithm: str) -> bool:
        """Whether a kernel takes a forced algorithm that the table's conditions would leave out."""
        entry = next((a for a in TABLE[view.node.op] if a.name == algorithm), None)
        return entry is not None and self.precision in entry.precisions and accepted(view, algorithm, self.isa)

    def _measured(self, key: str, view: NodeView, ranked: dict[str, float]) -> Choice:
        names = tuple(ranked)
        best = names[0]
        if self.budget <= 0:
            return self._unmeasured(view, ranked, final=False)
        begin = now()
        similar = self._similar(view, 1)
        first = similar.decision if similar is not None else best  # should time run out
        shortlist = [n for n in names if n == first or ranked[n] <= SHORTLIST * ranked[best]]
        shortlist.sort(key=lambda n: n != first)
        outputs: dict[str, list[Any]] = {}
        runs = _runs(view, shortlist, self.threads, self.isa, outputs)
        tell = teller(self.observer, _task(key, view, {n: ranked[n] for n in shortlist}))
        table = {e.name: e.candidate(view) for e in TABLE[view.node.op] if e.name in runs}
        bounds = {n: bound(c, self.peaks) for n, c in table.items()}
        deadline = begin + LATE * self.budget + GRACE
        _, samples = measure(runs, self.budget * SHARE, tell=tell, bounds=bounds, deadline=deadline)
        self.budget -= now() - begin
        banned = wrong(dict(sorted(outputs.items(), key=lambda item: item[0] != "direct")))
        for name in sorted(banned):
            tell("banned", name)
        right = {name: times for name, times in samples.items() if name not in banned}
        best = fastest({name: min(times) for name, times in right.items()})
        reason = f"fastest measured; banned for wrong results: {', '.join(sorted(banned))}" if banned else MEASURED
        predicted = {n: ranked[n] for n in shortlist}
        work = {n: (c.flops, c.bytes, predict(c, self.peaks)) for n, c in table.items() if n in right}
        group = family(view.node.op, self.isa, self.threads)
        if len(samples) < len(shortlist):
            reason = f"{reason} before time ran out"
            return Choice(best, reason, ranked[best], min(samples[best]), names, final=False, open=True)
        kind, sizes = _sizes(view, self.threads, self.isa)
        record = Record(key, self.records.fingerprint, right, best, reason, predicted, work, group, kind, sizes)
        self.records.add(record)
        tell("decided", best, min(samples[best]), record)
        return Choice(best, reason, ranked[best], min(samples[best]), names, key=key)


def _direct_is_least(entries: list[Algorithm], view: NodeView) -> bool:
    """Whether no other entry needs less of anything than the first, direct one, so that no machine runs it faster."""
    first, *others = entries
    if first.name != "direct" or any(e.rate != first.rate for e in others):
        return False
    least, works = first.work(view), [e.work(view) for e in others]
    return all(w.flops >= least.flops and w.bytes >= least.bytes and w.cached >= least.cached for w in works)


def _known(seconds: float) -> float | None:
    return seconds if isfinite(seconds) else None


def _task(key: str, view: NodeView, predicted: Mapping[str, float]) -> Task:
    shown = [*(t for t in view.inputs[:2] if t is not None), *(t for t in view.outputs if t is not None)]
    return Task(key, f"{view.node.op} {' '.join(str(t) for t in shown)}", "cpu", predicted)


def family(op: str, isa: str, threads: int) -> str:
    """Layers whose predictions are corrected together."""
    return f"{op}; {isa}; {threads} threads"


def fastest(seconds: Mapping[str, float]) -> str:
    """The fastest algorithm; the direct one where the gain is too small to round more for."""
    best = min(seconds, key=lambda name: seconds[name])
    return "direct" if seconds.get("direct", inf) < GAIN * seconds[best] else best


def _runs(
    view: NodeView, algorithms: Iterable[str], threads: int, isa: str, outputs: dict[str, list[Any]]
) -> dict[str, Callable[[], float]]:
    """One timed call per algorithm of the real kernel, on the layer's own constants and made-up activations.

    *outputs* gets what the first call of each computed.
    """
    noise = np.sin(np.arange(4096, dtype=np.float32))  # numpy.random would be 7 MB of imports
    arrays = {}
    for name, t in zip(view.node.inputs, view.inputs, strict=True):
        if name and t is not None:
            shape: tuple[int, ...] = t.shape  # type: ignore[assignment]
            arrays[name] = view.constants[name] if name in view.constants else np.resize(noise, shape)
    (out,) = (t for t in view.outputs if t is not None)
    output: Any = np.empty(tuple(map(int, out.shape or ())), np.float32)  # type: ignore[arg-type]

    def kept(algorithm: str, run: Callable[[], float]) -> Callable[[], float]:
        def once() -> float:
            seconds = run()
            if algorithm not in outputs:
                outputs[algorithm] = [output.copy()]
            return seconds

        return once

    return {a: kept(a, _timed(*_single(view, a, arrays, output, threads, isa), output)) for a in algorithms}


def _single(
    view: NodeView, algorithm: str, arrays: Mapping[str, Any], output: Any, threads: int, isa: str
) -> tuple[Any, list[Any]]:
    """A program of this one node, and the arrays that it takes as inputs."""
    node = view.node
    tensors: list[tuple[str, tuple[int, ...], str, Any]] = []
    index: list[int] = []
    inputs: list[Any] = []
    for name in node.inputs:
        if not name:
            index.append(-1)
            continue
        index.append(len(tensors))
        array = np.ascontiguousarray(arrays[name])
        if name in view.constants:
            tensors.append(("f32", array.shape, "constant", array))
        else:
            tensors.append(("f32", array.shape, "input", len(inputs)))
            inputs.append(array)
    tensors.append(("f32", output.shape, "output", 0))
    steps = [(node.op, "candidate", {**node.attrs, "algorithm": algorithm}, index, [len(tensors) - 1])]
    return _native.Program(tensors, steps, 0, threads, isa), inputs


def _timed(program: Any, inputs: list[Any], output: Any) -> Callable[[], float]:
    def run() -> float:
        begin = time.perf_counter()
        program.run(inputs, [output])
        return time.perf_counter() - begin

    return run
