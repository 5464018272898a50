"""The top-level folders are the sub-packages of mnnpy, under one identity only."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("backends", "container", "decompose", "deploy", "pipeline", "search")


@pytest.mark.parametrize("folder", FOLDERS)
def test_symlink_points_to_top_level_folder(folder: str) -> None:
    link = ROOT / "mnnpy" / folder
    assert link.is_symlink()
    assert link.readlink() == Path(f"../{folder}")
    assert (ROOT / folder / "__init__.py").is_file()


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_imports_as_subpackage(folder: str) -> None:
    assert importlib.import_module(f"mnnpy.{folder}").__name__ == f"mnnpy.{folder}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_top_level_import_is_refused(folder: str) -> None:
    """Two identities of one module would make ``isinstance`` fail; the guard forbids the second one."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"mnnpy.{folder}" in done.stderr.splitlines()[-1]
    assert "ImportError" in done.stderr


def test_built_in_backends_are_declared_as_entry_points() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"]["mnnpy.backends"]
    assert {"cpu", "null", "reference"} <= set(declared)
    for name, target in declared.items():
        module, _, attribute = target.partition(":")
        provider = getattr(importlib.import_module(module), attribute)
        assert provider.name == name


def test_importing_the_package_imports_no_numpy() -> None:
    code = "import sys, mnnpy, mnnpy.cli; sys.exit('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", ["mnnpy", *FOLDERS])
def test_every_folder_with_modules_is_a_package(folder: str) -> None:
    """A folder without ``__init__.py`` imports from a checkout but is left out of wheels."""
    missing = {p.parent for p in (ROOT / folder).rglob("*.py") if not (p.parent / "__init__.py").is_file()}
    assert not missing
