"""Reports of a search: what was measured, what was chosen, and how far predictions were off."""

from __future__ import annotations

from mnnpy.tuning.collect import Watch, tune
from mnnpy.tuning.page import html_page

__all__ = ["Watch", "html_page", "tune"]
