"""References of the string ops; strings are Python ``str`` in object arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mnnpy.decompose.ops.text import compile_pattern
from mnnpy.decompose.registry import reference
from mnnpy.graph.ir import Array


def text_of(value: Any) -> str:
    """An element as ``str``; bytes are UTF-8."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def map_strings(fn: Callable[..., Any], dtype: Any, *xs: Array) -> Array:
    """Apply *fn* to broadcast elements."""
    views = np.broadcast_arrays(*xs)
    out = np.empty(views[0].shape, dtype)
    for index in np.ndindex(out.shape):
        out[index] = fn(*(text_of(v[index]) for v in views))
    return out


@reference("StringConcat")
def string_concat(x: Array, y: Array) -> Array:
    return map_strings(lambda a, b: a + b, object, x, y)


@reference("StringNormalizer")
def string_normalizer(
    x: Array,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str | None = None,
    stopwords: tuple[str, ...] | None = None,
) -> Array:
    fold: Callable[[str], str] = (lambda s: s) if is_case_sensitive else str.lower
    stop = {fold(w) for w in stopwords or ()}
    kept = [s for s in map(text_of, x.reshape(-1)) if fold(s) not in stop]
    change = {"NONE": lambda s: s, "LOWER": str.lower, "UPPER": str.upper}[case_change_action]
    words = [change(s) for s in kept] or [""]
    out = np.empty(len(words), object)
    out[:] = words
    return out.reshape((1, -1) if x.ndim == 2 else (-1,))


@reference("StringSplit")
def string_split(x: Array, *, delimiter: str | None = None, maxsplit: int | None = None) -> tuple[Array, Array]:
    limit = -1 if maxsplit is None else maxsplit
    parts = [text_of(s).split(delimiter or None, limit) for s in x.reshape(-1)]
    width = max(map(len, parts), default=0)
    out = np.full((x.size, width), "", object)
    for row, found in zip(out, parts, strict=True):
        row[: len(found)] = found
    counts = np.asarray([len(p) for p in parts], np.int64)
    return out.reshape(*x.shape, width), counts.reshape(x.shape)


@reference("RegexFullMatch")
def regex_full_match(x: Array, *, pattern: str = "") -> Array:
    compiled = compile_pattern(pattern)
    return map_strings(lambda s: compiled.fullmatch(s) is not None, np.bool_, x)


@reference("TfIdfVectorizer")
def tf_idf_vectorizer(
    x: Array,
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
) -> Array:
    pool: Sequence[Any] = pool_strings if pool_strings is not None else pool_int64s or ()
    grams = _grams(pool, ngram_counts, min_gram_length, max_gram_length)
    take: Callable[[Any], Any] = text_of if pool_strings is not None else int
    rows = x.reshape(1, -1) if x.ndim == 1 else x
    width = max(ngram_indexes, default=-1) + 1
    counts = np.zeros((rows.shape[0], width), np.float32)
    for row, out in zip(rows, counts, strict=True):
        tokens = [take(t) for t in row]
        for gram in _found(tokens, min_gram_length, max_gram_length, max_skip_count):
            place = grams.get(gram)
            if place is not None:
                out[ngram_indexes[place]] += 1
    if mode != "TF":
        scale = np.ones(width, np.float32)
        if weights is not None:
            scale[list(ngram_indexes)] = weights
        counts = (np.minimum(counts, 1) if mode == "IDF" else counts) * scale
    return counts[0] if x.ndim == 1 else counts


def _grams(pool: Sequence[Any], starts: Sequence[int], shortest: int, longest: int) -> dict[tuple[Any, ...], int]:
    """n-gram → its number in the pool (only of the lengths asked for)."""
    found: dict[tuple[Any, ...], int] = {}
    number = 0
    for n, start in enumerate(starts, 1):
        stop = starts[n] if n < len(starts) else len(pool)
        for at in range(start, stop, n):
            if shortest <= n <= longest:
                found[tuple(pool[at : at + n])] = number
            number += 1
    return found


def _found(tokens: list[Any], shortest: int, longest: int, skips: int) -> list[tuple[Any, ...]]:
    """All n-grams of a row; single tokens do not depend on skips, so they count once."""
    made: list[tuple[Any, ...]] = []
    for skip in range(skips + 1):
        step = skip + 1
        for n in range(shortest, longest + 1):
            if n == 1 and skip:
                continue
            span = (n - 1) * step
            made += [tuple(tokens[k : k + span + 1 : step]) for k in range(len(tokens) - span)]
    return made
