"""The process-wide Vulkan instance and its physical devices."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import vulkan as vk

__all__ = ["PhysicalDevice", "instance", "physical_devices"]


@dataclass(frozen=True, slots=True)
class PhysicalDevice:
    """A device with a compute queue."""

    handle: Any
    name: str
    family: int  #: queue family index
    facts: dict[str, Any] = field(default_factory=dict)


@functools.cache
def instance() -> Any:
    """Created once; lives as long as the process."""
    app = vk.VkApplicationInfo(pApplicationName="mnnpy", apiVersion=vk.VK_MAKE_VERSION(1, 1, 0))
    return vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=app), None)


@functools.cache
def physical_devices() -> tuple[PhysicalDevice, ...]:
    """Devices of API 1.1 and above, real ones before software ones."""
    found = []
    for handle in vk.vkEnumeratePhysicalDevices(instance()):
        facts = vk.vkGetPhysicalDeviceProperties(handle)
        families = vk.vkGetPhysicalDeviceQueueFamilyProperties(handle)
        compute = [k for k, f in enumerate(families) if f.queueFlags & vk.VK_QUEUE_COMPUTE_BIT]
        if not compute or facts.apiVersion < vk.VK_MAKE_VERSION(1, 1, 0):
            continue
        version = f"{facts.apiVersion >> 22}.{facts.apiVersion >> 12 & 1023}.{facts.apiVersion & 4095}"
        shown = {"api": version, "driver": facts.driverVersion, "vendor": facts.vendorID, "type": facts.deviceType}
        found.append(PhysicalDevice(handle, facts.deviceName, compute[0], shown))
    return tuple(sorted(found, key=lambda d: d.facts["type"] == vk.VK_PHYSICAL_DEVICE_TYPE_CPU))
