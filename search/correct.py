"""What measurements say about the cost model: a correction of its predictions per family and algorithm.

The logarithm of measured over predicted seconds is fitted by a straight function of the logarithms of operations and
bytes, with a penalty on its size (ridge regression: Hoerl and Kennard, 1970), so that little evidence changes little,
and no further than the measurements reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, log

import numpy as np

from mnnpy.search.records import Record

__all__ = ["Corrections", "errors"]

#: Penalty of the intercept and of the slopes, in measurements: so many are needed to believe half of what they say.
LEVEL, SLOPE = 1.0, 2.0
#: Corrections by more than this are cut: the machine was busy, or the model is wrong in a way no factor mends.
MOST = 8.0


class Corrections:
    """Factors for predictions, fitted to records that hold the work of their candidates."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._fits: dict[tuple[str, str], _Fit] = {}
        for group, rows in _grouped(records).items():
            self._fits[group] = _Fit(rows)

    def factor(self, family: str, algorithm: str, flops: float, size: float) -> float:
        """What to multiply the roofline's seconds by; 1 where nothing is known."""
        fit = self._fits.get((family, algorithm))
        return 1.0 if fit is None else fit.factor(flops, size)


Row = tuple[float, float, float]  # logarithms of operations, bytes, and measured over predicted


def _grouped(records: Iterable[Record]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for record in records:
        for algorithm, (flops, size, seconds) in record.work.items():
            times = record.samples.get(algorithm)
            if times and seconds > 0 and min(times) > 0:
                row = (log(max(1.0, flops)), log(max(1.0, size)), log(min(times) / seconds))
                groups.setdefault((record.family, algorithm), []).append(row)
    return groups


class _Fit:
    """One regression."""

    def __init__(self, rows: Sequence[Row]) -> None:
        table = np.array(rows, np.float64)
        features, target = table[:, :2], table[:, 2]
        self._low, self._high = features.min(axis=0), features.max(axis=0)
        self._centre = features.mean(axis=0)
        x = np.column_stack([np.ones(len(table)), features - self._centre])
        # One measurement far off, on a machine that was busy, must not move the others: two rounds of weights.
        weights = np.ones(len(table))
        for _ in range(3):
            normal = (x * weights[:, None]).T @ x + np.diag([LEVEL, SLOPE, SLOPE])
            self._weights = np.linalg.solve(normal, (x * weights[:, None]).T @ target)
            off = np.abs(target - x @ self._weights)
            weights = 1 / np.maximum(1.0, off / max(1e-3, 1.5 * float(np.median(off))))

    def factor(self, flops: float, size: float) -> float:
        seen = np.clip([log(max(1.0, flops)), log(max(1.0, size))], self._low, self._high)
        found = float(self._weights[0] + (seen - self._centre) @ self._weights[1:])
        return exp(max(-log(MOST), min(log(MOST), found)))


def errors(records: Sequence[Record]) -> dict[str, float]:
    """Median relative error of predicted against measured seconds over all candidates that were measured.

    ``before``: the roofline alone. ``after``: corrected by these records. ``unseen``: each one corrected by the records
    of the other tasks only, as a new layer would be. ``count``: candidates. All are NaN where there are none.
    """
    whole = Corrections(records)
    folds = [Corrections([r for k, r in enumerate(records) if k % FOLDS != f]) for f in range(FOLDS)]
    found: dict[str, list[float]] = {"before": [], "after": [], "unseen": []}
    for k, record in enumerate(records):
        for algorithm, (flops, size, seconds) in record.work.items():
            times = record.samples.get(algorithm)
            if not times or min(times) <= 0:
                continue
            for name, fit in (("before", None), ("after", whole), ("unseen", folds[k % FOLDS])):
                factor = 1.0 if fit is None else fit.factor(record.family, algorithm, flops, size)
                found[name].append(abs(seconds * factor / min(times) - 1))
    medians = {name: float(np.median(values)) if values else float("nan") for name, values in found.items()}
    return {**medians, "count": float(len(found["before"]))}


#: Parts that records are divided into to predict each from the others.
FOLDS = 10
