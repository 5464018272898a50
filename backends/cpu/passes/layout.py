"""Channels-last layout: convolutions, pools and what lies between them run on ``[N, …, C]``.

Each value may get a *twin* in channels-last order. A convolution reads and writes twins; ``forms.py`` decides for
element-wise ops, reductions and gathers; the plain form is made, once, where an op needs it. Every change of form is a
raster, so vertical merging afterwards removes those that meet (a channel shuffle between two convolutions becomes one
raster from twin to twin).
"""

from __future__ import annotations

from math import prod

from mnnpy.backends.cpu.passes.forms import ELEMENTWISE, choose_forms, is_spatial, to_plain
from mnnpy.backends.passes.edit import Editor, channels_last, permuted
from mnnpy.classes import dataclass, field
from mnnpy.decompose.merge import contiguous_view
from mnnpy.graph.ir import Graph, Node, TensorType

__all__ = ["to_channels_last"]


def to_channels_last(graph: Graph) -> Graph:
    """Rewrite *graph* around its 1-d to 3-d float convolutions and pools; unchanged if it has no convolution."""
    if not any(n.op == "Convolution" and is_spatial(graph, n) for n in graph.nodes):
        return graph
    work = _Layout(Editor(graph, "cl"))
    for node, last in zip(graph.nodes, choose_forms(graph), strict=True):
        work.visit(node, last)
    for name in graph.output_names:
        work.plain(name, "output")
    return work.edit.finish()


