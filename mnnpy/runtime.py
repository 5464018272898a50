"""Executables and plans: what a Session runs.

An ``Executable`` is a graph plus the plans made for it so far, one per signature (input shapes, and values
where shapes depend on them). A ``Plan`` is a list of steps over named values.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mnnpy.backends.base import Device, Program, Recipe, Segment, device_names
from mnnpy.classes import dataclass, field, replace
from mnnpy.errors import BackendError, MnnpyError, ModelError
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Type, Value, tensor_type_of
from mnnpy.limits import check_arenas, check_memory
from mnnpy.options import Options
from mnnpy.plan_cache import LateTexts, PlanCache, StoredPlan, StoredStep, signature_of

if TYPE_CHECKING:  # a plan that is kept on disk needs none of them
    from mnnpy.decompose.lower import Decomposed
    from mnnpy.search.partition import Assignment, Part
    from mnnpy.specialize import Specialized

if TYPE_CHECKING:
    from mnnpy.background import Tuner
    from mnnpy.overlap import Crew, Overlap
    from mnnpy.search.chooser import Chooser
    from mnnpy.search.observe import Observer
    from mnnpy.search.planner import Decision, Way
    from mnnpy.search.records import Record
    from mnnpy.search.shipping import Shipment

__all__ = ["Context", "Executable", "Plan", "Step"]

#: Plans made for different *values* of inputs of the same types, before shapes are left to the host instead.
VALUE_PLAN_LIMIT = 16
#: Plans that a loop body or a late part makes before interpreting it is weighed against planning again and again.
INTERPRET_AFTER = 32
#: Seconds of a compiled run above which interpreting is not even tried: heavy work belongs to kernels.
INTERPRET_BELOW = 2e-3
#: Share of the time that is left which the layers of one part may take where devices are to be compared as well.
LAYERS = 0.5
#: Operations and bytes per second that are assumed where nothing was predicted.
ROUGH_RATE, ROUGH_MEMORY = 5e10, 1e10


@dataclass(frozen=True)
class Context:
    """What all executables of a Session share."""

    devices: tuple[Device, ...]
    options: Options
    memory_limit: int
    chooser: Chooser | None = None  #: where several devices compete
    observer: Observer | None = None  #: hears what is measured
    shipment: Shipment | None = None  #: what was measured elsewhere and counts here
    tuner: Tuner | None = None  #: hears of new plans, to measure them in the background
    outer: Context | None = None  #: of late parts and loop bodies, where this one is for a single plan

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the devices are called in plans."""
        return device_names(self.devices)

    @cached_property
    def host(self) -> Device:
        """The reference backend."""
        from mnnpy.backends.registry import open_device

        return next((d for d in self.devices if d.info.backend == "reference"), None) or open_device("reference")

    def shipped(self, device: int) -> Mapping[str, Record]:
        """Records of the device of this number that were measured elsewhere."""
        return {} if self.shipment is None or device < 0 else self.shipment.devices[device]

    @property
    def inner(self) -> Context:
        """The context of late parts and loop bodies."""
        return self.outer or self

    def measuring(self, seconds: float) -> Context:
        """The same, for one plan that may take time to measure."""
        options = replace(self.options, tune=seconds)
        chooser = None if self.chooser is None else self.chooser.measuring(options)
        return replace(self, options=options, chooser=chooser, tuner=None, outer=self)

    @cached_property
    def crew(self) -> Crew:
        """Threads for the steps of plans on several devices."""
        if self.outer is not None:
            return self.outer.crew
        from mnnpy.overlap import Crew

        return Crew()


@dataclass(slots=True)
class Step:
    """One part of a plan: a compiled program, or a control-flow node with executables for its bodies."""

    device: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    part: Graph | Callable[[], Graph]  #: a plan that was kept on disk makes the graph when asked for it
    program: Program | None = None
    node: Node | None = None
    bodies: dict[str, Executable] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)  #: label of a node → why it is on this device
    lane: int = -1  #: number of the device in the session; negative: the session itself

    def run(self, args: Sequence[Any]) -> Sequence[Any]:
        """Results in the order of the outputs."""
        if self.program is not None:
            return self.program.run(args)
        from mnnpy.control import run_control

        return run_control(self.node, self.bodies, args)

    @property
    def graph(self) -> Graph:
        """What is compiled, before the device's own passes."""
        if not isinstance(self.part, Graph):
            self.part = self.part()
        return self.part


