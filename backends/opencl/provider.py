"""The ``opencl`` backend: one device per OpenCL device of any platform, found by name."""

from __future__ import annotations

from typing import Any

from mnnpy.backends.base import API_VERSION, DeviceInfo
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.kernels.executor import after_fork, used
from mnnpy.errors import BackendUnavailableError

__all__ = ["OpenCLBackend"]

REMEDY = "pip install 'mnnpy-engine[opencl]' and install the OpenCL driver of the device (on Debian: pocl-opencl-icd)"


class OpenCLBackend:
    """Provider of OpenCL devices."""

    api_version = API_VERSION
    name = "opencl"

    def devices(self) -> list[DeviceInfo]:
        if reason := after_fork(self.name):
            return [DeviceInfo(self.name, "opencl", unavailable=reason)]
        try:
            import pyopencl as cl

            from mnnpy.backends.opencl.platforms import describe, devices
        except ImportError as error:
            return [DeviceInfo(self.name, "opencl", unavailable=f"pyopencl cannot be imported: {error}; {REMEDY}")]
        try:
            found = devices()
        except cl.Error as error:  # the loader raises where no driver is registered
            return [DeviceInfo(self.name, "opencl", unavailable=f"no OpenCL platform: {error}; {REMEDY}")]
        used(self.name)
        infos = [describe(d, k) for k, d in enumerate(found)]
        return infos or [DeviceInfo(self.name, "opencl", unavailable=f"no OpenCL device; {REMEDY}")]

    def open(self, info: DeviceInfo, **options: Any) -> KernelDevice:
        """Open a device; *threads* is accepted and has no effect."""
        if info.unavailable:
            raise BackendUnavailableError(f"backend 'opencl' cannot be used: {info.unavailable}")
        from mnnpy.backends.opencl.driver import OpenCLDriver

        return KernelDevice(info, OpenCLDriver(info))
