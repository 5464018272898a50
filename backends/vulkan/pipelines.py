"""The driver's pipeline cache, kept on disk between processes."""

from __future__ import annotations

import threading
from typing import Any

import vulkan as vk

from mnnpy.backends.kernels.cache import KernelCache

__all__ = ["PipelineCache"]


class PipelineCache:
    """Vulkan's own cache of one device; what is on disk counts only for the same driver build and only if intact."""

    def __init__(self, device: Any, properties: Any) -> None:
        self._device = device
        uuid = bytes(properties.pipelineCacheUUID).hex()
        identity = f"{properties.vendorID}:{properties.deviceID}:{properties.driverVersion}:{uuid}"
        self._disk = KernelCache("vulkan", identity)
        self._lock = threading.Lock()
        self._saved = self._disk.read("pipelines") or b""
        self.handle = self._new(self._saved)

    def _new(self, data: bytes) -> Any:
        # The structure points at the bytes: they must outlive the call.
        info = vk.VkPipelineCacheCreateInfo(
            initialDataSize=len(data), pInitialData=vk.ffi.from_buffer(data) if data else None
        )
        return vk.vkCreatePipelineCache(self._device, info, None)

    def save(self) -> None:
        """Write to disk what the driver has gathered."""
        size = vk.ffi.new("size_t*")
        get = vk.lib.vkGetPipelineCacheData
        with self._lock:
            if get(self._device, self.handle, size, vk.ffi.NULL) or not size[0]:
                return
            data = vk.ffi.new("char[]", size[0])
            if get(self._device, self.handle, size, data) == vk.VK_SUCCESS:
                found = bytes(vk.ffi.buffer(data, size[0]))
                if found != self._saved:
                    self._disk.write("pipelines", found)
                    self._saved = found
