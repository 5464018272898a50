"""What a session asks: the ways to run a graph, and which one to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from copy import copy
from typing import TYPE_CHECKING, Any, Protocol

from mnnpy.backends.base import Device
from mnnpy.classes import replace
from mnnpy.graph.ir import Graph
from mnnpy.options import Options
from mnnpy.search.buckets import ALIKE, nearest
from mnnpy.search.calibrate import device_fingerprint
from mnnpy.search.measure import now
from mnnpy.search.observe import Observer, Task, teller
from mnnpy.search.place import Machine
from mnnpy.search.planner import (
    SHORTLIST,
    Decision,
    Way,
    decide,
    graph_key,
    graph_sizes,
    made_up,
    measured,
    ranked,
    settled,
    ways,
)
from mnnpy.search.records import Records
from mnnpy.store import cache_folder

if TYPE_CHECKING:
    from mnnpy.search.shipping import Shipment

__all__ = ["Chooser", "Runnable"]


class Runnable(Protocol):
    """A plan."""

    def run(self, feeds: Sequence[Any]) -> list[Any]: ...


class Chooser:
    """The choice among devices for one session; decisions are kept in ``plans.jsonl``."""

    def __init__(
        self,
        devices: Sequence[Device],
        options: Options,
        observer: Observer | None = None,
        shipment: Shipment | None = None,
    ) -> None:
        self.observer = observer
        self.shipped = shipment.plans if shipment is not None else {}
        self.options = options
        fingerprint = " | ".join(device_fingerprint(d) for d in devices)
        self.records = Records(fingerprint, cache_folder() / "plans.jsonl")
        shipped = None if shipment is None else shipment.devices
        self.machine = Machine(devices, shipped, self.records, options.tune != "off")

    def measuring(self, options: Options) -> Chooser:
        """The same with other options."""
        made = copy(self)
        made.options = options
        return made

    def ways(self, graph: Graph) -> list[Way]:
        """All ways, the one predicted to be fastest first; empty where some node runs nowhere."""
        return ways(graph, self.machine, self.options.precision, self.options.optimize)

    def choose(
        self,
        graph: Graph,
        found: Sequence[Way],
        prepare: Callable[[Way], Runnable],
        feeds: Sequence[Any] | None,
        left: Callable[[], float],
    ) -> tuple[Way, Decision]:
        """The way to take and why: recorded, measured on *feeds* where there are seconds *left* for that, or predicted.

        A way that was not measured may turn out not to be one when it is compiled: ask about it then (``sure``).
        """
        options = self.options
        key = graph_key(graph, self.machine, options.precision, options.thread_count)
        record = (self.shipped.get(key) or self.records.get(key)) if options.tune != "off" else None
        alike = graph_sizes(graph, self.machine, options.precision, options.thread_count)
        tell = teller(self.observer, Task(key, f"graph {graph.name}", "", {w.name: w.predicted for w in found}))
        if record is None and options.seconds > 0 and len(found) > 1:
            inputs = feeds if feeds is not None else made_up(graph)
            if inputs is not None:
                given = inputs
                found = self.sure(found, {w.name for w in found if w.predicted <= SHORTLIST * found[0].predicted})

                def run(way: Way) -> Callable[[], list[Any]]:
                    plan = prepare(way)
                    return lambda: plan.run(given)

                record = measured(found, key, self.records, run, left(), now, tell, alike)[1]
            return decide(found, record)
        if record is None and options.tune != "off":
            record = nearest(self.shipped.values(), *alike) or self.records.near(*alike)
            record = None if record is None else replace(record, reason=ALIKE)
        way, decision = decide(found, record)
        if way.name in decision.measured:
            tell("recalled", way.name, decision.measured[way.name], record)
        return way, decision

    def sure(self, found: Sequence[Way], names: Set[str]) -> list[Way]:
        """The ways anew, those of *names* with every device asked about what it gets."""
        asked = (settled(w, self.machine, self.options.precision) if w.name in names else w for w in found)
        return ranked([w for w in asked if w is not None])
