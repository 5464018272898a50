"""What all executors do alike: turns on the queue, accounting, lost devices, forks, order of destruction."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from mnnpy.backends.kernels.driver import Binding
from mnnpy.errors import BackendError

__all__ = ["Executor", "after_fork", "used"]

_USED: dict[str, int] = {}  # backend → process that first used its library


def used(backend: str) -> None:
    """Remember that this process has initialised the library of *backend*."""
    _USED.setdefault(backend, os.getpid())


def after_fork(backend: str) -> str:
    """Why a forked child cannot use *backend*, or empty: threads and handles of a driver stay in the parent."""
    if _USED.get(backend, os.getpid()) == os.getpid():
        return ""
    return (
        "the driver was initialised before this process was forked and does not survive that; start children with "
        "multiprocessing's 'spawn' or 'forkserver' method"
    )


class _Turn:
    """The right to use the queue, held by one thread at a time; whoever leaves frees what was retired meanwhile."""

    def __init__(self, drain: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self._drain = drain

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.lock.release()
        self._drain()


class Executor:
    """Base of the drivers; sub-classes fill in ``_allocate``, ``_free``, ``_release`` and ``_shutdown``.

    Programs are destroyed by the garbage collector: in any thread, in the middle of any call, even after the driver
    where both were in one cycle. Hence ``retire``, which frees at once only where nobody is using the queue.
    """

    backend = ""

    def __init__(self, name: str, errors: tuple[type[Exception], ...]) -> None:
        self.name = name
        self.turn = _Turn(self._drain)
        self.building = threading.Lock()  #: held while kernels are built
        self._errors = errors
        self._process = os.getpid()
        self._allocated = 0
        self._lost = ""
        self._closed = False
        self._live: dict[int, Any] = {}  # memory that is not freed
        self._retired: deque[Callable[[], None]] = deque()
        used(self.backend)

    # -- for sub-classes --

    def _allocate(self, size: int) -> Any:
        """Memory with a ``size``."""
        raise NotImplementedError

    def _free(self, memory: Any) -> None:
        raise NotImplementedError

    def _release(self, recording: Any) -> None:
        raise NotImplementedError

    def _shutdown(self) -> None:
        """Destroy what is left."""

    def _is_loss(self, error: Exception) -> bool:
        """Whether the device is gone for good after *error*."""
        del error
        return False

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        """*call*, with the driver's exceptions as BackendError."""
        self.check()
        try:
            return call()
        except self._errors as error:
            self._raise_if_lost(error)
            raise BackendError(f"backend '{self.backend}' on '{self.name}', {what}: {_words(error)}") from error

    def _raise_if_lost(self, error: Exception) -> None:
        if self._is_loss(error):
            self._lost = _words(error)
            try:
                self.check()
            except BackendError as lost:
                raise lost from error

    # -- what programs call --

    def check(self) -> None:
        """Raise BackendError where the device cannot be used any more."""
        if self._process != os.getpid():
            raise BackendError(
                f"backend '{self.backend}': this session was opened before the process was forked; {_FORKED}"
            )
        if self._closed:
            raise BackendError(f"backend '{self.backend}': device '{self.name}' was closed; open a new session")
        if self._lost:
            raise BackendError(
                f"backend '{self.backend}': device '{self.name}' was lost ({self._lost}); its memory is gone: "
                "open a new session, or another backend"
            )

    def allocate(self, size: int) -> Any:
        """Device memory of *size* bytes. Raises BackendError where there is none left."""
        self.check()
        try:
            memory = self._allocate(size)
        except self._errors as error:
            self._raise_if_lost(error)
            raise BackendError(
                f"backend '{self.backend}': {size} bytes cannot be allocated on '{self.name}', where this session "
                f"holds {self._allocated} ({_words(error)}); use smaller inputs or close other sessions"
            ) from error
        self._allocated += size
        self._live[id(memory)] = memory
        return memory

    def free(self, memory: Any) -> None:
        """Give memory back; never raises."""
        self._allocated -= memory.size
        self._live.pop(id(memory), None)
        if self._alive():
            with contextlib.suppress(*self._errors):
                self._free(memory)

    def release(self, recording: Any) -> None:
        """Give a recording back; never raises."""
        if self._alive():
            with contextlib.suppress(*self._errors):
                self._release(recording)

    def retire(self, discard: Callable[[], None]) -> None:
        """Call *discard*, which frees and releases, now or when the queue's user leaves."""
        self._retired.append(discard)
        self._drain()

    def adopt(self, value: Any) -> Binding | None:
        """Where *value* is in this device's memory; None where it must come from the host."""
        driver = getattr(value, "driver", None)
        return value.binding if driver is self else None  # a DeviceTensor

    def address(self, at: Binding) -> int | None:
        """The address that other libraries of the device know this memory by, if there is one."""
        del at
        return None

    def export(self, tensor: Any) -> Any:
        """An object of another library that shares the memory of a DeviceTensor by DLPack, if there is one."""
        del tensor

    @property
    def allocated(self) -> int:
        """Bytes allocated and not freed."""
        return self._allocated

    def close(self) -> None:
        """Destroy the device's objects; programs that are left become unusable."""
        if self._closed:
            return
        self._drain()
        if self._alive():
            for memory in self._live.values():
                with contextlib.suppress(*self._errors):
                    self._free(memory)
            with contextlib.suppress(*self._errors):
                self._shutdown()
        self._live.clear()
        self._closed = True

    # -- inside --

    def _alive(self) -> bool:
        return not self._closed and self._process == os.getpid() and not sys.is_finalizing()

    def _drain(self) -> None:
        while self._retired and self.turn.lock.acquire(blocking=False):
            try:
                with contextlib.suppress(IndexError):
                    self._retired.popleft()()
            finally:
                self.turn.lock.release()

    def __del__(self) -> None:
        if "_closed" in self.__dict__ and "_retired" in self.__dict__:
            self.close()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


_FORKED = "device handles do not survive that: open the session in the child, and start it by 'spawn'"
