"""Sessions on devices that a test has made itself: emulated ones, or real ones with something changed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from mnnpy.backends import registry
from mnnpy.backends.base import Device
from mnnpy.backends.kernels.device import KernelDevice
from tests.emulation.emulator import available, emulated_cuda, emulated_metal

__all__ = ["KINDS", "device", "opened", "software_vulkan"]

#: Kernel backends and the label of their results here: real API on a software device, or emulated.
KINDS = {"opencl": "R", "vulkan": "R", "cuda": "E", "metal": "E"}
LAVAPIPE = Path("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json")


def software_vulkan() -> None:
    """Let Vulkan find only the software device, where nothing else was asked for."""
    if LAVAPIPE.exists():
        os.environ.setdefault("VK_ICD_FILENAMES", str(LAVAPIPE))


def device(kind: str) -> KernelDevice:
    """A new device of *kind*; skips the test where there is none."""
    if kind in ("cuda", "metal"):
        if why := available():
            pytest.skip(f"{kind} cannot be emulated: {why}")
        return emulated_cuda() if kind == "cuda" else emulated_metal()
    software_vulkan()
    info = next((d for d in registry.get_backend(kind).devices() if d.available), None)
    if info is None:
        pytest.skip(f"no {kind} device: {registry.get_backend(kind).devices()[0].unavailable}")
    made = registry.get_backend(kind).open(info)
    assert isinstance(made, KernelDevice)
    return made


@contextmanager
def opened(devices: Mapping[str, Device]) -> Iterator[None]:
    """Within, sessions that ask for these names get these devices."""
    usual = registry.open_device

    def open_device(spec: str, **options: Any) -> Device:
        return devices[spec] if spec in devices else usual(spec, **options)

    with patch.object(registry, "open_device", open_device):
        yield
