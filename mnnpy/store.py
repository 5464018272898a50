"""Entries on disk: each a file of its own that is complete or absent, in a folder of bounded size.

A file is a magic number, a digest of what follows, and the payload. What is damaged counts as absent, with one
warning a process; a folder that cannot be written only means that nothing is kept. Writers never disturb readers:
a file appears under its name when it is complete.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

try:  # hashlib would bring OpenSSL, longer to load than a small model
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

__all__ = ["Store", "cache_folder", "digest"]

_MAGIC = b"mnnpyent"
_DIGEST = 20
#: Bytes in front of the payload, which thereby stays aligned.
_HEAD = 64
#: Bytes that all entries of a folder may take; those that were not used for longest go first.
LIMIT = 256 << 20
#: Seconds after which a use of an entry is noted again.
_NOTE = 3600.0


def cache_folder() -> Path:
    """``MNNPY_CACHE_DIR``, else the user's cache folder by the XDG convention."""
    given = os.environ.get("MNNPY_CACHE_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnnpy"


def digest(*parts: Any) -> str:
    """A name for *parts* (texts, or buffers of bytes): the same for the same ones in the same order."""
    state = blake2b(digest_size=_DIGEST)
    for part in parts:
        data = memoryview(part.encode() if isinstance(part, str) else part)
        state.update(data.nbytes.to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


class Store:
    """The entries in one folder. Safe to use from several threads and processes."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder = folder
        self.limit = limit
        self.writable = True
        self._warned = False

    def read(self, name: str) -> memoryview | None:
        """The payload of an entry; None where there is none, or where it is damaged."""
        path = self.folder / name
        try:
            with path.open("rb", buffering=0) as file:
                info = os.fstat(file.fileno())
                data = memoryview(file.read())
        except OSError:
            return None
        payload = data[_HEAD:]
        if data[:_HEAD] != _head(blake2b(payload, digest_size=_DIGEST).digest()):
            self.discard(name, "it is damaged")
            return None
        if info.st_mtime + _NOTE < time.time():
            with suppress(OSError):
                os.utime(path)  # what is used stays
        return payload

    def discard(self, name: str, reason: str) -> None:
        """Take an entry out that cannot be used; the first one of a process is warned of."""
        path = self.folder / name
        if not self._warned:
            self._warned = True
            warnings.warn(f"{path} is ignored and written anew: {reason}", RuntimeWarning, stacklevel=2)
        _remove(path)

    def write(self, name: str, chunks: Iterable[Any]) -> bool:
        """Keep an entry; False where the folder cannot be written, which is not tried again then."""
        if not self.writable:
            return False
        path = self.folder / name
        held = [memoryview(c).cast("B") for c in chunks if len(c)]
        temporary = self.folder / f"{name}.{os.getpid()}-{id(held):x}.new"
        state = blake2b(digest_size=_DIGEST)
        for chunk in held:
            state.update(chunk)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(_head(state.digest()))
                    for chunk in held:
                        file.write(chunk)
                temporary.replace(path)
            except BaseException:
                _remove(temporary)
                raise
            self._trim()
        except OSError:
            self.writable = False
            return False
        return True

    def _trim(self) -> None:
        """Remove what was not used for longest until the rest fits the limit."""
        found, total = [], 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    info = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # another process was faster
                total += info.st_size
                found.append((info.st_mtime, info.st_size, entry.name))
        for _, size, name in sorted(found):
            if total <= self.limit:
                return
            total -= size
            _remove(self.folder / name)


def _head(found: bytes) -> bytes:
    return (_MAGIC + found).ljust(_HEAD, b"\0")


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
