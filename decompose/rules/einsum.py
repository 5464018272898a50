"""Rule of Einsum: diagonals, sums, then pairwise products as (batched) MatMul."""

from __future__ import annotations

from math import prod

from mnnpy.classes import dataclass
from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.ops.contract import Label, parse_einsum
from mnnpy.decompose.raster import Region, row_major
from mnnpy.decompose.registry import rule
from mnnpy.graph.dtypes import DType


@dataclass(frozen=True, slots=True)
class _Term:
    """A tensor and the label of each of its dims."""

    value: Var
    labels: tuple[Label, ...]

    def size(self, label: Label) -> int:
        return self.value.shape[self.labels.index(label)]

    def arranged(self, g: Builder, order: tuple[Label, ...]) -> Var:
        """The tensor with its dims in *order*."""
        perm = tuple(self.labels.index(v) for v in order)
        return self.value if perm == tuple(range(len(perm))) else g.transpose(self.value, perm)


def _distinct(g: Builder, term: _Term, sizes: dict[Label, int]) -> _Term:
    """Take diagonals of repeated labels and drop dims of size 1 that stand for larger ones."""
    strides: dict[Label, int] = {}
    shape, steps = term.value.shape, row_major(term.value.shape)
    for label, d, s in zip(term.labels, shape, steps, strict=True):
        if d == sizes[label]:
            strides[label] = strides.get(label, 0) + s
    kept = tuple(strides)
    if kept == term.labels:
        return term
    size = tuple(sizes[v] for v in kept)
    region = Region(0, size, 0, tuple(strides.values()), 0, row_major(size))
    return _Term(g.raster([term.value], [region], size), kept)


def _summed(g: Builder, term: _Term, wanted: set[Label]) -> _Term:
    axes = [k for k, v in enumerate(term.labels) if v not in wanted]
    if not axes:
        return term
    return _Term(g.reduce("Sum", term.value, axes, keepdims=False), tuple(v for v in term.labels if v in wanted))


def _product(g: Builder, a: _Term, b: _Term, wanted: set[Label]) -> _Term:
    a, b = _summed(g, a, wanted | set(b.labels)), _summed(g, b, wanted | set(a.labels))
    both = [v for v in a.labels if v in b.labels]
    batch = tuple(v for v in both if v in wanted)
    inner = tuple(v for v in both if v not in wanted)
    left = tuple(v for v in a.labels if v not in both)
    right = tuple(v for v in b.labels if v not in both)
    labels = (*batch, *left, *right)
    sizes = {v: a.size(v) for v in a.labels} | {v: b.size(v) for v in b.labels}
    shape = tuple(sizes[v] for v in labels)
    if not inner:
        # nothing to sum over: an outer product per batch element
        p = g.reshape(a.arranged(g, (*batch, *left)), tuple(sizes[v] for v in (*batch, *left)) + (1,) * len(right))
        q = g.reshape(
            b.arranged(g, (*batch, *right)),
            tuple(sizes[v] for v in batch) + (1,) * len(left) + tuple(sizes[v] for v in right),
        )
        return _Term(g.mul(p, q), labels)

    def count(group: tuple[Label, ...]) -> int:
        return prod(sizes[v] for v in group)

    lead = tuple(sizes[v] for v in batch)
    p = g.reshape(a.arranged(g, (*batch, *left, *inner)), (*lead, count(left), count(inner)))
    q = g.reshape(b.arranged(g, (*batch, *inner, *right)), (*lead, count(inner), count(right)))
    return _Term(g.reshape(g.matmul(p, q), shape), labels)


def _result_size(a: _Term, b: _Term, wanted: set[Label]) -> int:
    sizes = {v: a.size(v) for v in a.labels} | {v: b.size(v) for v in b.labels}
    return prod(d for v, d in sizes.items() if v in wanted)


@rule("Einsum")
def einsum(g: Builder, *xs: Var, equation: str) -> Var:
    terms = parse_einsum(equation, tuple(x.rank for x in xs))
    sizes: dict[Label, int] = {}
    for x, labels in zip(xs, terms.inputs, strict=True):
        for label, d in zip(labels, x.shape, strict=True):
            sizes[label] = d if sizes.get(label, 1) == 1 else sizes[label]
    # sums of narrow integers wrap to the same result when they are taken in i32
    narrow = xs[0].dtype in (DType.I8, DType.U8, DType.I16, DType.U16)
    work = [
        _distinct(g, _Term(g.cast(x, DType.I32) if narrow else x, labels), sizes)
        for x, labels in zip(xs, terms.inputs, strict=True)
    ]
    output = set(terms.output)
    while len(work) > 1:
        pairs = [(i, j) for i in range(len(work)) for j in range(i + 1, len(work))]

        def wanted(i: int, j: int) -> set[Label]:
            return output.union(*(t.labels for k, t in enumerate(work) if k not in (i, j)))  # noqa: B023

        i, j = min(pairs, key=lambda p: _result_size(work[p[0]], work[p[1]], wanted(*p)))
        joined = _product(g, work[i], work[j], wanted(i, j))
        work = [t for k, t in enumerate(work) if k not in (i, j)] + [joined]
    last = _summed(g, work[0], output)
    # labels whose every operand has size 1 were kept, so all output labels are there
    y = last.arranged(g, terms.output)
    return g.cast(y, xs[0].dtype)
