"""A small editor for rewriting passes: emits nodes in order, tracks types, makes unique names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnnpy.decompose.raster import Region, row_major
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Type, tensor_type_of

__all__ = ["Editor", "channels_last", "inverse", "permuted"]


def channels_last(rank: int) -> tuple[int, ...]:
    """The permutation that moves axis 1 to the end."""
    return (0, *range(2, rank), 1)


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes *perm*."""
    return tuple(int(k) for k in np.argsort(perm))


def permuted(shape: Sequence[int], perm: Sequence[int]) -> tuple[int, ...]:
    """*shape* with its axes in the order *perm*."""
    return tuple(shape[p] for p in perm)


class Editor:
    """Builds the rewritten node list of *graph*; constants and types are copied and extended."""

    def __init__(self, graph: Graph, tag: str) -> None:
        self.graph = graph
        self.tag = tag
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = dict(graph.constants)
        self.types: dict[str, Type] = dict(graph.types)
        for value in graph.inputs:
            if value.type is not None:
                self.types[value.name] = value.type
        self._taken = {*self.types, *self.constants, *(o for n in graph.nodes for o in n.outputs)}
        self._count = 0

    def fresh(self, base: str) -> str:
        """A name that is not in use yet."""
        while True:
            self._count += 1
            name = f"{base}~{self.tag}{self._count}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def type(self, name: str) -> TensorType:
        t = self.types[name]
        assert isinstance(t, TensorType)
        return t

    def shape(self, name: str) -> tuple[int, ...]:
        """The static shape of a value."""
        return self.type(name).shape or ()  # type: ignore[return-value]

    def emit(self, node: Node, types: Sequence[TensorType | None] = ()) -> Node:
        """Append *node*; *types* of its outputs where they are new."""
        for name, t in zip(node.outputs, types, strict=False):
            if name and t is not None:
                self.types[name] = t
        self.nodes.append(node)
        return node

    def constant(self, base: str, value: Array) -> str:
        """A new constant."""
        name = self.fresh(base)
        self.constants[name] = value
        self.types[name] = tensor_type_of(value)
        return name

    def transpose(self, source: str, perm: Sequence[int], like: str, origin: str) -> str:
        """``transpose(source, perm)`` as a raster (a new constant where the source is one)."""
        if source in self.constants:
            return self.constant(source, np.ascontiguousarray(self.constants[source].transpose(perm)))
        shape = self.shape(source)
        out = permuted(shape, perm)
        strides = permuted(row_major(shape), perm)
        region = Region(0, out, 0, strides, 0, row_major(out))
        return self.raster([source], [region], out, like, origin)

    def view(self, source: str, shape: Sequence[int], origin: str) -> str:
        """The same elements under another shape."""
        if source in self.constants:
            return self.constant(source, self.constants[source].reshape(shape))
        count = int(np.prod(shape, dtype=np.int64))
        return self.raster([source], [Region(0, (count,), 0, (1,), 0, (1,))], shape, source, origin)

    def raster(
        self, sources: Sequence[str], regions: Sequence[Region], shape: Sequence[int], like: str, origin: str
    ) -> str:
        name = self.fresh(like)
        attrs: Mapping[str, Any] = {"regions": tuple(regions), "shape": tuple(shape), "fill": None}
        t = TensorType(self.type(sources[0]).dtype, tuple(shape))
        self.emit(Node("Raster", tuple(sources), (name,), attrs, origin), [t])
        return name

    def finish(self) -> Graph:
        return self.graph.replace(nodes=tuple(self.nodes), constants=self.constants, types=self.types)
