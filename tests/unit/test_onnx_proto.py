"""The decoder of ONNX files against protobuf's own, field by field; and the table of schemas against onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, helper

from mnnpy.convert.onnx import proto, schemas
from mnnpy.convert.onnx.proto import Message, WireError, parse_model


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def delimited(field: int, payload: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def rich_model() -> onnx.ModelProto:
    """A model with every field that the reader looks at."""
    tensors = [
        helper.make_tensor("f", TensorProto.FLOAT, [3], [1.5, -0.0, 3.25]),
        helper.make_tensor("d", TensorProto.DOUBLE, [2], [1e300, -1.0]),
        helper.make_tensor("i", TensorProto.INT64, [4], [0, -1, 2**62, 300]),
        helper.make_tensor("j", TensorProto.INT32, [3], [-(2**31), 7, 128]),
        helper.make_tensor("u", TensorProto.UINT64, [2], [2**64 - 1, 1]),
        helper.make_tensor("s", TensorProto.STRING, [2], [b"a", "ü".encode()]),
        helper.make_tensor("r", TensorProto.FLOAT, [2], np.arange(2, dtype=np.float32).tobytes(), raw=True),
    ]
    outside = TensorProto(name="x", data_type=TensorProto.FLOAT, dims=[5], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="weights.bin")
    body = helper.make_graph([], "body", [], [onnx.ValueInfoProto(name="o")], tensors[:1])
    sparse = helper.make_sparse_tensor(tensors[0], tensors[2], [10])
    node = helper.make_node(
        "Op", ["a", "", "b"], ["c"], "n", domain="d", f=0.1, i=-5, s="text", t=tensors[0], g=body, floats=[0.1, 2.0],
        ints=[1, -1, 2**40], strings=["p", "q"], tensors=tensors, graphs=[body, body], sp=sparse, sps=[sparse],
        tp=helper.make_tensor_type_proto(1, [2, "n", None]),
    )  # fmt: skip
    node.attribute.add(name="ref", ref_attr_name="outer", type=AttributeProto.INT)
    types = [
        helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 3, None]),
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(7, None)),
        helper.make_map_type_proto(8, helper.make_tensor_type_proto(1, [])),
        helper.make_optional_type_proto(helper.make_sparse_tensor_type_proto(1, [1])),
    ]
    infos = [helper.make_value_info(f"v{k}", t) for k, t in enumerate(types)]
    graph = helper.make_graph([node] * 3, "g", infos, infos[:1], [*tensors, outside], "doc", infos[1:], [sparse])
    function = helper.make_function(
        "d", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 20)], ["k"], [helper.make_attribute("z", 1)]
    )
    made = helper.make_model(graph, producer_name="tests", functions=[function], ir_version=10)
    made.metadata_props.add(key="k", value="v")
    made.model_version = -3
    return made


def assert_same(ours: Any, theirs: Any, where: str = "model") -> None:
    """Every field of ours holds what protobuf's message holds, absent ones included."""
    for name, kind, repeated, sub in {row[0]: row for row in type(ours)._fields.values()}.values():
        here, there = getattr(ours, name), getattr(theirs, name)
        if name in ("type", "data_location") and sub is None and not theirs.HasField(name):
            continue  # protobuf hides numbers that the enumeration lacks, we name them in the error
        if repeated:
            assert len(here) == len(there), f"{where}.{name}"
            pairs = list(zip(here, there, strict=True))
        else:
            assert ours.HasField(name) == theirs.HasField(name), f"{where}.{name}"
            pairs = [(here, there)] if sub is None or ours.HasField(name) else []
        for k, (a, b) in enumerate(pairs):
            if sub is not None:
                assert_same(a, b, f"{where}.{name}[{k}]")
            elif kind in ("float", "double"):
                assert np.float64(a).tobytes() == np.float64(b).tobytes(), f"{where}.{name}[{k}]"
            else:
                assert (bytes(a) if kind in ("bytes", "view") else a) == b, f"{where}.{name}[{k}]"
    if ours._oneof:
        assert ours.WhichOneof("value") == theirs.WhichOneof("value"), where


def test_every_field() -> None:
    model = rich_model()
    assert_same(parse_model(model.SerializeToString()), model)


def test_fields_in_any_order_merge_as_protobuf_merges_them() -> None:
    """Two halves of a model one after the other are one model: repeated fields join, the last scalar counts."""
    data = rich_model().SerializeToString() * 2
    assert_same(parse_model(data), onnx.ModelProto.FromString(data))


def test_packed_and_unpacked_numbers_mix() -> None:
    numbers = [0, 1, 127, 128, 300, 2**63 - 1, 2**64 - 1, 2**64 - 5]
    packed = b"".join(map(varint, numbers))
    for field in (1, 5, 7, 11):  # dims, int32_data, int64_data, uint64_data
        tensor = delimited(field, packed) + varint(field << 3) + varint(9) + delimited(field, packed)
        data = delimited(7, delimited(5, tensor))
        assert_same(parse_model(data), onnx.ModelProto.FromString(data))


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files(seed: int) -> None:
    """What both accept reads alike; nothing but WireError comes out."""
    data = rich_model().SerializeToString()
    rng = np.random.default_rng(seed)
    agreed = 0
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(rng.integers(1, 3)):
            changed[rng.integers(len(data))] = rng.integers(256)
        if rng.integers(4) == 0:
            del changed[rng.integers(len(data)) :]
        try:
            ours = parse_model(bytes(changed))
        except WireError:
            continue
        try:
            theirs = onnx.ModelProto.FromString(bytes(changed))
            str(theirs)
        except (DecodeError, UnicodeDecodeError):
            continue
        try:
            assert_same(ours, theirs)
        except UnicodeDecodeError:
            continue
        agreed += 1
    assert agreed > 20


def test_nesting_is_bounded() -> None:
    graph = b""
    for depth in range(40):  # three messages a level: graph, node, attribute
        if depth == 30:
            parse_model(delimited(7, graph))
        graph = delimited(1, delimited(5, delimited(6, graph)))
    with pytest.raises(WireError, match="nest"):
        parse_model(delimited(7, graph))


def test_names_that_messages_do_not_have() -> None:
    with pytest.raises(AttributeError):
        _ = Message.__new__(type(parse_model(b""))).nonsense


def test_constants_are_those_of_onnx() -> None:
    assert onnx.IR_VERSION <= proto.IR_VERSION
    for name, number in TensorProto.DataType.items():
        assert proto.DATA_TYPES.get(name, number) == number
    assert dict(AttributeProto.AttributeType.items()) == {n: k for k, n in enumerate(proto.AttributeKind.NAMES)}
    for name, number in AttributeProto.AttributeType.items():
        assert getattr(proto.AttributeKind, name) == number


def test_schemas_are_those_of_onnx() -> None:
    """The table is that of the installed onnx, or of a newer one."""
    kept = Path(schemas.__file__).with_name("schemas.txt").read_text(encoding="utf-8")
    made = schemas.schema_table()
    if kept.split()[0] == onnx.__version__:
        assert kept == made, "run python -m mnnpy.convert.onnx.schemas"
    rows = {tuple(line.split(" ", 2)[:2]): line.split(" ", 2)[2].split("; ") for line in kept.splitlines()[1:]}
    for line in made.splitlines()[1:]:
        domain, op, text = line.split(" ", 2)
        assert set(text.split("; ")) <= set(rows[domain, op]), f"{op}: run python -m mnnpy.convert.onnx.schemas"
