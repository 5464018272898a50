"""``python -m mnnpy`` is the ``mnnpy`` command."""

from __future__ import annotations

import sys

from mnnpy.cli import main

if __name__ == "__main__":
    sys.exit(main())
