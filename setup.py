"""Maps the top-level folders into the package and builds the CPU extension (see docs/architecture.md)."""

from setuptools import find_packages, setup

FOLDERS = ("backends", "container", "decompose", "deploy", "pipeline", "search")


def build_options() -> dict:
    import os
    import sys

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from backends_build import cpu_extension

    return cpu_extension()


packages = ["mnnpy", *(f"mnnpy.{p}" for p in find_packages("mnnpy", exclude=[f"{f}*" for f in FOLDERS]))]
package_dir = {"mnnpy": "mnnpy"}
for folder in FOLDERS:
    packages += [f"mnnpy.{folder}", *(f"mnnpy.{folder}.{p}" for p in find_packages(folder))]
    package_dir[f"mnnpy.{folder}"] = folder

setup(packages=packages, package_dir=package_dir, **build_options())
