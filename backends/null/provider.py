"""The ``null`` backend: devices with declared speeds that plan everything and run nothing.

The planner and the search are tested against it, because its costs are exact and its machine is always there.
A new backend starts as a copy of this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, NoReturn

from mnnpy.backends.analytic import moved_bytes, node_flops
from mnnpy.backends.base import API_VERSION, Candidate, DeviceInfo, NodeView, Segment, Support
from mnnpy.decompose.registry import OpClass, get_op, has_op
from mnnpy.errors import BackendError
from mnnpy.graph.ir import Array, TensorType
from mnnpy.search.cost import Peaks

__all__ = ["NullBackend", "NullDevice", "NullProgram", "Speeds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """What a null device pretends to be.

    peak: floating point operations per second; bandwidth: bytes per second of its memory; launch: seconds per
    kernel launch; transfer_bandwidth (bytes per second) and transfer_latency (seconds): copies from and to the host,
    infinite and 0 for a device that works in the host's memory.
    """

    peak: float = 1e12
    bandwidth: float = 1e11
    launch: float = 1e-5
    transfer_bandwidth: float = 1e10
    transfer_latency: float = 2e-5

    def __post_init__(self) -> None:
        for name in ("peak", "bandwidth", "transfer_bandwidth"):
            if not getattr(self, name) > 0:
                raise BackendError(f"null device: {name}={getattr(self, name)} must be above 0")
        for name in ("launch", "transfer_latency"):
            if not getattr(self, name) >= 0:
                raise BackendError(f"null device: {name}={getattr(self, name)} must not be negative")

    def seconds(self, candidate: Candidate) -> float:
        """Roofline time of a candidate on this device."""
        work = max(candidate.flops / self.peak, candidate.bytes / self.bandwidth)
        return work + candidate.launches * self.launch

    def transfer(self, size: float) -> float:
        """Seconds to copy *size* bytes between the host and this device."""
        return self.transfer_latency + size / self.transfer_bandwidth


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A device of the family as it is listed."""

    speeds: Speeds
    ops: frozenset[str] | None = None  #: what it takes; None = every op
    memory: float = inf  #: bytes


#: The family: device name → what it declares. Numbers are round ones of their kind of device, of no product.
_FAMILY = {
    "balanced": _Member(speeds=Speeds()),
    "gpu": _Member(
        speeds=Speeds(peak=1e13, bandwidth=5e11, launch=8e-6, transfer_bandwidth=1.2e10, transfer_latency=2e-5)
    ),
    "cpu": _Member(
        speeds=Speeds(peak=1e11, bandwidth=2e10, launch=5e-7, transfer_bandwidth=inf, transfer_latency=0.0)
    ),
    "remote": _Member(  # fast, behind a slow bus
        speeds=Speeds(peak=2e13, bandwidth=8e11, launch=8e-6, transfer_bandwidth=4e8, transfer_latency=2e-4)
    ),
    "slow": _Member(  # an integrated GPU: little faster than the processor, cheap copies
        speeds=Speeds(peak=3e11, bandwidth=3e10, launch=1e-5, transfer_bandwidth=1e10, transfer_latency=1e-5)
    ),
    "npu": _Member(
        speeds=Speeds(peak=4e12, bandwidth=6e10, launch=5e-6, transfer_bandwidth=8e9, transfer_latency=1e-5),
        ops=frozenset({"Convolution"}),
    ),
    "small": _Member(  # the "gpu" with little memory
        speeds=Speeds(peak=1e13, bandwidth=5e11, launch=8e-6, transfer_bandwidth=1.2e10, transfer_latency=2e-5),
        memory=16e6,
    ),
}


