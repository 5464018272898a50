"""Which launches must wait for earlier ones: those that touch what was written, or write what was touched."""

from __future__ import annotations

from mnnpy.backends.kernels.driver import Launch

__all__ = ["Hazards"]


class Hazards:
    """Ranges read and written since the last barrier."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, int, int, bool]] = []  # allocation, begin, end, written

    def conflict(self, launch: Launch) -> bool:
        """Whether a barrier must come before *launch*; if so, everything before counts as settled."""
        ranges = [
            (id(b.memory), b.offset, b.offset + max(b.size, 1), "w" in k.access)
            for b, k in zip(launch.buffers, launch.kernel.kernel.buffers, strict=True)
        ]
        found = any(
            m == other and begin < last and first < end and (writes or wrote)
            for m, begin, end, writes in ranges
            for other, first, last, wrote in self._seen
        )
        if found:
            self._seen.clear()
        self._seen += ranges
        return found
