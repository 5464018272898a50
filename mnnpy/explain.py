"""What a Session does and how long it takes: explanation rows and Chrome traces."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mnnpy.classes import dataclass
from mnnpy.control import run_control
from mnnpy.search.partition import DECLINED, FALLBACK, INTERPRETED, STAYS

if TYPE_CHECKING:
    from mnnpy.graph.ir import Graph
    from mnnpy.options import Options
    from mnnpy.runtime import Executable, Plan, Step
    from mnnpy.search.place import Machine

__all__ = ["Explanation", "explain_plans", "plan_parts", "profile_plan"]

#: Reasons of nodes that a chosen backend could have been expected to run: asked-for fallbacks, rules that declined, and
#: loop bodies that are interpreted because planning them anew was measured to cost more.
UNASKED = (FALLBACK, DECLINED, INTERPRETED)
#: Ops that multiply matrices; the rest of a plan has no bf16 kernels.
_PRODUCTS = frozenset({"MatMul", "Convolution", "FusedAttention", "LSTM", "GRU", "RNN"})
_COLUMNS = ("plan", "backend", "op", "node", "algorithm", "shape", "reason", "fallback")
_CHOICE = ("why", "predicted_us", "measured_us", "devices_us")


@dataclass(frozen=True, slots=True)
class Explanation:
    """One row per step of every plan: plan, backend, op, node, algorithm, shape, reason, fallback.

    Where an algorithm was chosen, *why* says how: ``fastest measured``, ``cost model``, ``only candidate``, ``forced``
    or ``precision=high``; *predicted_us* and, where it was measured, *measured_us* in microseconds (empty for a
    single candidate, where that took no look at the cost model). Else all are empty.
    Where several devices compete, *devices_us* is what the cost model says of the node with the light ones behind it on
    each device that takes them, and *decisions* has for each plan the ways to run it and why one was taken.
    """

    rows: tuple[dict[str, Any], ...]
    precision: str
    memory: tuple[dict[str, int], ...]
    isa: str = ""  #: instruction set of the kernels, "" where no backend in use has one
    decisions: tuple[dict[str, Any], ...] = ()

    @property
    def fallbacks(self) -> tuple[dict[str, Any], ...]:
        """Rows of nodes that ran on ``reference`` although no chosen backend asked for it."""
        return tuple(r for r in self.rows if r["fallback"])

    def __str__(self) -> str:
        if not self.rows:
            return f"{self._head()}; no plan yet: run the session, or pass feeds to explain()"
        head = ("plan", "backend", "op", "algorithm", "predicted_us", "measured_us", "why", "shape", "node")
        table = [head, *(tuple(_shown(r[k]) for k in head) for r in self.rows)]
        widths = [max(len(row[k]) for row in table) for k in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        counts = Counter(str(r["backend"]) for r in self.rows)
        summary = ", ".join(f"{n} on {b}" for b, n in counts.most_common())
        lines += [f"plan {d['plan']}: {d['text']}" for d in self.decisions]
        lines += [f"fallback: {r['op']} ({r['node']}): {r['reason']}" for r in self.fallbacks]
        return "\n".join([f"{self._head()}; {summary}", *lines])

    def _head(self) -> str:
        return f"precision {self.precision}{self._bf16()}" + (f"; isa {self.isa}" if self.isa else "")

    def _bf16(self) -> str:
        """How much of a plan of low precision really computes in bf16."""
        if self.precision != "low":
            return ""
        products = [r for r in self.rows if r["op"] in _PRODUCTS]
        low = sum("bf16" in str(r["algorithm"]) for r in products)
        return f" ({low} of {len(products)} products and convolutions in bf16)"


def explain_plans(executable: Executable, options: Options, prefix: str = "") -> Explanation:
    """Rows for all plans of *executable*, its late parts and control-flow bodies."""
    rows: list[dict[str, Any]] = []
    memory: list[dict[str, int]] = []
    decisions: list[dict[str, Any]] = []
    for number, plan in enumerate(executable.plans()):
        name = f"{prefix}{number}"
        if plan.decision is not None:
            decisions.append(_decision(name, plan))
        for step in plan.steps:
            if step.program is None:
                node = step.node
                assert node is not None
                rows.append(_row(name, "control", node.op, node.label, "session", "", "control flow", False))
                for key, body in step.bodies.items():
                    inner = explain_plans(body, options, f"{name}.{key}.")
                    rows.extend(inner.rows)
                    decisions.extend(inner.decisions)
                continue
            memory.append(dict(step.program.memory))
            chooser = executable.context.chooser
            rows.extend(_rows(name, step, plan, _devices(step, chooser.machine, options) if chooser else {}))
        if plan.late is not None:
            inner = explain_plans(plan.late, options, f"{name}+")
            rows.extend(inner.rows)
            decisions.extend(inner.decisions)
    isas = (str(d.info.facts["isa"]) for d in executable.context.devices if "isa" in d.info.facts)
    return Explanation(tuple(rows), options.precision, tuple(memory), next(isas, ""), tuple(decisions))


def _rows(name: str, step: Step, plan: Plan, devices: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """A row for each thing that the program of a step does."""
    assert step.program is not None
    rows = []
    known = set(step.reasons.values())
    rest = STAYS if known == {STAYS} else ""  # of nodes that the device's own passes brought in
    for d in step.program.describe():
        reason = step.reasons.get(d["node"], rest)
        fell = reason.startswith(UNASKED)
        if reason == STAYS and plan.decision is not None:
            reason = str(plan.decision)
        cells = (d["op"], d["node"], d["algorithm"], d.get("shape", ""), reason, fell)
        rows.append(_row(name, step.device, *cells, *_choice(d), devices.get(d["node"], {})))
    return rows


def _decision(name: str, plan: Plan) -> dict[str, Any]:
    """Why a plan is as it is: its way and all ways with seconds predicted and measured."""
    decision = plan.decision
    assert decision is not None
    ways = {
        way: {"predicted": seconds, "measured": decision.measured.get(way)}
        for way, seconds in decision.predicted.items()
    }
    return {"plan": name, "way": decision.way, "reason": decision.reason, "ways": ways, "text": str(decision)}


def _devices(step: Step, machine: Machine, options: Options) -> dict[str, dict[str, float]]:
    """Label of a node → microseconds that its chunk is predicted to take on each device."""
    from mnnpy.decompose.lower import view_of
    from mnnpy.search.place import estimate

    graph = step.graph
    found: dict[str, dict[str, float]] = {}
    for e in estimate(graph, machine, lambda n: view_of(n, graph.types, graph.constants), options.precision):
        times = {machine.names[d]: round(1e6 * s, 1) for d, s in e.seconds.items()}
        found.update({graph.nodes[k].label: times for k in e.nodes})
    return found


def plan_parts(plan: Plan) -> list[tuple[str, Graph]]:
    """(backend, graph) of each step, and of the late parts that were planned so far."""
    parts = [(step.device, step.graph) for step in plan.steps]
    for late in plan.late.plans() if plan.late is not None else ():
        parts.extend(plan_parts(late))
    return parts


def _row(*cells: Any) -> dict[str, Any]:
    padded = (*cells, *("" for _ in range(len(_COLUMNS) + len(_CHOICE) - len(cells))))
    row = dict(zip((*_COLUMNS, *_CHOICE), padded, strict=True))
    return {**row, "devices_us": row["devices_us"] or {}}


def _choice(described: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Why a step has its algorithm, and microseconds predicted and measured; empty where nothing was weighed."""
    times = (described.get(key) for key in ("predicted", "measured"))
    predicted, measured = ("" if s is None else round(float(s) * 1e6, 1) for s in times)
    return described.get("reason", ""), predicted, measured


