"""Products that need not be computed in full: one-hot rows, weighted sums, concatenations of dependent columns."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from mnnpy.backends.passes.edit import Editor
from mnnpy.backends.passes.fuse import use_counts
from mnnpy.classes import dataclass, field
from mnnpy.decompose.raster import Region
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, TensorType

__all__ = ["factor_concat", "gather_one_hot", "sums_as_products"]

#: A row that is the same everywhere costs a product of its own: it pays from so many rows on.
MIN_ROWS = 8
#: Columns that must go, of all.
MIN_SAVED = 0.2


@dataclass(slots=True)
class _Work:
    graph: Graph
    tag: str
    uses: dict[str, int] = field(init=False)
    makers: dict[str, Node] = field(init=False)
    edit: Editor = field(init=False)

    def __post_init__(self) -> None:
        self.uses = use_counts(self.graph)
        self.makers = {n.outputs[0]: n for n in self.graph.nodes}
        self.edit = Editor(self.graph, self.tag)

    def shape(self, name: str) -> tuple[int, ...]:
        t = self.edit.types.get(name)
        return t.shape if isinstance(t, TensorType) and t.shape is not None else ()  # type: ignore[return-value]

    def is_f32(self, name: str) -> bool:
        t = self.edit.types.get(name)
        return isinstance(t, TensorType) and t.dtype is DType.F32

    def plain_product(self, node: Node) -> Array | None:
        """The weights of ``x @ W`` without attributes, W a known f32 matrix (whether it is finite: see ``_finite``)."""
        if node.op != "MatMul" or len(node.inputs) != 2 or node.attrs:
            return None
        w = self.graph.constants.get(node.inputs[1])
        if w is None or w.ndim != 2 or w.dtype != np.float32 or 0 in w.shape:
            return None
        return w if len(self.shape(node.inputs[0])) >= 2 else None


def _finite(w: Array) -> bool:
    """Reads all weights: to be asked last."""
    return bool(np.isfinite(w).all())


# -- one-hot rows --------------------------------------------------------------------------------------------


def gather_one_hot(graph: Graph) -> Graph:
    """``one_hot(i) @ W`` reads row *i* of W (a row of zeros where *i* is out of range): the same numbers exactly."""
    work = _Work(graph, "onehot")
    found = {n.outputs[0]: i for n in graph.nodes if (i := _one_hot_index(work, n)) is not None}
    if not found:
        return graph
    for node in graph.nodes:
        if node.outputs[0] in found:
            _emit_gather(work, node, found[node.outputs[0]])
        else:
            work.edit.emit(node)
    return work.edit.finish()


def _one_hot_index(work: _Work, node: Node) -> str | None:
    """*i* where *node* is ``convert(i[…, None] == arange(K)) @ W``."""
    w = work.plain_product(node)
    convert = work.makers.get(node.inputs[0]) if w is not None else None
    if w is None or convert is None or convert.op != "Convert" or not work.is_f32(node.inputs[0]):
        return None
    equal = work.makers.get(convert.inputs[0])
    if equal is None or equal.op != "Binary" or equal.attrs["fn"] != "Equal":
        return None
    for index, steps in (equal.inputs, equal.inputs[::-1]):
        t, row = work.edit.types.get(index), work.graph.constants.get(steps)
        if row is None or row.shape[-1:] != (len(w),) or not np.array_equal(row.reshape(-1), np.arange(len(w))):
            continue
        if isinstance(t, TensorType) and t.dtype in (DType.I32, DType.I64):
            shape = work.shape(index)
            if shape[-1:] == (1,) and shape[:-1] == work.shape(node.outputs[0])[:-1]:
                return index if _finite(w) else None
    return None


def _emit_gather(work: _Work, node: Node, index: str) -> None:
    edit = work.edit
    w = work.graph.constants[node.inputs[1]]
    rows, t = len(w), edit.type(index)
    flat = TensorType(t.dtype, work.shape(index)[:-1])
    at = edit.view(index, flat.shape or (), node.name)  # type: ignore[arg-type]
    zero = edit.constant(index, np.zeros((), t.dtype.numpy))
    last = edit.constant(index, np.asarray(rows, t.dtype.numpy))
    below, capped, safe = (edit.fresh(index) for _ in range(3))
    truth = TensorType(DType.BOOL, flat.shape)
    edit.emit(Node("Binary", (at, zero), (below,), {"fn": "Less"}, node.name), [truth])
    edit.emit(Node("Binary", (at, last), (capped,), {"fn": "Min"}, node.name), [flat])
    edit.emit(Node("Select", (below, last, capped), (safe,), {}, node.name), [flat])
    table = edit.constant(node.inputs[1], np.concatenate([w, np.zeros_like(w[:1])]))
    edit.emit(Node("Gather", (table, safe), node.outputs, {"axis": 0}, node.name))


# -- weighted sums -------------------------------------------------------------------------------------------


def sums_as_products(graph: Graph) -> Graph:
    """``sum(a[…, n, 1] · b[…, n, d], axis=-2)`` as the product ``a[…, 1, n] @ b``."""
    work = _Work(graph, "sum")
    found = {n.outputs[0]: p for n in graph.nodes if (p := _weighted_sum(work, n)) is not None}
    if not found:
        return graph
    for node in graph.nodes:
        if node.outputs[0] not in found:
            work.edit.emit(node)
            continue
        weights, values = found[node.outputs[0]]
        *batch, n, d = work.shape(values)
        row = work.edit.view(weights, (*batch, 1, n), node.name)
        if node.attrs.get("keepdims", True):
            work.edit.emit(Node("MatMul", (row, values), node.outputs, {}, node.name))
            continue
        wide = work.edit.fresh(node.outputs[0])
        t = TensorType(DType.F32, (*batch, 1, d))
        work.edit.emit(Node("MatMul", (row, values), (wide,), {}, node.name), [t])
        region = Region(0, (prod(batch) * d,), 0, (1,), 0, (1,))
        attrs = {"regions": (region,), "shape": (*batch, d), "fill": None}
        work.edit.emit(Node("Raster", (wide,), node.outputs, attrs, node.name))
    return work.edit.finish()


def _weighted_sum(work: _Work, node: Node) -> tuple[str, str] | None:
    if node.op != "Reduce" or node.attrs["fn"] != "Sum" or not work.is_f32(node.inputs[0]):
        return None
    name = node.inputs[0]
    shape, product = work.shape(name), work.makers.get(name)
    if product is None or product.op != "Binary" or product.attrs["fn"] != "Mul" or work.uses[name] != 1:
        return None
    if len(shape) < 2 or 0 in shape or [a % len(shape) for a in node.attrs["axes"]] != [len(shape) - 2]:
        return None
    for weights, values in (product.inputs, product.inputs[::-1]):
        if work.shape(values) == shape and work.shape(weights) == (*shape[:-1], 1):
            return weights, values
    return None


# -- concatenations ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Terms:
    """``x @ W`` as a sum: full operands and rows that are the same for all rows of x, each with its weights."""

    dense: dict[str, Array] = field(default_factory=dict)
    rows: dict[str, Array] = field(default_factory=dict)

    def add(self, name: str, is_row: bool, weight: Array) -> None:
        into = self.rows if is_row else self.dense
        into[name] = into[name] + weight if name in into else weight


def factor_concat(graph: Graph) -> Graph:
    """Products over a concatenation whose columns depend on one another, with fewer columns.

    ``[a, r, r − a, a·r] @ W`` with one row *r* for all rows of *a* (the attention unit of Deep Interest Networks, Zhou
    et al. 2018) is ``[a, a·r] @ W' + r @ W''``: differences go into the weights, the row becomes a bias. Rounding
    differs, so differences are taken apart only where their operands are columns too: the result is then no smaller
    than its terms.
    """
    work = _Work(graph, "factor")
    found = {n.outputs[0]: t for n in graph.nodes if (t := _concat_terms(work, n)) is not None}
    if not found:
        return graph
    readers = graph.consumers()
    biases: dict[str, Node] = {}  # sum with a constant bias → product
    for name in found:
        for reader in readers.get(name, ()):
            if work.uses[name] == 1 and _is_bias(work, reader, name):
                biases[reader.outputs[0]] = work.makers[name]
    for node in graph.nodes:
        name = node.outputs[0]
        if name in biases:
            product = biases[name]
            bias = next(i for i in node.inputs if i != product.outputs[0])
            _emit_terms(work, product, found[product.outputs[0]], bias, node.outputs)
        elif name not in found:
            work.edit.emit(node)
        elif all(p is not node for p in biases.values()):
            _emit_terms(work, node, found[name], "", node.outputs)
    return work.edit.finish()


def _is_bias(work: _Work, node: Node, name: str) -> bool:
    if node.op != "Binary" or node.attrs["fn"] != "Add" or work.shape(node.outputs[0]) != work.shape(name):
        return False
    other = node.inputs[1] if node.inputs[0] == name else node.inputs[0]
    value = work.graph.constants.get(other)
    return value is not None and value.ndim > 0 and value.size == value.shape[-1] == work.shape(name)[-1]


def _repeated_row(work: _Work, name: str, columns: int) -> str | None:
    """The one row that *name* repeats, if a raster made it so."""
    node = work.makers.get(name)
    if node is None or node.op != "Raster" or len(node.inputs) != 1 or len(node.attrs["regions"]) != 1:
        return None
    r: Region = node.attrs["regions"][0]
    whole = r.count == prod(work.shape(name)) and prod(work.shape(node.inputs[0])) == columns
    same = r.size[-1:] == (columns,) and r.src_strides[-1] == 1 and not any(r.src_strides[:-1])
    return node.inputs[0] if whole and same and r.src_offset == 0 else None


def _concat_terms(work: _Work, node: Node) -> _Terms | None:
    w = work.plain_product(node)
    concat = work.makers.get(node.inputs[0]) if w is not None else None
    if w is None or concat is None or concat.op != "Raster" or concat.attrs["fill"] is not None:
        return None
    shape = work.shape(node.inputs[0])
    rows, total = prod(shape[:-1]), shape[-1]
    if work.uses[node.inputs[0]] != 1 or rows < MIN_ROWS or not all(map(work.is_f32, concat.inputs)):
        return None
    pieces = []
    for r in concat.attrs["regions"]:
        name, size = concat.inputs[r.origin], r.size
        count = prod(work.shape(name))
        if len(size) != 2 or size[0] != rows or r.dst_strides != (total, 1) or r.src_offset:
            return None
        if r.src_strides == (0, 1) and count == size[1]:
            pieces.append((name, True, r.dst_offset, size[1]))
        elif r.src_strides == (size[1], 1) and count == rows * size[1]:
            row = _repeated_row(work, name, size[1])
            pieces.append((row or name, row is not None, r.dst_offset, size[1]))
        else:
            return None
    if sum(p[3] for p in pieces) != total or any(p[2] >= total for p in pieces) or not _finite(w):
        return None
    terms = _Terms()
    columns = {(p[0], p[3]) for p in pieces}
    for name, is_row, first, size in pieces:
        part = w[first : first + size]
        for operand, same, sign in _difference(work, name, size, columns) or ((name, is_row, 1),):
            terms.add(operand, same, part if sign > 0 else -part)
    if not terms.dense or sum(map(len, terms.dense.values())) > (1 - MIN_SAVED) * total:
        return None
    return terms


def _difference(
    work: _Work, name: str, size: int, columns: set[tuple[str, int]]
) -> tuple[tuple[str, bool, int], ...] | None:
    """Operands with their signs if *name* is a sum or difference of columns that are there themselves."""
    node = work.makers.get(name)
    if node is None or node.op != "Binary" or node.attrs["fn"] not in ("Add", "Sub"):
        return None
    found = []
    for operand, sign in zip(node.inputs, (1, -1 if node.attrs["fn"] == "Sub" else 1), strict=True):
        row = _repeated_row(work, operand, size)
        if row is None and prod(work.shape(operand)) != prod(work.shape(name)):
            return None
        if (row or operand, size) not in columns:
            return None
        found.append((row or operand, row is not None, sign))
    return tuple(found)


def _emit_terms(work: _Work, node: Node, terms: _Terms, bias: str, outputs: tuple[str, ...]) -> None:
    edit = work.edit
    batch = work.shape(node.inputs[0])[:-1]
    columns = work.shape(node.outputs[0])[-1]
    x, weight = _joined(work, terms.dense, batch, node)
    inputs = [x, edit.constant(node.inputs[1], weight)]
    if terms.rows:
        row, weight = _joined(work, terms.rows, (1,), node)
        made = edit.fresh(node.outputs[0])
        t = TensorType(DType.F32, (1, columns))
        operands = (row, edit.constant(node.inputs[1], weight))
        edit.emit(Node("MatMul", operands, (made,), {}, node.name), [t])
        if bias:
            vector = edit.constant(bias, work.graph.constants[bias].reshape(1, columns))
            added = edit.fresh(node.outputs[0])
            edit.emit(Node("Binary", (made, vector), (added,), {"fn": "Add"}, node.name), [t])
            made = added
        inputs.append(edit.view(made, (columns,), node.name))
    elif bias:
        inputs.append(bias)
    edit.emit(Node("MatMul", tuple(inputs), outputs, {}, node.name))


def _joined(work: _Work, terms: dict[str, Array], batch: Sequence[int], node: Node) -> tuple[str, Array]:
    """Operands side by side, and their weights one above the other."""
    weight = np.ascontiguousarray(np.concatenate(list(terms.values())))
    rows, total = prod(batch), len(weight)
    if len(terms) == 1:
        [name] = terms
        return work.edit.view(name, (*batch, total), node.name), weight
    regions, first = [], 0
    for k, part in enumerate(terms.values()):
        n = len(part)
        regions.append(Region(k, (rows, n), 0, (n, 1), first, (total, 1)))
        first += n
    return work.edit.raster(list(terms), regions, (*batch, total), node.inputs[0], node.name), weight