@dataclass(slots=True)
class Plan:
    """Steps in order; then, where data decide shapes, an executable for the late part."""

    inputs: tuple[str, ...]  #: names read from the feeds, in the order of the executable's inputs
    constants: Mapping[str, Array]
    steps: list[Step]
    late: Executable | None
    outputs: tuple[str, ...]
    direct: Program | None  #: set where the plan is exactly one program over all inputs in order
    borrowed: tuple[int, ...] = ()  #: outputs that are an input, a constant or another output: copied on the way out
    decision: Decision | None = None  #: where several devices competed
    overlap: Overlap | None = None  #: set where steps can run at once on several devices

    def run(self, feeds: Sequence[Any]) -> list[Any]:
        """Run on feeds in input order; results in output order."""
        if self.direct is not None:
            return self.direct.run(feeds)
        # Late parts have late parts of their own: walked down and up again without recursion.
        plan = self
        outer: list[tuple[Plan, dict[str, Any]]] = []
        values = plan._values(feeds)
        while plan.late is not None:
            outer.append((plan, values))
            feeds = [values[n] for n in plan.late.graph.input_names]
            plan = plan.late.plan(feeds)
            values = plan._values(feeds)
        results = plan._collect(values)
        while outer:
            plan, values = outer.pop()
            assert plan.late is not None
            values.update(zip(plan.late.graph.output_names, results, strict=True))
            results = plan._collect(values)
        return results

    def _values(self, feeds: Sequence[Any]) -> dict[str, Any]:
        """All values that the steps read and write."""
        values: dict[str, Any] = dict(self.constants)
        values.update(zip(self.inputs, feeds, strict=True))
        if self.overlap is not None:
            self.overlap.run(lambda number: self._advance(self.steps[number], values))
            return values
        for step in self.steps:
            results = step.run([values[n] for n in step.inputs])
            values.update(zip(step.outputs, results, strict=False))
        return values

    def _advance(self, step: Step, values: dict[str, Any]) -> None:
        results = step.run([values[n] for n in step.inputs])
        values.update(zip(step.outputs, results, strict=False))

    def _collect(self, values: Mapping[str, Any]) -> list[Any]:
        found = [values[n] for n in self.outputs]
        for k in self.borrowed:
            if isinstance(found[k], np.ndarray):
                found[k] = found[k].copy()
        return found


