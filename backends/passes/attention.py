"""Attention: MatMul → scale, mask → Softmax → MatMul becomes one ``FusedAttention`` on the arrays as they lie.

Splitting and joining heads, transposing keys and sharing key heads are rasters; where one has a single stride per
axis, the kernel walks by strides instead and the raster goes. The node's contract is written down in the CPU's
``kernels/attention.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import Any

import numpy as np

from mnnpy.backends.passes.edit import Editor
from mnnpy.backends.passes.fuse import Accepts, use_counts
from mnnpy.backends.passes.views import axis_strides, refine, split_axes, swapped, whole_region
from mnnpy.classes import dataclass, field
from mnnpy.decompose.merge import contiguous_view
from mnnpy.decompose.raster import Region, full_region
from mnnpy.decompose.regions import compose, join_regions
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, TensorType

__all__ = ["fuse_attention"]


@dataclass(slots=True)
class _Scores:
    """What lies between the first product and the Softmax."""

    product: Node
    leading: list[tuple[int, ...]]  #: axes before the keys, of every shape that the scores take
    scale: float = 1.0
    mask: str = ""
    mask_shape: tuple[int, ...] = ()  #: of the scores where the mask is applied
    mask_value: float = -inf


@dataclass(slots=True)
class _View:
    """Elements of *name* by position: an offset, strides over batch axes and positions, features side by side."""

    name: str
    offset: int
    strides: tuple[int, ...]  #: one per refined axis
    step: int = 0  #: between positions of keys and values
    scale: float = 1.0


@dataclass(slots=True)
class _Attention:
    edit: Editor
    producer: dict[str, Node]
    uses: dict[str, int]
    readers: dict[str, list[Node]]
    accepts: Accepts | None
    dtypes: frozenset[DType]
    done: dict[str, Node] = field(default_factory=dict)  #: output of the last node of a match → what replaces it
    turned: dict[str, list[Node]] = field(default_factory=dict)  #: nodes to be emitted before that

    # -- matching --

    def shape(self, name: str) -> tuple[int, ...]:
        return self.edit.shape(name)

    def is_plain(self, name: str) -> bool:
        t = self.edit.types.get(name)
        return isinstance(t, TensorType) and t.dtype in self.dtypes and t.is_static and 0 not in (t.shape or ())

    def scalar(self, name: str) -> float | None:
        value = self.edit.constants.get(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def scaled(self, node: Node) -> tuple[str, float] | None:
        """The operand and the finite factor of a product with (or quotient by) a constant number."""
        if node.op != "Binary" or node.attrs["fn"] not in ("Mul", "Div"):
            return None
        a, b = node.inputs
        factor = self.scalar(b)
        if factor is None and node.attrs["fn"] == "Mul":
            a, factor = b, self.scalar(a)
        if factor is None or self.shape(a) != self.shape(node.outputs[0]):
            return None
        if node.attrs["fn"] == "Div":
            factor = 1 / factor if factor else inf
        return (a, factor) if np.isfinite(factor) else None

    def scores(self, name: str) -> _Scores | None:
        """Walk from the Softmax's operand back to the first product."""
        found = _Scores(Node("", (), ()), [])
        while self.uses.get(name) == 1 and self.is_plain(name):
            node = self.producer.get(name)
            if node is None:
                return None
            shape = self.shape(name)
            found.leading.append(shape[:-1])
            if node.op == "MatMul":
                if len(node.inputs) != 2 or any(len(self.shape(n)) < 2 for n in node.inputs):
                    return None
                found.product = node
                return found
            step = self.scaled(node)
            if step is not None:
                found.scale *= step[1]
                name = step[0]
            elif node.op == "Raster" and contiguous_view(node) == 0 and len(node.inputs) == 1:
                (name,) = node.inputs
                if len(self.shape(name)) < 2 or self.shape(name)[-1] != shape[-1]:
                    return None
            else:
                picked = self.masked(node, shape)
                if picked is None or found.mask or found.scale != 1.0:
                    return None
                name, found.mask, found.mask_value = picked
                found.mask_shape = shape
        return None

    def masked(self, node: Node, shape: tuple[int, ...]) -> tuple[str, str, float] | None:
        """Scores, mask and the value of masked scores where *node* applies a mask."""
        if node.op == "Select":
            condition, scores, other = node.inputs
            value = self.scalar(other)
            if value is None or self.shape(scores) != shape or self.edit.type(condition).dtype is not DType.BOOL:
                return None
            return scores, condition, value
        if node.op != "Binary" or node.attrs["fn"] != "Add":
            return None
        for scores, mask in (node.inputs, node.inputs[::-1]):
            if self.shape(scores) == shape and self.leads_to_product(scores) and self.is_plain(mask):
                return scores, mask, -inf
        return None

    def leads_to_product(self, name: str) -> bool:
        for _ in range(4):
            node = self.producer.get(name)
            if node is None or node.op == "MatMul":
                return node is not None
            step = self.scaled(node)
            if step is not None:
                name = step[0]
            elif node.op == "Raster" and contiguous_view(node) == 0:
                name = node.inputs[0]
            else:
                return False
        return False

    def match(self, node: Node) -> None:
        """Replace what ends in the product *node*, if it is attention."""
        if node.op != "MatMul" or len(node.inputs) != 2 or node.attrs or not self.is_plain(node.outputs[0]):
            return
        p, v = node.inputs
        leading = [self.shape(node.outputs[0])[:-1]]
        weights = self.producer.get(p)
        while weights is not None and weights.op == "Raster" and contiguous_view(weights) == 0:
            if self.uses.get(p) != 1 or len(weights.inputs) != 1:
                return
            leading.append(self.shape(p)[:-1])
            (p,) = weights.inputs
            weights = self.producer.get(p)
        if weights is None or weights.op != "Softmax" or self.uses.get(p) != 1 or not self.is_plain(p):
            return
        shape = self.shape(p)
        if len(shape) < 2 or weights.attrs.get("axis", -1) % len(shape) != len(shape) - 1:
            return
        if self.shape(node.inputs[0])[-1] != shape[-1] or len(self.shape(v)) < 2:
            return
        scores = self.scores(weights.inputs[0])
        if scores is None or set(scores.product.attrs) - {"trans_b"}:
            return
        axes = refine(*leading, *scores.leading)
        if axes is not None:
            self.replace(node, scores, axes)

    # -- views --

    def view(
        self,
        name: str,
        own: Sequence[int],
        like: Sequence[int],
        axes: Sequence[int],
        tail: Sequence[int],
        feature: int | None,
        *,
        factors: bool = False,
    ) -> _View | None:
        """*name*, of shape [*own, *tail], where *own* broadcasts to *like*, which *axes* refine.

        *feature* is the axis of *tail* that must have stride 1, the other one (if any) counts positions. The value
        is read through as many rasters (and, with *factors*, constant factors) as leave one stride per axis.
        """
        runs = split_axes(like, axes)
        if runs is None or len(own) > len(runs):
            return None
        own = (1,) * (len(runs) - len(own)) + tuple(own)
        split = [n for size, run in zip(own, runs, strict=True) if size != 1 for n in run]
        best: _View | None = None
        region, scale = full_region((prod(split) * prod(tail),)), 1.0
        while True:
            found = axis_strides(region, (*split, *tail))
            if found is not None and (feature is None or found[len(split) + feature] == 1 or tail[feature] == 1):
                lead = list(found[: len(split)])
                strides = [lead.pop(0) if size != 1 else 0 for size, run in zip(own, runs, strict=True) for _ in run]
                steps = [s for k, s in enumerate(found[len(split) :]) if k != feature]
                best = _View(name, region.src_offset, tuple(strides), steps[0] if steps else 0, scale)
            node = self.producer.get(name)
            if node is None:
                return best
            step = self.scaled(node) if factors and self.is_plain(name) else None
            if step is not None:
                name, scale = step[0], scale * step[1]
                continue
            through = self.through(region, node)
            if through is None:
                return best
            region, name = through

    def through(self, region: Region, node: Node) -> tuple[Region, str] | None:
        """*region* reading the operand of the Raster *node* instead of its result."""
        whole = whole_region(node)
        if whole is None:
            return None
        parts = compose(region, whole)
        joined = join_regions(parts) if parts else ()
        if len(joined) != 1 or joined[0].count != region.count:
            return None
        return joined[0], node.inputs[whole.origin]

    def keys(self, product: Node, axes: Sequence[int], before: list[Node]) -> _View | None:
        """The keys; *before* gets a node where they have to be turned."""
        name = product.inputs[1]
        shape, like = self.shape(name), self.shape(product.outputs[0])[:-1]
        own = (*shape[:-2], 1)
        turned = bool(product.attrs.get("trans_b", 0))
        found = self.view(name, own, like, axes, shape[-2:], 1 if turned else 0, factors=True)
        node = self.producer.get(name)
        if found is not None or turned or node is None or node.op != "Raster":
            return found
        # Keys gathered from several places: the raster may as well write them position by position.
        mark, rank = len(self.edit.nodes), len(shape)
        name = self.edit.transpose(name, (*range(rank - 2), rank - 1, rank - 2), name, node.name)
        before += self.edit.nodes[mark:]
        del self.edit.nodes[mark:]
        return self.view(name, own, like, axes, (shape[-1], shape[-2]), 1)

    # -- rewriting --

    def replace(self, node: Node, scores: _Scores, axes: tuple[int, ...]) -> None:
        product, before = scores.product, list[Node]()
        like, out_like = self.shape(product.outputs[0])[:-1], self.shape(node.outputs[0])[:-1]
        q_shape, value_shape = self.shape(product.inputs[0]), self.shape(node.inputs[1])
        q = self.view(product.inputs[0], q_shape[:-1], like, axes, q_shape[-1:], 0, factors=True)
        k = self.keys(product, axes, before)
        v = self.view(node.inputs[1], (*value_shape[:-2], 1), out_like, axes, value_shape[-2:], 1)
        mask = self.mask(scores, axes) if scores.mask else None
        if q is None or k is None or v is None or (scores.mask and mask is None):
            return
        if not axes or k.strides[-1] or v.strides[-1]:
            axes = (*axes, 1)  # one query per batch item
            for view in (q, k, v, *([mask] if mask else [])):
                view.strides = (*view.strides, 0)
        last, out, result = self.result(node, out_like, axes, value_shape[-1])
        attrs: dict[str, Any] = {
            "batch": axes[:-1], "q_len": axes[-1], "k_len": self.shape(product.outputs[0])[-1], "dim": q_shape[-1],
            "v_dim": value_shape[-1], "scale": scores.scale * q.scale * k.scale, "q": (q.offset, *q.strides),
            "k": (k.offset, *k.strides[:-1], k.step), "v": (v.offset, *v.strides[:-1], v.step), "out": out,
        }  # fmt: skip
        inputs = [q.name, k.name, v.name]
        if mask is not None:
            inputs.append(mask.name)
            attrs.update(mask=(mask.offset, *mask.strides, mask.step), mask_value=scores.mask_value)
        fused = Node("FusedAttention", tuple(inputs), (result,), attrs, node.name)
        if self.accepts is not None and not self.accepts(fused, self.edit.types):
            return
        self.done[last.outputs[0]] = fused
        self.turned[last.outputs[0]] = before

    def mask(self, scores: _Scores, axes: Sequence[int]) -> _View | None:
        """The mask over (queries, keys), read through broadcasts."""
        shape, whole = self.shape(scores.mask), scores.mask_shape
        if not shape or len(shape) > len(whole):
            return None
        return self.view(scores.mask, shape[:-1], whole[:-1], axes, shape[-1:], None)

    def result(
        self, node: Node, like: Sequence[int], axes: Sequence[int], features: int
    ) -> tuple[Node, tuple[int, ...], str]:
        """The last node that is replaced, where results go, and under which name."""
        name = node.outputs[0]
        readers = self.readers.get(name, [])
        if len(readers) == 1 and self.uses[name] == 1 and readers[0].inputs == (name,):
            whole = whole_region(readers[0])
            found = axis_strides(swapped(whole), (*axes, features)) if whole is not None else None
            if whole is not None and found is not None and (found[-1] == 1 or features == 1):
                return readers[0], (whole.dst_offset, *found[:-1]), readers[0].outputs[0]
        found = axis_strides(full_region((prod(axes) * features,)), (*axes, features))
        assert found is not None
        return node, (0, *found[:-1]), name


def fuse_attention(
    graph: Graph, accepts: Accepts | None = None, dtypes: frozenset[DType] = frozenset({DType.F32})
) -> Graph:
    """Replace every attention over arrays of *dtypes* by ``FusedAttention``, where *accepts* has a kernel for it.

    Graphs without one come back unchanged.
    """
    if not any(n.op == "Softmax" for n in graph.nodes):
        return graph
    edit = Editor(graph, "attention")
    work = _Attention(edit, graph.producers(), use_counts(graph), graph.consumers(), accepts, dtypes)
    for node in graph.nodes:
        work.match(node)
    if not work.done:
        return graph
    for node in graph.nodes:
        fused = work.done.get(node.outputs[0])
        if fused is None:
            edit.emit(node)
            continue
        for extra in work.turned[node.outputs[0]]:
            edit.emit(extra)
        edit.emit(fused)
    return edit.finish()
