"""From nodes to launches: one template per atomic op, found in a registry, writes kernels for a device's capabilities.

A template is ``def reduce(work: Lowering, node: Node) -> None``, registered with ``@template("Reduce")``. It builds
kernels and calls ``work.launch``; what it cannot do it refuses by ``raise Declined("reason")``. Whether a device
supports a node is asked by lowering the node alone, so can-run and runs never differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from mnnpy.backends.kernels.driver import Caps, Gemm
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node, TensorType

__all__ = ["CHOICES", "TEMPLATES", "Declined", "Lowering", "Step", "choices", "template"]


class Declined(Exception):  # noqa: N818  (an answer, not an error)
    """A template does not do this; the text is the reason that users read."""


#: Scalars of a launch: what the smallest push constants of Vulkan hold (128 bytes).
MAX_SCALARS = 32
Template = Callable[["Lowering", Node], None]
TEMPLATES: dict[str, Template] = {}
#: Algorithms of an op that apply to a node, best first, each with the floating point operations that it costs.
Choices = Callable[["Lowering", Node], list[tuple[str, float]]]
CHOICES: dict[str, Choices] = {}


def template(op: str) -> Callable[[Template], Template]:
    """Register the template of an op (an atomic one, or a composite that the kernels then claim)."""

    def register(fn: Template) -> Template:
        if op in TEMPLATES:
            raise ValueError(f"op '{op}' has two templates")
        TEMPLATES[op] = fn
        return fn

    return register


def choices(op: str) -> Callable[[Choices], Choices]:
    """Register what an op's template chooses from."""

    def register(fn: Choices) -> Choices:
        CHOICES[op] = fn
        return fn

    return register


@dataclass(frozen=True, slots=True)
class Step:
    """One launch before memory is planned: buffers are names of values."""

    node: Node
    kernel: Kernel
    buffers: tuple[str, ...]
    scalars: tuple[int | float, ...]
    groups: tuple[int, int, int]
    writes: tuple[str, ...]
    library: Gemm | None = None  #: the same by a vendor's library, which a driver may call instead