def _shown(cell: Any) -> str:
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)


def profile_plan(plan: Plan, feeds: list[Any], repeat: int = 1) -> dict[str, Any]:
    """A Chrome trace of *repeat* runs; one thread id per backend, times in microseconds."""
    events: list[dict[str, Any]] = []
    start = time.perf_counter()
    for _ in range(max(1, repeat)):
        _profile(plan, feeds, events, start)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _profile(plan: Plan, feeds: list[Any], events: list[dict[str, Any]], start: float) -> list[Any]:
    values = {**plan.constants, **dict(zip(plan.inputs, feeds, strict=True))}
    for step in plan.steps:
        args = [values[n] for n in step.inputs]
        begin = time.perf_counter()
        if step.program is None:
            results = run_control(step.node, step.bodies, args)
            assert step.node is not None
            spent = time.perf_counter() - begin
            events.append(_event(step.node.op, step.node.label, "session", "control", begin - start, spent))
        else:
            for op, node, algorithm, at, duration in step.program.profile(args):
                events.append(_event(op, node, algorithm, step.device, begin - start + at, duration))
            results = step.program.run(args)
        values.update(zip(step.outputs, results, strict=False))
    if plan.late is not None:
        args = [values[n] for n in plan.late.graph.input_names]
        late = plan.late.plan(args)
        values.update(zip(plan.late.graph.output_names, _profile(late, args, events, start), strict=True))
    return [values[n] for n in plan.outputs]


def _event(op: str, node: str, algorithm: str, backend: str, at: float, duration: float) -> dict[str, Any]:
    return {"cat": "Node", "pid": 1, "tid": backend, "ts": round(at * 1e6, 3), "dur": round(duration * 1e6, 3),
            "ph": "X", "name": op, "args": {"node": node, "algorithm": algorithm, "op_name": op}}  # fmt: skip
