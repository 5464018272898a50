"""Reports of hardware that the project does not own: one JSON and one HTML file per machine."""

from __future__ import annotations

from mnnpy.hardware.collect import FORMAT, collect, find_models
from mnnpy.hardware.page import html_page, overview

__all__ = ["FORMAT", "collect", "find_models", "html_page", "overview"]
