"""What a Session refuses at its door, what models may do with shapes and values, and the words of each refusal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mnnpy
from mnnpy.errors import BackendError, InputError, MnnpyError, ModelError, ShapeError, UnsupportedOpError

ort = pytest.importorskip("onnxruntime")

F, I64 = TensorProto.FLOAT, TensorProto.INT64
HUGE = 1 << 40


def make(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[int | str] | None]],
    outputs: Sequence[str],
    constants: dict[str, Any] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), name=f"{op}_of_{outputs[0]}", **attrs)


def add_model(shape: Sequence[int | str] = ("n", 3)) -> onnx.ModelProto:
    return make([node("Add", ["a", "b"], ["y"])], {"a": (F, shape), "b": (F, shape)}, ["y"])


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


BACKENDS = ("cpu", "reference")

# -- feeds --

FEEDS: list[tuple[str, Any, str]] = [
    ("missing", {"a": ones(2, 3)}, r"missing input\(s\): b: f32\[n,3\]"),
    ("both missing", {}, r"missing input\(s\): a: .*, b: "),
    ("extra", {"a": ones(2, 3), "b": ones(2, 3), "c": ones(1)}, "unknown input 'c'"),
    ("misspelt", {"aa": ones(2, 3), "b": ones(2, 3)}, "did you mean 'a'"),
    ("dtype", {"a": ones(2, 3, dtype=np.float64), "b": ones(2, 3)}, r"'a' must be float32, got float64; use .astype"),
    ("integer", {"a": ones(2, 3, dtype=np.int64), "b": ones(2, 3)}, "must be float32, got int64"),
    ("rank", {"a": ones(3), "b": ones(2, 3)}, r"'a' must have rank 2 \[n,3\], got shape \(3,\)"),
    ("size", {"a": ones(2, 4), "b": ones(2, 3)}, r"'a' must have shape \[n,3\], got \(2, 4\) \(dimension 1\)"),
    ("symbol", {"a": ones(2, 3), "b": ones(4, 3)}, "'b' has n=4 .*'a' has n=2"),
    ("none", {"a": None, "b": ones(2, 3)}, "'a'"),
    ("ragged", {"a": [[1.0], [1.0, 2.0, 3.0]], "b": ones(2, 3)}, "'a' is not convertible to an array"),
    ("strings", {"a": np.array([["x"] * 3]), "b": ones(1, 3)}, "'a' must be float32"),
    ("no mapping", [ones(2, 3), ones(2, 3)], "feeds.*name"),
    ("number", 3, "feeds.*name"),
    ("unhashable", {("a",): ones(2, 3), "b": ones(2, 3)}, "unknown input"),
]


@pytest.mark.parametrize("feeds,message", [f[1:] for f in FEEDS], ids=[f[0] for f in FEEDS])
def test_feeds_are_refused_by_name(feeds: Any, message: str) -> None:
    session = mnnpy.Session(add_model(), threads=1)
    for _ in range(2):  # before and after a good run
        with pytest.raises(InputError, match=message):
            session.run(None, feeds)
        good = {"a": ones(2, 3), "b": ones(2, 3)}
        assert (session.run(None, good)[0] == 2).all()


def test_output_names() -> None:
    session = mnnpy.Session(add_model(), threads=1)
    good = {"a": ones(2, 3), "b": ones(2, 3)}
    with pytest.raises(InputError, match=r"unknown output 'z'; .*y"):
        session.run(["z"], good)
    assert len(session.run(["y", "y"], good)) == 2
    assert session.run([], good) == []


def test_strided_unaligned_and_read_only_feeds_work() -> None:
    session = mnnpy.Session(add_model(), threads=1)
    a = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    b = np.broadcast_to(np.float32(1), (2, 3))
    np.testing.assert_array_equal(session.run(None, {"a": a, "b": b})[0], a + 1)
    odd = np.frombuffer(b"x" + a.tobytes(), np.float32, offset=1).reshape(a.shape)
    assert not odd.flags.aligned
    for _ in range(2):
        np.testing.assert_array_equal(session.run(None, {"a": odd, "b": b})[0], a + 1)


# -- sizes: zero, huge, negative, overflowing --


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_sized_input(backend: str) -> None:
    nodes = [
        node("MatMul", ["a", "w"], ["t"]),
        node("Relu", ["t"], ["r"]),
        node("ReduceSum", ["r", "axis"], ["y"]),
        node("Concat", ["r", "r"], ["z"], axis=0),
    ]
    model = make(nodes, {"a": (F, ["n", 3])}, ["y", "z", "r"], {"w": ones(3, 5), "axis": np.array([0])})
    y, z, r = mnnpy.Session(model, backend, threads=1).run(None, {"a": ones(0, 3)})
    assert y.shape == (1, 5)
    assert z.shape == (0, 5)
    assert r.shape == (0, 5)
    assert (y == 0).all()


def test_scaled_product_without_columns() -> None:
    nodes = [node("MatMul", ["a", "b"], ["t"]), node("Div", ["t", "k"], ["y"])]
    model = make(nodes, {"a": (F, [2, 3]), "b": (F, [3, "n"])}, ["y"], {"k": np.float32(2)})
    assert mnnpy.Session(model, threads=1).run(None, {"a": ones(2, 3), "b": ones(3, 0)})[0].shape == (2, 0)


def _sized(op: str, inputs: list[str], constants: dict[str, Any], **attrs: Any) -> onnx.ModelProto:
    return make([node(op, inputs, ["big"], **attrs), node("Neg", ["big"], ["y"])], {"x": (F, [2, 2])}, ["y"], constants)


def _i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


SIZED: dict[str, tuple[onnx.ModelProto, str]] = {
    "Expand": (_sized("Expand", ["x", "s"], {"s": _i(HUGE, 2, 2)}), "GiB.*memory limit"),
    "Expand of a constant": (_sized("Expand", ["c", "s"], {"c": ones(1), "s": _i(HUGE)}), "GiB.*memory limit"),
    "Expand beyond 2^63": (_sized("Expand", ["x", "s"], {"s": _i(HUGE, HUGE, 2, 2)}), "GiB.*memory limit"),
    "Reshape": (_sized("Reshape", ["x", "s"], {"s": _i(HUGE, -1)}), "do not divide|does not fit"),
    "Reshape negative": (_sized("Reshape", ["x", "s"], {"s": _i(-2, -2)}), "-2"),
    "ConstantOfShape": (
        make([node("ConstantOfShape", ["s"], ["y"])], {"x": (F, [1])}, ["y"], {"s": _i(HUGE, 4)}),
        "GiB.*memory limit",
    ),
    "ConstantOfShape negative": (
        make([node("ConstantOfShape", ["s"], ["y"])], {"x": (F, [1])}, ["y"], {"s": _i(-4)}),
        "-4",
    ),
    "ConstantOfShape beyond 2^63": (
        make([node("ConstantOfShape", ["s"], ["y"])], {"x": (F, [1])}, ["y"], {"s": _i(HUGE, HUGE)}),
        "GiB.*memory limit",
    ),
    "Tile": (_sized("Tile", ["x", "s"], {"s": _i(HUGE, 1)}), "GiB.*memory limit"),
    "Tile negative": (_sized("Tile", ["x", "s"], {"s": _i(-1, 1)}), r"\(-2, 2\)"),
    "Pad": (_sized("Pad", ["x", "s"], {"s": _i(0, HUGE, 0, 0)}), "GiB.*memory limit"),
    "Pad away": (_sized("Pad", ["x", "s"], {"s": _i(0, -9, 0, 0)}), "-|negative"),
    "Resize": (
        _sized("Resize", ["x", "", "", "s"], {"s": _i(HUGE, 2)}, mode="nearest"),
        "GiB.*memory limit",
    ),
    "Resize by scale": (
        _sized("Resize", ["x", "", "s"], {"s": np.array([1e12, 1], np.float32)}, mode="linear"),
        "GiB.*memory limit",
    ),
    "Resize by infinity": (
        _sized("Resize", ["x", "", "s"], {"s": np.array([np.inf, 1], np.float32)}, mode="linear"),
        "Resize",
    ),
    "Range": (
        make([node("Range", ["a", "b", "c"], ["y"])], {"x": (F, [1])}, ["y"], {"a": 0, "b": HUGE, "c": 1}),
        "GiB.*memory limit",
    ),
    "Range of step 0": (
        make([node("Range", ["a", "b", "c"], ["y"])], {"x": (F, [1])}, ["y"], {"a": 0, "b": 5, "c": 0}),
        "Range.*(delta|step|zero|0)",
    ),
    "OneHot": (
        make(
            [node("OneHot", ["i", "d", "v"], ["y"])],
            {"x": (F, [1])},
            ["y"],
            {"i": _i(1, 2), "d": np.int64(HUGE), "v": ones(2)},
        ),
        "GiB.*memory limit",
    ),
    "EyeLike": (make([node("EyeLike", ["x"], ["y"])], {"x": (F, [1 << 20, 1 << 20])}, ["y"]), "GiB.*memory limit"),
    "input type": (make([node("Neg", ["x"], ["y"])], {"x": (F, [HUGE, HUGE])}, ["y"]), "GiB.*memory limit"),
    "outer product": (
        make([node("Mul", ["x", "z"], ["y"])], {"x": (F, [1 << 30, 1]), "z": (F, [1, 1 << 30])}, ["y"]),
        "GiB.*memory limit",
    ),
    "kernel": (
        _sized("AveragePool", ["x4"], {"x4": ones(1, 1, 2, 2)}, kernel_shape=[HUGE, 2], pads=[HUGE, 0, HUGE, 0]),
        "AveragePool",
    ),
}


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_sizes_are_refused_before_allocation(backend: str, name: str) -> None:
    model, message = SIZED[name]

    def load_and_run() -> None:
        session = mnnpy.Session(model, backend, threads=1)
        session.run(None, {v.name: np.broadcast_to(np.float32(1), v.shape) for v in session.get_inputs()})

    with pytest.raises(MnnpyError, match=message) as caught:
        load_and_run()
    assert any(word in str(caught.value) for word in (model.graph.node[0].op_type, "input", "Neg"))


@pytest.mark.parametrize(
    "op,inputs,value",
    [
        ("Expand", ["x", "s"], _i(HUGE, 2, 2)),
        ("Reshape", ["x", "s"], _i(-7, 1)),
        ("ConstantOfShape", ["s"], _i(HUGE)),
        ("ConstantOfShape", ["s"], _i(-1)),
        ("Tile", ["x", "s"], _i(HUGE, 1)),
        ("Pad", ["x", "s"], _i(0, 0, HUGE, 0)),
        ("Resize", ["x", "", "", "s"], _i(HUGE, 2)),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["fed", "computed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_sizes_in_feeds(backend: str, op: str, inputs: list[str], value: np.ndarray, late: bool) -> None:
    """The size is an input, or depends on data so that the node is planned while the model runs."""
    nodes = [node(op, inputs, ["y"])]
    types: dict[str, Any] = {"x": (F, [2, 2]), "s": (I64, [len(value)])}
    if late:
        nodes = [node("NonZero", ["x"], ["nz"]), node("ReduceMin", ["nz"], ["m"], keepdims=0),
                 node("Add", ["s0", "m"], ["s"]), *nodes]  # fmt: skip
        types = {"x": (F, [2, 2]), "s0": (I64, [len(value)])}
    session = mnnpy.Session(make(nodes, types, ["y"]), backend, threads=1)
    with pytest.raises(ModelError, match=op):
        session.run(None, {"x": ones(2, 2), "s0" if late else "s": value})
    good = {"Expand": _i(1, 2, 2), "Reshape": _i(4, 1), "Tile": _i(1, 1), "Pad": _i(0, 0, 0, 0), "Resize": _i(2, 2)}
    session.run(None, {"x": ones(2, 2), "s0" if late else "s": good.get(op, _i(3))})


def test_memory_limit_counts_the_sum_of_intermediates() -> None:
    nodes = [node("Expand", ["x", "s"], ["a"]), node("MatMul", ["a", "a"], ["b"]), node("MatMul", ["b", "a"], ["c"]),
             node("Add", ["b", "c"], ["d"]), node("MatMul", ["d", "c"], ["y"])]  # fmt: skip
    model = make(nodes, {"x": (F, [1, 1])}, ["y"], {"s": _i(256, 256)})
    with pytest.raises(ModelError, match=r"memory limit.*memory_limit"):
        mnnpy.Session(model, "cpu", threads=1, memory_limit=300 << 10)
    mnnpy.Session(model, "cpu", threads=1, memory_limit=8 << 20)


# -- graphs --


def test_unknown_ops_are_listed_all_at_once() -> None:
    nodes = [node(op, [a], [b]) for op, a, b in (("Fooo", *"xa"), ("Relu", *"ab"), ("Barr", *"bc"), ("Fooo", *"cy"))]
    with pytest.raises(UnsupportedOpError) as caught:
        mnnpy.Session(make(nodes, {"x": (F, [1])}, ["y"]))
    text = str(caught.value)
    assert "uses 2 ops" in text
    assert re.search(r"Fooo of .*: 2 nodes: 'Fooo_of_a', 'Fooo_of_y'", text)
    assert re.search(r"Barr of .*: 1 node: 'Barr_of_c'", text)
    assert "Relu" not in text


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_graphs(backend: str) -> None:
    """No nodes; an input, a constant and one value as outputs, some of them twice."""
    model = make([], {"x": (F, [2])}, ["x"])
    x = np.array([1, 2], np.float32)
    (same,) = mnnpy.Session(model, backend).run(None, {"x": x})
    assert (same == x).all()
    assert same is not x
    nodes = [node("Neg", ["x"], ["y"]), node("Identity", ["y"], ["z"]), node("Identity", ["x"], ["x2"])]
    model = make(nodes, {"x": (F, [2])}, ["y", "x", "c", "z", "x2"], {"c": np.float32([5, 6])})
    session = mnnpy.Session(model, backend)
    outputs = session.run(None, {"x": x})
    for got, want in zip(outputs, (-x, x, [5, 6], -x, x), strict=True):
        np.testing.assert_array_equal(got, want)
        got[:] = 77  # belongs to the caller
    np.testing.assert_array_equal(x, [1, 2])
    np.testing.assert_array_equal(session.run(["c", "y"], {"x": x})[0], [5, 6])


def test_the_same_output_twice() -> None:
    model = make([node("Neg", ["x"], ["y"])], {"x": (F, [2])}, ["y", "y"])
    first, second = mnnpy.Session(model).run(None, {"x": ones(2)})
    assert first is not second
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("depth", [200, 3000])
def test_deep_sub_graphs(depth: int) -> None:
    inner = helper.make_graph([node("Identity", ["x"], ["r"])], "leaf", [], [onnx.ValueInfoProto(name="r")])
    leaf = onnx.GraphProto()
    leaf.CopyFrom(inner)
    data = inner.SerializeToString()
    for _ in range(depth):  # protobuf refuses to build this by messages: nest the bytes

        def field(number: int, payload: bytes) -> bytes:
            size, out = len(payload), bytearray()
            while size > 127:
                out.append(size & 127 | 128)
                size >>= 7
            return bytes([number << 3 | 2]) + bytes(out) + bytes([size]) + payload

        def attribute(name: bytes, graph: bytes) -> bytes:
            return field(1, name) + field(6, graph) + b"\xa0\x01\x05"

        made = field(1, b"c") + field(2, b"r") + field(4, b"If")
        made += field(5, attribute(b"then_branch", data))
        made += field(5, attribute(b"else_branch", leaf.SerializeToString()))
        data = field(1, made) + field(2, b"g") + field(12, onnx.ValueInfoProto(name="r").SerializeToString())
    for name, kind in (("x", F), ("c", TensorProto.BOOL)):
        data += bytes([11 << 3 | 2]) + _sized_bytes(helper.make_tensor_value_info(name, kind, [1]).SerializeToString())
    model = b"\x08\x08" + bytes([7 << 3 | 2]) + _sized_bytes(data) + bytes([8 << 3 | 2, 2, 16, 17])
    with pytest.raises(ModelError, match="nest"):
        mnnpy.Session(model)


def _sized_bytes(payload: bytes) -> bytes:
    size, out = len(payload), bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes(out) + bytes([size]) + payload


def test_external_data_stays_in_the_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(secret)
    for location in ("../secret.bin", str(secret), "link.bin", "missing.bin", "", ".", "a\0b"):
        model = make([node("Add", ["x", "w"], ["y"])], {"x": (F, [4])}, ["y"])
        w = model.graph.initializer.add(name="w", data_type=F, dims=[4], data_location=TensorProto.EXTERNAL)
        w.external_data.add(key="location", value=location)
        path = folder / "m.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match="'w'"):
            mnnpy.Session(path)
    for key, value in (("offset", "-4"), ("offset", "12"), ("length", str(HUGE)), ("offset", "x"), ("length", "3")):
        (folder / "data.bin").write_bytes(bytes(16))
        del w.external_data[:]
        w.external_data.add(key="location", value="data.bin")
        w.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match="'w'"):
            mnnpy.Session(path)


# -- values --


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "op,index",
    [("Gather", [[7]]), ("Gather", [[-4]]), ("GatherElements", [[3, 0]]), ("GatherND", [[9]]), ("ScatterND", [[3]]),
     ("ScatterElements", [[5, 0]]), ("Gather", [[1 << 62]]), ("Gather", [[-(1 << 63)]])],
)  # fmt: skip
@pytest.mark.parametrize("constant", [False, True], ids=["fed", "constant"])
def test_indices_out_of_range_name_the_node(backend: str, op: str, index: Any, constant: bool) -> None:
    inputs = {"Gather": ["x", "i"], "GatherElements": ["x", "i"], "GatherND": ["x", "i"]}.get(op, ["x", "i", "u"])
    indices = np.array(index, np.int64)
    shape = (1, 2) if op in ("GatherElements", "ScatterElements") else (1, 3) if op == "ScatterND" else (1, 1)
    types: dict[str, Any] = {"x": (F, [3, 3]), "u": (F, shape)}
    constants = {}
    if constant:
        constants["i"] = indices
    else:
        types["i"] = (I64, indices.shape)
    model = make([node("Abs", ["x"], ["x0"]), node(op, ["x0", *inputs[1:]], ["y"])], types, ["y"], constants)
    feeds = {"x": ones(3, 3), "u": ones(*shape), **({} if constant else {"i": indices})}
    with pytest.raises(MnnpyError, match=f"{op}_of_y"):
        mnnpy.Session(model, backend, threads=1).run(None, feeds)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_integer_division_by_zero_does_not_trap(op: str, dtype: Any) -> None:
    """ONNX leaves the result open; the process must live, and INT_MIN / −1 must not trap either."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    low = np.iinfo(dtype).min
    x, d = np.array([7, 0, low, 9] * 9, dtype), np.array([0, 0, np.array(-1).astype(dtype), 2] * 9, dtype)
    for constant in (False, True):
        types = {"x": (kind, [36])} if constant else {"x": (kind, [36]), "d": (kind, [36])}
        model = make([node(op, ["x", "d"], ["y"])], types, ["y"], {"d": d} if constant else {})
        for backend in BACKENDS:
            feeds = {"x": x} if constant else {"x": x, "d": d}
            (y,) = mnnpy.Session(model, backend, threads=1).run(None, feeds)
            assert y[3] == (4 if op == "Div" else 1)
            assert y.dtype == dtype


