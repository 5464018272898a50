"""The ONNX front end: names, bodies, functions, order, types, constants, external data, unknown ops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from mnnpy.convert import convert, from_onnx, to_onnx
from mnnpy.errors import ModelError, UnsupportedOpError
from mnnpy.graph.dims import sym
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, SequenceType, TensorType
from tests.unit.onnx_models import model, node, run, run_onnx

F = TensorProto.FLOAT


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def info(name: str, shape: Sequence[int | str | None] | None = (), kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def body(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[str], **more: Any
) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, [onnx.ValueInfoProto(name=o) for o in outputs], **more)


def bodies(graph: Graph) -> dict[str, Graph]:
    return {key: b for n in graph.nodes for key, b in n.subgraphs()}


# -- bodies --


def test_if_branches_take_the_same_captures() -> None:
    a = body([node("Add", ["x", "y"], ["r"])], [], ["r"])
    b = body([node("Mul", ["z", "x"], ["r"])], [], ["r"])
    feeds = {"c": np.array(True), "x": floats(2), "y": floats(3), "z": floats(5)}
    proto = model([node("If", ["c"], ["out"], then_branch=a, else_branch=b)], feeds, ["out"])
    graph = from_onnx(proto, check_ops=False)
    (found,) = graph.nodes
    assert found.inputs[0] == "c"
    assert sorted(found.inputs[1:]) == ["x", "y", "z"]
    assert "captures" not in found.attrs
    for branch in bodies(graph).values():
        assert len(branch.inputs) == 3
        branch.check()
        assert [v.type for v in branch.inputs] == [TensorType(DType.F32, (1,))] * 3
    names = [
        v for g in (graph, *bodies(graph).values()) for v in (*g.input_names, *(o for n in g.nodes for o in n.outputs))
    ]
    assert len(names) == len(set(names)), "value names are unique in the whole model"
    assert run_onnx(graph, feeds)[0] == [5]
    assert run_onnx(graph, {**feeds, "c": np.array(False)})[0] == [10]


def test_loop_with_captures_constants_and_shadowing() -> None:
    """Nested loops that capture through two levels, a captured weight, and names used again inside."""
    inner = body(
        [node("Add", ["v", "x"], ["t"]), node("Mul", ["t", "w"], ["v2"]), node("Identity", ["c"], ["c2"])],
        [info("i", (), TensorProto.INT64), info("c", (), TensorProto.BOOL), info("v", (1,))],
        ["c2", "v2"],
    )
    outer = body(
        [node("Loop", ["two", "", "v"], ["r"], body=inner), node("Identity", ["c"], ["c2"])],
        [info("i", (), TensorProto.INT64), info("c", (), TensorProto.BOOL), info("v", (1,))],
        ["c2", "r", "r"],
    )
    feeds = {"n": np.array(2), "x": floats(1), "v": floats(3)}
    constants = {"two": np.array(2), "w": floats(0.5)}
    proto = model([node("Loop", ["n", "", "v"], ["f", "scan"], body=outer)], feeds, ["f", "scan"], constants=constants)
    graph = from_onnx(proto, check_ops=False)
    (loop,) = graph.nodes
    assert loop.inputs == ("n", "", "v", "x")
    assert loop.attrs["captures"] == 1
    middle = bodies(graph)["body"]
    assert len(middle.inputs) == 4
    assert [a.item() for a in middle.constants.values()] == [2]
    (nested,) = (n for n in middle.nodes if n.op == "Loop")
    assert nested.inputs[-1] == middle.input_names[-1]
    assert nested.attrs["captures"] == 1
    assert [a.item() for a in bodies(middle)["body"].constants.values()] == [0.5]
    v, scans = 3.0, []
    for _ in range(2):
        for _ in range(2):
            v = (v + 1) * 0.5
        scans.append([v])
    final, scan = run(graph, feeds)
    assert final == [v]
    assert scan.tolist() == scans


def test_loop_without_trip_count_keeps_its_places() -> None:
    step = body(
        [node("Identity", ["k"], ["s"]), node("Less", ["i", "n"], ["c2"])],
        [info("i", (), TensorProto.INT64), info("c", (), TensorProto.BOOL)],
        ["c2", "s"],
    )
    graph = from_onnx(
        model([node("Loop", ["", ""], ["y"], body=step)], {"k": floats(1), "n": np.array(3)}, ["y"]), check_ops=False
    )
    assert graph.nodes[0].inputs[:2] == ("", "")
    assert sorted(graph.nodes[0].inputs[2:]) == ["k", "n"]


def test_body_may_return_what_it_captures() -> None:
    a, b = body([], [], ["x"]), body([], [], ["w"])
    feeds = {"c": np.array(False), "x": floats(2)}
    graph = from_onnx(
        model([node("If", ["c"], ["y"], then_branch=a, else_branch=b)], feeds, ["y"], constants={"w": floats(7)}),
        check_ops=False,
    )
    assert graph.nodes[0].inputs == ("c", "x")
    assert run_onnx(graph, feeds)[0] == [7]
    assert run_onnx(graph, {**feeds, "c": np.array(True)})[0] == [2]


def test_scan_appends_captures_after_scan_inputs() -> None:
    step = body(
        [node("Add", ["s", "x"], ["t"]), node("Mul", ["t", "k"], ["o"])], [info("s", (1,)), info("x", (1,))], ["t", "o"]
    )
    feeds = {"s0": floats(0), "xs": np.array([[1], [2]], np.float32), "k": floats(10)}
    graph = from_onnx(
        model([node("Scan", ["s0", "xs"], ["f", "ys"], body=step, num_scan_inputs=1)], feeds, ["f", "ys"]),
        check_ops=False,
    )
    assert graph.nodes[0].inputs == ("s0", "xs", "k")
    assert graph.nodes[0].attrs["captures"] == 1
    assert [r.tolist() for r in run_onnx(graph, feeds)] == [[3], [[10], [30]]]


def test_name_used_in_both_branches_and_later_at_the_top() -> None:
    """A body may not take a name that the top level uses further down."""
    a, b = (body([node(op, ["x"], ["late"])], [], ["late"]) for op in ("Neg", "Abs"))
    nodes = [node("If", ["c"], ["y"], then_branch=a, else_branch=b), node("Exp", ["y"], ["late"])]
    graph = from_onnx(model(nodes, {"c": np.array(True), "x": floats(1)}, ["late"]), check_ops=False)
    assert graph.nodes[-1].outputs == ("late",)
    assert {b.output_names for b in bodies(graph).values()} == {("late.1",), ("late.2",)}


# -- functions --


def function(
    name: str, inputs: list[str], outputs: list[str], nodes: list[onnx.NodeProto], **more: Any
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", more.pop("opset", 28)), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, inputs, outputs, nodes, imports, **more)


def reference(op: str, inputs: list[str], outputs: list[str], attr: str, to: str, kind: int) -> onnx.NodeProto:
    made = node(op, inputs, outputs)
    made.attribute.append(AttributeProto(name=attr, ref_attr_name=to, type=kind))
    return made


def test_functions_are_inlined_with_attributes_and_their_own_opset() -> None:
    leaky = function(
        "Leak", ["a"], ["b"], [reference("LeakyRelu", ["a"], ["b"], "alpha", "slope", AttributeProto.FLOAT)],
        attribute_protos=[helper.make_attribute("slope", 0.5)],
    )  # fmt: skip
    outer = function(
        "Outer", ["x", "unused"], ["y", "x2"],
        [
            node("Leak", ["x"], ["t"], domain="local"),
            node("Leak", ["t"], ["u"], name="named", domain="local", slope=0.25),
            node("Unsqueeze", ["u"], ["y"], axes=[0]),
            node("Identity", ["x"], ["x2"]),
        ],
        opset=11,
    )  # fmt: skip
    nodes = [node("Outer", ["p"], ["q"], name="call", domain="local"), node("Outer", ["q"], ["r", "s"], domain="local")]
    feeds = {"p": floats(-8, 1)}
    graph = from_onnx(model(nodes, feeds, ["r", "s"], functions=[leaky, outer], opsets={"local": 1}), check_ops=False)
    assert not any("local" in n.op for n in graph.nodes)
    assert "call/named/" in {n.name for n in graph.nodes}
    r, s = run_onnx(graph, feeds)
    np.testing.assert_allclose(r, [[[-8 * 0.125**2, 1]]])
    np.testing.assert_allclose(s, [[-1, 1]])


def test_reference_to_an_absent_argument_is_no_attribute() -> None:
    f = function(
        "F",
        ["a"],
        ["b"],
        [reference("LeakyRelu", ["a"], ["b"], "alpha", "slope", AttributeProto.FLOAT)],
        attributes=["slope"],
    )
    call = node("F", ["x"], ["y"], domain="local")
    graph = from_onnx(model([call], {"x": floats(-1)}, ["y"], functions=[f], opsets={"local": 1}), check_ops=False)
    assert not graph.nodes[0].attrs


def test_function_that_hands_its_input_through_and_captures_in_a_body() -> None:
    a, b = body([node("Add", ["v", "one"], ["r"])], [], ["r"]), body([], [], ["v"])
    f = function(
        "F", ["c", "v"], ["v", "r2", "r2"],
        [node("Constant", [], ["one"], value_floats=[1.0]), node("If", ["c"], ["r2"], then_branch=a, else_branch=b)],
    )  # fmt: skip
    feeds = {"c": np.array(True), "x": floats(4)}
    call = node("F", ["c", "x"], ["p", "q", "r"], domain="local")
    graph = from_onnx(model([call], feeds, ["p", "q", "r"], functions=[f], opsets={"local": 1}), check_ops=False)
    assert [r.tolist() for r in run_onnx(graph, feeds)] == [[4], [5], [5]]


def test_recursive_functions_are_refused() -> None:
    f = function("F", ["a"], ["b"], [node("G", ["a"], ["b"], domain="local")])
    g = function("G", ["a"], ["b"], [node("F", ["a"], ["b"], domain="local")])
    with pytest.raises(ModelError, match="F → G → F"):
        from_onnx(
            model(
                [node("F", ["x"], ["y"], domain="local")],
                {"x": floats(1)},
                ["y"],
                functions=[f, g],
                opsets={"local": 1},
            )
        )


# -- order --


def test_unsorted_graph_is_sorted() -> None:
    a = body([node("Neg", ["late"], ["r"])], [], ["r"])
    nodes = [
        node("If", ["c"], ["y"], then_branch=a, else_branch=a),
        node("Exp", ["t"], ["late"]),
        node("Abs", ["x"], ["t"]),
    ]
    graph = from_onnx(model(nodes, {"c": np.array(True), "x": floats(1)}, ["y"]), check_ops=False)
    assert [n.op for n in graph.nodes] == ["Abs", "Exp", "If"]


def test_cycle_is_named() -> None:
    nodes = [
        node("Add", ["x", "c"], ["a"], "first"),
        node("Exp", ["a"], ["b"], "second"),
        node("Neg", ["b"], ["c"]),
        node("Abs", ["c"], ["y"]),
    ]
    with pytest.raises(ModelError, match=r"cycle through .*'first' \(Add\) → 'second' \(Exp\) → 'c' \(Neg\)"):
        from_onnx(model(nodes, {"x": floats(1)}, ["y"]))


@pytest.mark.parametrize("reverse", [False, True])
def test_hundred_thousand_nodes(reverse: bool) -> None:
    n = 100_000
    proto = model([], {"x0": floats(1)}, [f"x{n}"])
    numbers = range(n, 0, -1) if reverse else range(1, n + 1)
    proto.graph.node.extend(onnx.NodeProto(op_type="Relu", input=[f"x{k - 1}"], output=[f"x{k}"]) for k in numbers)
    start = time.process_time()
    graph = from_onnx(proto, check_ops=False)
    assert time.process_time() - start < 5
    assert graph.nodes[0].outputs == ("x1",)
    assert len(graph.nodes) == n


# -- types and constants --


def test_symbolic_and_missing_sizes() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {}, ["y"])
    proto.graph.input.append(info("x", ["batch", None, 3, -1]))
    proto.graph.value_info.append(info("y", ["batch", None, 3, "batch"]))
    graph = from_onnx(proto, check_ops=False)
    assert graph.inputs[0].type == TensorType(DType.F32, (sym("batch"), sym("x_d1"), 3, sym("x_d3")))
    result = TensorType(DType.F32, (sym("batch"), sym("y_d1"), 3, sym("batch")))
    assert graph.types["y"] == graph.outputs[0].type == result
    proto.graph.input.append(info("z", ["?", "?", "None"]))
    found = from_onnx(proto, check_ops=False).inputs[1].type
    assert found == TensorType(DType.F32, (sym("z_d0"), sym("z_d1"), sym("z_d2")))


def test_unknown_rank_sequences_and_untyped_inputs() -> None:
    proto = model([node("SequenceLength", ["s"], ["y"])], {}, ["y"])
    proto.graph.input.append(info("x", None))
    proto.graph.input.append(helper.make_tensor_sequence_value_info("s", F, None))
    proto.graph.input.append(onnx.ValueInfoProto(name="untyped"))
    graph = from_onnx(proto, check_ops=False)
    assert [v.type for v in graph.inputs] == [TensorType(DType.F32), SequenceType(TensorType(DType.F32)), None]


def test_initializer_that_is_an_input_is_a_default_from_ir_4_on() -> None:
    for ir_version, expected in ((3, ("x",)), (4, ("x", "w"))):
        proto = model(
            [node("Add", ["x", "w"], ["y"])],
            {"x": floats(1), "w": floats(1)},
            ["y"],
            8,
            constants={"w": floats(2)},
            ir_version=ir_version,
        )
        graph = from_onnx(proto, check_ops=False)
        assert graph.input_names == expected
        assert graph.constants["w"] == [2]


def test_default_input_is_captured_not_copied() -> None:
    a = body([node("Add", ["x", "w"], ["r"])], [], ["r"])
    feeds = {"c": np.array(True), "x": floats(1), "w": floats(1)}
    proto = model([node("If", ["c"], ["y"], then_branch=a, else_branch=a)], feeds, ["y"], constants={"w": floats(2)})
    graph = from_onnx(proto, check_ops=False)
    assert graph.nodes[0].inputs == ("c", "x", "w")


DTYPES = [
    np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.float16, np.float32,
    np.float64, np.complex64, np.complex128, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu, ml_dtypes.int4, ml_dtypes.uint4,
    ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.float4_e2m1fn,
]  # fmt: skip


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "fields"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_every_element_type(dtype: Any, raw: bool) -> None:
    values = np.array([[0, 1, 1], [2, 1, 0]], np.float64)
    if np.dtype(dtype).name in ("int2", "int4", "int8", "float32"):
        values[0, 1] = -2
    array = values.astype(dtype)
    proto = numpy_helper.from_array(array, "w")
    if not raw:
        if array.dtype.kind == "c":
            flat: Any = array.reshape(-1)
        elif proto.data_type in (
            TensorProto.BFLOAT16,
            *range(TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2FNUZ + 1),
        ):
            flat = array.reshape(-1).astype(np.float32)
        else:
            flat = array.reshape(-1)
        try:
            proto = helper.make_tensor("w", proto.data_type, array.shape, flat)
        except Exception as error:
            pytest.skip(f"onnx.helper cannot write {array.dtype}: {error}")
    graph_proto = model([node("Identity", ["w"], ["y"])], {}, ["y"])
    graph_proto.graph.initializer.append(proto)
    got = from_onnx(graph_proto, check_ops=False).constants["w"]
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    np.testing.assert_array_equal(got.astype(np.complex128), array.astype(np.complex128))


def test_odd_number_of_packed_elements() -> None:
    array = np.arange(-3, 4).astype(ml_dtypes.int4)
    proto = model([node("Identity", ["w"], ["y"])], {}, ["y"], constants={"w": array})
    assert from_onnx(proto, check_ops=False).constants["w"].astype(int).tolist() == [-3, -2, -1, 0, 1, 2, 3]


def test_strings_and_sparse_initializers() -> None:
    proto = model([node("Identity", ["w"], ["y"])], {}, ["y", "z"])
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.STRING, [2, 1], ["ä".encode(), b"b"]))
    values = numpy_helper.from_array(floats(1, 2), "z")
    indices = numpy_helper.from_array(np.array([[0, 1], [1, 2]]))
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    graph = from_onnx(proto, check_ops=False)
    assert graph.constants["w"].tolist() == [["ä"], ["b"]]
    assert graph.constants["z"].tolist() == [[0, 1, 0], [0, 0, 2]]


def test_raw_weights_are_not_copied() -> None:
    weights = np.ones(1000, np.float32)
    graph = from_onnx(model([node("Identity", ["w"], ["y"])], {}, ["y"], constants={"w": weights}), check_ops=False)
    assert not graph.constants["w"].flags.owndata
    assert not graph.constants["w"].flags.writeable


def test_attributes_become_python_values() -> None:
    nodes = [
        node("Cast", ["x"], ["a"], to=TensorProto.BFLOAT16),
        node("QuantizeLinear", ["x", "s"], ["b"], output_dtype=0, axis=0),
        node("ConstantOfShape", ["n"], ["c"], value=helper.make_tensor("", TensorProto.INT64, [1], [3])),
        node("Conv", ["i", "w"], ["d"], auto_pad="SAME_UPPER", strides=[2, 1]),
        node("Optional", [], ["e"], type=helper.make_tensor_type_proto(F, [2])),
    ]
    feeds = {
        "x": floats(1),
        "s": floats(1)[0],
        "n": np.array([2]),
        "i": np.ones((1, 1, 4, 4), np.float32),
        "w": np.ones((1, 1, 2, 2), np.float32),
    }
    graph = from_onnx(model(nodes, feeds, ["a", "b", "c", "d", "e"]), check_ops=False)
    cast, quantize, fill, conv, optional = (n.attrs for n in graph.nodes)
    assert cast == {"to": DType.BF16}
    assert quantize == {"axis": 0}
    assert fill["value"].tolist() == [3]
    assert fill["value"].dtype == np.int64
    assert conv == {"auto_pad": "SAME_UPPER", "strides": (2, 1)}
    assert optional == {"type": TensorType(DType.F32, (2,))}


def test_names_of_domains_and_metadata() -> None:
    proto = model(
        [node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml")], {"x": floats(1)}, ["y"], opsets={"ai.onnx.ml": 3}
    )
    proto.producer_name, proto.doc_string = "maker", "a text"
    helper.set_model_props(proto, {"labels": "a,b"})
    graph = from_onnx(proto, check_ops=False)
    assert graph.nodes[0].op == "ml.Normalizer"
    assert graph.metadata["labels"] == "a,b"
    assert graph.metadata["onnx.producer"] == "maker"
    assert graph.metadata["onnx.opset"] == "ai.onnx 28, ai.onnx.ml 3"


def test_split_states_its_number_of_parts() -> None:
    graph = from_onnx(
        model([node("Split", ["x"], ["a", "", "c"])], {"x": floats(1, 2, 3)}, ["a", "c"], 13), check_ops=False
    )
    assert graph.nodes[0].attrs["num_outputs"] == 3
    assert [r.tolist() for r in run_onnx(graph, {"x": floats(1, 2, 3)})] == [[1], [3]]


# -- external data --


def external(folder: Path, location: str = "w.bin", **entries: int) -> Path:
    proto = model([node("Identity", ["w"], ["y"])], {}, ["y"])
    tensor = proto.graph.initializer.add(name="w", data_type=F, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    np.arange(5, dtype=np.float32).tofile(tmp_path / "sub" / "w.bin")
    weights = from_onnx(external(tmp_path, "sub/w.bin", offset=4, length=12), check_ops=False).constants["w"]
    assert weights.tolist() == [1, 2, 3]
    assert not weights.flags.owndata


@pytest.mark.parametrize(
    "location,entries,message",
    [
        ("../w.bin", {}, "not a relative path"),
        ("a/../../w.bin", {}, "not a relative path"),
        ("/etc/hostname", {}, "not a relative path"),
        ("", {}, "not a relative path"),
        ("missing.bin", {}, "cannot read external data"),
        (".", {}, "not a regular file"),
        ("w.bin", {"offset": 12}, "lie outside"),
        ("w.bin", {"offset": -4}, "lie outside"),
        ("w.bin", {"length": 8}, "needs? 12 bytes"),
        ("link.bin", {}, "symbolic link"),
    ],
)
def test_bad_external_data(tmp_path: Path, location: str, entries: dict[str, int], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    np.zeros(5, np.float32).tofile(folder / "w.bin")
    np.zeros(5, np.float32).tofile(tmp_path / "w.bin")
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelError, match=message):
        from_onnx(external(folder, location, **entries))


def test_external_data_needs_a_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pass the path"):
        from_onnx(external(tmp_path).read_bytes())


# -- unknown ops --


def test_all_unknown_ops_are_reported_at_once() -> None:
    nodes = [
        node("FusedConv", ["x"], ["a"], "one", "com.microsoft"),
        node("FusedConv", ["a"], ["b"], "two", "com.microsoft"),
        node("NoSuchOp", ["b"], ["y"]),
    ]
    proto = model(nodes, {"x": floats(1)}, ["y"], opsets={"com.microsoft": 1})
    with pytest.raises(UnsupportedOpError) as caught:
        from_onnx(proto)
    text = str(caught.value)
    assert "FusedConv of domain 'com.microsoft' (opset 1): 2 nodes: 'one', 'two'" in text
    assert "NoSuchOp of domain 'ai.onnx' (opset 28): 1 node: 'y'" in text
    assert [n.op for n in from_onnx(proto, check_ops=False).nodes] == ["com.microsoft.FusedConv"] * 2 + ["NoSuchOp"]


# -- the entry point and the way back --


def test_convert_takes_what_users_have(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": floats(1)}, ["y"])
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    target = tmp_path / "m.mnnpy"
    first = convert(str(path), target, check_ops=False)
    for source in (proto, proto.SerializeToString(), path, first, target):
        assert str(convert(source, check_ops=False)) == str(first)
    with pytest.raises(ModelError, match=r"must end in \.mnnpy"):
        convert(first, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="example_inputs"):
        convert(first, example_inputs=[1])


def test_exported_picture_shows_atomic_ops_and_backends() -> None:
    from mnnpy.decompose.raster import full_region
    from mnnpy.graph.ir import Node, Value

    region = full_region((2, 3))
    graph = Graph(
        "g",
        (Value("x", TensorType(DType.F32, (2, 3))),),
        (Value("y"),),
        (
            Node("Raster", ("x",), ("r",), {"regions": (region,), "shape": (2, 3), "fill": None}),
            Node("Unary", ("r",), ("u",), {"fn": "Exp"}, "exp"),
            Node("Add", ("u", "w"), ("y",)),
        ),
        {"w": np.zeros((1000, 1000), np.float32)},
    )
    proto = to_onnx(graph, backends={"exp": "cpu", "y": "reference"})
    assert [(n.domain, n.op_type) for n in proto.graph.node] == [("mnnpy", "Raster"), ("mnnpy", "Unary"), ("", "Add")]
    assert [n.doc_string for n in proto.graph.node] == ["", "backend: cpu", "backend: reference"]
    assert len(proto.SerializeToString()) < 5000


def test_round_trip_through_onnx() -> None:
    step = body([node("Add", ["s", "k"], ["t"]), node("Cast", ["t"], ["o"], to=F)], [info("s", (1,))], ["t", "o"])
    feeds = {"s0": floats(0), "k": floats(10), "xs": floats(1)}
    proto = model([node("Scan", ["s0", "xs"], ["f", "ys"], body=body(
        [node("Add", ["s", "k"], ["t"]), node("Identity", ["x"], ["o"])], [info("s", (1,)), info("x", ())], ["t", "o"]
    ), num_scan_inputs=1)], feeds, ["f", "ys"])  # fmt: skip
    del step
    first = from_onnx(proto, check_ops=False)
    again = from_onnx(to_onnx(first, weights=True), check_ops=False)
    assert [n.op for n in again.nodes] == [n.op for n in first.nodes]
    assert [n.inputs for n in again.nodes] == [n.inputs for n in first.nodes]
    assert run_onnx(again, feeds)[0] == [10]


def test_absent_operands_inside_and_at_the_end() -> None:
    feeds = {"x": floats(1, 2, 3)}
    proto = model(
        [node("Clip", ["x", "", "hi"], ["y"]), node("Clip", ["y", "", ""], ["z"])],
        feeds,
        ["z"],
        constants={"hi": np.float32(2)},
    )
    graph = from_onnx(proto, check_ops=False)
    assert [n.inputs for n in graph.nodes] == [("x", "", "hi"), ("y",)]
    assert run_onnx(graph, feeds)[0].tolist() == [1, 2, 2]


# -- large files --


def large_model(shift: int) -> bytes:
    """Two megabytes of weights in all places; *shift* moves them in the file."""
    weights = {f"w{k}": np.arange(100_000 + k, dtype=np.float32) for k in range(5)}
    nodes = [node("Relu", ["w0"], ["y"]), node("Constant", [], ["c"], value=numpy_helper.from_array(weights["w1"]))]
    proto = model(nodes, {}, ["y", "c", "w4"], constants=weights)
    proto.producer_name = "p" * shift
    return proto.SerializeToString()


@pytest.mark.parametrize("shift", range(4))
def test_large_file_is_read_as_its_bytes_are(tmp_path: Path, shift: int) -> None:
    data = large_model(shift + 1)
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    mapped, parsed = from_onnx(path, check_ops=False), from_onnx(data, check_ops=False)
    assert str(mapped) == str(parsed)
    for name, array in parsed.constants.items():
        np.testing.assert_array_equal(mapped.constants[name], array)
        assert mapped.constants[name].flags.aligned


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 100_000, (1 << 21) - 40])
def test_truncated_large_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(large_model(1)[:size])
    with pytest.raises(ModelError, match="truncated"):
        from_onnx(path)


def test_wrong_length_in_a_large_file(tmp_path: Path) -> None:
    proto = onnx.ModelProto.FromString(large_model(1))
    proto.graph.initializer[0].dims[0] -= 1
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="'w0': raw_data has 400000 bytes"):
        from_onnx(tmp_path / "m.onnx", check_ops=False)


@pytest.mark.parametrize("index", ["0", "-1", "x", ""])
def test_location_that_pretends_to_be_embedded(tmp_path: Path, index: str) -> None:
    with pytest.raises(ModelError, match="not a relative path inside"):
        from_onnx(external(tmp_path, f"\0embedded:{index}"))
