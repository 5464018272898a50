"""Refusing plans that need more memory than there may be, before anybody tries to allocate it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mnnpy.errors import ModelError
from mnnpy.graph.dims import numel
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, TensorType

if TYPE_CHECKING:
    from mnnpy.runtime import Step

__all__ = ["check_arenas", "check_memory"]


def check_arenas(name: str, steps: Sequence[Step], limit: int) -> None:
    """Refuse a plan whose programs need more memory together; programs allocate when they first run."""
    sizes = {k: s.program.memory for k, s in enumerate(steps) if s.program is not None}
    total = sum(m.get("arena", 0) + m.get("scratch", 0) for m in sizes.values())
    if total > limit:
        raise ModelError(
            f"graph '{name}' needs {total / 2**20:.1f} MiB for intermediate values, more than the memory limit of "
            f"{limit / 2**20:.1f} MiB; use smaller inputs or raise Options.memory_limit"
        )


def check_memory(graph: Graph, limit: int) -> None:
    """Refuse a plan with a tensor that cannot fit, before anybody tries to allocate it."""
    for node in graph.nodes:
        for name in node.outputs:
            t = graph.types.get(name)
            if isinstance(t, TensorType) and t.is_static and t.dtype is not DType.STRING:
                size = int(numel(t.shape or ())) * t.dtype.itemsize  # type: ignore[arg-type]
                if size > limit:
                    raise ModelError(
                        f"node '{node.label}' ({node.op}) would produce {t}: {size / 2**30:.1f} GiB, more than the "
                        f"memory limit of {limit / 2**30:.1f} GiB; use smaller inputs or raise Options.memory_limit"
                    )
