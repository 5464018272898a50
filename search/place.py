"""Which device runs which node: the graph in chunks, chunks on devices by predicted time and copies.

A *chunk* is a node that multiplies (or any other node that nothing lighter precedes) with the light nodes behind it, as
devices fuse them: they stay together, and only values that leave a chunk can cross. Algorithms and layouts are chosen
inside a device, and values cross devices dense and row-major, so the best of a chunk on a device does not depend on
what its neighbours do: choosing within devices first and among devices then is the joint optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import inf

from mnnpy.backends.analytic import moved_bytes, node_flops
from mnnpy.backends.base import Device, NodeView, device_names
from mnnpy.decompose.registry import OpClass, get_op
from mnnpy.graph.ir import Graph, Node, TensorType
from mnnpy.search.assign import Bond, Flow, Problem, Solution, Task, solve
from mnnpy.search.calibrate import calibrate
from mnnpy.search.correct import Corrections
from mnnpy.search.cost import predict
from mnnpy.search.partition import CONTROL, HOST, STAYS, Assignment, is_host_node
from mnnpy.search.records import Record, Records

__all__ = ["Board", "Estimate", "Heavy", "Machine", "Placement", "chunks", "estimate", "family", "place"]

#: Ops that begin a chunk of their own; candidates are asked for these only.
HEAVY = frozenset({"MatMul", "Convolution", "LSTM", "GRU", "RNN"})
#: Ops that devices fuse into what is before them: they cost what crosses the chunk.
FUSED = frozenset({"Unary", "Binary", "Select", "Convert", "Reinterpret"})
#: Seconds that one more step of a plan costs in the session.
STEP = 5e-6
#: Bytes per second of the interpreter, where nobody else takes a node.
INTERPRETED = 2e8

View = Callable[[Node], NodeView]


@dataclass(frozen=True, slots=True, order=True)
class Heavy:
    """Predicted seconds of a node by its best algorithm, and what the roofline alone says of that."""

    seconds: float
    algorithm: str
    plain: float


class Machine:
    """Opened devices with what they reach. Space 0 is the host's memory, space k + 1 that of device k."""

    def __init__(
        self,
        devices: Sequence[Device],
        shipped: Sequence[Mapping[str, Record]] | None = None,
        plans: Records | None = None,
        learnt: bool = True,
    ) -> None:
        """*shipped*: records that were measured elsewhere, for each device. *plans*: those of whole plans; *learnt*:
        whether earlier measurements correct the cost model.
        """
        self.devices = tuple(devices)
        self.names = device_names(devices)
        given = shipped or [{}] * len(self.devices)
        self.peaks = tuple(None if _interprets(d) else calibrate(d, s) for d, s in zip(devices, given, strict=True))
        #: Devices that find out whether they support a node by trying, which is dear.
        self.tries = tuple(bool(getattr(d, "tries", False)) for d in devices)
        self.limits = tuple(float(d.info.facts.get("memory", inf)) for d in devices)
        own = (getattr(d, "records", None) for d in devices)
        self._layers: tuple[Corrections | None, ...] = tuple(r.corrections() if learnt and r else None for r in own)
        self._plans = plans.corrections() if learnt and plans is not None else None
        self._heavy: dict[tuple[int, str], Heavy] = {}

    def copies(self) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
        """(latency, seconds per byte) of copies between spaces; between two devices by way of the host."""
        own = ((STEP, 0.0) if p is None else (STEP + p.latency + p.submit / 2, 1.0 / p.link) for p in self.peaks)
        ends = [(0.0, 0.0), *own]
        count = range(len(ends))
        latency = tuple(tuple(0.0 if a == b else ends[a][0] + ends[b][0] for b in count) for a in count)
        return latency, tuple(tuple(0.0 if a == b else ends[a][1] + ends[b][1] for b in count) for a in count)

    def heavy(self, device: int, view: NodeView, precision: str) -> Heavy:
        """The algorithm that the corrected cost model likes best; remembered by kind of node."""
        key = (device, _kind(view, precision))
        found = self._heavy.get(key)
        if found is None:
            found = self._heavy[key] = min(self._candidates(device, view, precision), default=Heavy(inf, "", inf))
        return found

    def _candidates(self, device: int, view: NodeView, precision: str) -> Iterator[Heavy]:
        peaks = self.peaks[device]
        assert peaks is not None
        layers = self._layers[device]
        for c in self.devices[device].candidates(view):
            if precision in c.parameters.get("precisions", (precision,)):
                seconds = predict(c, peaks)
                factor = 1.0
                if layers is not None and seconds < inf:
                    family = str(c.parameters.get("family", ""))
                    factor = layers.factor(family, c.algorithm, c.flops, c.bytes)
                yield Heavy(seconds * factor, c.algorithm, seconds)

    def factor(self, device: int, precision: str) -> float:
        """What whole plans on a device that measures no layers took, over what was predicted for them."""
        if self._plans is None or self._layers[device] is not None:
            return 1.0
        return self._plans.factor(family(precision), self.names[device], 1.0, 1.0)


