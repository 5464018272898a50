"""OpenCL devices of all platforms."""

from __future__ import annotations

from typing import Any

import pyopencl as cl

from mnnpy.backends.base import DeviceInfo
from mnnpy.errors import BackendUnavailableError

__all__ = ["describe", "devices", "find"]


def devices() -> list[Any]:
    """Devices of every platform that answers, GPUs and accelerators before processors. Raises pyopencl.Error."""
    found: list[Any] = []
    problems: list[cl.Error] = []
    for platform in cl.get_platforms():
        try:
            found += platform.get_devices()
        except cl.Error as error:  # one broken driver hides no other
            problems.append(error)
    if problems and not found:
        raise problems[0]
    return sorted(found, key=lambda d: bool(d.type & cl.device_type.CPU))


def describe(device: Any, index: int) -> DeviceInfo:
    """What ``mnnpy backends`` shows."""
    facts = {
        "platform": device.platform.name.strip(),
        "version": device.version.strip(),
        "driver": device.driver_version,
        "type": cl.device_type.to_string(device.type),
    }
    missing = "" if device.available and device.compiler_available else "the device or its compiler is off"
    return DeviceInfo("opencl", device.name.strip(), index, missing, facts)


def find(info: DeviceInfo) -> Any:
    """The device that *info* describes: by index where the name fits, else by name and platform."""
    found = devices()
    wanted = (info.name, info.facts.get("platform"))
    order = [info.index, *range(len(found))] if info.index < len(found) else range(len(found))
    for k in order:
        if (found[k].name.strip(), found[k].platform.name.strip()) == wanted:
            return found[k]
    raise BackendUnavailableError(
        f"backend 'opencl': device '{info.name}' is gone; it has {', '.join(d.name.strip() for d in found) or 'none'}"
    )