@dataclass(slots=True)
class _Layout:
    edit: Editor
    twins: dict[str, str] = field(default_factory=dict)  #: plain name → channels-last name
    missing: set[str] = field(default_factory=set)  #: plain names not materialised yet

    def visit(self, node: Node, last: bool) -> None:
        """Emit *node*, on twins if *last*."""
        if node.op == "Raster" and last and self._squeezes(node):
            name, out = node.inputs[0], node.outputs[0]
            shape = permuted(self.edit.shape(out), channels_last(len(self.edit.shape(out))))
            self._define(out, self.edit.view(self.twins[name], shape, node.name))
        elif not last or node.op == "Raster":
            for name in node.inputs:
                if name:
                    self.plain(name, node.name)
            self.edit.emit(node)
        elif is_spatial(self.edit.graph, node):
            self._spatial(node)
        elif node.op in ELEMENTWISE:
            self._elementwise(node)
        elif node.op == "Reduce":
            self._reduce(node)
        else:
            self._axis(node)

    # -- forms --

    def plain(self, name: str, origin: str) -> str:
        """Make sure that the plain form of *name* exists."""
        if name in self.missing:
            self.missing.discard(name)
            out = self.edit.shape(name)
            attrs = {"regions": (to_plain(out),), "shape": out, "fill": None}
            self.edit.emit(Node("Raster", (self.twins[name],), (name,), attrs, origin))
        return name

    def twin(self, name: str, origin: str) -> str:
        """The channels-last form of *name*."""
        found = self.twins.get(name)
        if found is None:
            perm = channels_last(len(self.edit.shape(name)))
            found = self.twins[name] = self.edit.transpose(name, perm, name, origin)
        return found

    def _define(self, name: str, twin: str) -> None:
        self.twins[name] = twin
        self.missing.add(name)

    def _new_twin(self, name: str) -> tuple[str, TensorType]:
        t = self.edit.type(name)
        shape = permuted(self.edit.shape(name), channels_last(t.rank or 0))
        return self.edit.fresh(name), TensorType(t.dtype, shape)

    # -- ops --

    def _spatial(self, node: Node) -> None:
        edit = self.edit
        x = self.twin(node.inputs[0], node.name)
        out, out_type = self._new_twin(node.outputs[0])
        attrs = {**node.attrs, "layout": "NHWC"}
        inputs = [x, *node.inputs[1:]]
        for name in inputs[1:]:
            if name:
                self.plain(name, node.name)
        if len(edit.shape(x)) > 3:
            edit.emit(Node(node.op, tuple(inputs), (out,), attrs, node.name), [out_type])
            self._define(node.outputs[0], out)
            return
        n, length, c = edit.shape(x)
        inputs[0] = edit.view(x, (n, 1, length, c), node.name)
        if node.op == "Convolution":
            m, cg, k = edit.shape(inputs[1])
            inputs[1] = edit.view(inputs[1], (m, cg, 1, k), node.name)
        for key, unit in (("strides", 1), ("dilations", 1), ("kernel", 1), ("out", 1)):
            if key in attrs:
                attrs[key] = (unit, *attrs[key])
        before, after = attrs["pads"]
        attrs["pads"] = (0, before, 0, after)
        batch, width, channels = permuted(edit.shape(node.outputs[0]), channels_last(3))
        wide = edit.fresh(out)
        wide_type = TensorType(out_type.dtype, (batch, 1, width, channels))
        edit.emit(Node(node.op, tuple(inputs), (wide,), attrs, node.name), [wide_type])
        self._define(node.outputs[0], edit.view(wide, (batch, width, channels), node.name))

    def _elementwise(self, node: Node) -> None:
        rank = len(self.edit.shape(node.outputs[0]))
        inputs = tuple(self._operand(name, rank, node.name) for name in node.inputs)
        out, out_type = self._new_twin(node.outputs[0])
        self.edit.emit(node.replace(inputs=inputs, outputs=(out,)), [out_type])
        self._define(node.outputs[0], out)

    def _operand(self, name: str, rank: int, origin: str) -> str:
        """An operand of an element-wise op in channels-last order, broadcast dims included."""
        shape = self.edit.shape(name)
        if len(shape) == rank:
            return self.twin(name, origin)
        if prod(shape) == 1 and name not in self.missing:
            return name
        full = (1,) * (rank - len(shape)) + tuple(shape)
        self.plain(name, origin)
        viewed = self.edit.view(name, full, origin)
        return self.edit.transpose(viewed, channels_last(rank), name, origin)

    def _reduce(self, node: Node) -> None:
        edit, name = self.edit, node.inputs[0]
        rank = len(edit.shape(name))
        perm = channels_last(rank)
        axes = tuple(sorted(perm.index(a) for a in node.attrs["axes"]))
        twin = self.twin(name, node.name)
        if node.attrs.get("keepdims", True):
            out, out_type = self._new_twin(node.outputs[0])
            attrs = {**node.attrs, "axes": axes}
            edit.emit(node.replace(inputs=(twin,), outputs=(out,), attrs=attrs), [out_type])
            self._define(node.outputs[0], out)
        else:
            edit.emit(node.replace(inputs=(twin,), attrs={**node.attrs, "axes": axes}))

    def _axis(self, node: Node) -> None:
        edit, name = self.edit, node.inputs[0]
        rank = len(edit.shape(name))
        axis = node.attrs.get("axis", -1 if node.op != "Gather" else 0) % rank
        out, out_type = self._new_twin(node.outputs[0])
        attrs = {**node.attrs, "axis": channels_last(rank).index(axis)}
        for other in node.inputs[1:]:
            self.plain(other, node.name)
        twin = self.twin(name, node.name)
        edit.emit(node.replace(inputs=(twin, *node.inputs[1:]), outputs=(out,), attrs=attrs), [out_type])
        self._define(node.outputs[0], out)

    def _squeezes(self, node: Node) -> bool:
        """Whether a raster out of a twin only takes out or puts in spatial axes of size 1."""
        if node.inputs[0] not in self.twins or contiguous_view(node, self.edit.types) != 0:
            return False
        before, after = self.edit.shape(node.inputs[0]), self.edit.shape(node.outputs[0])
        spatial = [[d for d in shape[2:] if d != 1] for shape in (before, after)]
        return len(after) in (3, 4, 5) and before[:2] == after[:2] and spatial[0] == spatial[1]
