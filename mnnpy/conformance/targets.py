"""What cases run on: an opened device with the label that its results carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mnnpy.backends.base import Device, DeviceInfo

__all__ = ["LABELS", "Target", "label_of", "open_target", "register_target"]

#: What a result was obtained on; every report carries it.
LABELS = {
    "R": "real device API, on a processor (CPU kernels, OpenCL on PoCL, Vulkan on lavapipe)",
    "S": "sanitised: a checker of races and bounds stood behind the API",
    "C": "compiled only, not run",
    "E": "emulated: the unchanged kernel text ran on the CPU, one fiber per work item",
    "H": "real hardware",
}
#: Words in the names of devices that are programs.
_SOFTWARE = ("pocl", "portable computing language", "cpu", "llvmpipe", "lavapipe", "swiftshader")
_VULKAN_GPUS = (1, 2, 3)  # VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU, DISCRETE_GPU, VIRTUAL_GPU
_OPENCL_GPUS = ("GPU", "ACCELERATOR")


def label_of(info: DeviceInfo) -> str:
    """The label of a device: its own fact ``label``, else by what kind of device it is."""
    own = info.facts.get("label")
    if own is not None:
        if own not in LABELS:
            raise ValueError(f"device '{info.name}' calls itself '{own}'; labels are {', '.join(LABELS)}")
        return str(own)
    words = f"{info.name} {info.facts.get('platform', '')}".lower()
    if "oclgrind" in words:
        return "S"
    if info.backend in ("cuda", "metal"):
        return "H"
    # Hardware is what says so itself, and has no name of a program: when in doubt it is none.
    kind = info.facts.get("type", "")
    real = kind in _VULKAN_GPUS if info.backend == "vulkan" else any(w in str(kind) for w in _OPENCL_GPUS)
    return "H" if real and not any(w in words for w in _SOFTWARE) else "R"


@dataclass(frozen=True, slots=True)
class Target:
    """An opened device under the name that ids end in."""

    name: str
    device: Device
    label: str

    @property
    def info(self) -> DeviceInfo:
        return self.device.info

    def facts(self) -> dict[str, Any]:
        """Name, label and what the device says of itself."""
        caps = getattr(getattr(self.device, "driver", None), "caps", None)
        found: dict[str, Any] = {"backend": self.info.backend, "device": self.info.name, "label": self.label}
        found |= {k: v for k, v in self.info.facts.items() if isinstance(v, (str, int, float, bool))}
        if caps is not None:
            found |= {
                "features": sorted(caps.features), "max_group": caps.max_group, "local_memory": caps.local_memory,
                "max_buffer": caps.max_buffer, "lanes": caps.lanes, "cpu_like": caps.cpu_like, "unified": caps.unified,
                "subgroup": caps.subgroup, "units": caps.units,
            }  # fmt: skip
        return found


_MORE: dict[str, Callable[[], Device]] = {}


def register_target(name: str, open_device: Callable[[], Device]) -> None:
    """Make *name* known to ``open_target``: for devices that no backend lists, such as emulated ones in tests."""
    _MORE[name] = open_device


def open_target(name: str, **options: Any) -> Target:
    """The device that *name* means: a registered target, else ``"backend"`` or ``"backend:device"``.

    Raises BackendUnavailableError with reason and remedy.
    """
    from mnnpy.backends.registry import open_device

    device = _MORE[name]() if name in _MORE else open_device(name, **options)
    return Target(name, device, label_of(device.info))
