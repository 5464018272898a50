"""Random on the kernel devices: the stream of a seed, and a fresh one per run without."""

from __future__ import annotations

import numpy as np
import pytest

from mnnpy.backends.base import Segment
from mnnpy.decompose.registry import get_op
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Node
from tests.unit.kernel_helpers import DEVICES, device, graph_of, run_graph


@pytest.mark.parametrize("name", DEVICES[:2])
@pytest.mark.parametrize("fn", ["Uniform", "Normal"])
def test_the_stream_of_a_seed(name: str, fn: str) -> None:
    attrs = {"fn": fn, "shape": (3, 11), "dtype": DType.F32, "a": 1.0, "b": 2.5, "seed": 2**40 + 17}
    graph = graph_of([Node("Random", (), ("y",), attrs)], {}, ["y"])
    reference = get_op("Random").reference
    assert reference is not None
    np.testing.assert_allclose(run_graph(device(name), graph, {})[0], reference(**attrs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DEVICES)
def test_without_a_seed_every_run_differs(name: str) -> None:
    attrs = {"fn": "Uniform", "shape": (500,), "dtype": DType.F32, "a": -1.0, "b": 3.0}
    program = device(name).compile(Segment(graph_of([Node("Random", (), ("y",), attrs)], {}, ["y"])))
    runs = [program.run([])[0] for _ in range(3)]
    program.close()  # type: ignore[attr-defined]
    assert len({r.tobytes() for r in runs}) == 3
    for r in runs:
        assert -1 <= r.min() < r.max() < 3
        assert abs(float(r.mean()) - 1) < 0.3
