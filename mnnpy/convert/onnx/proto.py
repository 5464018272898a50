"""ONNX files without the onnx package: the messages of the format, and their decoding.

Importing onnx takes longer than planning a small model, and parsing with it copies every weight. Here a file is
decoded where it lies (bytes or a map), and weights are views of it. Messages behave as protobuf's do as far as the
reader goes: absent fields read as defaults, ``HasField`` and ``WhichOneof`` tell what is present. An
``onnx.ModelProto`` can therefore be read by the same code.

Sources: protocol buffers encoding specification; ONNX IR specification (field names and numbers of ``onnx.proto``).
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar

import numpy as np

__all__ = ["DATA_TYPES", "IR_VERSION", "AttributeKind", "Message", "WireError", "parse_model"]

#: Newest IR version that this module knows.
IR_VERSION = 14
#: ``TensorProto.DataType``, without the types that nothing here can hold.
DATA_TYPES = {
    name: number
    for number, name in enumerate(
        (
            "UNDEFINED", "FLOAT", "UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "STRING", "BOOL", "FLOAT16",
            "DOUBLE", "UINT32", "UINT64", "COMPLEX64", "COMPLEX128", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ",
            "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "UINT4", "INT4", "FLOAT4E2M1", "FLOAT8E8M0", "UINT2", "INT2",
        )
    )
}  # fmt: skip
#: Messages nested deeper than this are refused, as protobuf's parsers do.
_MAX_DEPTH = 100


class WireError(ValueError):
    """The bytes are not in protobuf's wire format."""


class AttributeKind:
    """``AttributeProto.AttributeType`` and ``TensorProto.EXTERNAL``."""

    UNDEFINED, FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS = range(8)
    STRINGS, TENSORS, GRAPHS, SPARSE_TENSOR, SPARSE_TENSORS, TYPE_PROTO, TYPE_PROTOS = range(8, 15)
    NAMES: ClassVar[tuple[str, ...]] = (
        "UNDEFINED", "FLOAT", "INT", "STRING", "TENSOR", "GRAPH", "FLOATS", "INTS", "STRINGS", "TENSORS", "GRAPHS",
        "SPARSE_TENSOR", "SPARSE_TENSORS", "TYPE_PROTO", "TYPE_PROTOS",
    )  # fmt: skip


#: Message → fields as ``name=number:kind``, repeated ones with ``*``. Fields that say nothing about the
#: computation (documentation of parts, quantisation hints, placement) are skipped.
_FIELDS = {
    "Model": "ir_version=1:int producer_name=2:str producer_version=3:str domain=4:str model_version=5:int "
    "doc_string=6:str graph=7:Graph opset_import=8:Opset* metadata_props=14:Entry* functions=25:Function*",
    "Opset": "domain=1:str version=2:int",
    "Entry": "key=1:str value=2:str",
    "Graph": "node=1:Node* name=2:str initializer=5:Tensor* sparse_initializer=15:Sparse* input=11:Info* "
    "output=12:Info* value_info=13:Info*",
    "Node": "input=1:str* output=2:str* name=3:str op_type=4:str attribute=5:Attribute* domain=7:str overload=8:str",
    "Attribute": "name=1:str f=2:float i=3:int s=4:bytes t=5:Tensor g=6:Graph floats=7:float* ints=8:int* "
    "strings=9:bytes* tensors=10:Tensor* graphs=11:Graph* tp=14:Type type_protos=15:Type* type=20:i32 "
    "ref_attr_name=21:str sparse_tensor=22:Sparse sparse_tensors=23:Sparse*",
    "Tensor": "dims=1:int* data_type=2:i32 segment=3:Segment float_data=4:float* int32_data=5:i32* "
    "string_data=6:bytes* int64_data=7:int* name=8:str raw_data=9:view double_data=10:double* uint64_data=11:uint* "
    "external_data=13:Entry* data_location=14:i32",
    "Segment": "begin=1:int end=2:int",
    "Sparse": "values=1:Tensor indices=2:Tensor dims=3:int*",
    "Info": "name=1:str type=2:Type",
    "Type": "tensor_type=1:TensorOf sequence_type=4:ElemOf map_type=5:MapOf opaque_type=7:Segment "
    "sparse_tensor_type=8:TensorOf optional_type=9:ElemOf",
    "TensorOf": "elem_type=1:i32 shape=2:Shape",
    "ElemOf": "elem_type=1:Type",
    "MapOf": "key_type=1:i32 value_type=2:Type",
    "Shape": "dim=1:Dim*",
    "Dim": "dim_value=1:int dim_param=2:str",
    "Function": "name=1:str input=4:str* output=5:str* attribute=6:str* node=7:Node* opset_import=9:Opset* "
    "domain=10:str attribute_proto=11:Attribute* value_info=12:Info* overload=13:str",
}
_ONEOF = {"Type": ("tensor_type", "sequence_type", "map_type", "opaque_type", "sparse_tensor_type", "optional_type"),
          "Dim": ("dim_value", "dim_param")}  # fmt: skip
