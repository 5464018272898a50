"""The ``cuda`` backend: one device per NVIDIA GPU."""

from __future__ import annotations

from typing import Any

from mnnpy.backends.base import API_VERSION, DeviceInfo
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.kernels.executor import after_fork, used
from mnnpy.errors import BackendUnavailableError

__all__ = ["CudaBackend"]

REMEDY = "install the NVIDIA driver and pip install 'mnnpy-engine[cuda]' (CuPy and NVRTC of the driver's CUDA version)"


class CudaBackend:
    """Provider of CUDA devices."""

    api_version = API_VERSION
    name = "cuda"

    def devices(self) -> list[DeviceInfo]:
        if reason := after_fork(self.name):
            return [DeviceInfo(self.name, "cuda", unavailable=reason)]
        try:
            from mnnpy.backends.cuda.api import probe

            found = probe()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}; {REMEDY}"
            return [DeviceInfo(self.name, "cuda", unavailable=reason)]
        used(self.name)
        return [DeviceInfo(self.name, str(f["name"]), k, f.get("unavailable", ""), f) for k, f in enumerate(found)]

    def open(self, info: DeviceInfo, **options: Any) -> KernelDevice:
        """Open a device; *threads* is accepted and has no effect."""
        if info.unavailable:
            raise BackendUnavailableError(f"backend 'cuda' cannot be used: {info.unavailable}")
        from mnnpy.backends.cuda.api import CupyApi
        from mnnpy.backends.cuda.driver import CudaDriver

        return KernelDevice(info, CudaDriver(CupyApi(info.index)))