@contextmanager
def without_collector() -> Iterator[None]:
    """Python's cycle collector off for a while: planning makes many objects, few cycles, and drops them soon."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


class Executable:
    """A graph and its plans. Safe to run from several threads at once."""

    def __init__(
        self, graph: Graph | None, context: Context, depth: int = 0, cache: PlanCache | None = None
    ) -> None:
        """*graph* may be None where *cache* knows the model's interface."""
        self._graph = graph
        self._cache = cache
        self.context = context
        self.depth = depth
        known = cache.interface if cache is not None else None
        self._value_inputs: tuple[int, ...] = known.value_inputs if known is not None else ()
        self._ask = True  #: whether shapes may depend on the values of inputs (one plan per value)
        self._value_plans: Counter[Any] = Counter()
        self._interpreted: Plan | None = None
        self._runs = 0
        self._made = 0
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def graph(self) -> Graph:
        """The model, read now if that was not necessary so far."""
        if self._graph is None:
            assert self._cache is not None
            with self._lock, without_collector():
                if self._graph is None:
                    self._graph = self._cache.graph()
        return self._graph

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The model's inputs."""
        if self._graph is None and self._cache is not None and self._cache.interface is not None:
            return self._cache.interface.inputs
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The model's outputs."""
        if self._graph is None and self._cache is not None and self._cache.interface is not None:
            return self._cache.interface.outputs
        return self.graph.outputs

    def run(self, feeds: Sequence[Any]) -> list[Any]:
        """Run on values in the order of the graph's inputs."""
        return self.plan(feeds).run(feeds)

    def plan(self, feeds: Sequence[Any]) -> Plan:
        """The plan for these feeds, made now if it is new."""
        if self._interpreted is not None:
            return self._interpreted
        self._runs += 1
        found = self._plans.get(self._signature(feeds))
        return found if found is not None else self._make(feeds)

    def prepare(self) -> bool:
        """Plan ahead if all input types are static and no shape depends on input values."""
        types: dict[str, Type] = {}
        for value in self.inputs:
            if not isinstance(value.type, TensorType) or not value.type.is_static:
                return False
            types[value.name] = value.type
        if self._value_inputs:
            return False
        with self._lock, self._guard():
            built = self._stored(types, {})
            if built is None:
                from mnnpy.specialize import specialize

                spec = specialize(self.graph, types, {})
                if spec.needs or spec.late is not None:
                    return False
                built = self._build(spec)
                if built is None:
                    return False
                self._keep(types, {}, built)
            key = tuple((t.shape, t.dtype.numpy) for t in types.values() if isinstance(t, TensorType))
            self._plans[key] = built
            if self.context.tuner is not None:
                self.context.tuner.planned(self, key, types, {})
        return True

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """What Python itself gives up on while planning, as an error of ours."""
        try:
            with without_collector():
                yield
        except RecursionError as error:
            raise ModelError(
                f"graph '{self.graph.name}' nests deeper than Python's stack allows ({sys.getrecursionlimit()} calls); "
                "flatten its sub-graphs or raise sys.setrecursionlimit"
            ) from error
        except MemoryError as error:
            raise ModelError(
                f"graph '{self.graph.name}': memory ran out while planning ({error}); use smaller inputs or free memory"
            ) from error

    @property
    def plans_by_value(self) -> bool:
        """Whether plans depend on values of inputs, not on their types alone."""
        return bool(self._value_inputs) or self._interpreted is not None

    def plans(self) -> list[Plan]:
        """The plans made so far, oldest first."""
        return [self._interpreted] if self._interpreted is not None else list(self._plans.values())

    def _signature(self, feeds: Sequence[Any]) -> Any:
        key = tuple([(a.shape, a.dtype) if type(a) is np.ndarray else _kind(a) for a in feeds])
        if self._value_inputs:
            return key, tuple(feeds[k].tobytes() for k in self._value_inputs)
        return key

    def _make(self, feeds: Sequence[Any]) -> Plan:
        with self._lock, self._guard():
            if self._interpreted is not None:
                return self._interpreted
            found = self._plans.get(self._signature(feeds))
            if found is not None:
                return found
            begin = time.perf_counter()
            types = {
                v.name: tensor_type_of(a) if isinstance(a, np.ndarray) else v.type
                for v, a in zip(self.inputs, feeds, strict=True)
            }
            self._limit_values(types)
            plan = self._specialized(types, feeds)
            signature = self._signature(feeds)
            self._plans[signature] = plan
            if self.context.tuner is not None:
                values = {self.inputs[k].name: feeds[k].copy() for k in self._value_inputs}
                self.context.tuner.planned(self, signature, types, values)
            while len(self._plans) > self.context.options.max_plans:
                self._plans.popitem(last=False)
            self._made += 1
            if self.depth and self._made >= INTERPRET_AFTER and self._made & (self._made - 1) == 0:
                self._weigh(plan, feeds, time.perf_counter() - begin)
            return plan

    def _limit_values(self, types: Mapping[str, Type | None]) -> None:
        """Stop making a plan per value once there were many for inputs of the same types (a loop's counter)."""
        if not self._value_inputs:
            return
        key = tuple(types.values())
        self._value_plans[key] += 1
        if self._value_plans[key] > VALUE_PLAN_LIMIT:
            self._ask, self._value_inputs = False, ()
            self._plans.clear()

    def _specialized(self, types: Mapping[str, Type | None], feeds: Sequence[Any]) -> Plan:
        names = [v.name for v in self.inputs]
        while True:
            known = {names[k]: feeds[k] for k in self._value_inputs}
            stored = self._stored(types, known)
            if stored is not None:
                return stored
            from mnnpy.specialize import specialize

            spec = specialize(self.graph, types, known, ask=self._ask)  # type: ignore[arg-type]
            plan = self._build(spec, feeds) if not spec.needs else None
            if plan is not None:
                self._keep(types, known, plan)
                return plan
            wanted = spec.needs or self._wanted
            self._value_inputs = tuple(k for k, n in enumerate(names) if n in wanted or n in known)
            if set(known) == {names[k] for k in self._value_inputs}:
                raise ModelError(f"graph '{self.graph.name}': the shapes depend on {sorted(wanted)} in a circle")
            self._plans.clear()  # signatures have another form now

    def _weigh(self, plan: Plan, feeds: Sequence[Any], planning: float) -> None:
        """Interpret from now on if that would have been faster so far than planning for ever new shapes."""
        begin = time.perf_counter()
        plan.run(feeds)
        compiled = time.perf_counter() - begin
        if compiled > INTERPRET_BELOW:
            return
        host, graph = self.context.host, self.graph
        program = host.compile(Segment(graph))
        begin = time.perf_counter()
        program.run(feeds)
        interpreted = time.perf_counter() - begin
        if self._runs * (interpreted - compiled) >= self._made * planning:
            return
        from mnnpy.search.partition import INTERPRETED

        reason = f"{INTERPRETED}: {self._made} plans for {self._runs} runs"
        reasons = {n.label: reason for n in graph.nodes}
        step = Step(host.info.backend, graph.input_names, graph.output_names, graph, program, None, {}, reasons)
        self._interpreted = Plan(graph.input_names, {}, [step], None, graph.output_names, program)
        self._plans.clear()

    # -- plans made again --

    def current(self, signature: Any) -> Plan | None:
        """The plan of a signature, if it is still in use."""
        return None if self._interpreted is not None else self._plans.get(signature)

    def retuned(self, types: Mapping[str, Type | None], known: Mapping[str, Any], seconds: float) -> Plan | None:
        """Another plan for the same inputs, with *seconds* for measuring; None where there is none.

        Takes no lock and changes nothing: runs go on meanwhile.
        """
        from mnnpy.specialize import specialize

        graph = self._graph if self._graph is not None or self._cache is None else self._cache.graph()
        assert graph is not None
        spec = specialize(graph, types, known, ask=self._ask)  # type: ignore[arg-type]
        if spec.needs:
            return None
        maker = Executable(graph, self.context.measuring(seconds), self.depth)
        maker._ask = self._ask
        return maker._build(spec)

    def swap(self, signature: Any, old: Plan, new: Plan) -> bool:
        """Put *new* in the place of *old*: runs that began go on with the old one, later ones take the new."""
        if self._plans.get(signature) is not old:
            return False
        self._plans[signature] = new
        return True

    # -- plans on disk --

    def _key(self, types: Mapping[str, Type | None], known: Mapping[str, Any]) -> str | None:
        """What a plan on disk is found by; None where none is kept."""
        if self._cache is None or not self._ask:
            return None
        return signature_of(types, known)

    def _stored(self, types: Mapping[str, Type | None], known: Mapping[str, Any]) -> Plan | None:
        """The plan that an earlier Session kept."""
        key = self._key(types, known)
        if self._cache is None or key is None:
            return None
        found = self._cache.read(key)
        if found is None:
            return None
        restore = self.context.devices[0].restore  # type: ignore[attr-defined]
        steps: list[Step] = []
        try:
            for k, s in enumerate(found.steps):
                part = partial(self._part, types, known, k)
                reasons = LateTexts(lambda s=s: s.facts()["reasons"])  # type: ignore[misc]
                program = restore(s.build, lambda s=s: s.facts()["steps"])
                steps.append(Step(s.device, s.inputs, s.outputs, part, program, None, {}, reasons, 0))
        except (MnnpyError, ValueError, TypeError, KeyError, RuntimeError) as error:
            self._cache.unusable(key, error)
            return None
        if self._cache.interface is None:  # it got lost, the plan did not
            self._cache.keep_interface(self.graph, self._value_inputs)
        constants = {n: np.require(a, requirements="A") for n, a in found.constants.items()}
        direct = steps[0].program if found.direct else None
        return Plan(found.inputs, constants, steps, None, found.outputs, direct, found.borrowed)

    def _part(self, types: Mapping[str, Type | None], known: Mapping[str, Any], number: int) -> Graph:
        """The graph of one step of a plan that was kept on disk."""
        from mnnpy.search.partition import form_parts
        from mnnpy.specialize import specialize

        with self._lock, self._guard():
            spec = specialize(self.graph, types, known, ask=self._ask)  # type: ignore[arg-type]
            lowered = self._lowered(spec.graph)
            return form_parts(lowered.graph, self._assigned(lowered.graph))[number].graph

    def _keep(self, types: Mapping[str, Type | None], known: Mapping[str, Any], plan: Plan) -> None:
        """Keep a plan for later Sessions, if it is one that can be kept."""
        if self._cache is None:
            return
        key = self._key(types, known)
        steps: list[StoredStep] = []
        for step in plan.steps:
            recipe: Recipe | None = getattr(step.program, "recipe", None)
            if recipe is not None:
                step.program.recipe = None  # type: ignore[union-attr]  # it holds on to weights
                facts = partial(_facts, step, recipe)
                steps.append(StoredStep(step.device, step.inputs, step.outputs, recipe.build, facts))
        if key is None or plan.late is not None or len(steps) < len(plan.steps):
            return
        direct = plan.direct is not None
        if self._cache.keep(key, StoredPlan(plan.inputs, plan.outputs, plan.borrowed, direct, plan.constants, steps)):
            self._cache.keep_interface(self.graph, self._value_inputs)

    # -- making plans --

    _wanted: frozenset[str] = frozenset()

    def _lowered(self, graph: Graph) -> Decomposed:
        """A graph with static types in the ops that the first device supports."""
        from mnnpy.decompose.lower import decompose

        primary, optimize = self.context.devices[0], self.context.options.optimize
        graph = self._recognized(graph)
        return decompose(graph, lambda v: bool(primary.supports(v)), primary.info.backend, optimize=optimize)

    def _recognized(self, graph: Graph) -> Graph:
        """Composites that the model had spelled out."""
        if "patterns" not in self.context.options.optimize:
            return graph
        from mnnpy.decompose.patterns import recognize

        return recognize(graph)

    _until = 0.0  #: when the time for measuring is up

    def _left(self) -> float:
        """Seconds that are left for measuring."""
        if self.context.options.seconds <= 0:
            return 0.0
        from mnnpy.search.measure import now

        return max(0.0, self._until - now())

    def _build(self, spec: Specialized, feeds: Sequence[Any] | None = None) -> Plan | None:
        """A plan, or None where a rule asked for the value of an input (then ``_wanted`` names it)."""
        context = self.context
        if context.options.seconds > 0:
            from mnnpy.search.measure import now

            self._until = now() + context.options.seconds
        check_memory(spec.graph, context.memory_limit)
        if context.chooser is not None:
            graph = self._recognized(spec.graph)
            if found := context.chooser.ways(graph):
                return self._chosen(graph, spec, found, feeds)
        lowered = self._lowered(spec.graph)
        return None if self._asks(spec, lowered) else self._assembled(spec, lowered, None)

    def _asks(self, spec: Specialized, lowered: Decomposed) -> bool:
        """Whether rules want the values of inputs: ``_wanted`` names these."""
        self._wanted = frozenset().union(*(spec.sources.get(n) or () for n in lowered.needs))
        return bool(self._wanted and self._ask)

    def _chosen(
        self, graph: Graph, spec: Specialized, found: Sequence[Way], feeds: Sequence[Any] | None
    ) -> Plan | None:
        """The plan of the best way: measured where there is time for that, else recorded or predicted."""
        chooser = self.context.chooser
        assert chooser is not None
        if any(self._asks(spec, way.lowered) for way in found):
            return None
        built: dict[str, Plan] = {}

        def prepare(way: Way) -> Plan:
            if way.name not in built:
                built[way.name] = self._assembled(spec, way.lowered, way)
            return built[way.name]

        while True:
            way, decision = chooser.choose(graph, found, prepare, feeds, self._left)
            try:
                plan = prepare(way)
                break
            except BackendError:
                if way.placement.sure:
                    raise
                found = chooser.sure(found, {w.name for w in found})
                if not found:
                    raise
        plan.decision = decision
        return plan

    def _assembled(self, spec: Specialized, lowered: Decomposed, way: Way | None) -> Plan:
        """Compile the parts."""
        context = self.context
        steps = self._steps(lowered, way)
        check_arenas(self.graph.name, steps, context.memory_limit)
        late = Executable(spec.late, context.inner, self.depth + 1) if spec.late is not None else None
        outputs = tuple(lowered.names.get(n, n) for n in spec.outputs)
        if late is not None:
            renamed = tuple(lowered.names.get(n, n) for n in late.graph.input_names)
            if renamed != late.graph.input_names:
                late = Executable(_rename_inputs(late.graph, renamed), context.inner, self.depth + 1)
        inputs = self.graph.input_names
        direct = None
        if late is None and len(steps) == 1 and steps[0].inputs == inputs and steps[0].outputs == outputs:
            direct = steps[0].program
        foreign = {*inputs, *lowered.graph.constants}
        borrowed = tuple(k for k, n in enumerate(outputs) if n in foreign or n in outputs[:k])
        read = {*outputs, *(n for s in steps for n in s.inputs), *(late.graph.input_names if late is not None else ())}
        constants = {n: np.require(a, requirements="A") for n, a in lowered.graph.constants.items() if n in read}
        return Plan(inputs, constants, steps, late, outputs, direct, borrowed, overlap=_overlap(steps, context))

    def _assigned(self, graph: Graph) -> list[Assignment]:
        from mnnpy.decompose.lower import view_of
        from mnnpy.search.partition import assign

        return assign(
            graph,
            self.context.devices,
            lambda n: view_of(n, graph.types, graph.constants),
            fallback=self.context.options.fallback,
        )

    def _steps(self, lowered: Decomposed, way: Way | None) -> list[Step]:
        from mnnpy.search.partition import form_parts

        graph = lowered.graph
        chosen = self._assigned(graph) if way is None else way.chosen
        seconds = _guessed(lowered, chosen) if way is None else way.placement.seconds
        by_output = {n.outputs: a for n, a in zip(graph.nodes, chosen, strict=True)}
        return [
            self._step(part, {n.label: by_output[n.outputs].reason for n in part.graph.nodes})
            for part in form_parts(graph, chosen, seconds)
        ]

    def _step(self, part: Part, reasons: Mapping[str, str]) -> Step:
        from mnnpy.search.partition import CONTROL, HOST

        inputs, outputs = part.graph.input_names, part.graph.output_names
        options = self.context.options
        if part.device == CONTROL:
            (node,) = part.graph.nodes
            bodies = {key: Executable(body, self.context.inner, self.depth + 1) for key, body in node.subgraphs()}
            read = tuple(dict.fromkeys(n for n in node.inputs if n))
            return Step("control", read, node.outputs, part.graph, None, node, bodies, reasons)
        hosted = part.device == HOST
        device = self.context.host if hosted else self.context.devices[part.device]
        name = device.info.backend if hosted else self.context.names[part.device]
        segment = Segment(
            part.graph,
            precision=options.precision,
            threads=options.thread_count,
            tuning=self._left() * (1.0 if self.context.chooser is None else LAYERS),
            records=options.tune != "off",
            optimize=options.optimize,
            algorithms=options.algorithms,
            recipe=self._cache is not None,
            observer=self.context.observer,
            shipped=self.context.shipped(part.device),
        )
        program = device.compile(segment)
        return Step(name, inputs, outputs, part.graph, program, None, {}, reasons, part.device)


