"""``python with_native.py LIBRARY ARGS…``: pytest with another build of the native extension."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAME = "mnnpy.backends.cpu._native"


def main() -> int:
    """Load LIBRARY under the extension's name before anybody imports it, then run pytest."""
    import pytest

    import mnnpy.backends.cpu as package

    library = Path(sys.argv[1]).resolve()
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    package._native = module  # type: ignore[attr-defined]
    if not Path(str(module.__file__)).samefile(library):
        raise SystemExit(f"{NAME} came from {module.__file__}, not from {library}")
    return int(pytest.main(sys.argv[2:]))


if __name__ == "__main__":
    raise SystemExit(main())
