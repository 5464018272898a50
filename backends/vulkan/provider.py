"""The ``vulkan`` backend: one device per Vulkan physical device with a compute queue."""

from __future__ import annotations

from typing import Any

from mnnpy.backends.base import API_VERSION, DeviceInfo
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.kernels.executor import after_fork, used
from mnnpy.errors import BackendUnavailableError

__all__ = ["VulkanBackend"]

REMEDY = "pip install 'mnnpy-engine[vulkan]' and install a Vulkan driver (on Debian: mesa-vulkan-drivers libvulkan1)"


class VulkanBackend:
    """Provider of Vulkan devices."""

    api_version = API_VERSION
    name = "vulkan"

    def devices(self) -> list[DeviceInfo]:
        if reason := after_fork(self.name):
            return [DeviceInfo(self.name, "vulkan", unavailable=reason)]
        try:
            from mnnpy.backends.vulkan.instance import physical_devices
        except (ImportError, OSError) as error:
            reason = f"the Vulkan bindings or loader cannot be loaded: {error}; {REMEDY}"
            return [DeviceInfo(self.name, "vulkan", unavailable=reason)]
        try:
            found = physical_devices()
        except Exception as error:
            return [DeviceInfo(self.name, "vulkan", unavailable=f"{type(error).__name__}: {error}; {REMEDY}")]
        used(self.name)
        infos = [DeviceInfo(self.name, d.name, k, facts=d.facts) for k, d in enumerate(found)]
        return infos or [DeviceInfo(self.name, "vulkan", unavailable=f"no device with a compute queue; {REMEDY}")]

    def open(self, info: DeviceInfo, **options: Any) -> KernelDevice:
        """Open a device; *threads* is accepted and has no effect."""
        if info.unavailable:
            raise BackendUnavailableError(f"backend 'vulkan' cannot be used: {info.unavailable}")
        from mnnpy.backends.vulkan.driver import VulkanDriver

        return KernelDevice(info, VulkanDriver(info))
