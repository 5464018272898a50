"""What ``mnnpy tune`` finds out, as plain data: the ways to run a model, the layers of the plan taken, the records."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mnnpy
from mnnpy.backends.base import Device
from mnnpy.decompose.lower import view_of
from mnnpy.graph.ir import Graph, TensorType
from mnnpy.options import Options
from mnnpy.search.observe import Event, Observer
from mnnpy.search.place import HEAVY, Machine, estimate
from mnnpy.search.planner import SHORTLIST
from mnnpy.search.records import Record
from mnnpy.session import NodeArg, Session

__all__ = ["FORMAT", "Watch", "hand_over", "layers_of", "tune"]

#: Version of the layout of these data.
FORMAT = 1
#: Seconds for timing the plan that was chosen, and runs of it at most.
TIMING, RUNS = 0.5, 30
#: Profiled runs; the least time of each step counts.
PROFILED = 5

Feeds = Callable[[Sequence[NodeArg]], Mapping[str, Any]]


@dataclass(slots=True)
class Watch:
    """An observer that counts, keeps what was decided, and passes everything on."""

    onward: Observer | None = None
    counts: Counter[str] = field(default_factory=Counter)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    _seen: set[tuple[str, str]] = field(default_factory=set)

    def __call__(self, event: Event, /) -> None:
        self.counts[event.kind] += 1
        record = event.record
        if record is not None and (record.fingerprint, record.key) not in self._seen:
            self._seen.add((record.fingerprint, record.key))
            self.tasks.append(_task(event, record))
        if self.onward is not None:
            self.onward(event)

    def summary(self) -> dict[str, int]:
        """Decisions made now and known from earlier, runs, and candidates left behind."""
        known = sum(task["earlier"] for task in self.tasks)
        counts = {name: self.counts[name] for name in ("measured", "dropped", "banned")}
        return {"decided": len(self.tasks) - known, "recalled": known, **counts}


def _task(event: Event, record: Record) -> dict[str, Any]:
    """A decision for people: candidates with predicted and best measured seconds, and samples taken."""
    known = {**record.predicted, **event.task.predicted}
    names = dict.fromkeys((*record.samples, *known))
    candidates = [
        {"name": n, "predicted": known.get(n), "measured": min(record.samples[n]) if record.samples.get(n) else None,
         "runs": len(record.samples.get(n, ()))}
        for n in names
    ]  # fmt: skip
    return {"task": event.task.label, "device": event.task.device, "decision": record.decision,
            "reason": record.reason, "earlier": event.kind == "recalled", "candidates": candidates}  # fmt: skip


def tune(model: Any, devices: Sequence[Device], options: Options, feeds_for: Feeds, watch: Watch) -> dict[str, Any]:
    """Search for the fastest plan of *model* on opened *devices* for ``options.seconds``, then look at what was found.

    *feeds_for* makes feeds for a session's inputs. Raises what Session raises.
    """
    machine = Machine(devices)  # before anything is measured: what the search predicts, it predicts with this
    begin = time.perf_counter()
    session = Session(model, list(devices), options, observer=watch)
    feeds = feeds_for(session.get_inputs())
    decisions = session.explain(feeds).decisions
    spent = time.perf_counter() - begin
    chooser = session._context.chooser
    machine = machine if chooser is None else chooser.machine
    layers, edges = layers_of(session, feeds, machine)
    runs = _timed(session, feeds)
    ways = _ways(decisions, layers, session, runs)
    chosen = next(w["way"] for w in ways if w["chosen"])
    points = _points(chosen, layers)
    for device, name in zip(devices, machine.names, strict=True):
        if name != chosen and any(w["way"] == name and w["measured"] is not None for w in ways):
            alone = Session(model, [device], replace(options, tune="cache"))
            others, _ = layers_of(alone, feeds, Machine([device]))
            points += [{**p, "backend": name} for p in _points(name, others)]
    return {
        "format": FORMAT,
        "mnnpy": mnnpy.__version__,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "model": _model(session, feeds),
        "devices": [_device(d, name) for d, name in zip(devices, machine.names, strict=True)],
        "options": {"threads": options.thread_count, "precision": options.precision, "budget": options.seconds},
        "search": {"seconds": spent, **watch.summary()},
        "ways": ways,
        "layers": layers,
        "edges": edges,
        "points": points,
        "tasks": watch.tasks,
        "tuning": session.tuning_results(),
    }


def _device(device: Device, name: str) -> dict[str, Any]:
    info = device.info
    facts = {k: v for k, v in info.facts.items() if isinstance(v, (str, int, float))}
    return {"backend": name, "name": info.name, "facts": facts}


def _model(session: Session, feeds: Mapping[str, Any]) -> dict[str, Any]:
    graph = session.graph
    return {
        "name": graph.name,
        "nodes": len(graph.nodes),
        "parameters": sum(a.size for a in graph.constants.values()),
        "weight_bytes": sum(a.nbytes for a in graph.constants.values()),
        "inputs": {n: f"{a.dtype}{list(a.shape)}" for n, a in feeds.items()},
        "outputs": [a.name for a in session.get_outputs()],
    }


def _timed(session: Session, feeds: Mapping[str, Any]) -> list[float]:
    """Seconds of whole runs."""
    session.run(None, feeds)
    times: list[float] = []
    until = time.perf_counter() + TIMING
    while len(times) < 3 or (len(times) < RUNS and time.perf_counter() < until):
        begin = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - begin)
    return times


def _ways(
    decisions: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]], session: Session, runs: list[float]
) -> list[dict[str, Any]]:
    """All ways to run the model, the one that was taken first: seconds predicted, and measured by the search.

    *now*: the best run of the plan that was taken, after the search.
    """
    if decisions:
        (first, *_) = decisions
        known = first["ways"].items()
        found = [{"way": w, "chosen": w == first["way"], "reason": "", "now": None, **t} for w, t in known]
        taken = next(w for w in found if w["chosen"])
        for row in found:
            row["reason"] = first["reason"] if row is taken else _left_out(row, found)
    else:
        times = [t for la in layers if (t := la["predicted_us"].get(la["backend"])) is not None]
        predicted = 1e-6 * sum(times) if times else None
        way = "+".join(session.backends)
        taken = {"way": way, "chosen": True, "reason": "the only backend asked for", "predicted": predicted}
        taken.update(measured=min(runs), now=None)
        found = [taken]
    taken["now"] = min(runs)
    return sorted(found, key=lambda w: (not w["chosen"], w["measured"] or w["predicted"] or 0.0))


def _left_out(way: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    """Why a way was not measured; empty where it was, or where none was."""
    if way["measured"] is not None or all(w["measured"] is None for w in found):
        return ""
    slow = way["predicted"] > SHORTLIST * min(w["predicted"] for w in found)
    return f"predicted to take {SHORTLIST:g} times the best or more" if slow else "no time was left to measure it"


def layers_of(
    session: Session, feeds: Mapping[str, Any], machine: Machine
) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """The layers of the plan for *feeds* in order, and edges between them (pairs of indices).

    A layer is a chunk as placement sees it: a node that multiplies with the light ones behind it. ``predicted_us`` is
    by backend, ``measured_us`` the sum over its ``steps``, as profiled in the plan (least of a few runs).
    """
    layers: list[dict[str, Any]] = []
    made: dict[str, int] = {}
    edges: set[tuple[int, int]] = set()
    home: dict[str, int] = {}
    for backend, part in session.parts(feeds):
        for piece, times in _chunks(backend, part, machine, session.options.precision):
            number = len(layers)
            layers.append(_layer(number, backend, part, piece, times))
            for k in piece:
                node = part.nodes[k]
                home.setdefault(node.label, number)
                edges.update((made[n], number) for n in node.inputs if n in made and made[n] != number)
                made.update((n, number) for n in node.outputs if n)
    rows = _profiled(session, feeds)
    homes = [home.get(row["node"]) for row, _ in rows]
    for k, (row, seconds) in enumerate(rows):
        # What a device's own passes brought in, such as a change of layout, is for what comes behind it.
        found = next((h for h in (*homes[k:], *homes[k::-1]) if h is not None), None)
        if found is not None:
            _add(layers[found], row, seconds)
    for layer in layers:  # made of other ops than the graph has
        layer["algorithm"] = layer["algorithm"] or " + ".join(dict.fromkeys(s["algorithm"] for s in layer["steps"]))
    hand_over(layers, edges)
    return layers, sorted([list(e) for e in edges])


def hand_over(layers: Sequence[dict[str, Any]], edges: set[tuple[int, int]]) -> None:
    """Layers that devices fused into another one hand their predictions over to it.

    It is one of the same op that reads the same (products of one operand run as one), else one that reads from it
    (attention runs as one), else one that it reads from.
    """
    reads, readers = defaultdict(set), defaultdict(set)
    for a, b in edges:
        reads[b].add(a)
        readers[a].add(b)
    for number in reversed(range(len(layers))):
        layer = layers[number]
        if layer["steps"]:
            continue
        twins = {k for s in reads[number] for k in readers[s] if reads[k] == reads[number]}
        twins = {k for k in twins if layers[k]["op"] == layer["op"]}
        for near in (twins, readers[number], reads[number]):
            alive = (layers[k].get("merged_into", k) for k in sorted(near))
            into = next((k for k in alive if layers[k]["steps"] and layers[k]["backend"] == layer["backend"]), None)
            if into is not None:
                layer["merged_into"] = into
                mine, theirs = layer["predicted_us"], layers[into]["predicted_us"]
                layers[into]["predicted_us"] = {b: round(mine[b] + theirs[b], 2) for b in theirs if b in mine}
                layer["predicted_us"] = {}
                break


def _chunks(
    backend: str, part: Graph, machine: Machine, precision: str
) -> list[tuple[tuple[int, ...], dict[str, float]]]:
    """Nodes of each chunk of a part, and predicted seconds by backend."""
    if backend == "control":
        return [(tuple(range(len(part.nodes))), {})]
    found = estimate(part, machine, lambda n: view_of(n, part.types, part.constants), precision)
    return [(e.nodes, {machine.names[d]: s for d, s in e.seconds.items()}) for e in found]


def _layer(number: int, backend: str, part: Graph, piece: Sequence[int], times: Mapping[str, float]) -> dict[str, Any]:
    nodes = [part.nodes[k] for k in piece]
    main = next((n for n in nodes if n.op in HEAVY), nodes[0])
    t = part.types.get(main.outputs[0])
    return {
        "id": number,
        "op": main.op,
        "node": main.label,
        "ops": [n.op for n in nodes],
        "backend": backend,
        "shape": str(t) if isinstance(t, TensorType) else "",
        "predicted_us": {name: round(1e6 * s, 2) for name, s in times.items()},
        "measured_us": None,
        "alone_us": None,
        "why": "",
        "reason": "",
        "algorithm": "",
        "steps": [],
    }


def _add(layer: dict[str, Any], row: Mapping[str, Any], microseconds: float | None) -> None:
    """A step of a layer."""
    layer["steps"].append({"op": row["op"], "algorithm": row["algorithm"], "measured_us": microseconds})
    if microseconds is not None:
        layer["measured_us"] = round((layer["measured_us"] or 0.0) + microseconds, 2)
    layer["reason"] = layer["reason"] or row["reason"]
    if row["op"] == layer["op"] and row["algorithm"] not in layer["algorithm"].split(" + "):
        layer["algorithm"] = " + ".join(filter(None, (layer["algorithm"], row["algorithm"])))
    if row["why"]:
        layer["why"], layer["alone_us"] = row["why"], row["measured_us"] or None


def _profiled(session: Session, feeds: Mapping[str, Any]) -> list[tuple[dict[str, Any], float | None]]:
    """Rows of ``explain`` with the least microseconds of each over a few profiled runs."""
    least: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for _ in range(PROFILED):
        met: Counter[tuple[Any, ...]] = Counter()
        for e in session.profile(feeds)["traceEvents"]:
            key = (e["tid"], e["name"], e["args"]["node"], e["args"]["algorithm"])
            met[key] += 1
            least[*key, met[key]].append(e["dur"])
    met = Counter()
    rows: list[tuple[dict[str, Any], float | None]] = []
    for row in session.explain().rows:
        if "." in row["plan"]:  # the body of a loop or branch: its time is that of the control node
            continue
        key = (row["backend"], row["op"], row["node"], row["algorithm"])
        met[key] += 1
        times = least.get((*key, met[key]))
        rows.append((row, round(min(times), 2) if times else None))
    return rows


def _points(way: str, layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Layers whose time was both predicted and measured on the backend where they ran."""
    points = []
    for layer in layers:
        predicted, measured = layer["predicted_us"].get(layer["backend"]), layer["measured_us"]
        if predicted and measured:
            points.append({"way": way, "backend": layer["backend"], "op": layer["op"], "node": layer["node"],
                           "predicted_us": predicted, "measured_us": measured})  # fmt: skip
    return points
