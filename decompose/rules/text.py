"""The one op of the text family that may be numeric. Strings have no rule: they stay host ops."""

from __future__ import annotations

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.registry import rule
from mnnpy.graph.dtypes import DType

#: Comparisons of all places with all n-grams of one length, beyond which TfIdfVectorizer stays a host op.
_BLOCK = 1 << 26


def _grams(
    pool: tuple[int, ...], starts: tuple[int, ...], indexes: tuple[int, ...], shortest: int, longest: int
) -> dict[int, dict[tuple[int, ...], int]]:
    """Per length the n-grams of the pool and the column that each counts in; the last of equal ones counts."""
    found: dict[int, dict[tuple[int, ...], int]] = {}
    number = 0
    for n, start in enumerate(starts, 1):
        stop = starts[n] if n < len(starts) else len(pool)
        for at in range(start, stop, n):
            if shortest <= n <= longest:
                found.setdefault(n, {})[pool[at : at + n]] = indexes[number]
            number += 1
    return found


@rule("TfIdfVectorizer")
def tf_idf_vectorizer(
    g: Builder,
    x: Var,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: tuple[int, ...],
    ngram_indexes: tuple[int, ...],
    pool_int64s: tuple[int, ...] | None = None,
    pool_strings: tuple[str, ...] | None = None,
    weights: tuple[float, ...] | None = None,
) -> Var | None:
    if pool_int64s is None or not x.dtype.is_int:
        return None
    width = max(ngram_indexes, default=-1) + 1
    n, length = x.shape if x.rank == 2 else (1, x.shape[0])
    tokens = g.reshape(g.cast(x, DType.I64), (n, length, 1))
    counts: Var | None = None
    for size, grams in _grams(pool_int64s, ngram_counts, ngram_indexes, min_gram_length, max_gram_length).items():
        if n * length * len(grams) > _BLOCK:
            return None
        words = np.asarray(list(grams), np.int64)
        column = np.zeros((len(grams), width))
        column[np.arange(len(grams)), list(grams.values())] = 1
        for apart in range(1, (max_skip_count if size > 1 else 0) + 2):
            places = length - (size - 1) * apart
            if places <= 0:
                break
            hit: Var | None = None
            for k in range(size):
                part = g.slice(tokens, 1, k * apart, k * apart + places)
                same = g.binary("Equal", part, g.const(np.ascontiguousarray(words[:, k])))
                hit = same if hit is None else g.binary("And", hit, same)
            assert hit is not None
            found = g.reduce("Sum", g.cast(hit, DType.F32), [1], keepdims=False)
            found = g.matmul(found, g.const(column, DType.F32))
            counts = found if counts is None else g.add(counts, found)
    if counts is None:
        counts = g.const(np.zeros((n, width)), DType.F32)
    if mode != "TF":
        scale = np.ones(width)
        if weights is not None:
            scale[list(ngram_indexes)] = weights
        counts = g.binary("Min", counts, 1) if mode == "IDF" else counts
        counts = g.mul(counts, g.const(scale, DType.F32))
    return g.reshape(counts, (width,)) if x.rank == 1 else counts
