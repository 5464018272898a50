"""Ways to run a graph on several devices, and the choice among them: by the cost model, from records, or measured.

A *way* is a decomposition (a device that claims composites gets them whole) with an assignment of its nodes. For every
device that claims other composites than the ones before there is the best assignment over all devices and the one that
stays on that device, so plans of a single device are always among the ways.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnnpy.backends.base import Device, NodeView
from mnnpy.classes import replace
from mnnpy.decompose.lower import Decomposed, decompose, view_of
from mnnpy.decompose.registry import find_rule
from mnnpy.graph.ir import Array, Graph, TensorType
from mnnpy.search.agree import agree, wrong
from mnnpy.search.buckets import ALIKE, buckets
from mnnpy.search.measure import measure, quietly
from mnnpy.search.observe import Tell, silent
from mnnpy.search.partition import Assignment
from mnnpy.search.place import HEAVY, Board, Machine, Placement, family
from mnnpy.search.records import Record, Records

__all__ = [
    "Decision", "Way", "decide", "filled", "graph_key", "graph_sizes", "made_up", "measured", "ranked", "settled",
    "ways",
]  # fmt: skip

#: Ways predicted to take this much longer than the best are not measured.
SHORTLIST = 3.0
#: Another way than the best single device must be this much faster: crossings cost what no probe sees.
GAIN = 1.02


@dataclass(frozen=True, slots=True)
class Way:
    """A lowered graph, where its nodes run, and the predicted seconds of a run."""

    name: str  #: ``cpu`` stays there, ``cpu+`` begins from what cpu claims and goes wherever it is predicted to pay
    lowered: Decomposed
    chosen: tuple[Assignment, ...]
    predicted: float
    placement: Placement
    work: tuple[float, float, float] | None = None  #: of a plan of one device: what its record says of the prediction
    family: str = ""
    only: int | None = None  #: the device that it stays on
    board: Board | None = None  #: what it was placed on


@dataclass(frozen=True, slots=True)
class Decision:
    """The way that was taken and why; seconds of the others, *measured* (the best run) where they were."""

    way: str
    reason: str
    predicted: Mapping[str, float]
    measured: Mapping[str, float]
    key: str = ""  #: of the record that it rests on

    def __str__(self) -> str:
        runs = [f"{n} {_shown(s)}" for n, s in sorted(self.measured.items(), key=lambda item: item[1])]
        rest = sorted((s, n) for n, s in self.predicted.items() if n not in self.measured)
        runs += [f"{n} {_shown(s)} predicted" for s, n in rest]
        return f"{self.way}: {self.reason} ({', '.join(runs)})"


def _shown(seconds: float) -> str:
    return f"{1e6 * seconds:.3g} µs" if seconds < 1e-3 else f"{1e3 * seconds:.3g} ms"


def ways(graph: Graph, machine: Machine, precision: str, optimize: frozenset[str]) -> list[Way]:
    """All ways, the one predicted to be fastest first. Devices that try were not asked yet: see ``settled``."""
    known: list[_Lowering] = []
    kinds: list[tuple[str, int | None, _Lowering]] = []
    mixed: list[tuple[str, int | None, _Lowering]] = []
    for k, device in enumerate(machine.devices):
        if machine.peaks[k] is None:
            continue
        name = machine.names[k]
        same = next((one for one in known if one.same(device)), None)
        if same is None:
            known.append(same := _Lowering.of(graph, device, machine, precision, optimize))
            mixed.append((f"{name}+", None, same))
        kinds.append((name, k, same))
    found: list[Way] = []
    for name, only, lowering in (*kinds, *mixed):
        way = _way(name, lowering.result, lowering.board, machine, precision, only, ask=False)
        if way is not None and not any(_equal(way, w) for w in found):
            found.append(way)
    return ranked(found)


def ranked(found: Sequence[Way]) -> list[Way]:
    """By predicted time, plans of several devices with a handicap."""
    return sorted(found, key=lambda w: w.predicted * (GAIN if w.name.endswith("+") else 1.0))


def settled(way: Way, machine: Machine, precision: str) -> Way | None:
    """The same way with every device asked about what it gets; None where it is none."""
    if way.placement.sure or way.board is None:
        return way
    return _way(way.name, way.lowered, way.board, machine, precision, way.only, ask=True)


@dataclass(frozen=True, slots=True)
class _Lowering:
    """The graph as a device wants it, and what the device said about composites on the way."""

    backend: str
    answers: tuple[tuple[NodeView, bool], ...]
    result: Decomposed
    board: Board

    @staticmethod
    def of(graph: Graph, device: Device, machine: Machine, precision: str, optimize: frozenset[str]) -> _Lowering:
        answers: list[tuple[NodeView, bool]] = []

        def claims(view: NodeView) -> bool:
            answers.append((view, bool(device.supports(view))))
            return answers[-1][1]

        backend = device.info.backend
        result = decompose(graph, claims, backend, optimize=optimize)
        lowered = result.graph
        board = Board(lowered, machine, lambda n: view_of(n, lowered.types, lowered.constants), precision)
        return _Lowering(backend, tuple(answers), result, board)

    def same(self, device: Device) -> bool:
        """Whether another device would have had the same rules and given the same answers."""
        mine, other = self.backend, device.info.backend
        return all(
            find_rule(v.node.op, mine) is find_rule(v.node.op, other) and bool(device.supports(v)) == yes
            for v, yes in self.answers
        )


def _way(
    name: str, lowered: Decomposed, board: Board, machine: Machine, precision: str, only: int | None, *, ask: bool
) -> Way | None:
    placement = board.place(only, ask=ask)
    if placement is None:
        return None
    work = None if only is None else (1.0, 1.0, placement.uncorrected(machine, precision))
    seconds = placement.solution.seconds
    return Way(name, lowered, placement.chosen, seconds, placement, work, family(precision), only, board)


def _equal(one: Way, other: Way) -> bool:
    """Whether two ways are the same under two names."""
    mine, theirs = one.lowered.graph, other.lowered.graph
    same = [a.device for a in one.chosen] == [a.device for a in other.chosen]
    return same and (mine is theirs or [n.op for n in mine.nodes] == [n.op for n in theirs.nodes])


def graph_key(graph: Graph, machine: Machine, precision: str, threads: int) -> str:
    """All that the time of a plan depends on: structure and types of the graph, devices, precision, threads."""
    digest = hashlib.blake2b(digest_size=16)
    for value in graph.inputs:
        digest.update(repr(value).encode())
    for node in graph.nodes:
        types = [str(graph.types.get(n)) for n in (*node.inputs, *node.outputs)]
        digest.update(repr((node.op, sorted(node.attrs.items(), key=lambda a: a[0]), types)).encode())
    return json.dumps(["plan", digest.hexdigest(), machine.names, precision, threads], separators=(",", ":"))


def graph_sizes(graph: Graph, machine: Machine, precision: str, threads: int) -> tuple[str, tuple[int, ...]]:
    """A graph without its sizes (ops, weights, devices, precision, threads), and the buckets of its inputs' sizes."""
    digest = hashlib.blake2b(digest_size=16)
    for node in graph.nodes:
        weights = [graph.constants[n].shape for n in node.inputs if n in graph.constants] if node.op in HEAVY else ()
        digest.update(repr((node.op, weights)).encode())
    types = [v.type for v in graph.inputs]
    ranks = [(str(t.dtype), len(t.shape or ())) if isinstance(t, TensorType) else str(t) for t in types]
    kind = json.dumps(["plan", digest.hexdigest(), ranks, machine.names, precision, threads], separators=(",", ":"))
    return kind, buckets(t.shape or () for t in types if isinstance(t, TensorType) and t.is_static)


