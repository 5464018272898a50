"""Maps the top-level folders into the package and builds the CPU extension (see docs/architecture.md)."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).parent))  # build isolation runs this file without its folder on the path
from backends_build import cpu_extension

FOLDERS = ("backends", "container", "decompose", "deploy", "pipeline", "search")

packages = ["mnnpy", *(f"mnnpy.{p}" for p in find_packages("mnnpy", exclude=[f"{f}*" for f in FOLDERS]))]
package_dir = {"mnnpy": "mnnpy"}
for folder in FOLDERS:
    packages += [f"mnnpy.{folder}", *(f"mnnpy.{folder}.{p}" for p in find_packages(folder))]
    package_dir[f"mnnpy.{folder}"] = folder

setup(packages=packages, package_dir=package_dir, **cpu_extension())
