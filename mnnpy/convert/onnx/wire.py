"""Keeps the weights of a large ONNX file out of the protobuf parser.

Parsing copies every tensor into the message and reading it copies it once more. This module walks the wire format
(protocol buffers encoding specification) just deep enough to find large ``raw_data``, and hands the parser a model
in which those tensors are external; the reader then takes their bytes from the mapped file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["EMBEDDED", "WireError", "take_weights"]

#: Start of the location of a tensor that lies in the model file itself; no path can begin like this.
EMBEDDED = "\0embedded:"
#: Smaller tensors are left to the parser.
_LARGE = 1 << 16
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14


class WireError(ValueError):
    """The bytes are not in protobuf's wire format; the parser will say what is wrong."""


def take_weights(data: Any) -> tuple[bytes, list[memoryview]]:
    """The model without its large initializers' bytes, and those bytes as views of *data*."""
    view = memoryview(data)
    taken: list[memoryview] = []
    skeleton = _rewrite(view, _MODEL_GRAPH, lambda graph: _graph(graph, taken))
    return skeleton, taken


def _graph(graph: memoryview, taken: list[memoryview]) -> bytes:
    return _rewrite(graph, _GRAPH_INITIALIZER, lambda tensor: _tensor(tensor, taken))


def _tensor(tensor: memoryview, taken: list[memoryview]) -> bytes:
    if len(tensor) < _LARGE:
        return bytes(tensor)
    kept, raw = bytearray(), None
    for number, start, payload, end in _fields(tensor):
        if number in (_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION):
            return bytes(tensor)
        if number == _TENSOR_RAW_DATA and payload is not None and len(payload) >= _LARGE:
            raw = payload  # as in any parser, the last one counts
        else:
            kept += tensor[start:end]
    if raw is None:
        return bytes(tensor)
    location = f"{EMBEDDED}{len(taken)}".encode()
    taken.append(raw)
    entry = _delimited(1, b"location") + _delimited(2, location)
    kept += _delimited(_TENSOR_EXTERNAL_DATA, entry)
    kept += _varint(_TENSOR_DATA_LOCATION << 3) + _varint(1)
    return bytes(kept)


def _rewrite(message: memoryview, number: int, change: Any) -> bytes:
    """*message* with every sub-message *number* replaced by what *change* makes of it."""
    out = bytearray()
    copied = 0
    for found, start, payload, end in _fields(message):
        if found == number and payload is not None and len(payload) >= _LARGE:
            out += message[copied:start]
            out += _delimited(number, change(payload))
            copied = end
    out += message[copied:]
    return bytes(out)


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview | None, int]]:
    """(field number, start, payload of a length-delimited field, end) of every field."""
    position, size = 0, len(message)
    while position < size:
        start = position
        key, position = _read_varint(message, position)
        kind = key & 7
        payload = None
        if kind == 0:
            _, position = _read_varint(message, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind == 2:
            length, position = _read_varint(message, position)
            payload = message[position : position + length]
            position += length
        else:
            raise WireError("a group or an unknown wire type")
        if position > size:
            raise WireError("a field reaches beyond its message")
        yield key >> 3, start, payload, position


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise WireError("a number does not end")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload
