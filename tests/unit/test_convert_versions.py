"""Every conversion of an old opset, against onnxruntime, the ONNX reference, or arithmetic written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mnnpy.convert import from_onnx
from mnnpy.convert.onnx.conversions import conversions
from mnnpy.errors import ModelError
from tests.unit.onnx_models import model, node, read_and_run, run

RNG = np.random.default_rng(7)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


X = f32(2, 3, 4, 5)
IMAGE = f32(1, 2, 4, 6)


def old_softmax(x: np.ndarray, axis: int, log: bool = False) -> np.ndarray:
    flat = x.reshape(int(np.prod(x.shape[:axis])), -1).astype(np.float64)
    e = np.exp(flat - flat.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    return (np.log(p) if log else p).reshape(x.shape)


def old_hardmax(x: np.ndarray, axis: int) -> np.ndarray:
    flat = x.reshape(int(np.prod(x.shape[:axis])), -1)
    return np.eye(flat.shape[1], dtype=x.dtype)[flat.argmax(1)].reshape(x.shape)


def channels(v: np.ndarray, rank: int = 4) -> np.ndarray:
    return v.reshape(-1, *[1] * (rank - 2))


Expected = Callable[..., Any] | str
#: (op, opset, inputs, attributes, number of outputs, expected: "ort", "reference" or a function of the inputs)
CASES: list[tuple[str, int, list[Any], dict[str, Any], int, Expected]] = []


def case(op: str, opset: int, inputs: list[Any], expected: Expected, outputs: int = 1, **attrs: Any) -> None:
    CASES.append((op, opset, inputs, attrs, outputs, expected))


for _op, _fn in (("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Div", np.divide)):
    case(_op, 6, [X, f32(3, 4)], lambda a, b, fn=_fn: fn(a, b[..., None]), broadcast=1, axis=1)
    case(_op, 1, [X, f32(5)], _fn, broadcast=1, consumed_inputs=[0, 0])
    case(_op, 6, [X, X + 1], _fn)
case("Add", 6, [X, f32(2)], lambda a, b: a + b[:, None, None, None], broadcast=1, axis=0)
case("Add", 6, [X, f32(3, 4)], lambda a, b: a + b[..., None], broadcast=1, axis=-3)
case("Pow", 1, [abs(X), f32(3)], lambda a, b: a ** b[:, None, None], broadcast=1, axis=1)
for _op, _fn in (("And", np.logical_and), ("Or", np.logical_or), ("Xor", np.logical_xor)):
    case(_op, 6, [X > 0, f32(4) > 0], lambda a, b, fn=_fn: fn(a, b[:, None]), broadcast=1, axis=2)
for _op, _fn in (("Greater", np.greater), ("Less", np.less)):
    case(_op, 6, [X, f32(4)], lambda a, b, fn=_fn: fn(a, b[:, None]), broadcast=1, axis=2)
case("Equal", 6, [X.astype(np.int32), np.zeros(4, np.int32)], lambda a, b: a == b[:, None], broadcast=1, axis=2)
case("PRelu", 6, [X, f32(3)], lambda x, s: np.where(x < 0, x * channels(s), x))
case("PRelu", 1, [X, f32(1)], lambda x, s: np.where(x < 0, x * s, x))
case("PRelu", 7, [X, f32(3, 1, 1)], "ort")
case("Clip", 1, [X], lambda x: np.maximum(x, -0.5), min=-0.5)
case("Clip", 6, [X], "ort", min=-0.5, max=0.25)
case(
    "Clip",
    6,
    [np.array([-np.inf, 1, np.inf], np.float32)],
    lambda x: np.clip(x, *np.finfo(np.float32).max * np.array([-1, 1])),
)
case("Clip", 6, [X.astype(np.float64)], lambda x: np.clip(x, -0.5, 0.25), min=-0.5, max=0.25)
case("Selu", 1, [X], lambda x: 1.0507 * np.where(x > 0, x, 1.6732 * np.expm1(x)))
case("Cast", 1, [X], lambda x: x.astype(np.int64), to="INT64")
case("Cast", 5, [X], lambda x: x.astype(np.float16), to="float16")
case("Cast", 6, [X], "ort", to=TensorProto.INT32)
case("Reshape", 1, [X], lambda x: x.reshape(2, 15, 4), shape=[0, -1, 4])
case("Concat", 1, [X, X], lambda a, b: np.concatenate([a, b], 1))
case("Concat", 3, [X, X], lambda a, b: np.concatenate([a, b], 2), axis=2)
case("Squeeze", 1, [f32(1, 3, 1)], "ort", axes=[0])
case("Squeeze", 11, [f32(1, 3, 1)], "ort")
case("Unsqueeze", 1, [f32(3)], "ort", axes=[0, 2])
case("Unsqueeze", 11, [f32(3)], "ort", axes=[-1])
case("Slice", 1, [X], "ort", starts=[0, 1], ends=[2, -1], axes=[0, 3])
case("Slice", 9, [X], "ort", starts=[0, 1], ends=[2, 1000])
case("Slice", 10, [X, np.array([4]), np.array([0]), np.array([3]), np.array([-2])], "ort")
case("Split", 1, [f32(4, 2)], lambda x: [x[:1], x[1:]], 2, split=[1, 3])
case("Split", 1, [f32(4, 2), np.array([1, 3], np.float32)], lambda x, s: [x[:1], x[1:]], 2)
case("Split", 2, [f32(4, 6)], "ort", 3, axis=1)
case("Split", 11, [f32(4, 6)], "ort", 2, axis=1, split=[2, 4])
case("Split", 13, [f32(4, 6)], "ort", 2, axis=1)
case("Pad", 1, [X], lambda x: np.pad(x, [(0, 0), (0, 0), (1, 0), (0, 2)]), paddings=[0, 0, 1, 0, 0, 0, 0, 2])
case("Pad", 2, [X], "ort", pads=[0, 0, 1, 0, 0, 0, 0, 2], value=1.5)
case("Pad", 2, [X], "ort", pads=[0, 0, 1, 1, 0, 0, 1, 2], mode="reflect")
case("Pad", 2, [X.astype(np.float64)], "ort", pads=[0, 0, -1, 0, 0, 0, 0, 2], value=2.0)
case("Tile", 1, [X, np.array(3, np.float32), np.array(2, np.float32)], lambda x, n, a: np.tile(x, (1, 1, 3, 1)))
case("Tile", 6, [X, np.array([1, 2, 1, 1])], "ort")
case("TopK", 1, [f32(3, 7)], "ort", 2, k=2)
case("TopK", 1, [f32(3, 7)], "ort", 2, k=2, axis=0)
case("TopK", 10, [f32(3, 7), np.array([3])], "ort", 2)
case("Scatter", 9, [f32(3, 3), np.array([[2, 0, 1]]), f32(1, 3)], "ort", axis=0)
case("Upsample", 1, [IMAGE], lambda x: x.repeat(2, 2).repeat(3, 3), height_scale=2.0, width_scale=3.0)
case("Upsample", 7, [IMAGE], "ort", scales=[1.0, 1.0, 2.0, 3.0])
case("Upsample", 7, [IMAGE], "ort", scales=[1.0, 1.0, 2.0, 2.0], mode="linear")
case("Upsample", 9, [IMAGE, np.array([1, 1, 2, 1.5], np.float32)], "ort")
for _scales in ([1, 1, 2, 3], [1, 1, 0.5, 0.6], [1, 1, 2, 0.6], [1, 1, 1, 1]):
    case("Resize", 10, [IMAGE, np.array(_scales, np.float32)], "ort")
    case("Resize", 10, [IMAGE, np.array(_scales, np.float32)], "ort", mode="linear")
for _mode in ("round_prefer_floor", "floor"):
    for _scales in ([1, 1, 2, 3], [1, 1, 0.5, 0.6]):
        _roi = np.zeros(0, np.float32)
        case(
            "Resize", 11, [IMAGE, _roi, np.array(_scales, np.float32)], "ort", mode="nearest", nearest_mode=_mode,
            coordinate_transformation_mode="tf_half_pixel_for_nn",
        )  # fmt: skip
case(
    "Resize",
    11,
    [IMAGE, np.zeros(0, np.float32), np.zeros(0, np.float32), np.array([1, 2, 8, 3])],
    "ort",
    mode="linear",
)
case("Resize", 13, [IMAGE, np.zeros(0, np.float32), np.array([1, 1, 2, 3], np.float32)], "ort")
_grid = np.clip(f32(1, 3, 3, 2), -1, 1)
case("GridSample", 16, [IMAGE, _grid], "ort", mode="bilinear", align_corners=1)
case("GridSample", 16, [IMAGE, _grid], "ort", mode="bicubic", padding_mode="border")
case("GridSample", 16, [IMAGE, _grid], "ort")
case(
    "RoiAlign",
    10,
    [IMAGE, np.array([[0, 0, 3, 3.5]], np.float32), np.array([0])],
    "ort",
    output_height=2,
    output_width=2,
    sampling_ratio=2,
)
for _axis in (0, 1, 2, 3):
    case("Softmax", 1, [X], lambda x, a=_axis: old_softmax(x, a), axis=_axis)
    case("Softmax", 11, [X], "ort", axis=_axis)
    case("LogSoftmax", 11, [X], lambda x, a=_axis: old_softmax(x, a, True), axis=_axis)
    case("Hardmax", 11, [X], lambda x, a=_axis: old_hardmax(x, a), axis=_axis)
case("Softmax", 1, [X], "ort")
case("Softmax", 11, [X], "ort", axis=-2)
case("Softmax", 11, [X], "ort", axis=-1)
for _op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare", "Sum"):
    case(f"Reduce{_op}", 1, [abs(X)], "ort", axes=[1, 2], keepdims=0)
    case(f"Reduce{_op}", 11, [abs(X)], "ort", axes=[-1])
    case(f"Reduce{_op}", 11, [abs(X)], "ort")
_bn = [X, f32(3), f32(3), f32(3), abs(f32(3)) + 1]


def batch_norm(x: Any, s: Any, b: Any, m: Any, v: Any) -> Any:
    return (x - channels(m)) / np.sqrt(channels(v) + 1e-5) * channels(s) + channels(b)


def batch_norm_training(x: Any, s: Any, b: Any, m: Any, v: Any, axes: tuple[int, ...] = (0, 2, 3)) -> list[Any]:
    mean, var = x.mean(axes), x.var(axes)
    shape = [1 if k in axes else d for k, d in enumerate(x.shape)]
    y = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + 1e-5) * s.reshape(shape) + b.reshape(shape)
    return [y, m * 0.9 + mean * 0.1, v * 0.9 + var * 0.1, mean, var]


case("BatchNormalization", 1, _bn, batch_norm, consumed_inputs=[0, 0, 0, 1, 1], is_test=1)
case("BatchNormalization", 6, _bn, batch_norm, is_test=1)
case("BatchNormalization", 6, _bn, batch_norm)
case("BatchNormalization", 6, _bn, batch_norm_training, 5)
case("BatchNormalization", 7, _bn, "ort", momentum=0.5)
case("BatchNormalization", 9, _bn, "ort")
case("BatchNormalization", 9, _bn, batch_norm_training, 5)
_element = [X, *(f32(3, 4, 5) for _ in range(3)), abs(f32(3, 4, 5)) + 1]
case("BatchNormalization", 7, _element, lambda x, s, b, m, v: (x - m) / np.sqrt(v + 1e-5) * s + b, spatial=0)
case("BatchNormalization", 7, _element, lambda *a: batch_norm_training(*a, axes=(0,)), 5, spatial=0)


def group_norm(x: Any, s: Any, b: Any) -> Any:
    g = x.reshape(x.shape[0], 2, -1)
    y = ((g - g.mean(2, keepdims=True)) / np.sqrt(g.var(2, keepdims=True) + 1e-5)).reshape(x.shape)
    return y * channels(s.repeat(x.shape[1] // 2)) + channels(b.repeat(x.shape[1] // 2))


case("GroupNormalization", 18, [f32(2, 6, 3, 3), f32(2), f32(2)], group_norm, num_groups=2)
case(
    "GroupNormalization",
    18,
    [f32(2, 6, 3, 3).astype(np.float64), *f32(2, 2).astype(np.float64)],
    group_norm,
    num_groups=2,
)
case("Dropout", 6, [X], lambda x: [x, np.ones_like(x)], 2, is_test=1)
case("Dropout", 7, [X], lambda x: [x, np.ones_like(x)], 2, ratio=0.3)
case("Dropout", 7, [X], "ort")
case("Dropout", 10, [X], lambda x: [x, np.ones(x.shape, bool)], 2)
case("LpPool", 1, [abs(IMAGE)], "reference", kernel_shape=[2, 2], p=2.0)
case(
    "LpPool",
    1,
    [IMAGE],
    lambda x: (abs(x.reshape(1, 2, 2, 2, 3, 2)) ** 1.5).sum((3, 5)) ** (1 / 1.5),
    kernel_shape=[2, 2],
    strides=[2, 2],
    p=1.5,
)
case("GlobalLpPool", 1, [IMAGE], lambda x: np.sqrt((x**2).sum((2, 3), keepdims=True)), p=2.0)
case("GlobalLpPool", 1, [IMAGE], lambda x: (abs(x) ** 2.5).sum((2, 3), keepdims=True) ** 0.4, p=2.5)
case("Gemm", 6, [f32(2, 3), f32(3, 4), f32(4)], lambda a, b, c: a @ b + c, broadcast=1)
case("Gemm", 1, [f32(3, 2), f32(3, 4), f32(2, 4)], lambda a, b, c: 0.5 * a.T @ b + c, transA=1, alpha=0.5)
case(
    "DFT",
    17,
    [f32(1, 4, 6, 1)],
    lambda x: np.stack([f := np.fft.fft(x[..., 0], axis=1), f], -1).real * [1, 0] + np.stack([f, f], -1).imag * [0, 1],
)
case("DFT", 17, [f32(1, 4, 6, 1)], "reference", axis=2)
_seq = f32(3, 2, 4)
case("GRU", 1, [_seq, f32(1, 15, 4), f32(1, 15, 5)], "ort@7", 2, hidden_size=5, output_sequence=1)
case("GRU", 1, [_seq, f32(1, 15, 4), f32(1, 15, 5)], "ort@7", 2, hidden_size=5, direction="foward")
case("GRU", 3, [_seq, f32(1, 15, 4), f32(1, 15, 5), f32(1, 30)], "ort@7", 2, hidden_size=5, linear_before_reset=1)
case("RNN", 1, [_seq, f32(1, 5, 4), f32(1, 5, 5)], "ort@7", 2, hidden_size=5, output_sequence=1)
case(
    "LSTM",
    1,
    [_seq, f32(2, 20, 4), f32(2, 20, 5)],
    "ort@7",
    3,
    hidden_size=5,
    direction="bidirectional",
    output_sequence=1,
)
case("LSTM", 7, [_seq, f32(1, 20, 4), f32(1, 20, 5)], "ort", 3, hidden_size=5)


def ort(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)  # type: ignore[no-any-return]


def oracle(expected: Expected, proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    if callable(expected):
        result = expected(*feeds.values())
        return result if isinstance(result, list) else [result]
    if expected == "reference":
        return ReferenceEvaluator(proto).run(None, feeds)  # type: ignore[no-any-return]
    if expected == "ort@7":  # the same op, as the first opset that onnxruntime runs spells it
        proto = onnx.ModelProto.FromString(proto.SerializeToString())
        proto.opset_import[0].version = 7
        for n in proto.graph.node:
            kept = [a for a in n.attribute if a.name != "output_sequence" and a.s != b"foward"]
            del n.attribute[:]
            n.attribute.extend(kept)
    return ort(proto, feeds)


@pytest.mark.parametrize(
    "op,opset,inputs,attrs,outputs,expected", CASES, ids=[f"{c[0]}-{c[1]}-{k}" for k, c in enumerate(CASES)]
)
@pytest.mark.parametrize("typed", [True, False], ids=["typed", "untyped"])
def test_old_opset(
    op: str, opset: int, inputs: list[Any], attrs: dict[str, Any], outputs: int, expected: Expected, typed: bool
) -> None:
    feeds = {f"x{k}": a for k, a in enumerate(inputs)}
    names = [f"y{k}" for k in range(outputs)]
    proto = model([node(op, list(feeds), names, **attrs)], feeds, names, opset)
    want = oracle(expected, model([node(op, list(feeds), names, **attrs)], feeds, names, opset), feeds)
    if not typed:
        for value in proto.graph.input:
            value.ClearField("type")
    if not typed and attrs.get("axis", 0) < 0 and attrs.get("broadcast"):
        with pytest.raises(ModelError, match="run shape inference"):
            from_onnx(proto, check_ops=False)
        return
    got = read_and_run(proto, feeds)
    for w, g in zip(want, got, strict=True):
        assert np.shape(g) == np.shape(w)
        if callable(expected):
            assert g.dtype == (np.bool_ if w.dtype == bool else g.dtype)
        else:
            assert g.dtype == w.dtype
        np.testing.assert_allclose(np.asarray(g, np.float64), np.asarray(w, np.float64), rtol=2e-4, atol=2e-5)


def test_every_conversion_has_a_case() -> None:
    elsewhere = {"Constant", "Scan", "LabelEncoder"}
    covered = {(op, opset) for op, opset, *_ in CASES}
    for (_, op), ranges in conversions().items():
        for low, high, _fn in ranges:
            assert op in elsewhere or any(o == op and low <= v <= high for o, v in covered), (op, low, high)


def test_dropout_6_trains() -> None:
    got = from_onnx(model([node("Dropout", ["x"], ["y", "m"], ratio=0.25)], {"x": X}, ["y", "m"], 6), check_ops=False)
    dropout = got.nodes[0]
    assert [got.constants[i].item() for i in dropout.inputs[1:]] == [0.25, True]


@pytest.mark.parametrize("lengths", [None, [3, 1]])
@pytest.mark.parametrize("direction", [None, [1]])
def test_scan_8(lengths: list[int] | None, direction: list[int] | None) -> None:
    """A running sum per sample, with a captured factor."""
    body = helper.make_graph(
        [
            node("Mul", ["x", "factor"], ["scaled"]),
            node("Add", ["s", "scaled"], ["t"]),
            node("Identity", ["t"], ["out"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("s", "x")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("t", "out")],
    )
    attrs: dict[str, Any] = {"directions": direction} if direction else {}
    feeds: dict[str, Any] = {"start": f32(2, 2), "xs": f32(2, 3, 2), "factor": f32(2)}
    if lengths is not None:
        feeds["lengths"] = np.array(lengths)
    scan = node(
        "Scan", ["lengths" if lengths else "", "start", "xs"], ["final", "sums"], body=body, num_scan_inputs=1, **attrs
    )
    final, sums = read_and_run(model([scan], feeds, ["final", "sums"], 8), feeds)
    for k in range(2):
        n = lengths[k] if lengths else 3
        xs = feeds["xs"][k, :n][:: -1 if direction else 1] * feeds["factor"]
        want = feeds["start"][k] + np.cumsum(xs, 0)
        np.testing.assert_allclose(sums[k, :n], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(sums[k, n:], 0)
        np.testing.assert_allclose(final[k], want[-1], rtol=1e-5, atol=1e-6)


def test_label_encoder_1() -> None:
    names = ["a", "b", "c"]
    words, numbers = np.array(["c", "z", "a"], object), np.array([1, 7, 0])
    for x, want in ((words, [2, -5, 0]), (numbers, ["b", "?", "a"])):
        encode = node(
            "LabelEncoder",
            ["x"],
            ["y"],
            domain="ai.onnx.ml",
            classes_strings=names,
            default_int64=-5,
            default_string="?",
        )
        proto = model([encode], {"x": x}, ["y"], opsets={"ai.onnx.ml": 1})
        assert read_and_run(proto, {"x": x})[0].tolist() == want


@pytest.mark.parametrize(
    "attrs,want",
    [
        ({"value": numpy_helper.from_array(X)}, X),
        ({"value_float": 1.5}, np.float32(1.5)),
        ({"value_floats": [1.5, 2.0]}, np.array([1.5, 2], np.float32)),
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [3, 4]}, np.array([3, 4])),
        ({"value_string": "hé"}, np.array("hé", object)),
        ({"value_strings": ["a", "bc"]}, np.array(["a", "bc"], object)),
        (
            {
                "sparse_value": helper.make_sparse_tensor(
                    numpy_helper.from_array(np.array([1, 2], np.float32)),
                    numpy_helper.from_array(np.array([1, 5])),
                    [2, 3],
                )
            },
            np.array([[0, 1, 0], [0, 0, 2]], np.float32),
        ),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_constant(attrs: dict[str, Any], want: np.ndarray) -> None:
    graph = from_onnx(model([node("Constant", [], ["y"], **attrs)], {}, ["y"], 13), check_ops=False)
    got = graph.constants["y"]
    assert not graph.nodes
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.tolist() == want.tolist()


def test_resize_10_with_scales_from_data() -> None:
    feeds = {"x": IMAGE, "s": np.array([1, 1, 2, 0.6], np.float32)}
    proto = model([node("Resize", ["x", "s"], ["y"])], feeds, ["y"], 10)
    np.testing.assert_array_equal(read_and_run(proto, feeds)[0], ort(proto, feeds)[0])


def test_tf_half_pixel_without_equivalent_is_refused() -> None:
    attrs = {"mode": "linear", "coordinate_transformation_mode": "tf_half_pixel_for_nn"}
    feeds = {"x": IMAGE, "r": np.zeros(0, np.float32), "s": np.ones(4, np.float32)}
    with pytest.raises(ModelError, match="tf_half_pixel_for_nn"):
        from_onnx(model([node("Resize", list(feeds), ["y"], **attrs)], feeds, ["y"], 11))


def test_softmax_of_known_rank_stays_one_node() -> None:
    """Attention patterns of old exporters are recognised only if their Softmax is not taken apart."""
    nodes = [node("MatMul", ["a", "b"], ["s"]), node("Softmax", ["s"], ["y"], axis=3)]
    graph = from_onnx(model(nodes, {"a": X, "b": X.swapaxes(2, 3)}, ["y"], 11), check_ops=False)
    assert [n.op for n in graph.nodes] == ["MatMul", "Softmax"]
    assert run(graph, {"a": X, "b": X.swapaxes(2, 3)})[0].shape == (2, 3, 4, 4)