def family(precision: str) -> str:
    """Plans whose predictions are corrected together."""
    return f"plan; {precision}"


def _interprets(device: Device) -> bool:
    return device.info.backend == "reference"


def _kind(view: NodeView, precision: str) -> str:
    """All that the candidates of a node depend on."""
    node = view.node
    attrs = sorted((k, v) for k, v in node.attrs.items())
    constant = [k for k, n in enumerate(node.inputs) if n in view.constants]
    return repr((node.op, attrs, view.inputs, view.outputs, constant, precision))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each node of a graph runs, with the prediction for the whole."""

    chosen: tuple[Assignment, ...]
    solution: Solution
    problem: Problem
    chunks: tuple[tuple[int, ...], ...]  #: node numbers of each task
    sure: bool  #: whether every device was asked if it supports what it gets

    def uncorrected(self, machine: Machine, precision: str) -> float:
        """Predicted seconds of a run without what earlier plans taught."""
        found = self.solution.seconds
        for task, device in zip(self.problem.tasks, self.solution.devices, strict=True):
            if device < len(machine.devices) and machine.peaks[device] is not None:
                found -= task.seconds[device] * (1 - 1 / machine.factor(device, precision))
        return found

    @property
    def seconds(self) -> list[float]:
        """Predicted seconds of each node: its chunk's, all on the chunk's first node."""
        found = [0.0] * len(self.chosen)
        for task, piece, device in zip(self.problem.tasks, self.chunks, self.solution.devices, strict=True):
            found[piece[0]] = task.seconds[device]
        return found


def place(
    graph: Graph, machine: Machine, view: View, precision: str, only: int | None = None, *, ask: bool = True
) -> Placement | None:
    """One placement of a graph: see ``Board.place``."""
    return Board(graph, machine, view, precision).place(only, ask=ask)


class Board:
    """A lowered graph in chunks and what they cost on every device, for any number of placements."""

    def __init__(self, graph: Graph, machine: Machine, view: View, precision: str) -> None:
        self._graph = graph
        self._machine = machine
        self._precision = precision
        self._views = [view(n) for n in graph.nodes]
        self._answers = _Answers(machine, self._views)
        self._known: tuple[list[list[int]], Problem] | None = None

    def place(self, only: int | None = None, *, ask: bool = True) -> Placement | None:
        """The assignment that the cost model likes best (*only*: with that device wherever it can run).

        None where some node runs nowhere. Without *ask* devices that try are assumed to support everything.
        """
        machine = self._machine
        while True:
            if self._known is None:
                self._known = self._chunked()
            if self._known is None:
                return None
            pieces, problem = self._known
            solution = solve(problem if only is None else _staying(problem, only))
            if solution is None:
                return None
            if not ask or self._answers.hold(pieces, solution.devices):
                break
            self._known = None
        chosen: list[Assignment] = [Assignment(HOST, "")] * len(self._views)
        for task, piece, device in zip(problem.tasks, pieces, solution.devices, strict=True):
            node = self._graph.nodes[piece[0]]
            found = Assignment(only, STAYS) if device == only else _assignment(machine, node, task, device)
            for k in piece:
                chosen[k] = found
        sure = ask or not any(machine.tries[a.device] for a in chosen if a.device >= 0)
        return Placement(tuple(chosen), solution, problem, tuple(map(tuple, pieces)), sure)

    def _chunked(self) -> tuple[list[list[int]], Problem] | None:
        """Chunks and the problem, as far as answers of devices are known; None where some node runs nowhere."""
        graph, machine, views = self._graph, self._machine, self._views
        where = [_possible(machine, self._answers, k, v, graph) for k, v in enumerate(views)]
        if not all(where):
            return None
        pieces = chunks(graph, where)
        return pieces, _problem(graph, machine, views, where, pieces, self._precision)


def _staying(problem: Problem, device: int) -> Problem:
    """The same with every task on *device* that can be there."""

    def alone(task: Task) -> Task:
        if task.seconds[device] == inf:
            return task
        return replace(task, seconds=tuple(s if d == device else inf for d, s in enumerate(task.seconds)))

    return replace(problem, tasks=tuple(map(alone, problem.tasks)))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A chunk of a graph, and the predicted seconds of it on each device that takes all of its nodes."""

    nodes: tuple[int, ...]
    seconds: Mapping[int, float]


