"""Sizes of a convolution, read once from a node."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from mnnpy.backends.kernels.lowering import Lowering
from mnnpy.backends.kernels.templates.epilogue import Epilogue
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node

__all__ = ["Geometry", "column_starts"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Operands and sizes of a Convolution; *channels* and *rows* (output channels) are those of one group."""

    x: str
    weights: str
    out: str
    dtype: DType
    epilogue: Epilogue
    batch: int
    group: int
    channels: int
    rows: int
    size: tuple[int, ...]
    result: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(cls, work: Lowering, node: Node) -> Geometry:
        """The geometry of *node*."""
        x, w = node.inputs[:2]
        out = node.outputs[0]
        m, channels, *kernel = work.shape(w)
        group = int(node.attrs.get("group", 1))
        a = node.attrs
        return cls(
            x, w, out, work.dtype(x), Epilogue.of(work, node), work.shape(x)[0], group, channels, m // group,
            work.shape(x)[2:], work.shape(out)[2:], tuple(kernel), tuple(a["strides"]), tuple(a["pads"]),
            tuple(a["dilations"]),
        )  # fmt: skip

    @property
    def rank(self) -> int:
        """Spatial dims."""
        return len(self.size)

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def depth(self) -> int:
        """Terms of one sum."""
        return self.channels * self.taps

    @property
    def positions(self) -> int:
        """Output elements of one channel."""
        return prod(self.result)

    @property
    def pointwise(self) -> bool:
        """Whether the input is the right operand of a product as it lies."""
        return self.taps == 1 and set(self.strides) == {1} and not any(self.pads)

    def scalars(self, *letters: str) -> dict[str, int]:
        """Kernel scalars by dim: i(nput), o(utput), st(ride), p(ad), d(ilation)."""
        found = {"i": self.size, "o": self.result, "st": self.strides, "p": self.pads, "d": self.dilations}
        return {f"{letter}{d}": found[letter][d] for letter in letters for d in range(self.rank)}


def column_starts(s: Geometry, columns: int) -> Array:
    """``[rank, columns]``: where the window of each output position begins; beyond the last one far outside."""
    table = np.empty((s.rank, columns), np.int32)
    where = np.indices(s.result).reshape(s.rank, -1)
    for d in range(s.rank):
        table[d] = -(s.kernel[d] - 1) * s.dilations[d] - 1  # no tap reaches the input
        table[d, : where.shape[1]] = where[d] * s.strides[d] - s.pads[d]
    return table
