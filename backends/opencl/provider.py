"""The ``opencl`` backend: one device per OpenCL device of any platform, found by name."""

from __future__ import annotations

from typing import Any

from mnnpy.backends.base import API_VERSION, DeviceInfo
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.errors import BackendUnavailableError

__all__ = ["OpenCLBackend"]

REMEDY = "pip install 'mnnpy-engine[opencl]' and install the OpenCL driver of the device (on Debian: pocl-opencl-icd)"


class OpenCLBackend:
    """Provider of OpenCL devices."""

    api_version = API_VERSION
    name = "opencl"

    def devices(self) -> list[DeviceInfo]:
        try:
            import pyopencl as cl
        except ImportError as error:
            return [DeviceInfo(self.name, "opencl", unavailable=f"pyopencl cannot be imported: {error}; {REMEDY}")]
        try:
            platforms = cl.get_platforms()
        except cl.Error as error:  # the loader raises where no driver is registered
            return [DeviceInfo(self.name, "opencl", unavailable=f"no OpenCL platform: {error}; {REMEDY}")]
        found: list[DeviceInfo] = []
        for platform in platforms:
            for device in platform.get_devices():
                facts = {
                    "platform": platform.name.strip(),
                    "version": device.version.strip(),
                    "driver": device.driver_version,
                    "type": cl.device_type.to_string(device.type),
                }
                missing = "" if device.available and device.compiler_available else "the device or its compiler is off"
                found.append(DeviceInfo(self.name, device.name.strip(), len(found), missing, facts))
        return found or [DeviceInfo(self.name, "opencl", unavailable=f"no OpenCL device; {REMEDY}")]

    def open(self, info: DeviceInfo, **options: Any) -> KernelDevice:
        """Open a device; *threads* is accepted and has no effect."""
        if info.unavailable:
            raise BackendUnavailableError(f"backend 'opencl' cannot be used: {info.unavailable}")
        from mnnpy.backends.opencl.driver import OpenCLDriver

        return KernelDevice(info, OpenCLDriver(info))