def test_nan_and_infinity_go_through_like_elsewhere() -> None:
    nodes = [
        node("Relu", ["x"], ["relu"]),
        node("Softmax", ["x"], ["softmax"], axis=1),
        node("ReduceMax", ["x"], ["max"], axes=[1], keepdims=0),
        node("MatMul", ["x", "w"], ["product"]),
        node("Sigmoid", ["x"], ["sigmoid"]),
        node("Tanh", ["x"], ["tanh"]),
        node("Clip", ["x", "lo", "hi"], ["clip"]),
        node("Exp", ["x"], ["exp"]),
        node("Sqrt", ["x"], ["sqrt"]),
        node("ReduceMean", ["x"], ["mean"], axes=[1]),
        node("Sub", ["x", "mean"], ["sub"]),
        node("Erf", ["x"], ["erf"]),
        node("Max", ["x", "lo"], ["maximum"]),
        node("Floor", ["x"], ["floor"]),
    ]
    outputs = [n.output[0] for n in nodes]
    x = np.tile(np.float32([np.nan, np.inf, -np.inf, 0, -0.0, 300, -300, 1e-45, 3, -2]), (6, 4))
    x[1:] = np.where(np.isnan(x[1:]), 1, x[1:])
    x[2:] = np.where(np.isposinf(x[2:]), 2, x[2:])
    x[3:] = np.where(np.isneginf(x[3:]), 2, x[3:])
    w = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    model = make(nodes, {"x": (F, list(x.shape))}, outputs, {"w": w, "lo": np.float32(-1), "hi": np.float32(1)})
    want = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    got = mnnpy.Session(model, "cpu", threads=1).run(None, {"x": x})
    for name, a, b in zip(outputs, got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


def test_kernel_errors_do_not_spoil_the_session() -> None:
    model = make([node("Gather", ["x", "i"], ["y"])], {"x": (F, [3, 3]), "i": (I64, [1])}, ["y"])
    session = mnnpy.Session(model, "cpu", threads=2)
    for _ in range(3):
        with pytest.raises(BackendError, match=r"'Gather_of_y' \(Gather\) with \(f32\[3,3\], i64\[1\]\): .*index 5"):
            session.run(None, {"x": ones(3, 3), "i": _i(5)})
        assert session.run(None, {"x": ones(3, 3), "i": _i(2)})[0].shape == (1, 3)


def test_shape_errors_name_node_shapes_and_remedy() -> None:
    model = make([node("MatMul", ["a", "b"], ["y"])], {"a": (F, [2, "k"]), "b": (F, ["j", 2])}, ["y"])
    with pytest.raises(ShapeError, match=r"'MatMul_of_y' \(MatMul\) with \(f32\[2,3\], f32\[4,2\]\)"):
        mnnpy.Session(model).run(None, {"a": ones(2, 3), "b": ones(4, 2)})
