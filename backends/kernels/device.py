"""The device that all kernel backends share: supports by lowering, compile by passes, templates and recording."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mnnpy.backends.analytic import moved_bytes, node_flops
from mnnpy.backends.base import Candidate, DeviceInfo, NodeView, Program, Segment, Support
from mnnpy.backends.kernels.driver import Driver
from mnnpy.backends.kernels.lowering import CHOICES, TEMPLATES, Declined, Lowering
from mnnpy.backends.kernels.passes import lower_graph
from mnnpy.backends.kernels.program import KernelProgram
from mnnpy.backends.kernels.tensor import DeviceTensor
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Type, Value

__all__ = ["KernelDevice"]


#: Launches of algorithms that take more than one, known without lowering: transforms before and after.
_LAUNCHES = {"winograd2": 3, "winograd4": 3}


class KernelDevice:
    """A device behind a ``Driver``."""

    tries = True  #: ``supports`` writes a kernel to know

    def __init__(self, info: DeviceInfo, driver: Driver) -> None:
        from mnnpy.backends.kernels import templates

        templates.load()
        self.info = info
        self.driver = driver
        self._known: dict[Any, Support] = {}

    def supports(self, view: NodeView) -> Support:
        """Lowers the node alone; answers are remembered by op, attributes and types."""
        node = view.node
        if node.op not in TEMPLATES:
            return Support(False, f"'{node.op}' has no kernel template")
        for name, t in (*zip(node.inputs, view.inputs, strict=True), *zip(node.outputs, view.outputs, strict=True)):
            if name and (t is None or not t.is_static):
                return Support(False, "an operand is not a tensor of static type")
            if name and t is not None and (t.dtype is DType.STRING or t.dtype.is_complex):
                return Support(False, f"no kernels for {t.dtype}")
        try:
            constant = tuple(n in view.constants for n in node.inputs)  # no template looks at values
            key = (node.op, tuple(node.attrs.items()), view.inputs, view.outputs, constant)
            if key in self._known:
                return self._known[key]
        except TypeError:
            key = None
        types = {n: t for n, t in zip(node.inputs, view.inputs, strict=True) if n and t is not None}
        types |= {n: t for n, t in zip(node.outputs, view.outputs, strict=True) if n and t is not None}
        answer = Support(True)
        try:
            Lowering(self.driver.caps, types, view.constants).node(node)
        except Declined as reason:
            answer = Support(False, str(reason))
        if key is not None:
            self._known[key] = answer
        return answer

    def candidates(self, view: NodeView) -> list[Candidate]:
        """Every algorithm that applies, the one that the template takes first, with its cost."""
        types = {n: t for n, t in zip(view.node.inputs, view.inputs, strict=True) if n and t is not None}
        types |= {n: t for n, t in zip(view.node.outputs, view.outputs, strict=True) if n and t is not None}
        node, found = view.node, []
        named = CHOICES.get(node.op)
        work = Lowering(self.driver.caps, types, view.constants)
        for name, flops in named(work, node) if named else [("default", node_flops(view))]:
            tiers = ("low", "normal") if name.startswith("winograd") else ("high", "low", "normal")
            parameters = {"precisions": tiers}
            found.append(Candidate(name, flops, moved_bytes(view), _LAUNCHES.get(name, 1), parameters))
        return found

    def compile(self, segment: Segment) -> Program:
        """Passes, templates, memory plan, recording. Raises BackendError naming node and reason."""
        graph = segment.graph.replace(types=_tensor_types(segment.graph))
        graph = lower_graph(graph, segment.optimize, self._accepts)
        work = Lowering(self.driver.caps, _tensor_types(graph), graph.constants, segment.precision)
        work.algorithms = segment.algorithms
        for node in graph.nodes:
            try:
                work.node(node)
            except Declined as reason:
                raise BackendError(
                    f"backend '{self.info.backend}' cannot run node '{node.label}' ({node.op}): {reason}; "
                    "list another backend behind it"
                ) from reason
        return KernelProgram(self.driver, graph, work)

    def _accepts(self, node: Node, types: Mapping[str, Type]) -> bool:
        """Whether a node that a pass made has a template that takes it."""
        own = {n: t for n in (*node.inputs, *node.outputs) if n and isinstance(t := types.get(n), TensorType)}
        try:
            Lowering(self.driver.caps, own, {}).node(node)
        except Declined:
            return False
        return True

    def upload(self, array: Array) -> DeviceTensor:
        """A copy in device memory, that sessions on this device can be bound to."""
        made = DeviceTensor(self.driver, array.shape, array.dtype)
        if array.nbytes:
            with self.driver.turn:
                self.driver.upload(made.binding, np.ascontiguousarray(array))
        return made

    def download(self, buffer: Any) -> Array:
        return np.asarray(buffer)

    def synchronize(self) -> None:
        with self.driver.turn:
            self.driver.synchronize()


def _tensor_types(graph: Graph) -> dict[str, TensorType]:
    types = {n: t for n, t in graph.types.items() if isinstance(t, TensorType)}
    for name, array in graph.constants.items():
        types.setdefault(name, TensorType(DType.of(array.dtype), tuple(array.shape)))
    for v in graph.inputs:
        if isinstance(v, Value) and isinstance(v.type, TensorType):
            types.setdefault(v.name, v.type)
    return types
