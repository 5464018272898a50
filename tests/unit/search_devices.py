"""Devices for tests of the search: one that takes some ops only, one whose programs wait, one that pretends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from mnnpy.backends.base import Candidate, Device, DeviceInfo, NodeView, Program, Segment, Support
from mnnpy.backends.registry import open_device
from mnnpy.graph.ir import Array
from mnnpy.search.cost import Peaks

__all__ = ["Picky", "branches"]


class _Watched:
    """A program that calls *before* ahead of each run."""

    def __init__(self, inner: Program, before: Callable[[], None]) -> None:
        self._inner, self._before = inner, before

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        self._before()
        return self._inner.run(inputs)

    def __getattr__(self, name: str) -> Any:
        if name in ("run_into", "run_bound", "recipe"):
            raise AttributeError(name)
        return getattr(self._inner, name)


class Picky:
    """A device that takes *ops* only, under a name of its own; *before* is called ahead of every run."""

    def __init__(
        self,
        name: str,
        ops: set[str] | None,
        before: Callable[[], None] = lambda: None,
        inner: str = "cpu",
        peaks: Peaks | None = None,
        **facts: Any,
    ) -> None:
        self._inner: Device = open_device(inner, threads=1)
        self.info = DeviceInfo(name, name, facts=facts)
        self.ops = ops
        self.before = before
        self.compiled: list[Segment] = []
        self._peaks = peaks
        if peaks is not None:
            self.peaks = lambda: peaks

    def supports(self, view: NodeView) -> Support:
        if self.ops is not None and view.node.op not in self.ops:
            return Support(False, f"{self.info.name} takes {', '.join(sorted(self.ops))} only")
        return self._inner.supports(view)

    def candidates(self, view: NodeView) -> list[Candidate]:
        return self._inner.candidates(view)

    def compile(self, segment: Segment) -> Any:
        self.compiled.append(segment)
        return _Watched(self._inner.compile(segment), lambda: self.before())

    def upload(self, array: Array) -> Any:
        return self._inner.upload(array)

    def download(self, buffer: Any) -> Array:
        return self._inner.download(buffer)

    def synchronize(self) -> None:
        self._inner.synchronize()


def branches(size: int = 48) -> Any:
    """A model with a branch of products and one of convolutions that meet at the end, and its feeds."""
    import numpy as np

    from tests.unit.onnx_models import model, node

    rng = np.random.default_rng(5)
    weights = {"w": rng.normal(size=(size, size)) / size, "k": rng.normal(size=(2, 2, 9, 9)) / 30}
    constants = {n: w.astype(np.float32) for n, w in weights.items()}
    x = rng.normal(size=(1, 2, size, size)).astype(np.float32)
    nodes = [
        node("MatMul", ["x", "w"], ["a"], "product"),
        node("Conv", ["x", "k"], ["b"], "convolution", pads=[4, 4, 4, 4]),
        node("MatMul", ["a", "b"], ["c"], "meeting"),
    ]
    return model(nodes, {"x": x}, ["c"], 17, constants=constants), {"x": x}


def nap(seconds: float) -> Callable[[], None]:
    """Wait as a device does: without holding Python."""
    return lambda: time.sleep(seconds)