_WIRE = {"int": 0, "uint": 0, "i32": 0, "float": 5, "double": 1}
_DEFAULTS: dict[str, Any] = {
    "int": 0, "uint": 0, "i32": 0, "float": 0.0, "double": 0.0, "str": "", "bytes": b"", "view": b"",
}  # fmt: skip


class Message:
    """A decoded message: fields that are present are its attributes, the class has the defaults."""

    _fields: ClassVar[dict[int, tuple[str, str, bool, type[Message] | None]]]
    _oneof: ClassVar[tuple[str, ...]]

    def HasField(self, name: str) -> bool:  # noqa: N802 - protobuf's name
        """Whether the file gives the field."""
        return name in self.__dict__

    def WhichOneof(self, group: str) -> str | None:  # noqa: N802 - protobuf's signature
        """The present one of the message's alternatives (each message has one group at most)."""
        return next((n for n in self._oneof if n in self.__dict__), None)

    def __getattr__(self, name: str) -> Any:
        # Absent messages read as empty ones; made when asked for, since they refer to each other.
        for field, _, repeated, sub in self._fields.values():
            if field == name and sub is not None and not repeated:
                return sub()
        raise AttributeError(name)


def _define() -> dict[str, type[Message]]:
    made: dict[str, type[Message]] = {
        name: type(name, (Message,), {"_oneof": _ONEOF.get(name, ())}) for name in _FIELDS
    }
    for name, text in _FIELDS.items():
        table: dict[int, tuple[str, str, bool, type[Message] | None]] = {}
        for entry in text.split():
            field, _, rest = entry.partition("=")
            number, _, kind = rest.partition(":")
            repeated = kind.endswith("*")
            kind = kind.rstrip("*")
            sub = made.get(kind)
            row = (field, "" if sub is not None else kind, repeated, sub)
            wire = _WIRE.get(kind, 2)
            table[int(number) << 3 | wire] = row
            if repeated and wire != 2:  # packed
                table[int(number) << 3 | 2] = row
            if repeated or sub is None:
                setattr(made[name], field, () if repeated else _DEFAULTS[kind])
        made[name]._fields = table
    return made


_CLASSES = _define()


def parse_model(data: Any) -> Any:
    """The model that *data* (bytes or a memory map) encodes; raises WireError where it is damaged.

    Weights (``raw_data``) are views of *data*.
    """
    model = _CLASSES["Model"]()
    try:
        _decode(model, data, memoryview(data), 0, len(data), 0)
    except IndexError as error:
        raise WireError("the file ends inside a number") from error
    except UnicodeDecodeError as error:
        raise WireError(f"a name is not UTF-8 ({error.reason})") from error
    return model


