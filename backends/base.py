"""The plugin interface: what a backend provides, and nothing else.

Provider → ``Device`` → ``Program``. *Can run* (``supports``) and *is worth running* (``candidates``) are
different questions. Importing a provider must import no driver library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mnnpy.classes import dataclass, field
from mnnpy.graph.ir import Array, Graph, Node, TensorType

if TYPE_CHECKING:
    from mnnpy.search.observe import Observer
    from mnnpy.search.records import Record

__all__ = [
    "API_VERSION",
    "Backend",
    "Candidate",
    "Device",
    "DeviceInfo",
    "NodeView",
    "Program",
    "Recipe",
    "Segment",
    "Support",
    "device_names",
]

#: Version of this interface; a provider with another one is skipped with a clear reason.
API_VERSION = 1


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device of a backend; *unavailable* is the reason why it cannot be used, empty where it can."""

    backend: str
    name: str
    index: int = 0
    unavailable: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        return not self.unavailable


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a device can run a node, and the reason where it cannot."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a node, with its analytic cost: floating point operations, bytes moved, kernel launches."""

    algorithm: str
    flops: float
    bytes: float
    launches: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node with the static types of its operands and the values of constant ones."""

    node: Node
    inputs: tuple[TensorType | None, ...]
    outputs: tuple[TensorType | None, ...]
    constants: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a plan that one device runs: a graph in which every type is static and every op is supported."""

    graph: Graph
    precision: str = "normal"
    threads: int = 0
    tuning: float = 0.0  #: seconds that may be spent on measuring candidates
    records: bool = True  #: whether earlier measurements count
    optimize: frozenset[str] = frozenset()  #: names of the device's own optimisations that are switched on
    algorithms: Mapping[str, str] = field(default_factory=dict)  #: op → algorithm to take wherever it fits
    recipe: bool = False  #: whether the program shall carry its ``recipe``
    observer: Observer | None = None  #: hears what is measured on the way
    shipped: Mapping[str, Record] = field(default_factory=dict)  #: measured on a device like this one, by key


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a device needs to build a program again without its graph.

    *build* is plain data (dicts with texts as keys, lists or tuples, numbers, texts, None) and arrays. *facts* gives
    the plain data that the program tells about itself; it is called only when somebody asks.

    A device whose programs can be built again has ``fingerprint``, a text that names all that they depend on
    beside the graph and the options (machine, build, instruction set), and ``restore(build, facts) -> Program``.
    Programs of segments with ``recipe=True`` then have an attribute ``recipe``: a Recipe, or None where it must not be
    kept.
    """

    build: Any
    facts: Callable[[], Any]


@runtime_checkable
class Program(Protocol):
    """A compiled segment. Safe to call from several threads at once."""

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run on buffers in the order of the segment's inputs; returns those of its outputs.

        A program that can write into the caller's memory has ``run_into(inputs, outputs)`` as well.
        """
        ...

    def time(self, inputs: Sequence[Any]) -> float:
        """Seconds of one run by device timer or synchronised clock."""
        ...

    def profile(self, inputs: Sequence[Any]) -> list[tuple[str, str, str, float, float]]:
        """One run, op by op: (op, node name, algorithm, start seconds, duration seconds)."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """What was compiled: one row per step with op, node, algorithm, output shape."""
        ...

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes by purpose: ``arena``, ``weights``, ``scratch``."""
        ...


@runtime_checkable
class Device(Protocol):
    """An opened device.

    A device may have ``peaks() -> Peaks`` (see ``search.calibrate``), ``records`` (a ``Records`` of its own decisions),
    and ``kind``: a text that is the same on all devices that its records may be shipped to.
    ``tries = True`` says that ``supports`` finds out by trying, which is dear: a placement asks it only about nodes
    that the device would get.
    """

    info: DeviceInfo

    def supports(self, view: NodeView) -> Support:
        """Can it run this node? Atomic ops and those composites that it claims."""
        ...

    def candidates(self, view: NodeView) -> list[Candidate]:
        """Ways to run a supported node."""
        ...

    def compile(self, segment: Segment) -> Program:
        """Build a segment; raises BackendError naming the node that failed."""
        ...

    def upload(self, array: Array) -> Any:
        """A device buffer with the array's contents (the array itself where memory is shared)."""
        ...

    def download(self, buffer: Any) -> Array:
        """The contents of a device buffer."""
        ...

    def synchronize(self) -> None:
        """Return when all work that was submitted is done."""
        ...


@runtime_checkable
class Backend(Protocol):
    """A provider, found through the entry-point group ``mnnpy.backends``."""

    api_version: int
    name: str

    def devices(self) -> list[DeviceInfo]:
        """All devices, including unusable ones with the reason."""
        ...

    def open(self, info: DeviceInfo, **options: Any) -> Device:
        """Open a device; raises BackendUnavailableError with reason and remedy."""
        ...


def device_names(devices: Sequence[Device]) -> tuple[str, ...]:
    """What to call each device: its backend, with its own name where several of that one are open (``null:gpu``)."""
    backends = [d.info.backend for d in devices]
    found: list[str] = []
    for device, backend in zip(devices, backends, strict=True):
        name = backend if backends.count(backend) == 1 else f"{backend}:{device.info.name}"
        same = sum(n.partition("#")[0] == name for n in found)
        found.append(f"{name}#{same + 1}" if same else name)
    return tuple(found)
