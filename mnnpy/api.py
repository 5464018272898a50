"""Functions of the top level: ``mnnpy.compile`` and ``mnnpy.backends()``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mnnpy.backends.base import DeviceInfo
from mnnpy.options import Options
from mnnpy.session import Session

__all__ = ["backends", "compile"]


def compile(
    model: Any, backend: str | Sequence[str] = "auto", options: Options | None = None, **keywords: Any
) -> Callable[..., Any]:
    """A callable from input arrays (positional or by name) to the output, or a list of outputs."""
    session = Session(model, backend, options, **keywords)
    single = len(session.get_outputs()) == 1

    def call(*args: Any, **feeds: Any) -> Any:
        results = session(*args, **feeds)
        return results[0] if single else results

    call.session = session  # type: ignore[attr-defined]
    return call


def backends() -> list[DeviceInfo]:
    """All devices of all registered backends; an unusable one carries the reason."""
    from mnnpy.backends.registry import all_devices

    return all_devices()
