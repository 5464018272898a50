"""Kernel templates by op family. Importing a family registers its templates."""

from __future__ import annotations

import importlib

__all__ = ["FAMILIES", "load"]

FAMILIES = ("elementwise", "move", "reduce", "normalize", "attention", "index", "matmul", "conv", "window", "order")


def load() -> None:
    """Import all families."""
    for name in FAMILIES:
        importlib.import_module(f"mnnpy.backends.kernels.templates.{name}")