def estimate(graph: Graph, machine: Machine, view: View, precision: str) -> list[Estimate]:
    """What the cost model says of every chunk of *graph* on every device, for whoever wants to know."""
    views = [view(n) for n in graph.nodes]
    pieces = chunks(graph, [frozenset({0})] * len(views))
    _, users = _traffic(graph, pieces)
    found = []
    for piece, light in zip(pieces, _lights(graph, views, pieces, users), strict=True):
        local = [views[k] for k in piece]
        able = [
            d for d, p in enumerate(machine.peaks) if p is not None and all(map(machine.devices[d].supports, local))
        ]
        times = {d: _seconds(machine, d, local, light, precision) for d in able}
        found.append(Estimate(tuple(piece), {d: s for d, s in times.items() if s < inf}))
    return found


class _Answers:
    """What devices say to ``supports``.

    Where asking is dear (``Device.tries``) the answer is asked for only where it matters, and yes assumed until then:
    most devices are never chosen. An assignment that assumes too much is found out when its own nodes are asked for,
    and the next one knows.
    """

    def __init__(self, machine: Machine, views: Sequence[NodeView]) -> None:
        self._machine = machine
        self._views = views
        self._known: dict[tuple[int, int], bool] = {}

    def assumed(self, device: int, node: int) -> bool:
        """What is known or assumed."""
        if not self._machine.tries[device]:
            return self.asked(device, node)
        return self._known.get((device, node), True)

    def asked(self, device: int, node: int) -> bool:
        found = self._known.get((device, node))
        if found is None:
            found = self._known[device, node] = bool(self._machine.devices[device].supports(self._views[node]))
        return found

    def hold(self, pieces: Sequence[Sequence[int]], devices: Sequence[int]) -> bool:
        """Whether every node can run where it was put; if one cannot, all of its op are asked for on that device."""
        wrong: set[tuple[int, str]] = set()
        for piece, device in zip(pieces, devices, strict=True):
            if device < len(self._machine.devices):
                wrong |= {(device, self._views[k].node.op) for k in piece if not self.asked(device, k)}
        for device, op in wrong:
            for k, view in enumerate(self._views):
                if view.node.op == op:
                    self.asked(device, k)
        return not wrong


def _possible(machine: Machine, answers: _Answers, node: int, view: NodeView, graph: Graph) -> frozenset[int]:
    """Devices that can run a node; the number of devices stands for the host and the session itself."""
    host = frozenset({len(machine.devices)})
    if get_op(view.node.op).op_class is OpClass.CONTROL:
        return host
    able = [k for k in range(len(machine.devices)) if answers.assumed(k, node)]
    fast = [k for k in able if machine.peaks[k] is not None]
    if fast or able:
        return frozenset(fast or able)
    hosted = is_host_node(view.node, graph.types) or get_op(view.node.op).op_class is not OpClass.ATOMIC
    return host if hosted else frozenset()


