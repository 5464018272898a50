"""From a lowered segment to the description of a native program: views, memory plan, tensor table, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from mnnpy.backends.analytic import moved_bytes, node_flops
from mnnpy.backends.base import NodeView, Recipe
from mnnpy.backends.cpu.compiled import CpuProgram, restore_program
from mnnpy.backends.memory import Interval, place
from mnnpy.classes import dataclass, field
from mnnpy.decompose.merge import contiguous_view
from mnnpy.errors import BackendError
from mnnpy.graph.ir import Graph, Node, TensorType

if TYPE_CHECKING:
    from mnnpy.backends.cpu.select import Choice

__all__ = ["build_program", "native_attrs"]

#: Kernels that read an element of an operand before they write the same element of the result.
IN_PLACE = frozenset({"Elementwise", "Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"})


def native_attrs(node: Node) -> dict[str, Any]:
    """Attributes as the native kernels want them: raster regions as flat lists of integers."""
    if node.op != "Raster":
        return dict(node.attrs)
    regions = node.attrs["regions"]
    fill = node.attrs.get("fill")
    return {
        "origins": [r.origin for r in regions],
        "ranks": [len(r.size) for r in regions],
        "sizes": [s for r in regions for s in r.size],
        "src_offsets": [r.src_offset for r in regions],
        "src_strides": [s for r in regions for s in r.src_strides],
        "dst_offsets": [r.dst_offset for r in regions],
        "dst_strides": [s for r in regions for s in r.dst_strides],
        "fill": 0.0 if fill is None else float(fill),
        "fill_present": int(fill is not None),
    }


@dataclass(slots=True)
class _Layouter:
    """Decides for each value: input, output, constant, view of another, or arena."""

    graph: Graph
    in_place: bool
    root: dict[str, tuple[str, int]] = field(default_factory=dict)  #: value → (root, byte offset)
    steps: list[tuple[str, str, dict[str, Any], tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    last: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)

    def type(self, name: str) -> TensorType:
        t = self.graph.types.get(name)
        if not isinstance(t, TensorType):
            raise BackendError(f"backend 'cpu': value '{name}' has no static tensor type")
        return t

    def size(self, name: str) -> int:
        t = self.type(name)
        return int(prod(t.shape or ())) * t.dtype.itemsize  # type: ignore[arg-type]

    def find(self, name: str) -> tuple[str, int]:
        return self.root.get(name, (name, 0))


def _views(work: _Layouter) -> list[Node]:
    """Take out rasters and reinterpretations that are views; what is left becomes steps."""
    kept = []
    for node in work.graph.nodes:
        offset: int | None = None
        if node.op == "Raster" and "written" in node.attrs:
            node = _written(work, node)
            if node.attrs["regions"]:
                kept.append(node)
            continue
        if node.op == "Raster":
            offset = contiguous_view(node, work.graph.types)
        elif node.op == "Reinterpret":
            offset = 0
        if offset is not None and node.inputs:
            source, base = work.find(node.inputs[0])
            byte = base + offset * work.type(node.outputs[0]).dtype.itemsize
            if byte % work.type(source).dtype.itemsize == 0:
                work.root[node.outputs[0]] = (source, byte)
                continue
        kept.append(node)
    return kept


def _written(work: _Layouter, node: Node) -> Node:
    """Operands that their producers write into the result of *node* become parts of it; the regions that are left."""
    out, size = node.outputs[0], work.type(node.outputs[0]).dtype.itemsize
    written = set(node.attrs["written"])
    for region in node.attrs["regions"]:
        if region.origin in written:
            work.root[node.inputs[region.origin]] = (out, region.dst_offset * size)
    left = tuple(r for r in node.attrs["regions"] if r.origin not in written)
    return node.replace(attrs={**node.attrs, "regions": left})


def build_program(
    graph: Graph,
    threads: int,
    *,
    in_place: bool = True,
    choices: Mapping[str, Choice] | None = None,
    isa: str | None = None,
    recipe: bool = False,
) -> CpuProgram:
    """Compile a graph of native ops for *isa* (None: the best); raises BackendError naming the node that failed.

    *choices*: why a node has its algorithm, by its first output, for ``describe()``. *recipe*: the program shall carry
    what ``restore_program`` needs to build it again.
    """
    work = _Layouter(graph, in_place)
    nodes = _views(work)
    for node in nodes:
        work.steps.append((node.op, node.label, native_attrs(node), node.inputs, node.outputs))
    homes = _outputs(work, nodes)
    offsets, arena = _arena(work, homes)
    tensors, index = _table(work, homes, offsets)
    rows = [
        (op, name, attrs, [index[i] if i else -1 for i in ins], [index[o] if o else -1 for o in outs])
        for op, name, attrs, ins, outs in work.steps
    ]
    types = [work.type(n) for n in graph.output_names]
    build = {
        "tensors": tensors,
        "steps": rows,
        "arena": arena,
        "threads": threads,
        "outputs": [(str(t.dtype), tuple(t.shape or ())) for t in types],
    }
    facts = partial(_facts, graph.types, work.steps, choices or {})
    program = restore_program(build, facts, isa, graph.name)
    if recipe:
        program.recipe = Recipe(build, facts)
    return program


def _outputs(work: _Layouter, nodes: Sequence[Node]) -> dict[str, int]:
    """Root → output number for roots that are written straight into an output; other outputs get a copy step."""
    graph = work.graph
    made = {o for n in nodes for o in n.outputs}
    homes: dict[str, int] = {}
    for k, name in enumerate(graph.output_names):
        root, offset = work.find(name)
        fits = root in made and offset == 0 and work.size(root) == work.size(name) and root not in homes
        if fits:
            homes[root] = k
            continue
        copy = f"{name}~output{k}"
        t = work.type(name)
        count = int(prod(t.shape or ()))  # type: ignore[arg-type]
        attrs = {"origins": [0], "ranks": [1], "sizes": [count], "src_offsets": [0], "src_strides": [1],
                 "dst_offsets": [0], "dst_strides": [1], "fill": 0.0, "fill_present": 0}  # fmt: skip
        work.steps.append(("Raster", name, attrs, (name,), (copy,)))
        graph.types[copy] = t  # type: ignore[index]
        homes[copy] = k
    return homes


def _arena(work: _Layouter, homes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Lifetimes, in-place reuse, then offsets."""
    outside = {*work.graph.constants, *work.graph.input_names}
    first, last = work.first, work.last
    for k, (_, _, _, ins, outs) in enumerate(work.steps):
        for name in (*ins, *outs):
            if name:
                root = work.find(name)[0]
                first.setdefault(root, k)
                last[root] = k
    shared: dict[str, str] = {}
    if work.in_place:
        for k, (op, _, _, ins, outs) in enumerate(work.steps):
            if op in IN_PLACE and len(outs) == 1 and outs[0] not in homes:
                _share(work, k, ins, outs[0], outside, homes, shared)
    merged: dict[str, Interval] = {}
    for root, begin in first.items():
        if root in outside or root in homes:
            continue
        owner = root
        while owner in shared:
            owner = shared[owner]
        item = merged.setdefault(owner, Interval(owner, work.size(owner), begin, last[root]))
        item.first, item.last = min(item.first, begin), max(item.last, last[root])
    placed, total = place(list(merged.values()))
    offsets = {}
    for root in first:
        owner = root
        while owner in shared:
            owner = shared[owner]
        if owner in placed:
            offsets[root] = placed[owner]
    return offsets, total


