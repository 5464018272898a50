"""Compiled kernels on disk. An entry that is truncated, damaged or of another driver counts as absent."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from mnnpy.store import cache_folder

__all__ = ["KernelCache"]


class KernelCache:
    """Bytes by source text for one *identity* (API, device, driver and compiler versions).

    An entry begins with a digest over identity, source and contents, so that no driver is ever handed bytes that it
    did not make. A folder that cannot be written leaves everything uncached.
    """

    def __init__(self, kind: str, identity: str) -> None:
        self._kind = kind
        self._identity = identity

    def read(self, source: str) -> bytes | None:
        """The contents stored for *source*, or None."""
        try:
            data = self.path(source).read_bytes()
        except OSError:
            return None
        digest, contents = data[:32], data[32:]
        return contents if contents and digest == self._digest(source, contents) else None

    def write(self, source: str, contents: bytes) -> None:
        """Store in one step: readers see the old entry or the new one."""
        path = self.path(source)
        part = path.with_suffix(f".{os.getpid()}.part")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(self._digest(source, contents) + contents)
            part.replace(path)

    def path(self, source: str) -> Path:
        """Where the entry of *source* is or would be."""
        key = hashlib.sha256(f"{self._identity}\0{source}".encode()).hexdigest()
        return cache_folder() / self._kind / f"{key[:40]}.bin"

    def _digest(self, source: str, contents: bytes) -> bytes:
        return hashlib.sha256(f"{self._identity}\0{source}\0".encode() + contents).digest()
