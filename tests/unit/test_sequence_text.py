"""Sequences, optionals and strings: references and types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.infer import Operand, infer, operand_of
from mnnpy.errors import MnnpyError, ShapeError
from mnnpy.graph.dims import SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import OptionalType, SequenceType, TensorType

a, b, c = np.float32([1, 2]), np.float32([3]), np.float32([4, 5, 6])


def run(name: str, *inputs: Any, **attrs: Any) -> Any:
    return evaluate(name, list(inputs), attrs)[0]


def same(got: list[Any], *want: Any) -> bool:
    return len(got) == len(want) and all(g is w for g, w in zip(got, want, strict=True))


def strings(*values: str) -> Any:
    out = np.empty(len(values), object)
    out[:] = values
    return out


def test_construct_and_length() -> None:
    s = run("SequenceConstruct", a, b, c)
    assert same(s, a, b, c)
    n = run("SequenceLength", s)
    assert n == 3
    assert n.dtype == np.int64
    assert n.shape == ()
    assert run("SequenceEmpty", dtype=DType.I64) == []
    with pytest.raises(ShapeError, match="SequenceEmpty makes an empty sequence"):
        infer("SequenceConstruct", [], {}, 1)


@pytest.mark.parametrize("k, want", [(0, a), (2, c), (-1, c), (-3, a)])
def test_at(k: int, want: Any) -> None:
    assert run("SequenceAt", [a, b, c], np.asarray(k)) is want


def test_positions_outside() -> None:
    for k in (3, -4):
        with pytest.raises(MnnpyError, match=f"position {k} is outside of a sequence of 3 elements"):
            run("SequenceAt", [a, b, c], np.asarray(k))
    with pytest.raises(MnnpyError, match="position 4"):
        run("SequenceInsert", [a, b, c], a, np.asarray(4))
    with pytest.raises(MnnpyError, match="empty sequence"):
        run("SequenceErase", [])
    with pytest.raises(MnnpyError, match="empty sequence"):
        run("ConcatFromSequence", [], axis=0)


def test_insert_and_erase_leave_their_input_alone() -> None:
    s = [a, b]
    assert same(run("SequenceInsert", s, c), a, b, c)
    assert same(run("SequenceInsert", s, c, np.asarray(0)), c, a, b)
    assert same(run("SequenceInsert", s, c, np.asarray(-1)), a, c, b)
    assert same(run("SequenceErase", s), a)
    assert same(run("SequenceErase", s, np.asarray(-2)), b)
    assert same(s, a, b)


def test_concat() -> None:
    assert run("ConcatFromSequence", [a, b], axis=0).tolist() == [1, 2, 3]
    assert run("ConcatFromSequence", [a, a], axis=-1, new_axis=1).shape == (2, 2)


def test_split() -> None:
    x = np.arange(10).reshape(5, 2)
    assert [p.shape for p in run("SplitToSequence", x)] == [(1, 2)] * 5
    assert [p.shape for p in run("SplitToSequence", x, axis=1, keepdims=0)] == [(5,)] * 2
    assert [p.shape for p in run("SplitToSequence", x, np.asarray(2))] == [(2, 2), (2, 2), (1, 2)]
    assert [p.shape for p in run("SplitToSequence", x, np.asarray([1, 4]), keepdims=0)] == [(1, 2), (4, 2)]
    with pytest.raises(MnnpyError, match=r"parts \[1, 1\] do not add up to 5"):
        run("SplitToSequence", x, np.asarray([1, 1]))


def test_optional() -> None:
    assert run("Optional", a) is a
    assert run("Optional", type=TensorType(DType.F32, None)) is None
    assert run("OptionalGetElement", a) is a
    assert run("OptionalHasElement", a)
    assert not run("OptionalHasElement", None)
    assert not run("OptionalHasElement")
    with pytest.raises(MnnpyError, match="the optional is empty"):
        run("OptionalGetElement", None)
    with pytest.raises(ShapeError, match="attribute 'type'"):
        infer("Optional", [], {}, 1)


def test_types() -> None:
    t, u = TensorType(DType.F32, (2, 3)), TensorType(DType.F32, (2, 4))
    (s,) = infer("SequenceConstruct", [Operand(t), Operand(u)], {}, 1)
    assert isinstance(s, SequenceType)
    assert isinstance(s.elem, TensorType)
    assert s.elem.shape[0] == 2
    assert isinstance(s.elem.shape[1], SymDim)
    seq = Operand(SequenceType(t))
    assert infer("SequenceAt", [seq, operand_of(np.asarray(0))], {}, 1) == (t,)
    (joined,) = infer("ConcatFromSequence", [seq], {"axis": 1}, 1)
    assert isinstance(joined, TensorType)
    assert joined.shape[0] == 2
    assert infer("OptionalGetElement", [Operand(OptionalType(t))], {}, 1) == (t,)
    assert infer("SplitToSequence", [Operand(t)], {"axis": 1, "keepdims": 0}, 1) == (
        SequenceType(TensorType(DType.F32, (2,))),
    )
    with pytest.raises(ShapeError, match="a sequence is needed"):
        infer("SequenceLength", [Operand(t)], {}, 1)


def test_string_concat_broadcasts() -> None:
    got = run("StringConcat", strings("a", "b").reshape(2, 1), strings("x", "y"))
    assert got.tolist() == [["ax", "ay"], ["bx", "by"]]


@pytest.mark.parametrize("sensitive, want", [(0, ["monday"]), (1, ["the", "monday"])])
def test_string_normalizer(sensitive: int, want: list[str]) -> None:
    got = run(
        "StringNormalizer",
        strings("The", "Monday"),
        stopwords=("the",),
        is_case_sensitive=sensitive,
        case_change_action="LOWER",
    )
    assert got.tolist() == want


def test_string_normalizer_gives_one_empty_string_for_nothing() -> None:
    assert run("StringNormalizer", strings("x").reshape(1, 1), stopwords=("x",)).tolist() == [[""]]
    with pytest.raises(ShapeError, match=r"\[C\] or \[1, C\]"):
        infer("StringNormalizer", [Operand(TensorType(DType.STRING, (2, 3)))], {}, 1)


def test_string_split() -> None:
    parts, counts = evaluate("StringSplit", [strings("a,b,,c", "", "x")], {"delimiter": ",", "maxsplit": 2})
    assert parts.tolist() == [["a", "b", ",c"], ["", "", ""], ["x", "", ""]]
    assert counts.tolist() == [3, 1, 1]
    parts, counts = evaluate("StringSplit", [strings("  a  b ", "")], {})
    assert parts.tolist() == [["a", "b"], ["", ""]]
    assert counts.tolist() == [2, 0]
    assert evaluate("StringSplit", [strings().reshape(0, 2)], {})[0].shape == (0, 2, 0)


@pytest.mark.parametrize(
    "pattern, text, want",
    [
        (r"a+", "aaa", True),
        (r"a+", "aab", False),
        (r"\d\z", "3", True),
        (r"\d", "٣", False),
        (r"(?i)Ab", "aB", True),
        (r"a|ab", "ab", True),
    ],
)
def test_regex(pattern: str, text: str, want: bool) -> None:
    got = run("RegexFullMatch", strings(text), pattern=pattern)
    assert got.tolist() == [want]
    assert got.dtype == np.bool_


def test_bad_regex() -> None:
    with pytest.raises(ShapeError, match=r"pattern '\(' is not a regular expression"):
        infer("RegexFullMatch", [Operand(TensorType(DType.STRING, (1,)))], {"pattern": "("}, 1)


def test_tf_idf() -> None:
    attrs: dict[str, Any] = {
        "mode": "TF", "min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 1, "ngram_counts": (0, 2),
        "ngram_indexes": (0, 2, 1), "pool_strings": ("a", "b", "a", "b"), "weights": (1.0, 2.0, 0.5),
    }  # fmt: skip
    x = strings("a", "c", "b", "a", "b")
    # a: 2, b: 2; ab: adjacent (3, 4), with one skipped (0, 2)
    assert run("TfIdfVectorizer", x, **attrs).tolist() == [2, 2, 2]
    assert run("TfIdfVectorizer", x, **{**attrs, "mode": "IDF"}).tolist() == [1, 0.5, 2]
    assert run("TfIdfVectorizer", x.reshape(1, -1), **{**attrs, "mode": "TFIDF"}).tolist() == [[2, 1, 4]]
    with pytest.raises(ShapeError, match="the pool holds strings"):
        infer("TfIdfVectorizer", [operand_of(np.asarray([1, 2]))], attrs, 1)
