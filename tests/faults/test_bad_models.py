"""Malformed ONNX models: each is refused by a ModelError that says what is wrong, nothing else ever comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper

from mnnpy.convert import from_onnx
from mnnpy.errors import ModelError
from tests.unit.onnx_models import model, node

F = TensorProto.FLOAT


def good() -> onnx.ModelProto:
    """Relu(Conv(x, w)) with a loop behind it."""
    step = helper.make_graph(
        [node("Add", ["v", "k"], ["v2"]), node("Identity", ["c"], ["c2"])],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", F, [1, 2, 3, 3]),
        ],
        [onnx.ValueInfoProto(name="c2"), onnx.ValueInfoProto(name="v2")],
    )
    nodes = [
        node("Conv", ["x", "w"], ["a"], "conv", kernel_shape=[2, 2]),
        node("Relu", ["a"], ["b"], "relu"),
        node("Loop", ["n", "", "b"], ["y"], "loop", body=step),
    ]
    constants = {"w": np.ones((2, 1, 2, 2), np.float32), "n": np.array(3), "k": np.float32(1)}
    return model(nodes, {"x": np.ones((1, 1, 4, 4), np.float32)}, ["y"], constants=constants)


def attribute(p: onnx.ModelProto, index: int = 0) -> AttributeProto:
    return p.graph.node[0].attribute[index]


def nest(p: onnx.ModelProto, depth: int) -> None:
    """Ifs inside Ifs."""
    graph = helper.make_graph([node("Identity", ["x"], ["r"])], "leaf", [], [onnx.ValueInfoProto(name="r")])
    for _ in range(depth):
        outer = onnx.GraphProto(name="level", output=[onnx.ValueInfoProto(name="r")])
        made = outer.node.add(op_type="If", input=["c"], output=["r"])
        for key in ("then_branch", "else_branch"):
            made.attribute.add(name=key, type=AttributeProto.GRAPH).g.CopyFrom(
                graph if key == "then_branch" else _leaf()
            )
        graph = outer
    p.graph.CopyFrom(graph)
    p.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    p.graph.input.append(helper.make_tensor_value_info("x", F, [1]))


def _leaf() -> onnx.GraphProto:
    return helper.make_graph([node("Identity", ["x"], ["r"])], "leaf", [], [onnx.ValueInfoProto(name="r")])


def explode(p: onnx.ModelProto) -> None:
    """Functions that call each other twice, forty deep: 2^40 nodes."""
    imports = [helper.make_opsetid("", 28), helper.make_opsetid("local", 1)]
    for k in range(40):
        call = f"F{k + 1}" if k < 39 else "Leaf"
        nodes = [node(call, ["a"], ["t"], domain="local"), node(call, ["t"], ["b"], domain="local")]
        p.functions.append(helper.make_function("local", f"F{k}", ["a"], ["b"], nodes, imports))
    p.functions.append(helper.make_function("local", "Leaf", ["a"], ["b"], [node("Relu", ["a"], ["b"])] * 1, imports))
    p.opset_import.add(domain="local", version=1)
    p.graph.node.append(node("F0", ["y"], ["z"], domain="local"))


def _set(path: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    """Set a field given as ``graph.node[0].op_type``."""

    def change(p: onnx.ModelProto) -> None:
        target, _, field = path.rpartition(".")
        setattr(eval(f"p.{target}" if target else "p", {"p": p}), field, value)

    return change


def _extend(path: str, *values: Any) -> Callable[[onnx.ModelProto], None]:
    return lambda p: eval(f"p.{path}", {"p": p}).extend(values)  # type: ignore[no-any-return]


def _tensor(**fields: Any) -> Callable[[onnx.ModelProto], None]:
    def change(p: onnx.ModelProto) -> None:
        del p.graph.initializer[0]
        p.graph.initializer.append(TensorProto(name="w", **fields))

    return change


DAMAGE: list[tuple[str, Callable[[onnx.ModelProto], Any], str]] = [
    ("no-graph", lambda p: p.ClearField("graph"), "holds no graph"),
    ("no-ir-version", _set("ir_version", 0), "IR version"),
    ("future-ir-version", _set("ir_version", 999), "IR version 999.*update mnnpy-engine"),
    ("future-opset", _set("opset_import[0].version", 999), "opset 999.*update mnnpy-engine"),
    ("opset-zero", _set("opset_import[0].version", 0), "opsets start at 1"),
    ("no-opset", lambda p: p.ClearField("opset_import"), "opset_import"),
    ("raw-too-short", _tensor(data_type=F, dims=[2, 1, 2, 2], raw_data=b"1234"), "raw_data has 4 bytes.*needs 32"),
    ("raw-too-long", _tensor(data_type=F, dims=[1], raw_data=b"12345678"), "raw_data has 8 bytes.*needs 4"),
    ("fields-too-short", _tensor(data_type=F, dims=[3], float_data=[1.0]), "float_data has 1 entries.*needs 3"),
    ("wrong-field", _tensor(data_type=F, dims=[1], int32_data=[1]), "float_data has 0 entries"),
    ("huge-dims", _tensor(data_type=F, dims=[1 << 40, 1 << 40]), "float_data has 0 entries"),
    ("negative-dims", _tensor(data_type=F, dims=[-2, -2], raw_data=bytes(16)), "negative size"),
    ("unknown-type", _tensor(data_type=99, dims=[1], raw_data=bytes(4)), "element type number 99"),
    ("undefined-type", _tensor(dims=[1], raw_data=bytes(4)), "element type number 0"),
    ("bad-utf8", _tensor(data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff"]), "not UTF-8"),
    ("strings-missing", _tensor(data_type=TensorProto.STRING, dims=[2], string_data=[b"a"]), "1 strings"),
    (
        "segment",
        _tensor(data_type=F, dims=[1], float_data=[1], segment=TensorProto.Segment(begin=0, end=1)),
        "segmented",
    ),
    ("negative-input-dim", _set("graph.input[0].type.tensor_type.shape.dim[0].dim_value", -7), "size -7 is negative"),
    ("unknown-input-type", _set("graph.input[0].type.tensor_type.elem_type", 77), "element type number 77"),
    ("nameless-input", _set("graph.input[0].name", ""), "input has no name"),
    ("nameless-initializer", _set("graph.initializer[0].name", ""), "initializer has no name"),
    ("input-twice", lambda p: p.graph.input.append(p.graph.input[0]), "listed twice"),
    ("missing-operand", _set("graph.node[1].op_type", "Add"), "takes 2"),
    (
        "unknown-operand",
        lambda p: p.graph.node[1].input.__setitem__(0, "nowhere"),
        "'relu' .*'nowhere' is produced by no",
    ),
    ("missing-output", _set("graph.output[0].name", "nowhere"), "output 'nowhere'"),
    ("written-twice", lambda p: p.graph.node[1].output.__setitem__(0, "a"), "'a' is defined twice"),
    ("writes-an-input", lambda p: p.graph.node[1].output.__setitem__(0, "x"), "'x' is defined twice"),
    ("cycle", lambda p: p.graph.node[0].input.__setitem__(0, "b"), "cycle through 'conv' .* → 'relu'"),
    ("self-cycle", lambda p: p.graph.node[1].input.__setitem__(0, "b"), "cycle through 'relu'"),
    ("too-many-operands", _extend("graph.node[1].input", "x", "x"), "takes 1.* inputs, the node has 3"),
    ("too-many-results", _extend("graph.node[1].output", "p", "q"), "at most 1 outputs"),
    (
        "misspelt-attribute",
        lambda p: setattr(attribute(p), "name", "kernel_shap"),
        "no attribute 'kernel_shap'; did you mean 'kernel_shape'",
    ),
    ("attribute-twice", lambda p: p.graph.node[0].attribute.append(attribute(p)), "given twice"),
    (
        "attribute-of-wrong-type",
        lambda p: attribute(p).CopyFrom(helper.make_attribute("kernel_shape", 1.5)),
        "is FLOAT, it must be INTS",
    ),
    (
        "attribute-text-not-utf8",
        lambda p: p.graph.node[0].attribute.append(helper.make_attribute("auto_pad", b"\xff\xfe")),
        "not UTF-8",
    ),
    ("reference-outside-function", lambda p: setattr(attribute(p), "ref_attr_name", "k"), "outside of any function"),
    ("body-missing", lambda p: p.graph.node[2].ClearField("attribute"), "needs attribute 'body'"),
    (
        "body-output-missing",
        lambda p: setattr(p.graph.node[2].attribute[0].g.output[1], "name", "nowhere"),
        "output 'nowhere'",
    ),
    (
        "body-operand-missing",
        lambda p: p.graph.node[2].attribute[0].g.node[0].input.__setitem__(0, "nowhere"),
        "'nowhere'",
    ),
    ("deep-bodies", lambda p: nest(p, 80), "nested more than 64"),
    ("exploding-functions", explode, "more than 4000000 nodes|too deeply"),
    (
        "nodes-before-opset-1-form",
        lambda p: p.graph.node.append(node("Relu", ["y"], ["z"], domain="ai.onnx.ml")),
        "which opset of 'ai.onnx.ml'",
    ),
]


@pytest.mark.parametrize("damage,message", [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damage_is_named(damage: Callable[[onnx.ModelProto], Any], message: str) -> None:
    proto = good()
    from_onnx(proto, check_ops=False)
    damage(proto)
    with pytest.raises(ModelError, match=message):
        from_onnx(proto)


def test_deep_file_is_refused_by_the_parser_or_by_us() -> None:
    proto = good()
    nest(proto, 60)
    with pytest.raises(ModelError):
        from_onnx(proto.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"\x00", b"not a model", b"\x08", bytes(1000), b"\xff" * 100], ids=range(6))
def test_not_a_model(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ModelError):
            from_onnx(source)


def test_paths_and_types_that_are_no_model(tmp_path: Path) -> None:
    for source in (tmp_path / "missing.onnx", tmp_path, "a\0b"):
        with pytest.raises(ModelError, match="cannot read"):
            from_onnx(source)
    with pytest.raises(ModelError, match="not int"):
        from_onnx(3)  # type: ignore[arg-type]


def test_truncated_at_every_length() -> None:
    """A prefix is refused, or is a smaller model; no other error comes out."""
    data = good().SerializeToString()
    refused = 0
    for size in range(len(data)):
        try:
            from_onnx(data[:size], check_ops=False)
        except ModelError:
            refused += 1
    assert refused > len(data) * 0.9


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_in_a_model(seed: int) -> None:
    data = good().SerializeToString()
    rng = np.random.default_rng(seed)
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(data))] = rng.integers(256)
        try:
            from_onnx(bytes(changed), check_ops=False)
        except ModelError:
            pass
