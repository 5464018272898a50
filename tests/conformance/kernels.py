"""The kernels that the sampled cases of the table produce for a device's capabilities."""

from __future__ import annotations

from collections.abc import Iterator

from mnnpy.backends.kernels import templates
from mnnpy.backends.kernels.driver import Caps
from mnnpy.backends.kernels.ir import Kernel
from mnnpy.backends.kernels.lowering import Declined, Lowering
from mnnpy.backends.kernels.render import Renderer
from mnnpy.conformance.cases import Case, select
from mnnpy.conformance.run import prepare
from mnnpy.graph.ir import Graph, TensorType

__all__ = ["kernels", "sources"]


def kernels(caps: Caps) -> Iterator[tuple[Case, Kernel]]:
    """Case by case, one node at a time; what a device of *caps* declines gives none."""
    templates.load()
    for case in select(sample=True):
        graph = prepare(case).graph
        for kernel in _lowered(graph, caps):
            yield case, kernel


def _lowered(graph: Graph, caps: Caps) -> list[Kernel]:
    types = {n: t for n, t in graph.types.items() if isinstance(t, TensorType)}
    work = Lowering(caps, types, graph.constants)
    for node in graph.nodes:
        try:
            work.node(node)
        except Declined:
            return []
    return [step.kernel for step in work.steps]


def sources(renderer: type[Renderer], caps: Caps) -> dict[str, str]:
    """Rendered text → name of a case that it comes from."""
    found: dict[str, str] = {}
    for case, kernel in kernels(caps):
        found.setdefault(renderer(kernel).source(), case.name)
    return found
