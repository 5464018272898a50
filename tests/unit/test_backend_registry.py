"""The backend registry: discovery, broken plugins, duplicate names, interface versions."""

from __future__ import annotations

import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mnnpy.backends import registry as module
from mnnpy.backends.base import API_VERSION, Backend, DeviceInfo
from mnnpy.backends.registry import BUILT_IN, GROUP, Registry
from mnnpy.errors import BackendUnavailableError


class _Plugin:
    api_version = API_VERSION

    def __init__(self, name: str = "acme") -> None:
        self.name = name

    def devices(self) -> list[DeviceInfo]:
        return [
            DeviceInfo(self.name, "zero", 0, unavailable="no driver; install it"),
            DeviceInfo(self.name, "one", 1),
        ]

    def open(self, info: DeviceInfo, **options: object) -> object:
        return ("opened", info.name, options)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made = types.ModuleType("acme_plugin")
    made.Acme = _Plugin  # type: ignore[attr-defined]
    made.Acme2 = lambda: _Plugin("acme")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "acme_plugin", made)
    return made


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, GROUP)


def test_built_ins_without_installation() -> None:
    found = Registry(list)
    assert list(found.entries()) == sorted(BUILT_IN)
    assert isinstance(found.get("reference"), Backend)
    assert isinstance(found.get("null"), Backend)


def test_built_ins_agree_with_the_entry_points() -> None:
    import tomllib

    text = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    assert tomllib.loads(text)["project"]["entry-points"][GROUP] == BUILT_IN


def test_discovery_imports_nothing(plugins: types.ModuleType) -> None:
    found = Registry(lambda: [point("acme", "does_not_exist:X")])
    assert "acme" in found.entries()


def test_third_party(plugins: types.ModuleType) -> None:
    found = Registry(lambda: [point("acme", "acme_plugin:Acme")])
    assert found.open("acme", x=1) == ("opened", "one", {"x": 1})
    assert found.open("acme:one") == found.open("acme:1")
    with pytest.raises(BackendUnavailableError, match="no driver; install it"):
        found.open("acme:zero")
    with pytest.raises(BackendUnavailableError, match=r"no device 'two'; it has 0 \(zero\), 1 \(one\)"):
        found.open("acme:two")


def test_broken_plugin_keeps_its_reason_and_spares_the_others() -> None:
    found = Registry(lambda: [point("broken", "no_such_module_anywhere:Backend")])
    assert list(found.all()) == [n for n in sorted(BUILT_IN) if found.entries()[n].provider is not None]
    assert "reference" in found.all()
    with pytest.raises(BackendUnavailableError, match=r"No module named 'no_such_module_anywhere'.*uninstall"):
        found.get("broken")
    (device,) = [d for d in found.devices() if d.backend == "broken"]
    assert not device.available
    assert "no_such_module_anywhere" in device.unavailable


def test_plugin_that_raises_while_listing_devices(plugins: types.ModuleType) -> None:
    def boom(self: object) -> list[DeviceInfo]:
        raise OSError("libgpu.so: not found")

    plugins.Bad = type("Bad", (_Plugin,), {"devices": boom})  # type: ignore[attr-defined]
    found = Registry(lambda: [point("acme", "acme_plugin:Bad")])
    (device,) = [d for d in found.devices() if d.backend == "acme"]
    assert "libgpu.so" in device.unavailable
    with pytest.raises(BackendUnavailableError, match=r"libgpu\.so"):
        found.open("acme")


@pytest.mark.parametrize(
    "version, remedy", [(API_VERSION - 1, "upgrade 'an unnamed"), (99, "upgrade mnnpy-engine"), (None, "mnnpy")]
)
def test_wrong_api_version(plugins: types.ModuleType, version: int | None, remedy: str) -> None:
    plugins.Old = type("Old", (_Plugin,), {"api_version": version})  # type: ignore[attr-defined]
    found = Registry(lambda: [point("acme", "acme_plugin:Old")])
    with pytest.raises(BackendUnavailableError, match=f"interface version {version}.*{remedy}"):
        found.get("acme")


def test_not_a_provider(plugins: types.ModuleType) -> None:
    plugins.Odd = type("Odd", (), {"api_version": API_VERSION, "name": "acme"})  # type: ignore[attr-defined]
    found = Registry(lambda: [point("acme", "acme_plugin:Odd")])
    with pytest.raises(BackendUnavailableError, match="lacks devices, open"):
        found.get("acme")


def test_provider_under_another_name(plugins: types.ModuleType) -> None:
    found = Registry(lambda: [point("other", "acme_plugin:Acme")])
    with pytest.raises(BackendUnavailableError, match="calls itself 'acme'"):
        found.get("other")


def test_two_strangers_under_one_name(plugins: types.ModuleType) -> None:
    found = Registry(lambda: [point("acme", "acme_plugin:Acme"), point("acme", "acme_plugin:Acme2")])
    with pytest.raises(BackendUnavailableError, match=r"registered more than once.*Acme .*Acme2.*uninstall"):
        found.get("acme")


def test_the_same_plugin_twice_is_one(plugins: types.ModuleType) -> None:
    found = Registry(lambda: [point("acme", "acme_plugin:Acme")] * 2)
    assert found.get("acme").name == "acme"


def test_a_built_in_name_cannot_be_taken_over(plugins: types.ModuleType) -> None:
    found = Registry(lambda: [point("reference", "acme_plugin:Acme")])
    assert type(found.get("reference")).__name__ == "ReferenceBackend"
    assert "acme_plugin:Acme" in found.entries()["reference"].ignored[0]


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"no backend 'refrence'; did you mean 'reference'.*Known: cpu, cuda, metal, null"
    ):
        Registry(list).get("refrence")


def test_providers_are_cached() -> None:
    assert module.get_backend("reference") is module.get_backend("reference")
    assert list(module.all_backends()) == sorted(module.all_backends())


def test_import_loads_no_provider() -> None:
    code = (
        "import sys, mnnpy.backends.registry as r; r._registry.entries(); "
        "print('mnnpy.backends.cpu.provider' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "False"