def _guessed(lowered: Decomposed, chosen: Sequence[Assignment]) -> list[float] | None:
    """Rough seconds of each node where several devices are in use without a prediction."""
    if len({a.device for a in chosen if a.device >= 0}) < 2:
        return None
    from mnnpy.backends.analytic import moved_bytes, node_flops
    from mnnpy.decompose.lower import view_of

    views = (view_of(n, lowered.graph.types, lowered.graph.constants) for n in lowered.graph.nodes)
    return [node_flops(v) / ROUGH_RATE + moved_bytes(v) / ROUGH_MEMORY for v in views]


def _overlap(steps: Sequence[Step], context: Context) -> Overlap | None:
    if len({s.lane for s in steps if s.lane >= 0}) < 2:
        return None
    from mnnpy.overlap import overlapping

    return overlapping(steps, lambda: context.crew)


def _facts(step: Step, recipe: Recipe) -> dict[str, Any]:
    """What a plan on disk tells about one of its programs."""
    return {"steps": recipe.facts(), "reasons": dict(step.reasons)}


def _kind(value: Any) -> Any:
    if isinstance(value, list):
        return "list"
    return type(value)


def _rename_inputs(graph: Graph, names: tuple[str, ...]) -> Graph:
    new = dict(zip(graph.input_names, names, strict=True))
    outer = {n for node in graph.nodes for n in node.outputs} & set(names)
    if outer:
        raise MnnpyError(f"graph '{graph.name}': names {sorted(outer)} would clash")
    unique: dict[str, Any] = {}
    for value in graph.inputs:
        unique.setdefault(new[value.name], type(value)(new[value.name], value.type))
    return graph.replace(
        inputs=tuple(unique.values()),
        nodes=tuple(n.replace(inputs=tuple(new.get(i, i) for i in n.inputs)) for n in graph.nodes),
    )
