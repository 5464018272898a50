"""Strings: host ops on object arrays, and n-gram counts of strings or integers."""

from __future__ import annotations

import re

from mnnpy.decompose.infer import Operand, broadcast_shapes, data_dim
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType


def compile_pattern(pattern: str) -> re.Pattern[str]:
    r"""*pattern* of RE2 for Python: character classes are those of ASCII, ``\z`` ends the text.

    Raises ShapeError for what Python cannot express (``\pN``, ``\C``).
    """
    try:
        return re.compile(re.sub(r"((?:^|[^\\])(?:\\\\)*)\\z", r"\1\\Z", pattern), re.ASCII)
    except re.error as error:
        raise ShapeError(f"pattern '{pattern}' is not a regular expression that is supported: {error}") from error


def _strings(x: Operand, what: str = "the input") -> None:
    if x.dtype is not DType.STRING:
        raise ShapeError(f"{what} is {x.dtype}, not string")


@op("StringConcat", OpClass.HOST)
def string_concat(x: Operand, y: Operand) -> TensorType:
    """Element-wise concatenation, broadcast."""
    _strings(x, "X")
    _strings(y, "Y")
    return TensorType(DType.STRING, broadcast_shapes(x.shape, y.shape))


@op("StringNormalizer", OpClass.HOST)
def string_normalizer(
    x: Operand,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str | None = None,
    stopwords: tuple[str, ...] | None = None,
) -> TensorType:
    """Remove stop words, then change case. Takes ``[C]`` or ``[1, C]``."""
    _strings(x)
    if case_change_action not in ("NONE", "LOWER", "UPPER"):
        raise ShapeError(f"case_change_action '{case_change_action}' is not one of NONE, LOWER, UPPER")
    if x.rank not in (1, 2) or (x.rank == 2 and isinstance(x.shape[0], int) and x.shape[0] != 1):
        raise ShapeError(f"the input has shape {x.shape}; StringNormalizer takes [C] or [1, C]")
    kept = data_dim("kept") if stopwords else x.shape[-1]
    if isinstance(kept, int):
        kept = max(1, kept)  # an empty result is one empty string
    return TensorType(DType.STRING, (*x.shape[:-1], kept))


@op("StringSplit", OpClass.HOST)
def string_split(
    x: Operand, *, delimiter: str | None = None, maxsplit: int | None = None
) -> tuple[TensorType, TensorType]:
    """Substrings along a new last axis (filled up with empty strings), and how many there are."""
    _strings(x)
    return TensorType(DType.STRING, (*x.shape, data_dim("parts"))), TensorType(DType.I64, x.shape)


@op("RegexFullMatch", OpClass.HOST)
def regex_full_match(x: Operand, *, pattern: str = "") -> TensorType:
    """Whether each whole string matches *pattern* (RE2 syntax)."""
    _strings(x)
    compile_pattern(pattern)
    return TensorType(DType.BOOL, x.shape)


@op("TfIdfVectorizer", OpClass.COMPOSITE)
def tf_idf_vectorizer(
    x: Operand,
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
) -> TensorType:
    """Counts of the n-grams of a pool in each row, weighted where asked."""
    if mode not in ("TF", "IDF", "TFIDF"):
        raise ShapeError(f"mode '{mode}' is not one of TF, IDF, TFIDF")
    if (pool_int64s is None) == (pool_strings is None):
        raise ShapeError("exactly one of pool_int64s and pool_strings must be given")
    if (pool_strings is not None) != (x.dtype is DType.STRING):
        raise ShapeError(
            f"the input is {x.dtype}, the pool holds {'strings' if pool_strings is not None else 'integers'}"
        )
    if not 1 <= min_gram_length <= max_gram_length or max_gram_length > len(ngram_counts) or max_skip_count < 0:
        raise ShapeError(
            f"gram lengths {min_gram_length} to {max_gram_length} with {len(ngram_counts)} ngram_counts and "
            f"max_skip_count {max_skip_count} do not fit"
        )
    if weights is not None and len(weights) != len(ngram_indexes):
        raise ShapeError(f"{len(weights)} weights for {len(ngram_indexes)} n-grams")
    if x.rank not in (1, 2):
        raise ShapeError(f"the input has shape {x.shape}; TfIdfVectorizer takes rank 1 or 2")
    return TensorType(DType.F32, (*x.shape[:-1], max(ngram_indexes, default=-1) + 1))
