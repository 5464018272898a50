"""Passes between a segment and its launches: views, element-wise chains."""

from __future__ import annotations

from mnnpy.backends.kernels.driver import Caps
from mnnpy.decompose.lower import prune
from mnnpy.graph.ir import Graph

__all__ = ["lower_graph"]


def lower_graph(graph: Graph, optimize: frozenset[str], caps: Caps) -> Graph:
    """All passes that are switched on."""
    del optimize, caps
    return prune(graph)
