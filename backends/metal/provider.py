"""The ``metal`` backend: one device per Metal GPU."""

from __future__ import annotations

from typing import Any

from mnnpy.backends.base import API_VERSION, DeviceInfo
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.kernels.executor import after_fork, used
from mnnpy.errors import BackendUnavailableError

__all__ = ["MetalBackend"]

REMEDY = "Metal needs macOS: pip install 'mnnpy-engine[metal]' there"


class MetalBackend:
    """Provider of Metal devices."""

    api_version = API_VERSION
    name = "metal"

    def devices(self) -> list[DeviceInfo]:
        if reason := after_fork(self.name):
            return [DeviceInfo(self.name, "metal", unavailable=reason)]
        try:
            from mnnpy.backends.metal.api import probe

            found = probe()
        except Exception as error:
            return [DeviceInfo(self.name, "metal", unavailable=f"{type(error).__name__}: {error}; {REMEDY}")]
        used(self.name)
        return [DeviceInfo(self.name, str(f["name"]), k, facts=f) for k, f in enumerate(found)]

    def open(self, info: DeviceInfo, **options: Any) -> KernelDevice:
        """Open a device; *threads* is accepted and has no effect."""
        if info.unavailable:
            raise BackendUnavailableError(f"backend 'metal' cannot be used: {info.unavailable}")
        from mnnpy.backends.metal.api import PyobjcApi
        from mnnpy.backends.metal.driver import MetalDriver

        return KernelDevice(info, MetalDriver(PyobjcApi(info.index)))
