"""The plugin interface, the registry, and one folder per backend. ``mnnpy.backends()`` lists devices."""

if __name__ != "mnnpy.backends":
    raise ImportError("import this package as mnnpy.backends: the folder is only its place in the checkout")

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """``mnnpy.backends`` is a package and, as in ``mnnpy.backends()``, the function that lists devices."""

    def __call__(self) -> Any:
        from mnnpy.api import backends

        return backends()


sys.modules[__name__].__class__ = _CallablePackage
