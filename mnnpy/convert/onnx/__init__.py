"""The ONNX front end: every op of every opset, in the form of the newest one."""

from __future__ import annotations

from mnnpy.convert.onnx.load import from_onnx

__all__ = ["from_onnx"]