def _share(
    work: _Layouter,
    k: int,
    ins: Sequence[str],
    out: str,
    outside: set[str],
    homes: Mapping[str, int],
    shared: dict[str, str],
) -> None:
    """Let *out* take over the buffer of an operand of the same type that dies here."""
    want = work.type(out)
    for name in ins:
        if not name:
            continue
        root, offset = work.find(name)
        if root in outside or root in homes or work.last[root] != k or offset:
            continue
        t = work.type(name)
        same_root = all(work.find(o)[0] != root or o == name for o in ins)
        if t.shape == want.shape and t.dtype is want.dtype and work.size(root) == work.size(out) and same_root:
            shared[out] = root
            return


def _table(
    work: _Layouter, homes: Mapping[str, int], offsets: Mapping[str, int]
) -> tuple[list[tuple[str, tuple[int, ...], str, Any]], dict[str, int]]:
    graph = work.graph
    inputs = {n: k for k, n in enumerate(graph.input_names)}
    tensors: list[tuple[str, tuple[int, ...], str, Any]] = []
    index: dict[str, int] = {}
    shown: dict[str, int] = {}
    for root, k in homes.items():
        name = graph.output_names[k]
        shown[name if work.find(name)[0] == root else root] = k

    def add(name: str) -> int:
        if name in index:
            return index[name]
        t = work.type(name)
        root, offset = work.find(name)
        row: tuple[str, Any]
        if name in shown:  # the output has the shape of its own name; its root is the same memory
            row = ("output", shown[name])
        elif name in homes:
            row = ("alias", (add(graph.output_names[homes[name]]), 0))
        elif root != name:
            row = ("alias", (add(root), offset))
        elif name in inputs:
            row = ("input", inputs[name])
        elif name in graph.constants:
            row = ("constant", graph.constants[name])
        else:
            row = ("arena", offsets.get(name, 0))
        index[name] = len(tensors)
        tensors.append((str(t.dtype), tuple(t.shape or ()), *row))  # type: ignore[arg-type]
        return index[name]

    for name in graph.input_names:  # the native side counts inputs and outputs by the table
        add(name)
    for _, _, _, ins, outs in work.steps:
        for name in (*ins, *outs):
            if name:
                add(name)
    return tensors, index


def _facts(
    types: Mapping[str, Any],
    steps: Sequence[tuple[str, str, dict[str, Any], tuple[str, ...], tuple[str, ...]]],
    choices: Mapping[str, Choice],
) -> list[Any]:
    """Per step: op, name, types of results and of operands, operations, bytes, and how its algorithm was chosen."""

    def tensor(value: str) -> TensorType | None:
        t = types.get(value)
        return t if isinstance(t, TensorType) else None

    rows: list[Any] = []
    for op, name, attrs, ins, outs in steps:
        node = Node(op, tuple(ins), tuple(outs), attrs, name)
        view = NodeView(node, tuple(map(tensor, ins)), tuple(map(tensor, outs)), {})
        shape = " ".join(str(t) for o in outs if (t := types.get(o)) is not None)
        operands = ", ".join(str(types.get(i, "?")) for i in ins if i)
        choice = choices.get(outs[0])
        chosen = None if choice is None else (choice.reason, choice.predicted, choice.measured, choice.key, choice.open)
        rows.append((op, name, shape, operands, node_flops(view), moved_bytes(view), chosen))
    return rows
