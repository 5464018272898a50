"""Finds backends: the entry-point group ``mnnpy.backends``, and the built-ins where nothing is installed.

Providers are loaded when somebody asks for them. A provider that cannot be loaded is kept with its reason,
so that asking for it says why, and never disturbs the others.
"""

from __future__ import annotations

import difflib
import importlib
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from mnnpy.backends.base import API_VERSION, Backend, Device, DeviceInfo
from mnnpy.classes import dataclass
from mnnpy.errors import BackendUnavailableError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["BUILT_IN", "GROUP", "Entry", "Registry", "all_backends", "all_devices", "get_backend", "open_device"]

GROUP = "mnnpy.backends"

#: The same lines as in pyproject.toml, so that a checkout works without being installed.
BUILT_IN = {
    "cpu": "mnnpy.backends.cpu.provider:CpuBackend",
    "opencl": "mnnpy.backends.opencl.provider:OpenCLBackend",
    "vulkan": "mnnpy.backends.vulkan.provider:VulkanBackend",
    "cuda": "mnnpy.backends.cuda.provider:CudaBackend",
    "metal": "mnnpy.backends.metal.provider:MetalBackend",
    "null": "mnnpy.backends.null.provider:NullBackend",
    "reference": "mnnpy.backends.reference.provider:ReferenceBackend",
}


@dataclass(slots=True)
class Entry:
    """One registered name: where it comes from and, once loaded, the provider or the reason why there is none."""

    name: str
    target: str  #: ``module:attribute``
    source: str  #: distribution that registered it, or "built-in"
    load: Callable[[], Any]
    provider: Backend | None = None
    reason: str = ""
    remedy: str = ""
    ignored: tuple[str, ...] = ()  #: others that registered the same name and were not taken

    @property
    def loaded(self) -> bool:
        return self.provider is not None or bool(self.reason)


def _installed() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)