@dataclass(slots=True)
class Lowering:
    """The steps of a graph as they grow, with the types of its values."""

    caps: Caps
    types: dict[str, TensorType]
    constants: Mapping[str, Array]
    precision: str = "normal"
    steps: list[Step] = field(default_factory=list)
    added: dict[str, Array] = field(default_factory=dict)  #: constants made by templates (packed weights, tables)
    views: dict[str, str] = field(default_factory=dict)  #: value → the value whose memory it is
    algorithms: Mapping[str, str] = field(default_factory=dict)  #: node name or op → algorithm to take
    late: dict[str, Callable[[], Array]] = field(default_factory=dict)  #: constants made when a program is built
    _count: int = 0

    def node(self, node: Node) -> None:
        """Lower one node; raises Declined."""
        found = TEMPLATES.get(node.op)
        if found is None:
            raise Declined(f"'{node.op}' has no kernel template")
        before = len(self.steps)
        found(self, node)
        self._check(before)

    def _check(self, first: int) -> None:
        """Raise Declined for what the device cannot do of the steps from *first* on."""
        for step in self.steps[first:]:
            self._fits(step.kernel)
            missing = step.kernel.features() - self.caps.features
            if missing:
                raise Declined(
                    f"the device lacks {', '.join(sorted(missing))}, which kernel '{step.kernel.name}' needs"
                )

    def first_that_fits(self, names: Sequence[str], make: Callable[[str], None]) -> None:
        """Lower by the first algorithm of *names* whose launches and temporaries fit the device.

        Raises what the first one declined, where none does.
        """
        reason: Declined | None = None
        for name in names:
            held = (list(self.steps), dict(self.types), dict(self.added), dict(self.views), dict(self.late))
            try:
                make(name)
                self._check(len(held[0]))
            except Declined as declined:
                reason = reason or declined
                self.steps, self.types, self.added, self.views, self.late = held
            else:
                return
        raise reason or Declined("no algorithm applies")

    def _fits(self, kernel: Kernel) -> None:
        """Limits of the device."""
        caps = self.caps
        local = sum(a.size * a.type.lanes * a.type.dtype.itemsize for a in kernel.arrays if a.space == "local")
        for what, size, limit in (
            ("work items a group", prod(kernel.local), caps.max_group),
            *((f"work items along {x}", n, m) for x, n, m in zip("xyz", kernel.local, caps.max_axes, strict=True)),
            ("bytes of local memory", local, caps.local_memory),
            ("buffers", len(kernel.buffers), caps.max_bindings),
            ("scalars", len(kernel.scalars), 32),
        ):
            if size > limit:
                raise Declined(f"kernel '{kernel.name}' needs {size} {what}, the device has {limit}")

    # -- what templates ask --

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.types[name].shape or ())  # type: ignore[arg-type]

    def dtype(self, name: str) -> DType:
        return self.types[name].dtype

    def count(self, name: str) -> int:
        return prod(self.shape(name))

    def algorithm(self, node: Node, known: Sequence[str]) -> list[str]:
        """The algorithms to try in turn, of those that apply (*known*, best first).

        What the node's attribute or a choice by node name asks for must apply, else Declined, and is tried alone; a
        choice by op is tried first wherever it applies. ``direct``: the best that is not Winograd.
        """
        names = {"direct": next((k for k in known if not k.startswith("winograd")), "")}
        asked = str(node.attrs.get("algorithm", "") or "") or self.algorithms.get(node.name, "")
        if asked and asked != "auto":
            if names.get(asked, asked) not in known:
                raise Declined(f"algorithm '{asked}' does not apply, only {', '.join(known)}")
            return [names.get(asked, asked)]
        wide = self.algorithms.get(node.op, "")
        wide = names.get(wide, wide)
        return sorted(known, key=lambda k: k != wide)

    def temporary(self, dtype: DType, shape: Sequence[int], hint: str = "tmp") -> str:
        """A value of the template's own; its memory is planned like any other."""
        self._count += 1
        name = f"{hint}#{len(self.steps)}.{self._count}"
        self.types[name] = TensorType(dtype, tuple(shape))
        return name

    def constant(self, array: Array, hint: str = "table") -> str:
        """A constant of the template's own (uploaded once)."""
        self._count += 1
        name = f"{hint}#{len(self.steps)}.{self._count}"
        self.types[name] = TensorType(DType.of(array.dtype), tuple(array.shape))
        self.added[name] = array
        return name

    def deferred(self, dtype: DType, shape: Sequence[int], make: Callable[[], Array], hint: str = "packed") -> str:
        """A constant whose contents are made only where a program is built: asking for support stays cheap."""
        name = self.temporary(dtype, shape, hint)
        self.late[name] = make
        return name

    def view(self, name: str, source: str) -> None:
        """*name* is the memory of *source* under another shape or type: no launch."""
        self.views[name] = source

    def launch(
        self,
        node: Node,
        kernel: Kernel,
        buffers: Mapping[str, str],
        groups: int | tuple[int, int, int],
        scalars: Mapping[str, int | float] | None = None,
        library: Gemm | None = None,
    ) -> None:
        """Append a launch: *buffers* maps the kernel's buffer names to values, *groups* counts work groups."""
        wanted = [b.name for b in kernel.buffers]
        if set(buffers) != set(wanted):
            raise ValueError(f"kernel '{kernel.name}' takes buffers {wanted}, given {sorted(buffers)}")
        given = scalars or {}
        size = (groups, 1, 1) if isinstance(groups, int) else groups
        if len(kernel.scalars) > MAX_SCALARS:
            raise Declined(f"kernel '{kernel.name}' takes {len(kernel.scalars)} scalars, at most {MAX_SCALARS} fit")
        if min(size) < 1:
            return  # nothing to do: an empty tensor
        if any(n > most for n, most in zip(size, self.caps.max_groups, strict=True)):
            most = self.caps.max_groups
            raise Declined(f"kernel '{kernel.name}' wants a grid of {size} groups, the device takes {most}")
        for b in kernel.buffers:
            nbytes = self.count(buffers[b.name]) * b.dtype.itemsize
            if nbytes > self.caps.max_buffer:
                raise Declined(
                    f"'{buffers[b.name]}' has {nbytes} bytes, a binding of this device reaches {self.caps.max_buffer}"
                )
        self.steps.append(
            Step(
                node,
                kernel,
                tuple(buffers[n] for n in wanted),
                tuple(given[n] for n, _ in kernel.scalars),
                size,
                tuple(buffers[b.name] for b in kernel.buffers if "w" in b.access),
                library,
            )
        )

    def grid(self, count: int, local: int = 64) -> int:
        """Work groups that cover *count* items."""
        return -(-count // local)