def _assignment(machine: Machine, node: Node, task: Task, device: int) -> Assignment:
    if device == len(machine.devices):
        if get_op(node.op).op_class is OpClass.CONTROL:
            return Assignment(CONTROL, "control flow runs in the session")
        return Assignment(HOST, "host op: strings, sequences or data-dependent shapes")
    others = [
        f"{machine.names[d]} {1e6 * s:.3g} µs"
        for d, s in enumerate(task.seconds[: len(machine.devices)])
        if s < inf and d != device
    ]
    if not others:
        return Assignment(device, "the only device that takes it")
    return Assignment(device, f"predicted {1e6 * task.seconds[device]:.3g} µs here, {', '.join(others)}")


# -- chunks --


def chunks(graph: Graph, where: Sequence[frozenset[int]]) -> list[list[int]]:
    """Node numbers of each chunk, chunks in topological order.

    A light node joins the latest chunk that it reads from, where the same devices can run both: all else that it reads
    comes from earlier chunks, so chunks never wait for each other in a circle.
    """
    pieces: list[list[int]] = []
    home: dict[str, int] = {}
    for k, node in enumerate(graph.nodes):
        before = max((home[n] for n in node.inputs if n in home), default=-1)
        joins = node.op not in HEAVY and before >= 0 and where[pieces[before][0]] == where[k] and len(where[k]) > 0
        if joins and get_op(node.op).op_class is not OpClass.CONTROL:
            pieces[before].append(k)
        else:
            before = len(pieces)
            pieces.append([k])
        for name in node.outputs:
            if name:
                home[name] = before
    return pieces


def _problem(
    graph: Graph,
    machine: Machine,
    views: Sequence[NodeView],
    where: Sequence[frozenset[int]],
    pieces: Sequence[Sequence[int]],
    precision: str,
) -> Problem:
    home, users = _traffic(graph, pieces)
    wanted = set(graph.output_names)
    count = len(machine.devices)
    tasks = []
    bonds = []
    for t, (piece, light) in enumerate(zip(pieces, _lights(graph, views, pieces, users), strict=True)):
        local, able = [views[k] for k in piece], where[piece[0]]
        own = [_seconds(machine, d, local, light, precision) if d in able else inf for d in range(count)]
        seconds = (*own, 0.0 if count in able else inf)
        weights = {n: graph.constants[n].nbytes for v in local for n in v.node.inputs if n in graph.constants}
        scratch = max(moved_bytes(v) for v in local)
        tasks.append(Task(seconds, float(sum(weights.values())), scratch))
        before = max((home[n] for n in graph.nodes[piece[0]].inputs if home.get(n, t) != t), default=-1)
        if before >= 0 and graph.nodes[piece[0]].op not in HEAVY:  # apart only because other devices take it
            kept = _kept(graph, (before, t), pieces[before], home, users, light)
            saved = (kept / p.memory + p.launch * light.alone if p is not None else 0.0 for p in machine.peaks)
            bonds.append(Bond(before, t, (*saved, 0.0)))
    flows = [
        Flow(home.get(name), tuple(sorted(users.get(name, ()))), _size(graph, name), name in wanted)
        for name in dict.fromkeys((*graph.input_names, *home))
        if name in users or (name in wanted and name in home)
    ]
    latency, per_byte = machine.copies()
    spaces = (*range(1, count + 1), 0)
    limits = (*machine.limits, inf)
    return Problem(tuple(tasks), tuple(flows), spaces, latency, per_byte, limits, tuple(bonds))