def decide(found: Sequence[Way], record: Record | None) -> tuple[Way, Decision]:
    """The way of the record where there is one, else the one predicted to be fastest; and why.

    Corrected predictions may have done away with the way that was taken: then the best of those measured beside it.
    """
    ways = {w.name: w for w in found}
    predicted = {w.name: w.predicted for w in found}
    times = () if record is None else record.samples.items()
    best = {name: min(seconds) for name, seconds in times if seconds and name in ways}
    if record is None or not best:
        return found[0], Decision(found[0].name, "cost model", predicted, {})
    name = record.decision if record.decision in best else min(best, key=lambda n: best[n])
    if record.reason == ALIKE:
        return ways[name], Decision(name, ALIKE, predicted, {})
    return ways[name], Decision(name, record.reason, predicted, best, record.key)


def measured(
    found: Sequence[Way],
    key: str,
    records: Records,
    prepare: Callable[[Way], Callable[[], list[Any]]],
    budget: float,
    clock: Callable[[], float],
    tell: Tell = silent,
    alike: tuple[str, tuple[int, ...]] = ("", ()),
) -> tuple[Way, Record]:
    """Run the ways that may be fastest in turns; remember all samples and the decision.

    *prepare* compiles a way and returns a run. A way whose outputs differ from those of most others is banned: it is
    reported in the record and never chosen. The last way standing wins without a measurement. *tell* hears of it all.
    """
    until = clock() + budget
    shortlist = [w for w in found if w.predicted <= SHORTLIST * found[0].predicted]
    runs: dict[str, Callable[[], float]] = {}
    prepared: dict[str, Callable[[], list[Any]]] = {}
    outputs: dict[str, list[Any]] = {}
    for way in shortlist:
        if runs and clock() > until:
            break
        tell("begun", way.name)
        run = prepare(way)
        prepared[way.name] = run
        outputs[way.name] = _undisturbed(run)
        runs[way.name] = _timed(run, clock)
    banned = wrong(outputs)
    if banned and not all(agree(outputs[n], _undisturbed(prepared[n])) for n in outputs if n not in banned):
        banned = set()  # what it computes is random
    for name in sorted(banned):
        tell("banned", name)
    alive = {n: r for n, r in runs.items() if n not in banned}
    if len(alive) == 1:
        (only,) = alive
        samples: dict[str, list[float]] = {only: [quietly(alive[only])]}
    else:
        _, samples = measure(alive, max(0.0, until - clock()), tell=tell)
    best = min(samples, key=lambda n: min(samples[n]) * (GAIN if n.endswith("+") else 1.0))
    reason = "fastest measured" if len(samples) > 1 else "cost model"
    if banned:
        reason += f"; banned for wrong results: {', '.join(sorted(banned))}"
    predicted = {w.name: w.predicted for w in found}
    work = {w.name: w.work for w in shortlist if w.work is not None and w.name in samples}
    record = Record(key, records.fingerprint, samples, best, reason, predicted, work, found[0].family, *alike)
    if len(runs) < len(shortlist) and len(samples) < 2:  # time ran out before anything could be compared
        record = replace(record, key="", reason="cost model: no time to measure")
    else:
        records.add(record)
    tell("decided", best, min(samples[best]), record)
    return next(w for w in found if w.name == best), record


def _undisturbed(run: Callable[[], list[Any]]) -> list[Any]:
    """One run; in the background at a time when nobody else runs."""
    results: list[Any] = []

    def once() -> float:
        results[:] = run()
        return 0.0

    quietly(once)
    return results


def _timed(run: Callable[[], list[Any]], clock: Callable[[], float]) -> Callable[[], float]:
    def once() -> float:
        begin = clock()
        run()
        return clock() - begin

    return once


def made_up(graph: Graph) -> list[Any] | None:
    """Feeds of the right types to measure with; None where a type is open."""
    feeds = [filled(v.type) if isinstance(v.type, TensorType) else None for v in graph.inputs]
    return None if any(f is None for f in feeds) else feeds


def filled(t: TensorType) -> Array | None:
    """An array to measure with: waves, and zeros where numbers may be places; None where the type is open."""
    if not t.is_static or t.dtype.value in ("string", "c64", "c128"):
        return None
    shape = tuple(int(n) for n in t.shape or ())  # type: ignore[arg-type]
    if t.dtype.numpy.kind != "f":
        return np.zeros(shape, t.dtype.numpy)
    return np.resize(np.sin(np.arange(4096, dtype=np.float32)), shape).astype(t.dtype.numpy)
