"""The arena: buffers alive at the same time never overlap, whatever the lifetimes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.backends import memory
from mnnpy.backends.memory import ALIGN, Interval, place


@st.composite
def intervals(draw: st.DrawFn) -> list[Interval]:
    count = draw(st.integers(0, 40))
    made = []
    for k in range(count):
        first = draw(st.integers(0, 30))
        made.append(Interval(f"v{k}", draw(st.integers(0, 5000)), first, first + draw(st.integers(0, 12))))
    return made


def check(items: list[Interval]) -> None:
    offsets, total = place(items)
    for k, a in enumerate(items):
        assert offsets[a.key] % ALIGN == 0
        assert offsets[a.key] + a.size <= total
        for b in items[k + 1 :]:
            if a.last < b.first or b.last < a.first or not a.size or not b.size:
                continue
            apart = offsets[a.key] + a.size <= offsets[b.key] or offsets[b.key] + b.size <= offsets[a.key]
            assert apart, (a, b, offsets)


@settings(max_examples=150, deadline=None)
@given(intervals())
def test_greedy_placement_never_overlaps(items: list[Interval]) -> None:
    check(items)


@settings(max_examples=100, deadline=None)
@given(intervals())
def test_placement_by_time_never_overlaps(items: list[Interval]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "GREEDY_LIMIT", -1)
        check(items)


def test_a_chain_needs_two_buffers() -> None:
    chain = [Interval(f"v{k}", 1000, k, k + 1) for k in range(50)]
    _, total = place(chain)
    assert total == 2 * 1024
