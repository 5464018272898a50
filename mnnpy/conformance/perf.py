"""Cases that are large enough to be timed, and their rates (mode perf, and ``mnnpy report``)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from mnnpy.backends.analytic import moved_bytes, node_flops
from mnnpy.conformance.cases import Case
from mnnpy.conformance.run import Runner, prepare
from mnnpy.conformance.table_compute import _conv, _matmul, _pool, _reduce
from mnnpy.conformance.table_element import _binary, _unary
from mnnpy.conformance.table_move import _gather, _raster, _sort, _transposition
from mnnpy.conformance.targets import Target
from mnnpy.decompose.lower import view_of
from mnnpy.decompose.raster import full_region
from mnnpy.errors import MnnpyError
from mnnpy.graph.dtypes import DType

__all__ = ["Timing", "launch_cost", "perf_cases", "time_case"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run of a case without transfers: the least and the median of *runs*."""

    name: str
    op: str
    backend: str
    label: str
    best: float = 0.0
    median: float = 0.0
    runs: int = 0
    gflops: float = 0.0  #: floating point operations per nanosecond, by the best run
    gbytes: float = 0.0  #: bytes read and written once each per nanosecond, by the best run
    reason: str = ""  #: why there is no time


@cache
def perf_cases() -> tuple[Case, ...]:
    """A few sizes of the ops that matter; the first is small enough for a device that is slow."""
    return tuple(replace(c, perf=True) for c in _cases())


def _cases() -> Iterator[Case]:
    million = (1024, 1024)
    for n in (256, 768):
        yield _matmul((n, n), (n, n), layout="constant")
    yield _matmul((1, 1024), (1024, 1024), layout="constant")
    yield _conv((1, 64, 28, 28), (64, 64, 3, 3), pads=(1, 1, 1, 1), layout="constant")
    yield _conv((1, 64, 28, 28), (128, 64, 1, 1), layout="constant")
    yield _conv((1, 96, 28, 28), (96, 1, 3, 3), pads=(1, 1, 1, 1), group=96, layout="constant")
    yield _unary("Relu", DType.F32, million)
    yield _unary("Exp", DType.F32, million)
    yield _binary("Add", DType.F32, (million, million))
    yield _raster(
        "shift",
        (million,),
        million,
        (full_region((1024, 1023)).replace(src_strides=(1024, 1), dst_strides=(1024, 1)),),
        0.0,
    )
    yield _transposition(million, (1, 0))
    yield _reduce("Sum", million, (1,))
    yield _reduce("Sum", million, (0,))
    yield _gather((10000, 64), (1000,), 0, values="repeat")
    yield _sort((8, 1000), 1, 10, True, values="normal")
    yield _pool("Max", (1, 64, 56, 56), (2, 2), (2, 2))


def time_case(target: Target, case: Case, budget: float = 1.0) -> Timing:
    """Run a case for about *budget* seconds, after one run to warm up."""
    runner = Runner(target, guards=False)
    ready = prepare(case)
    reason = runner.declined(ready.graph)
    if reason:
        return Timing(case.name, case.op, target.name, target.label, reason=f"unsupported: {reason}")
    try:
        program = runner.program(ready.graph)
        program.run(ready.feeds)
        times: list[float] = []
        begin = time.perf_counter()
        while not times or (time.perf_counter() - begin < budget and len(times) < 1000):
            times.append(program.time(ready.feeds))
    except MnnpyError as error:
        return Timing(case.name, case.op, target.name, target.label, reason=str(error).partition("\n")[0])
    view = view_of(ready.graph.nodes[0], ready.graph.types, ready.graph.constants)
    best = max(min(times), 1e-9)
    return Timing(
        case.name, case.op, target.name, target.label, best, float(np.median(times)), len(times),
        1e-9 * node_flops(view) / best, 1e-9 * moved_bytes(view) / best,
    )  # fmt: skip


def launch_cost(target: Target, launches: Iterable[int] = (1, 33)) -> dict[str, Any]:
    """Seconds of a run of one tiny kernel with everything around it, and what each further launch adds.

    Chains of alternating small products and sums, so that no pass makes one kernel of them; the least of 20 runs.
    """
    from mnnpy.graph.ir import Graph, Node, TensorType, Value

    found: dict[int, float] = {}
    steps: dict[int, int] = {}
    kind = TensorType(DType.F32, (4, 4))
    for n in launches:
        names = [f"v{k}" for k in range(n + 1)]
        nodes = tuple(
            Node(
                "PrefixScan",
                (names[k],),
                (names[k + 1],),
                {"fn": "Sum", "axis": k % 2, "exclusive": False, "reverse": False},
            )
            for k in range(n)
        )
        graph = Graph(
            "launches", (Value(names[0], kind),), (Value(names[-1], kind),), nodes, {}, dict.fromkeys(names, kind)
        )
        program = Runner(target, guards=False).program(graph)
        x = np.zeros((4, 4), np.float32)
        program.run([x])
        best = np.inf
        for _ in range(20):
            begin = time.perf_counter()
            program.run([x])
            best = min(best, time.perf_counter() - begin)
        found[n], steps[n] = best, len(program.describe())
    first, last = min(found), max(found)
    more = max(1, steps[last] - steps[first])
    return {
        "run_of_one": found[first],
        "each_further_launch": (found[last] - found[first]) / more,
        "launches": steps[last],
    }
