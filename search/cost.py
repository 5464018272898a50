"""Predicted seconds of a candidate from its analytic work and the measured peaks of a device. Knows no backend."""

from __future__ import annotations

from collections.abc import Mapping

from mnnpy.backends.base import Candidate
from mnnpy.classes import dataclass

__all__ = ["Peaks", "bound", "predict"]


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a device reaches, measured once: see the backend's calibration.

    rates: operations per second by kind of arithmetic (a candidate names its kind in ``parameters["rate"]``).
    memory: bytes per second to and from main memory. cache: the same within the caches of the cores.
    launch: seconds that starting a kernel costs.
    submit: seconds that a run costs beyond its kernels: starting it and waiting for its end.
    latency, link: seconds of a copy to or from the host's memory, and its bytes per second; a device that works in the
    host's memory copies nothing (``shared``).
    """

    rates: Mapping[str, float]
    memory: float
    cache: float
    launch: float = 0.0
    submit: float = 0.0
    latency: float = 0.0
    link: float = float("inf")

    @property
    def shared(self) -> bool:
        """Whether the device works in the host's memory."""
        return self.link == float("inf") and self.latency == 0.0


def bound(candidate: Candidate, peaks: Peaks) -> float:
    """Seconds that its arithmetic takes at the peak rate: what it reads may lie in a cache, but this has to be done."""
    rate = peaks.rates.get(str(candidate.parameters.get("rate", "f32")), 0.0)
    return candidate.flops / rate if rate > 0 else float("inf")


def predict(candidate: Candidate, peaks: Peaks) -> float:
    """Seconds by the roofline, plus what cannot overlap with it: passes within the caches, and launches.

    A candidate whose kind of arithmetic the device lacks costs infinity.
    """
    rate = peaks.rates.get(str(candidate.parameters.get("rate", "f32")), 0.0)
    if rate <= 0:
        return float("inf")
    cached = float(candidate.parameters.get("cached", 0.0)) / peaks.cache
    return max(candidate.flops / rate, candidate.bytes / peaks.memory) + cached + candidate.launches * peaks.launch
