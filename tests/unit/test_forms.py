"""Layout by cost: few bytes moved, and right answers whatever form each node takes."""

from __future__ import annotations

import random

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.cpu.passes import forms, layout
from mnnpy.backends.cpu.provider import lower
from mnnpy.decompose.merge import contiguous_view
from mnnpy.graph.ir import Graph
from mnnpy.options import OPTIMIZATIONS
from tests.models import MODELS, Net


def lowered(net: Net, *outputs: str) -> Graph:
    model, feeds = net.finish(*outputs)
    ((_, graph),) = mnnpy.Session(model).parts(feeds)
    return lower(graph, OPTIMIZATIONS)


def copies(graph: Graph) -> list[str]:
    """Names of what rasters copy."""
    return [n.outputs[0] for n in graph.nodes if n.op == "Raster" and contiguous_view(n, graph.types) is None]


def test_a_convolution_among_plain_values_is_converted_and_not_they() -> None:
    """Following the convolution would turn three operands; turning its result is one copy."""
    n = Net()
    y = n.op("Conv", n.input(1, 16, 1, 64), n.w(16, 16, 1, 3), pads=[0, 1, 0, 1])
    for _ in range(3):
        y = n.op("Add", y, n.op("MatMul", n.input(1, 16, 1, 64), n.w(64, 64)))
    graph = lowered(n, n.op("MatMul", y, n.w(64, 8)))
    assert len(copies(graph)) == 2  # into the convolution and out of it


def test_element_wise_ops_stay_with_their_convolution() -> None:
    n = Net()
    y = n.op("Relu", n.op("Conv", n.input(1, 16, 8, 8), n.w(16, 16, 3, 3), pads=[1, 1, 1, 1]))
    graph = lowered(n, n.op("Relu", n.op("Conv", y, n.w(16, 16, 3, 3), n.w(16))))
    assert [x.op for x in graph.nodes if x.op != "Raster"] == ["Convolution", "Convolution"]
    assert len(copies(graph)) == 2


def test_a_value_is_turned_once_for_all_its_readers() -> None:
    n = Net()
    x = n.op("MatMul", n.input(1, 16, 8, 8), n.w(8, 8))
    branches = [n.op("Conv", x, n.w(16, 16, 1, 1)) for _ in range(4)]
    graph = lowered(n, n.op("Concat", *branches, axis=1))
    assert len(copies(graph)) == 2  # x, and the concatenation


def test_concatenations_between_convolutions_are_one_copy_each() -> None:
    n = Net()
    x = n.op("Conv", n.input(1, 8, 9, 9), n.w(8, 8, 3, 3))
    y = n.op("Conv", n.op("Concat", x, n.op("Conv", x, n.w(8, 8, 1, 1)), axis=1), n.w(8, 16, 1, 1))
    graph = lowered(n, n.op("GlobalAveragePool", y))
    assert len(copies(graph)) == 2  # the input, and the concatenation


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(4))
def test_answers_do_not_depend_on_the_choice(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms drawn at random for every node that has two: conversions are made wherever they are needed."""
    model, feeds = MODELS[name]()
    want = mnnpy.Session(model, "reference").run(None, feeds)
    rng = random.Random(seed)

    def drawn(graph: Graph) -> list[bool]:
        work = forms._Forms(graph)
        for node in graph.nodes:
            work.add(node)
        return [rng.choice(own) == forms.LAST for own in work.forms]

    monkeypatch.setattr(layout, "choose_forms", drawn)
    got = mnnpy.Session(model, tune="off").run(None, feeds)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=3e-5 * max(1e-3, float(np.abs(w).max(initial=0))))
