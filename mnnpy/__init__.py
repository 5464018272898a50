"""mnnpy: one model, every accelerator.

>>> import mnnpy
>>> session = mnnpy.Session("model.onnx")        # doctest: +SKIP
>>> session.run(None, {"input": array})          # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mnnpy.api import backends as backends
    from mnnpy.api import compile as compile  # noqa: A004
    from mnnpy.convert import convert as convert
    from mnnpy.errors import (
        BackendError as BackendError,
    )
    from mnnpy.errors import (
        BackendUnavailableError as BackendUnavailableError,
    )
    from mnnpy.errors import (
        ContainerError as ContainerError,
    )
    from mnnpy.errors import (
        DeployError as DeployError,
    )
    from mnnpy.errors import (
        InputError as InputError,
    )
    from mnnpy.errors import (
        MnnpyError as MnnpyError,
    )
    from mnnpy.errors import (
        ModelError as ModelError,
    )
    from mnnpy.errors import (
        ShapeError as ShapeError,
    )
    from mnnpy.errors import (
        UnsupportedOpError as UnsupportedOpError,
    )
    from mnnpy.graph.dtypes import DType as DType
    from mnnpy.graph.ir import Graph as Graph
    from mnnpy.options import Options as Options
    from mnnpy.session import Session as Session

# Loaded on first use: `import mnnpy` and `mnnpy --help` must not pay for numpy and onnx.
_LAZY = {
    "Session": "mnnpy.session",
    "Options": "mnnpy.options",
    "Graph": "mnnpy.graph.ir",
    "DType": "mnnpy.graph.dtypes",
    "compile": "mnnpy.api",
    **dict.fromkeys(
        (
            "BackendError",
            "BackendUnavailableError",
            "ContainerError",
            "DeployError",
            "InputError",
            "MnnpyError",
            "ModelError",
            "ShapeError",
            "UnsupportedOpError",
        ),
        "mnnpy.errors",
    ),
}

__all__ = [*_LAZY, "__version__", "backends", "convert"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    if name in ("backends", "convert"):  # packages that are also functions: see _callable_package
        return importlib.import_module(f"mnnpy.{name}")
    raise AttributeError(f"module 'mnnpy' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