def _decode(message: Message, data: Any, view: memoryview, pos: int, end: int, depth: int) -> None:
    """Set the fields that ``data[pos:end]`` holds; the last value counts, repeated ones collect, messages merge."""
    if depth > _MAX_DEPTH:
        raise WireError(f"messages nest more than {_MAX_DEPTH} levels deep")
    fields, values = message._fields, message.__dict__
    while pos < end:
        key = data[pos]
        pos += 1
        if key >= 0x80:
            key, pos = _varint(data, pos - 1)
        row = fields.get(key)
        if row is None:
            pos = _skip(data, key, pos, end)
            continue
        name, kind, repeated, sub = row
        value: Any
        if key & 7 == 2:
            size = data[pos]
            pos += 1
            if size >= 0x80:
                size, pos = _varint(data, pos - 1)
            start, pos = pos, pos + size
            if pos > end:
                raise WireError("a field reaches beyond its message")
            if kind == "str":
                value = str(data[start:pos], "utf-8")
            elif sub is not None:
                value = values.get(name) if not repeated else None
                if value is None:
                    value = sub()
                _decode(value, data, view, start, pos, depth + 1)
            elif kind == "bytes":
                value = data[start:pos]
            elif kind == "view":
                value = view[start:pos]
            else:
                known = values.get(name)
                packed = _packed(data, kind, start, pos)
                values[name] = packed if known is None else [*known, *packed]
                continue
        elif key & 7 == 0:
            value = data[pos]
            pos += 1
            if value >= 0x80:
                value, pos = _varint(data, pos - 1)
                value = _signed(value, kind)
        else:
            width, code = (4, "<f") if kind == "float" else (8, "<d")
            if pos + width > end:
                raise WireError("a field reaches beyond its message")
            value = struct.unpack_from(code, data, pos)[0]
            pos += width
        if repeated:
            known = values.get(name)
            if type(known) is list:
                known.append(value)
            else:
                values[name] = [value] if known is None else [*known, value]
            continue
        if message._oneof and name in message._oneof and name not in values:
            for other in message._oneof:
                values.pop(other, None)
        values[name] = value
    if pos > end:
        raise WireError("a field reaches beyond its message")


def _signed(value: int, kind: str) -> int:
    """A varint as the field's type reads it: 64 bits, of which ``i32`` keeps the lower half."""
    value &= (1 << 64) - 1
    if kind == "uint":
        return value
    if kind == "i32":
        value &= (1 << 32) - 1
        return value - (1 << 32) if value >= 1 << 31 else value
    return value - (1 << 64) if value >= 1 << 63 else value


def _varint(data: Any, pos: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
        if shift > 63:
            raise WireError("a number does not end")


def _packed(data: Any, kind: str, start: int, end: int) -> Any:
    """A packed repeated field as an array."""
    if kind in ("float", "double"):
        width = 4 if kind == "float" else 8
        if (end - start) % width:
            raise WireError(f"a packed field of {kind} has {end - start} bytes")
        return np.frombuffer(data, f"<f{width}", (end - start) // width, start)
    raw = np.frombuffer(data, np.uint8, end - start, start)
    last = raw < 0x80  # a number ends at the first byte without the high bit
    if not len(raw) or last.all():
        return raw.astype(np.uint64 if kind == "uint" else np.int64)
    starts = np.flatnonzero(np.concatenate(([True], last[:-1])))
    place = np.arange(len(raw)) - np.repeat(starts, np.diff(np.append(starts, len(raw))))
    if not last[-1] or place.max() > 9:
        raise WireError("a number does not end")
    parts = (raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    numbers = np.bitwise_or.reduceat(parts, starts)
    if kind == "uint":
        return numbers
    return numbers.astype(np.uint32).astype(np.int32) if kind == "i32" else numbers.view(np.int64)


def _skip(data: Any, key: int, pos: int, end: int) -> int:
    """The position behind a field that nobody reads."""
    kind = key & 7
    if key < 8:
        raise WireError("field number 0")
    if kind == 0:
        return _varint(data, pos)[1]
    if kind == 2:
        size, pos = _varint(data, pos)
        pos += size
    elif kind in (1, 5):
        pos += 8 if kind == 1 else 4
    else:
        raise WireError("a group or an unknown wire type")
    if pos > end:
        raise WireError("a field reaches beyond its message")
    return pos