class NullBackend:
    """Provider of the null family."""

    api_version = API_VERSION
    name = "null"

    def devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(self.name, n, k, facts=_facts(m)) for k, (n, m) in enumerate(_FAMILY.items())]

    def open(
        self,
        info: DeviceInfo,
        *,
        threads: int = 0,
        isa: str | None = None,
        atomic_only: bool = True,
        ops: Iterable[str] | None = None,
        memory: float | None = None,
        tries: bool = False,
        **speeds: float,
    ) -> NullDevice:
        """Open a device, with what it declares or with something else in its place.

        *ops*: names that it takes, none other; *memory*: bytes; *tries*: as in ``Device``; *speeds*: ``peak``,
        ``bandwidth``, ``launch``, ``transfer_…``. Raises BackendError for ops that do not exist and for speeds without
        sense.
        """
        member = _FAMILY.get(info.name, _FAMILY["balanced"])
        unknown = sorted(set(speeds) - set(Speeds.__dataclass_fields__))
        if unknown:
            known = ", ".join((*Speeds.__dataclass_fields__, "ops", "memory", "tries", "atomic_only"))
            raise BackendError(f"null device: there is no {', '.join(unknown)} to declare; known: {known}")
        taken = member.ops if ops is None else frozenset(ops)
        for name in sorted(taken or ()):
            if not has_op(name):
                raise BackendError(f"null device: ops names '{name}', which is no op")
        size = member.memory if memory is None else float(memory)
        if not size > 0:
            raise BackendError(f"null device: memory={memory} must be above 0")
        member = replace(member, speeds=replace(member.speeds, **speeds), ops=taken, memory=size)
        return NullDevice(replace(info, facts=_facts(member)), member.speeds, atomic_only, taken, tries)


def _facts(member: _Member) -> dict[str, Any]:
    facts: dict[str, Any] = {"speeds": member.speeds}
    if member.memory < inf:
        facts["memory"] = member.memory
    return facts


@dataclass(slots=True)
class NullDevice:
    """Accepts every known op, or with *atomic_only* what a minimal backend would, or *ops* alone.

    Remembers what it compiled.
    """

    info: DeviceInfo
    speeds: Speeds = field(default_factory=Speeds)
    atomic_only: bool = True
    ops: frozenset[str] | None = None
    tries: bool = False
    compiled: list[NullProgram] = field(default_factory=list)

    def supports(self, view: NodeView) -> Support:
        name = view.node.op
        if not has_op(name):
            return Support(False, f"op '{name}' is not known")
        if self.ops is not None:
            return Support(name in self.ops, "" if name in self.ops else f"it takes {', '.join(sorted(self.ops))} only")
        if self.atomic_only and get_op(name).op_class is not OpClass.ATOMIC:
            return Support(False, f"'{name}' is {get_op(name).op_class.value}, this device takes atomic ops only")
        return Support(True)

    def candidates(self, view: NodeView) -> list[Candidate]:
        return [Candidate("null", node_flops(view), moved_bytes(view))]

    def peaks(self) -> Peaks:
        """What was declared."""
        s = self.speeds
        rates = dict.fromkeys(("f32", "f16", "bf16"), s.peak)
        return Peaks(rates, s.bandwidth, s.bandwidth, s.launch, 0.0, s.transfer_latency, s.transfer_bandwidth)

    def compile(self, segment: Segment) -> NullProgram:
        program = NullProgram(self.info, segment)
        self.compiled.append(program)
        return program

    def upload(self, array: Array) -> Array:
        return array

    def download(self, buffer: Any) -> NoReturn:
        raise BackendError(f"device 'null:{self.info.name}' holds no data; plan with it, and run on another backend")

    def synchronize(self) -> None:
        return None


class NullProgram:
    """A segment that was planned; running it raises BackendError."""

    def __init__(self, info: DeviceInfo, segment: Segment) -> None:
        self.info = info
        self.segment = segment

    def _refuse(self) -> NoReturn:
        raise BackendError(
            f"device 'null:{self.info.name}' plans but never runs (graph '{self.segment.graph.name}', "
            f"{len(self.segment.graph.nodes)} nodes); open the Session on another backend to run it"
        )

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        self._refuse()

    def time(self, inputs: Sequence[Any]) -> float:
        self._refuse()

    def profile(self, inputs: Sequence[Any]) -> list[tuple[str, str, str, float, float]]:
        self._refuse()

    def describe(self) -> list[dict[str, Any]]:
        rows = []
        for node in self.segment.graph.nodes:
            t = self.segment.graph.types.get(node.outputs[0]) if node.outputs else None
            shape = t.shape if isinstance(t, TensorType) else None
            rows.append({"op": node.op, "node": node.label, "algorithm": "null", "shape": shape})
        return rows

    @property
    def memory(self) -> Mapping[str, int]:
        return {"arena": 0, "weights": sum(a.nbytes for a in self.segment.graph.constants.values()), "scratch": 0}
