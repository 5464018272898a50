"""Our ``dataclass`` leaves the same class behind as the standard one."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from mnnpy import classes


def standard(**options: Any) -> Any:
    @dataclasses.dataclass(**options)
    class Sample:
        a: int
        b: str = "x"
        c: list[int] = dataclasses.field(default_factory=list)
        d: float = dataclasses.field(default=2.0, compare=False)
        e: int = dataclasses.field(init=False, default=7)
        kind: ClassVar[str] = "k"

        def double(self) -> int:
            return 2 * self.a

    return Sample


def ours(**options: Any) -> Any:
    @classes.dataclass(**options)
    class Sample:
        a: int
        b: str = "x"
        c: list[int] = classes.field(default_factory=list)
        d: float = classes.field(default=2.0, compare=False)
        e: int = classes.field(init=False, default=7)
        kind: ClassVar[str] = "k"

        def double(self) -> int:
            return 2 * self.a

    return Sample


OPTIONS = [
    {},
    {"frozen": True},
    {"slots": True},
    {"frozen": True, "slots": True},
    {"frozen": True, "slots": True, "kw_only": True},
    {"eq": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [standard, ours])
def test_behaviour(make: Callable[..., Any], options: dict[str, Any]) -> None:
    cls = make(**options)
    one = cls(a=1)
    assert (one.a, one.b, one.c, one.d, one.e, one.kind, one.double()) == (1, "x", [], 2.0, 7, "k", 2)
    assert one.c is not cls(a=1).c
    assert repr(one).endswith("Sample(a=1, b='x', c=[], d=2.0, e=7)")
    assert (one == cls(a=1, d=9.0)) is (options.get("eq", True))
    assert one != cls(a=2)
    assert one != (1, "x")
    assert hasattr(one, "__dict__") is not options.get("slots", False)
    assert [f.name for f in dataclasses.fields(cls)] == ["a", "b", "c", "d", "e"]
    assert dataclasses.asdict(one) == {"a": 1, "b": "x", "c": [], "d": 2.0, "e": 7}
    assert dataclasses.replace(one, b="z").b == "z"
    assert copy.deepcopy(one).a == copy.copy(one).a == 1
    assert cls.__match_args__ == (() if options.get("kw_only") else ("a", "b", "c", "d"))
    with pytest.raises(TypeError, match="missing 1 required"):
        cls()
    with pytest.raises(TypeError, match="unexpected keyword"):
        cls(a=1, zz=2)
    if options.get("kw_only"):
        with pytest.raises(TypeError, match="positional"):
            cls(1)
    else:
        assert cls(1, "y").b == "y"
    if options.get("frozen"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.a = 3
        with pytest.raises(dataclasses.FrozenInstanceError):
            del one.a
    else:
        one.a = 3
        assert one.double() == 6


@classes.dataclass(frozen=True, slots=True)
class Point:
    """A class that pickle finds."""

    x: int
    y: int = 0


@classes.dataclass(slots=True)
class Checked:
    """A class with a second step of construction."""

    x: int
    twice: int = classes.field(init=False)

    def __post_init__(self) -> None:
        self.twice = 2 * self.x


def test_hash_equality_and_pickle() -> None:
    assert hash(Point(1)) == hash(Point(1, 0))
    assert len({Point(1), Point(1, 0), Point(1, 2)}) == 2
    assert pickle.loads(pickle.dumps(Point(3, 4))) == Point(3, 4)
    assert classes.replace(Point(1, 2), y=5) == Point(1, 5)
    assert classes.field_names(Point) == classes.field_names(Point(1)) == ("x", "y")
    with pytest.raises(TypeError, match="unhashable"):
        hash(Checked(1))


def test_post_init() -> None:
    assert Checked(4).twice == 8
    assert Checked(x=4) == Checked(4)


def test_nothing_is_compiled_before_it_is_needed() -> None:
    @classes.dataclass(frozen=True, slots=True)
    class Late:
        a: int

    before = Late.__init__
    assert Late(1).a == 1
    assert Late.__init__ is not before
    assert Late(2).a == 2
