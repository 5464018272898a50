"""Recurrent networks of old opsets."""

from __future__ import annotations

from typing import Any

from mnnpy.convert.onnx.conversions import conversion
from mnnpy.convert.onnx.emitter import Emitter


def _recurrent(name: str, outputs: int, until: int) -> None:
    @conversion(name, until=until)
    def convert(
        g: Emitter, *operands: str | None, output_sequence: int = 0, direction: str = "forward", **attrs: Any
    ) -> Any:
        """``output_sequence`` only said whether Y is wanted; the list of outputs says it too."""
        direction = {"foward": "forward"}.get(direction, direction)  # the default of GRU-1 is misspelt in its schema
        return g.op(name, *operands, outputs=outputs, direction=direction, **attrs)


_recurrent("RNN", 2, 6)
_recurrent("GRU", 2, 6)
_recurrent("LSTM", 3, 6)