def _load_target(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Registry:
    """Backends by name. Thread-safe; the process-wide one is behind the functions of this module."""

    def __init__(
        self, discover: Callable[[], Iterable[EntryPoint]] | None = None, built_in: dict[str, str] | None = None
    ) -> None:
        self._discover = discover if discover is not None else _installed
        self._built_in = BUILT_IN if built_in is None else built_in
        self._ours = {n: Entry(n, t, "built-in", lambda t=t: _load_target(t)) for n, t in self._built_in.items()}  # type: ignore[misc]
        self._entries: dict[str, Entry] | None = None
        self._lock = threading.RLock()

    def entries(self) -> dict[str, Entry]:
        """Registered names, sorted; nothing is imported."""
        with self._lock:
            if self._entries is None:
                self._entries = self._find()
            return self._entries

    def get(self, name: str) -> Backend:
        """The provider called *name*; raises BackendUnavailableError with known names, reason, remedy."""
        entry = self._entry(name)
        if entry.provider is None:
            raise BackendUnavailableError(
                f"backend '{name}' ({entry.source}) cannot be used: {entry.reason}; {entry.remedy}"
            )
        return entry.provider

    def all(self) -> dict[str, Backend]:
        """Every provider that loads, by name, sorted."""
        found = {name: self._entry(name).provider for name in self.entries()}
        return {name: provider for name, provider in found.items() if provider is not None}

    def devices(self) -> list[DeviceInfo]:
        """All devices of all names; a broken provider counts as one unavailable device with the reason."""
        found: list[DeviceInfo] = []
        for name in self.entries():
            entry = self._entry(name)
            if entry.provider is None:
                found.append(DeviceInfo(name, name, unavailable=f"{entry.reason}; {entry.remedy}"))
                continue
            found += self._devices_of(entry, entry.provider)
        return found

    def open(self, spec: str, **options: Any) -> Device:
        """Open ``"name"`` (its first usable device), ``"name:index"`` or ``"name:device"``.

        A device may be called by any part of its name (or of its platform's) that only one usable device has.
        """
        name, _, wanted = spec.partition(":")
        provider = self.get(name)
        devices = self._devices_of(self._entry(name), provider)
        if not devices:
            raise BackendUnavailableError(f"backend '{name}' finds no device on this machine")
        info = self._choose(name, wanted, devices)
        if not info.available:
            raise BackendUnavailableError(
                f"device '{name}:{info.index}' ({info.name}) cannot be used: {info.unavailable}; "
                "`mnnpy backends` lists the usable ones"
            )
        return provider.open(info, **options)

    # -- inside --

    @staticmethod
    def _choose(name: str, wanted: str, devices: list[DeviceInfo]) -> DeviceInfo:
        if not wanted:
            return next((d for d in devices if d.available), devices[0])
        for info in devices:
            if wanted in (str(info.index), info.name):
                return info
        part = wanted.casefold()
        near = [d for d in devices if d.available and part in f"{d.facts.get('platform', '')} {d.name}".casefold()]
        if len(near) == 1:
            return near[0]
        known = ", ".join(f"{d.index} ({d.name})" for d in devices)
        raise BackendUnavailableError(f"backend '{name}' has no device '{wanted}'; it has {known}")

    @staticmethod
    def _devices_of(entry: Entry, provider: Backend) -> list[DeviceInfo]:
        try:
            return list(provider.devices())
        except Exception as error:
            reason = f"listing its devices failed: {type(error).__name__}: {error}; report this to {entry.source}"
            return [DeviceInfo(entry.name, entry.name, unavailable=reason)]

    def _find(self) -> dict[str, Entry]:
        found = dict(self._ours)
        clashes: dict[str, list[str]] = {}
        for point in sorted(self._discover(), key=lambda p: (p.name, p.value)):
            source = point.dist.name if point.dist is not None else "an unnamed distribution"
            known = found.get(point.name)
            if known is not None and known.target == point.value:
                continue  # the built-in itself, or one distribution seen twice on sys.path
            if known is None:
                found[point.name] = Entry(point.name, point.value, source, point.load)
            else:
                clashes.setdefault(point.name, [_origin(known)]).append(f"{point.value} ({source})")
        for name, origins in clashes.items():
            found[name].ignored = tuple(origins[1:])
            if name not in self._built_in:  # a built-in name cannot be taken over
                # Two strangers under one name: which one is meant cannot be told, so neither is taken.
                found[name].reason = f"the name is registered more than once, by {' and '.join(origins)}"
                found[name].remedy = "uninstall all but one of them"
        return dict(sorted(found.items()))

    def _entry(self, name: str) -> Entry:
        entry = self._ours.get(name)  # nobody can take over a built-in name: no need to look what is installed
        if entry is None:
            entries = self.entries()
            entry = entries.get(name)
        if entry is None:
            near = difflib.get_close_matches(name, entries, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise BackendUnavailableError(
                f"there is no backend '{name}'; {hint}Known: {', '.join(entries) or 'none'}. Others come with packages "
                f"that register in the entry-point group '{GROUP}'"
            )
        with self._lock:
            if not entry.loaded:
                self._load(entry)
        return entry

    @staticmethod
    def _load(entry: Entry) -> None:
        try:
            made = entry.load()
            provider = made() if isinstance(made, type) else made
        except Exception as error:
            entry.reason = f"loading {entry.target} failed: {type(error).__name__}: {error}"
            entry.remedy = (
                "reinstall mnnpy-engine" if entry.source == "built-in" else f"upgrade or uninstall '{entry.source}'"
            )
            return
        version = getattr(provider, "api_version", None)
        if version != API_VERSION:
            entry.reason = f"it is written for plugin interface version {version}, this mnnpy has {API_VERSION}"
            older = isinstance(version, int) and version < API_VERSION
            entry.remedy = (
                f"upgrade '{entry.source}'" if older else "upgrade mnnpy-engine, or install a matching version"
            )
        elif not isinstance(provider, Backend):
            missing = [m for m in ("name", "devices", "open") if not hasattr(provider, m)]
            entry.reason = f"{entry.target} is no backend provider: it lacks {', '.join(missing)}"
            entry.remedy = f"report this to '{entry.source}'"
        elif provider.name != entry.name:
            entry.reason = f"it calls itself '{provider.name}' but is registered as '{entry.name}'"
            entry.remedy = f"report this to '{entry.source}'"
        else:
            entry.provider = provider


def _origin(entry: Entry) -> str:
    return f"{entry.target} ({entry.source})"


_registry = Registry()


def get_backend(name: str) -> Backend:
    """The provider called *name*; raises BackendUnavailableError with the known names, the reason and the remedy."""
    return _registry.get(name)


def all_backends() -> dict[str, Backend]:
    """Every provider that loads, by name, sorted."""
    return _registry.all()


def all_devices() -> list[DeviceInfo]:
    """All devices of all backends, unusable ones with the reason."""
    return _registry.devices()


def open_device(spec: str, **options: Any) -> Device:
    """Open ``"name"``, ``"name:index"`` or ``"name:device"``; raises BackendUnavailableError."""
    return _registry.open(spec, **options)
