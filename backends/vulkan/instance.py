"""The process-wide Vulkan instance and its physical devices."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import vulkan as vk

from mnnpy.backends.base import DeviceInfo
from mnnpy.errors import BackendUnavailableError

__all__ = ["PhysicalDevice", "find", "instance", "physical_devices"]


_PORTABILITY = "VK_KHR_portability_enumeration"
_LIST_LAYERED = 1  # VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR


@dataclass(frozen=True, slots=True)
class PhysicalDevice:
    """A device with a compute queue."""

    handle: Any
    name: str
    family: int  #: queue family index
    stamps: int  #: bits of its time stamps; 0: it has none
    extensions: frozenset[str] = frozenset()
    facts: dict[str, Any] = field(default_factory=dict)


@functools.cache
def instance() -> Any:
    """Created once; lives as long as the process."""
    app = vk.VkApplicationInfo(pApplicationName="mnnpy", apiVersion=vk.VK_MAKE_VERSION(1, 1, 0))
    known = {e.extensionName for e in vk.vkEnumerateInstanceExtensionProperties(None)}
    # Layers over another API (Metal) are listed only to those who say that they know what they are.
    layered = [_PORTABILITY] if _PORTABILITY in known else []
    create = vk.VkInstanceCreateInfo(
        flags=_LIST_LAYERED if layered else 0, pApplicationInfo=app, ppEnabledExtensionNames=layered
    )
    return vk.vkCreateInstance(create, None)


@functools.cache
def physical_devices() -> tuple[PhysicalDevice, ...]:
    """Devices of API 1.1 and above, cards before what is built in, software last."""
    found = []
    for handle in vk.vkEnumeratePhysicalDevices(instance()):
        facts = vk.vkGetPhysicalDeviceProperties(handle)
        if facts.apiVersion < vk.VK_MAKE_VERSION(1, 1, 0):
            continue
        families = vk.vkGetPhysicalDeviceQueueFamilyProperties(handle)
        family = _family([(f.queueFlags, f.timestampValidBits) for f in families])
        if family is None:
            continue
        maintenance = vk.VkPhysicalDeviceMaintenance3Properties()
        more = vk.VkPhysicalDeviceProperties2(pNext=maintenance)
        vk.vkGetPhysicalDeviceProperties2(handle, more)
        version = f"{facts.apiVersion >> 22}.{facts.apiVersion >> 12 & 1023}.{facts.apiVersion & 4095}"
        shown = {
            "api": version,
            "driver": facts.driverVersion,
            "vendor": facts.vendorID,
            "type": facts.deviceType,
            "allocation": int(maintenance.maxMemoryAllocationSize),
        }
        stamps = families[family].timestampValidBits
        names = frozenset(e.extensionName for e in vk.vkEnumerateDeviceExtensionProperties(handle, None))
        found.append(PhysicalDevice(handle, facts.deviceName, family, stamps, names, shown))
    order = (vk.VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU, vk.VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU)
    rank = {kind: k for k, kind in enumerate(order)} | {vk.VK_PHYSICAL_DEVICE_TYPE_CPU: 9}
    return tuple(sorted(found, key=lambda d: rank.get(d.facts["type"], 5)))


def _family(families: list[tuple[int, int]]) -> int | None:
    """The queue family to compute on: with time stamps first, then one without graphics (less contended)."""
    usable = [k for k, (flags, _) in enumerate(families) if flags & vk.VK_QUEUE_COMPUTE_BIT]
    ranked = sorted(usable, key=lambda k: (not families[k][1], bool(families[k][0] & vk.VK_QUEUE_GRAPHICS_BIT)))
    return ranked[0] if ranked else None


def find(info: DeviceInfo) -> PhysicalDevice:
    """The device that *info* describes: by index where the name fits, else by name."""
    found = physical_devices()
    order = [info.index, *range(len(found))] if info.index < len(found) else range(len(found))
    for k in order:
        if found[k].name == info.name:
            return found[k]
    raise BackendUnavailableError(
        f"backend 'vulkan': device '{info.name}' is gone; it has {', '.join(d.name for d in found) or 'none'}"
    )
