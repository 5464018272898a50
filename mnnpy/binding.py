"""Inputs and outputs bound once, on the host or in device memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnnpy.backends.kernels.tensor import DeviceTensor, device_view, to_host
from mnnpy.errors import InputError

if TYPE_CHECKING:
    from mnnpy.session import Session

__all__ = ["Binding", "DeviceTensor"]


class Binding:
    """Inputs and, where wanted, outputs bound once, to leave per-call checks and allocations out of a hot loop."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._feeds: list[Any] = [None] * len(session._inputs)
        self._bound: dict[str, Any] = {}  #: ``...``: a DeviceTensor of our own
        self._on_device: set[int] = set()  #: positions of inputs in device memory
        self._call: Callable[[], dict[str, Any]] | None = None
        self.outputs: dict[str, Any] = {}
        self.swaps = 0  #: plans that were exchanged when it was prepared

    @property
    def on_host(self) -> bool:
        """Whether nothing that is bound lies in device memory."""
        return not self._on_device and all(isinstance(v, np.ndarray) for v in self._bound.values())

    def bind_input(self, name: str, value: Any) -> None:
        """Bind *value* (kept by reference: later changes in place are seen by the next run).

        A value in device memory (a ``DeviceTensor``, or a CUDA array of another library) stays there where the whole
        model runs on that device.
        """
        k = self._session._index(name)
        self._on_device.discard(k)
        found = device_view(value)
        if found is not None:
            self._session._check(name, _like(value))
            self._on_device.add(k)
        self._feeds[k] = value if found is not None else self._session._check(name, value)
        self._call = None

    def bind_output(self, name: str, value: Any = None, *, on_device: bool = False) -> None:
        """Let runs write output *name* into *value*, a writable C-contiguous array of its type and shape.

        Without a value the result is a new array, or with *on_device* a ``DeviceTensor`` that the next run overwrites.
        """
        self._session._selected([name])
        if isinstance(value, DeviceTensor) or (value is None and on_device):
            self._bound[name] = ... if value is None else value
        elif value is None:
            self._bound.pop(name, None)
        elif not isinstance(value, np.ndarray) or not value.flags.c_contiguous or not value.flags.writeable:
            raise InputError(f"output '{name}' must be bound to a writable C-contiguous numpy array or a DeviceTensor")
        else:
            self._bound[name] = value
        self._call = None

    def _prepare(self) -> Callable[[], dict[str, Any]]:
        """What a run does, once the plan and the types of its outputs are known."""
        session = self._session
        feeds = {n: v for n, v in zip(session._positions, self._feeds, strict=True) if v is not None}
        if self._on_device or any(not isinstance(v, np.ndarray) for v in self._bound.values()):
            return self._prepare_on_device(feeds)
        args = self._feeds = session._feeds(feeds)
        plan = session._executable.plan(args)
        names = session._names

        def fresh() -> dict[str, Any]:
            return dict(zip(names, plan.run(args), strict=True))

        if not self._bound:
            return fresh
        first = fresh()
        for name, array in self._bound.items():
            _fits(name, first[name], array)
        into = getattr(plan.direct, "run_into", None)
        targets = [self._bound.get(n) for n in names]
        if into is not None and all(t is not None for t in targets) and _apart(args, targets):
            results = dict(zip(names, targets, strict=True))

            def written() -> dict[str, Any]:
                into(args, targets)
                return results

            return written

        def copied() -> dict[str, Any]:
            found = fresh()
            for name, array in self._bound.items():
                np.copyto(array, found[name])
                found[name] = array
            return found

        return copied

    def _prepare_on_device(self, feeds: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        """Inputs or outputs in device memory: by the one program of the plan if it can, inputs else by the host."""
        session, names = self._session, self._session._names
        host = session._feeds(
            {n: v if session._index(n) not in self._on_device else _like(v) for n, v in feeds.items()}
        )
        plan = session._executable.plan(host)
        program: Any = plan.direct
        if not hasattr(program, "run_bound") or session._executable.plans_by_value:
            staying = [n for n, v in self._bound.items() if not isinstance(v, np.ndarray)]
            if staying:
                raise InputError(
                    f"output '{staying[0]}' cannot stay in device memory: that takes a model that runs as one program "
                    f"on a device with memory of its own; here it runs on {', '.join(session.backends)} in "
                    f"{len(plan.steps)} steps"
                )
            return self._through_host
        args = [v if k in self._on_device else h for k, (v, h) in enumerate(zip(self._feeds, host, strict=True))]
        targets = [self._bound.get(n) for n in names]
        for k, (name, target) in enumerate(zip(names, targets, strict=True)):
            if target is None:
                continue
            own = program.new_output(k)
            if target is ...:
                targets[k] = own
                continue
            _fits(name, own, target)
            if isinstance(target, DeviceTensor) and target.driver is not own.driver:
                raise InputError(f"output '{name}' is bound to memory of another device or session")
        return lambda: dict(zip(names, program.run_bound(args, targets), strict=True))

    def _through_host(self) -> dict[str, Any]:
        session = self._session
        values = [to_host(v) if k in self._on_device else v for k, v in enumerate(self._feeds)]
        named = zip(session._positions, values, strict=True)
        found = dict(zip(session._names, session.run(None, {n: v for n, v in named if v is not None}), strict=True))
        for name, array in self._bound.items():
            _fits(name, found[name], array)
            np.copyto(array, found[name])
            found[name] = array
        return found


def _apart(inputs: Sequence[Any], outputs: Sequence[Any]) -> bool:
    """Whether no output shares memory with an input or with another output: kernels read while they write."""
    shared = (np.may_share_memory(o, other) for k, o in enumerate(outputs) for other in (*inputs, *outputs[:k]))
    return not any(shared)


def _like(value: Any) -> Any:
    """An array of the same shape and dtype as one in device memory, to plan with."""
    found = device_view(value)
    assert found is not None
    return np.zeros(*found)


def _fits(name: str, want: Any, given: Any) -> None:
    """Raise InputError where output *name* is not like *given*."""
    if hasattr(want, "dtype") and (want.dtype, want.shape) == (given.dtype, given.shape):
        return
    shown = f"{want.dtype}{list(want.shape)}" if hasattr(want, "dtype") else type(want).__name__
    raise InputError(f"output '{name}' is {shown}, but {given.dtype}{list(given.shape)} is bound to it")
