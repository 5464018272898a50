"""Which device runs which node, and how neighbours form segments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mnnpy.backends.base import Device, NodeView, device_names
from mnnpy.classes import dataclass
from mnnpy.decompose.registry import OpClass, get_op
from mnnpy.errors import UnsupportedOpError
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Type, Value

__all__ = [
    "CONTROL", "DECLINED", "FALLBACK", "HOST", "INTERPRETED", "STAYS", "Assignment", "Part", "assign", "form_parts",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a node runs and why."""

    device: int  #: index into the session's devices; HOST for the reference interpreter, CONTROL for the session
    reason: str


#: Reasons that ``Session.explain().fallbacks`` looks for.
FALLBACK = "fallback was asked for"
DECLINED = "host op: no decomposition for these operands and attributes"
INTERPRETED = "interpreting was measured to be faster than planning"
#: Reason of nodes of a plan that stays on one device; what the other plans take is known to whoever chose it.
STAYS = "the whole plan stays there"

HOST = -1
CONTROL = -2


@dataclass(frozen=True, slots=True)
class Part:
    """A run of nodes on one device, as a closed graph."""

    device: int
    graph: Graph


def assign(
    graph: Graph, devices: Sequence[Device], view: Callable[[Node], NodeView], *, fallback: bool
) -> list[Assignment]:
    """Give each node to the first device that supports it; host ops to the host.

    Raises UnsupportedOpError listing *all* nodes that no device takes, unless *fallback*.
    """
    names = device_names(devices)
    chosen: list[Assignment] = []
    missing: list[str] = []
    for node in graph.nodes:
        op_class = get_op(node.op).op_class
        if op_class is OpClass.CONTROL:
            chosen.append(Assignment(CONTROL, "control flow runs in the session"))
            continue
        reasons = []
        for k, device in enumerate(devices):
            support = device.supports(view(node))
            if support:
                chosen.append(Assignment(k, support.reason or "first device of the list that supports it"))
                break
            reasons.append(f"{names[k]}: {support.reason}")
        else:
            if is_host_node(node, graph.types):
                chosen.append(Assignment(HOST, "host op: strings, sequences or data-dependent shapes"))
            elif op_class is not OpClass.ATOMIC:
                chosen.append(Assignment(HOST, DECLINED))
            elif fallback:
                chosen.append(Assignment(HOST, f"{FALLBACK}; " + "; ".join(reasons)))
            else:
                missing.append(f"  {node.op} (node '{node.label}'): " + "; ".join(reasons))
                chosen.append(Assignment(HOST, ""))
    if missing:
        raise UnsupportedOpError(
            f"{len(missing)} node(s) are supported by none of the chosen backends:\n"
            + "\n".join(missing)
            + "\nadd another backend to `backends=`, or pass fallback=True to run them on the reference backend"
        )
    return chosen


def is_host_node(node: Node, types: Mapping[str, Type]) -> bool:
    """True for ops that are host ops by class or by what they carry (strings, sequences, maps, optionals)."""
    if get_op(node.op).op_class is OpClass.HOST:
        return True
    for name in (*node.inputs, *node.outputs):
        t = types.get(name) if name else None
        if name and (not isinstance(t, TensorType) or t.dtype.value in ("string", "c64", "c128") or not t.is_static):
            return True
    return False


def form_parts(graph: Graph, chosen: Sequence[Assignment], seconds: Sequence[float] | None = None) -> list[Part]:
    """Group nodes into as few parts as a topological sweep finds: always the device that has most ready work.

    With predicted *seconds* of the nodes, a part is divided where another device would wait for work that it does not
    need, and the two can then run at once.
    """
    producer = {o: k for k, n in enumerate(graph.nodes) for o in n.outputs if o}
    waits = [len({producer[i] for i in n.inputs if i in producer}) for n in graph.nodes]
    readers: dict[int, set[int]] = {}
    for k, n in enumerate(graph.nodes):
        for i in n.inputs:
            if i in producer:
                readers.setdefault(producer[i], set()).add(k)
    ready: dict[int, list[int]] = {}
    for k, w in enumerate(waits):
        if w == 0:
            ready.setdefault(chosen[k].device, []).append(k)
    groups: list[tuple[int, list[int]]] = []
    while any(ready.values()):
        # Devices before host and control: the longer a segment runs, the fewer crossings.
        device = max((d for d, ks in ready.items() if ks), key=lambda d: (d >= 0, -d))
        group: list[int] = []
        single = device == CONTROL
        while ready.get(device):
            k = ready[device].pop()
            group.append(k)
            for r in readers.get(k, ()):
                waits[r] -= 1
                if waits[r] == 0:
                    ready.setdefault(chosen[r].device, []).append(r)
            if single:
                break
        groups.append((device, sorted(group)))
    if seconds is None:
        return _close(graph, groups)
    from mnnpy.search.divide import divided

    return _close(graph, divided(graph, groups, seconds))


def _close(graph: Graph, groups: list[tuple[int, list[int]]]) -> list[Part]:
    """Turn index groups into graphs with explicit inputs and outputs."""
    needed_later = set(graph.output_names)
    parts: list[Part] = []
    for device, indices in reversed(groups):
        nodes = tuple(graph.nodes[k] for k in indices)
        made = {o for n in nodes for o in n.outputs if o}
        read = dict.fromkeys(i for n in nodes for i in n.inputs if i and i not in made)
        constants: dict[str, Array] = {i: graph.constants[i] for i in read if i in graph.constants}
        types = graph.types
        part = Graph(
            f"{graph.name}#{len(groups) - len(parts) - 1}",
            tuple(Value(i, types.get(i)) for i in read if i not in constants),
            tuple(Value(o, types.get(o)) for n in nodes for o in n.outputs if o and o in needed_later),
            nodes,
            constants,
            {n: types[n] for n in (*read, *made) if n in types},
        )
        parts.append(Part(device, part))
        needed_later.update(read)
    return parts[::-1]