def _kept(
    graph: Graph,
    pair: tuple[int, int],
    first: Sequence[int],
    home: Mapping[str, int],
    users: Mapping[str, set[int]],
    light: _Light,
) -> float:
    """Bytes that need not be written and read if the light nodes of the second chunk are fused with the first."""
    before, t = pair
    fused = {n for k in first if graph.nodes[k].op in FUSED for n in graph.nodes[k].outputs}
    alone = {n for n in fused if users.get(n) == {t} and n not in graph.output_names}
    return sum(_size(graph, n) for n in light.read if home.get(n) == before) + sum(_size(graph, n) for n in alone)


def _traffic(graph: Graph, pieces: Sequence[Sequence[int]]) -> tuple[dict[str, int], dict[str, set[int]]]:
    """The chunk that makes each value, and the other chunks that read it."""
    home = {name: t for t, piece in enumerate(pieces) for k in piece for name in graph.nodes[k].outputs if name}
    users: dict[str, set[int]] = {}
    for t, piece in enumerate(pieces):
        for k in piece:
            for name in graph.nodes[k].inputs:
                if name and name not in graph.constants and home.get(name) != t:
                    users.setdefault(name, set()).add(t)
    return home, users


def _lights(
    graph: Graph, views: Sequence[NodeView], pieces: Sequence[Sequence[int]], users: Mapping[str, set[int]]
) -> Iterator[_Light]:
    """The light nodes of each chunk."""
    crossing = {*users, *graph.output_names}
    for piece in pieces:
        yield _Light.of([views[k] for k in piece], crossing, graph)


@dataclass(frozen=True, slots=True)
class _Light:
    """The nodes of a chunk that no candidate is asked for: work of each, bytes that cross the chunk, launches.

    Operations and bytes of fused nodes add up (one hides little of the other, as there are few operations), so that a
    ``Bond`` makes two chunks on one device cost exactly what one would.
    """

    plain: tuple[tuple[float, float], ...]  #: (operations, bytes) of those that are not fused
    flops: float
    read: frozenset[str]  #: values from outside that fused nodes read
    moved: float  #: bytes of these and of what fused nodes give away
    alone: bool  #: nothing that the fused nodes could be fused into

    @staticmethod
    def of(views: Sequence[NodeView], leaving: Set[str], graph: Graph) -> _Light:
        fused = [v for v in views if v.node.op in FUSED]
        plain = [v for v in views if v.node.op not in FUSED and v.node.op not in HEAVY]
        inside = {n for v in views for n in v.node.outputs if n}
        read = frozenset(n for v in fused for n in v.node.inputs if n and n not in inside)
        written = {n for v in fused for n in v.node.outputs if n in leaving}
        return _Light(
            tuple((node_flops(v), moved_bytes(v)) for v in plain if not _view_only(v)),
            sum(node_flops(v) for v in fused),
            read,
            sum(_size(graph, n) for n in read | written),
            len(fused) == len(views),
        )


def _view_only(view: NodeView) -> bool:
    """A raster that only renames memory."""
    from mnnpy.decompose.merge import contiguous_view

    return view.node.op == "Raster" and len(view.node.inputs) == 1 and contiguous_view(view.node) == 0


def _seconds(machine: Machine, device: int, views: Sequence[NodeView], light: _Light, precision: str) -> float:
    """Predicted seconds of a chunk."""
    peaks = machine.peaks[device]
    if peaks is None:
        return sum(moved_bytes(v) for v in views) / INTERPRETED + STEP * len(views)
    heavy = [machine.heavy(device, v, precision).seconds for v in views if v.node.op in HEAVY]
    rate = peaks.rates.get("f32", peaks.memory)
    total = sum(heavy) + sum(max(f / rate, b / peaks.memory) + peaks.launch for f, b in light.plain)
    total += light.flops / rate + light.moved / peaks.memory + peaks.launch * light.alone
    return total * machine.factor(device, precision)


def _size(graph: Graph, name: str) -> float:
    t = graph.types.get(name)
    if not isinstance(t, TensorType) or not t.is_static:
        return 0.0
    count = 1.0
    for n in t.shape or ():
        count *= int(n)  # type: ignore[arg-type]
    return count * t.dtype.itemsize
