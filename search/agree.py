"""Whether candidates compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["TOLERANCE", "agree", "wrong"]

#: Of the largest value: far above what algorithms and precisions round, far below what a fault does.
TOLERANCE = 5e-2


def wrong(outputs: Mapping[str, Sequence[Any]], tolerance: float = TOLERANCE) -> set[str]:
    """Names whose arrays differ from the majority's (of two that differ, the later one) by more than rounding."""
    names = list(outputs)
    agreeing = {n: [m for m in names if agree(outputs[n], outputs[m], tolerance)] for n in names}
    if not names:
        return set()
    right = max(names, key=lambda n: (len(agreeing[n]), -names.index(n)))
    return set(names) - set(agreeing[right])


def agree(one: Sequence[Any], other: Sequence[Any], tolerance: float = TOLERANCE) -> bool:
    """Whether two lists of results are the same but for rounding; indices are not compared."""
    for a, b in zip(one, other, strict=True):
        if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype.kind != "f":
            continue  # an index may differ where two values are equal but for rounding
        x, y = a.astype(np.float64), b.astype(np.float64)
        if (np.isnan(x) != np.isnan(y)).any():
            return False
        finite = np.isfinite(x) & np.isfinite(y)
        scale = max(float(np.abs(x[finite]).max(initial=0)), 1e-30)
        if float(np.abs(x[finite] - y[finite]).max(initial=0)) > tolerance * scale:
            return False
    return True
