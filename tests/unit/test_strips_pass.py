"""The pass that makes ConvChain nodes: what it takes, where it cuts, and that answers stay the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.cpu.passes import strips
from mnnpy.options import OPTIMIZATIONS
from tests.models import Net


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every intermediate counts as too large for the cache."""
    monkeypatch.setattr(strips, "_l2_bytes", lambda: 0)


def point(n: Net, x: str, c: int, m: int, act: str = "Relu") -> str:
    y = n.op("Conv", x, n.w(m, c, 1, 1), n.w(m))
    return n.op(act, y) if act else y


def depth(n: Net, x: str, c: int, k: int = 3, stride: int = 1, act: str = "Relu") -> str:
    y = n.op("Conv", x, n.w(c, 1, k, k), n.w(c), group=c, pads=[k // 2] * 4, strides=[stride] * 2)
    return n.op(act, y) if act else y


def chains(model: Any, feeds: dict[str, Any], **options: Any) -> list[str]:
    """Algorithms of the chains in the plan for one thread; any number of threads must give the reference's answer."""
    want = mnnpy.Session(model, "reference").run(None, feeds)
    found: list[str] = []
    for threads in (7, 2, 1):
        session = mnnpy.Session(model, threads=threads, tune="off", **options)
        for g, w in zip(session.run(None, feeds), want, strict=True):
            assert np.abs(g - w).max() <= 3e-5 * np.abs(w).max()
        rows = session.explain().rows
        found = [r["algorithm"].partition("/")[0] for r in rows if r["op"] == "ConvChain"]
    return found


def test_inverted_residual(no_cache: None) -> None:
    n = Net()
    x = n.input(2, 16, 30, 28)
    y = point(n, depth(n, point(n, x, 16, 64), 64), 64, 16, "")
    z = n.op("Add", x, y)
    z = point(n, depth(n, point(n, z, 16, 64), 64, 5, 2), 64, 24, "")
    model = n.finish(z)
    assert chains(*model) == ["strips-1x1-dw-1x1", "strips-1x1-dw-1x1"]
    assert chains(*model, precision="high") == ["strips-1x1-dw-1x1", "strips-1x1-dw-1x1"]
    assert chains(*model, optimize=OPTIMIZATIONS - {"fuse_strips"}) == []


def test_value_with_two_readers_ends_a_chain(no_cache: None) -> None:
    n = Net()
    x = n.input(1, 8, 20, 20)
    y = point(n, depth(n, x, 8), 8, 24)
    z = point(n, depth(n, y, 24), 24, 12)
    assert chains(*n.finish(z, n.op("Sigmoid", y))) == ["strips-dw-1x1", "strips-dw-1x1"]


def test_values_between_leave_the_memory_plan(no_cache: None) -> None:
    n = Net()
    x = n.input(1, 8, 64, 64)
    model, feeds = n.finish(point(n, depth(n, point(n, x, 8, 96), 96), 96, 8))
    arenas = []
    for optimize in (OPTIMIZATIONS, OPTIMIZATIONS - {"fuse_strips"}):
        session = mnnpy.Session(model, threads=1, optimize=optimize)
        session.run(None, feeds)
        (plan,) = session._executable.plans()
        assert plan.direct is not None
        arenas.append(plan.direct.memory["arena"])
    assert arenas[1] >= 2 * 96 * 64 * 64 * 4
    assert arenas[0] <= arenas[1] / 8


def test_what_fits_the_cache_stays_apart() -> None:
    n = Net()
    x = n.input(1, 8, 8, 8)
    assert chains(*n.finish(point(n, depth(n, point(n, x, 8, 16), 16), 16, 8))) == []


def test_chains_write_concatenations_in_place(no_cache: None) -> None:
    n = Net()
    x = n.input(2, 8, 20, 19)
    left, right = point(n, depth(n, x, 8), 8, 20, "Sigmoid"), depth(n, point(n, x, 8, 21), 21)
    model, feeds = n.finish(n.op("MaxPool", n.op("Concat", left, right, axis=1), kernel_shape=[2, 2]))
    assert chains(model, feeds) == ["strips-dw-1x1", "strips-1x1-dw"]
    session = mnnpy.Session(model, threads=1)
    session.run(None, feeds)
    ops = [r["op"] for r in session.explain().rows]
    assert "Raster" not in ops[ops.index("ConvChain") : ops.index("Pool")]


def test_dense_kernels_and_strides_are_no_stages(no_cache: None) -> None:
    n = Net()
    x = n.input(1, 8, 16, 16)
    y = n.op("Conv", x, n.w(16, 8, 3, 3), pads=[1, 1, 1, 1])
    y = n.op("Conv", y, n.w(16, 16, 1, 1), strides=[2, 2])
    y = n.op("Conv", y, n.w(16, 8, 1, 1), group=2)
    assert chains(*n.finish(y)) == []


def stage(bytes_: float, flops: float = 1e5, reach: int = 1, stride: int = 1) -> strips._Stage:
    return strips._Stage(flops, bytes_, 56, reach, stride)


def test_cost_model_weighs_bytes_against_lines_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "_l2_bytes", lambda: 1 << 20)
    big, small = stage(4e6), stage(1e5)
    assert strips._gain([big, stage(1e5, reach=3)], 1) > 0
    assert strips._gain([small, stage(1e5, reach=3)], 1) <= 0
    heavy = stage(1.2e6, flops=1e7)
    assert strips._gain([heavy, stage(1e5, reach=3)], 1) > 0  # one thread computes nothing twice
    assert strips._gain([heavy, stage(1e5, reach=3)], 2) < 0
    assert strips._gain([heavy, stage(1e5)], 64) > 0  # 1×1 kernels need no lines of their neighbours


def test_factors_of_the_weights_come_along(no_cache: None) -> None:
    """A multiplication by channel behind each convolution, as a BatchNormalization leaves it."""
    n = Net()
    x = n.op("Relu", n.op("Mul", point(n, n.input(1, 16, 20, 20), 16, 64, ""), n.w(64, 1, 1)))
    x = n.op("Relu", n.op("Mul", depth(n, x, 64, act=""), n.w(64, 1, 1)))
    x = n.op("Mul", point(n, x, 64, 24, ""), n.w(24, 1, 1))
    assert chains(*n.finish(x)) == ["strips-1x1-dw-1x1"]
