"""Small ONNX models with the structures of real ones, for tests of passes and plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Feeds = dict[str, np.ndarray]
MODELS: dict[str, Callable[[], tuple[onnx.ModelProto, Feeds]]] = {}


def model(fn: Callable[[], tuple[onnx.ModelProto, Feeds]]) -> Callable[[], tuple[onnx.ModelProto, Feeds]]:
    MODELS[fn.__name__] = fn
    return fn


class Net:
    """Builds a model line by line."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.feeds: Feeds = {}
        self.count = 0

    def name(self, hint: str = "t") -> str:
        self.count += 1
        return f"{hint}{self.count}"

    def input(self, *shape: int, symbolic: tuple[int | str, ...] | None = None) -> str:
        name = self.name("x")
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, symbolic or shape))
        self.feeds[name] = self.rng.standard_normal(shape).astype(np.float32)
        return name

    def w(self, *shape: int, scale: float | None = None) -> str:
        fan = int(np.prod(shape[1:])) or 1
        return self.const(self.rng.standard_normal(shape) * (scale or (2.0 / fan) ** 0.5))

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        name = self.name("w")
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def op(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        outs = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), outs, name=self.name(op), **attrs))
        return outs[0] if outputs == 1 else outs

    def bn(self, x: str, c: int) -> str:
        positive = np.abs(self.rng.standard_normal(c)) + 0.5
        return self.op("BatchNormalization", x, self.const(positive), self.w(c), self.w(c), self.const(positive[::-1]))  # type: ignore[no-any-return]

    def finish(self, *outputs: str) -> tuple[onnx.ModelProto, Feeds]:
        outs = [onnx.ValueInfoProto(name=o) for o in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, outs, self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return onnx.shape_inference.infer_shapes(made), self.feeds


@model
def residual_block() -> tuple[onnx.ModelProto, Feeds]:
    n = Net()
    x = n.input(2, 16, 14, 14)
    y = n.op("Relu", n.bn(n.op("Conv", x, n.w(24, 16, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]), 24))
    y = n.bn(n.op("Conv", y, n.w(24, 24, 3, 3), n.w(24), pads=[1, 1, 1, 1]), 24)
    short = n.bn(n.op("Conv", x, n.w(24, 16, 1, 1), strides=[2, 2]), 24)
    y = n.op("Relu", n.op("Add", y, short))
    y = n.op("Flatten", n.op("GlobalAveragePool", y))
    return n.finish(n.op("Gemm", y, n.w(10, 24), n.w(10), transB=1))


@model
def inverted_residual() -> tuple[onnx.ModelProto, Feeds]:
    n = Net(1)
    x = n.input(1, 16, 83, 79)  # large enough for strips
    lo, hi = n.const(0.0), n.const(6.0)
    y = n.op("Clip", n.op("Conv", x, n.w(48, 16, 1, 1), n.w(48)), lo, hi)
    y = n.op("Clip", n.op("Conv", y, n.w(48, 1, 3, 3), n.w(48), group=48, pads=[1, 1, 1, 1]), lo, hi)
    y = n.op("Conv", y, n.w(16, 48, 1, 1), n.w(16))
    return n.finish(n.op("Add", y, x))


@model
def squeeze_excite() -> tuple[onnx.ModelProto, Feeds]:
    n = Net(2)
    x = n.input(2, 16, 9, 7)
    y = n.op("HardSwish", n.op("Conv", x, n.w(32, 16, 3, 3), pads=[1, 1, 1, 1]))
    s = n.op("ReduceMean", y, axes=[2, 3], keepdims=1)
    s = n.op("Relu", n.op("Conv", s, n.w(8, 32, 1, 1), n.w(8)))
    s = n.op("HardSigmoid", n.op("Conv", s, n.w(32, 8, 1, 1)), alpha=0.2, beta=0.5)
    return n.finish(n.op("Mul", y, s), s)


@model
def fire_and_shuffle() -> tuple[onnx.ModelProto, Feeds]:
    n = Net(3)
    x = n.input(1, 8, 12, 12)
    s = n.op("Relu", n.op("Conv", x, n.w(6, 8, 1, 1)))
    a = n.op("Relu", n.op("Conv", s, n.w(8, 6, 1, 1)))
    b = n.op("Relu", n.op("Conv", s, n.w(8, 6, 3, 3), pads=[1, 1, 1, 1]))
    y = n.op("Concat", a, b, axis=1)
    y = n.op("Reshape", y, n.ints(1, 2, 8, 12, 12))
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3, 4]), n.ints(1, 16, 12, 12))
    left, right = n.op("Split", y, n.ints(6, 10), outputs=2, axis=1)
    y = n.op("Concat", n.op("Conv", left, n.w(6, 1, 3, 3), group=6, pads=[1, 1, 1, 1]), right, axis=1)
    return n.finish(n.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1))


@model
def upsample_head() -> tuple[onnx.ModelProto, Feeds]:
    n = Net(4)
    x = n.input(1, 6, 8, 10, symbolic=("n", 6, "h", "w"))
    y = n.op("Relu", n.op("Conv", x, n.w(8, 6, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]))
    up = n.op("Resize", y, "", n.const([1, 1, 2, 2]), mode="nearest", coordinate_transformation_mode="asymmetric",
              nearest_mode="floor")  # fmt: skip
    y = n.op("Concat", up, x, axis=1)
    y = n.op("ConvTranspose", y, n.w(14, 4, 2, 2), n.w(4), strides=[2, 2])
    y = n.op("Resize", y, "", n.const([1, 1, 0.5, 0.5]), mode="linear")
    return n.finish(n.op("Sigmoid", n.op("Conv", y, n.w(1, 4, 1, 1), n.w(1))))


@model
def transformer_block() -> tuple[onnx.ModelProto, Feeds]:
    n = Net(5)
    b, s, d, h = 2, 7, 24, 3
    x = n.input(b, s, d, symbolic=("b", "s", d))

    def norm(v: str) -> str:
        c = n.op("Sub", v, n.op("ReduceMean", v, axes=[-1]))
        var = n.op("ReduceMean", n.op("Pow", c, n.const(2.0)), axes=[-1])
        y = n.op("Div", c, n.op("Sqrt", n.op("Add", var, n.const(1e-5))))
        return n.op("Add", n.op("Mul", y, n.w(d, scale=1.0)), n.w(d))  # type: ignore[no-any-return]

    def heads(v: str, perm: list[int]) -> str:
        y = n.op("Add", n.op("MatMul", v, n.w(d, d)), n.w(d))
        return n.op("Transpose", n.op("Reshape", y, n.ints(0, -1, h, d // h)), perm=perm)  # type: ignore[no-any-return]

    y = norm(x)
    q, k, v = heads(y, [0, 2, 1, 3]), heads(y, [0, 2, 3, 1]), heads(y, [0, 2, 1, 3])
    p = n.op("Softmax", n.op("Div", n.op("MatMul", q, k), n.const((d / h) ** 0.5)), axis=-1)
    y = n.op("Reshape", n.op("Transpose", n.op("MatMul", p, v), perm=[0, 2, 1, 3]), n.ints(0, -1, d))
    y = n.op("Add", x, n.op("Add", n.op("MatMul", y, n.w(d, d)), n.w(d)))
    z = n.op("Add", n.op("MatMul", norm(y), n.w(d, 4 * d)), n.w(4 * d))
    z = n.op(
        "Mul", n.op("Mul", z, n.op("Add", n.op("Erf", n.op("Div", z, n.const(2**0.5))), n.const(1.0))), n.const(0.5)
    )
    return n.finish(n.op("Add", y, n.op("Add", n.op("MatMul", z, n.w(4 * d, d)), n.w(d))))


@model
def dynamic_reshapes() -> tuple[onnx.ModelProto, Feeds]:
    """Shape → Gather → Concat → Reshape chains as exporters write them."""
    n = Net(6)
    x = n.input(2, 3, 4, 5, symbolic=("n", 3, "h", "w"))
    shape = n.op("Shape", x)
    batch = n.op("Unsqueeze", n.op("Gather", shape, n.const(0, np.int64)), n.ints(0))
    y = n.op("Reshape", x, n.op("Concat", batch, n.ints(3, -1), axis=0))
    y = n.op("Expand", n.op("ReduceMax", y, axes=[2]), n.op("Concat", batch, n.ints(3, 6), axis=0))
    return n.finish(n.op("Tile", y, n.ints(1, 1, 2)), n.op("Size", y))


@model
def speech_conv() -> tuple[onnx.ModelProto, Feeds]:
    n = Net(7)
    x = n.input(1, 4, 50)
    y = n.op("Relu", n.op("Conv", x, n.w(8, 4, 5), n.w(8), pads=[2, 2], strides=[2]))
    y = n.op("Conv", y, n.w(8, 2, 3), group=4, pads=[1, 1])
    y = n.op("Transpose", y, perm=[2, 0, 1])
    out, last, cell = n.op("LSTM", y, n.w(1, 24, 8), n.w(1, 24, 6), n.w(1, 48), hidden_size=6, outputs=3)
    return n.finish(out, last, cell)


def _linear(n: Net, x: str, inner: int, outer: int) -> str:
    return n.op("Add", n.op("MatMul", x, n.w(inner, outer, scale=inner**-0.5)), n.w(outer))  # type: ignore[no-any-return]


@model
def vision_attention() -> tuple[onnx.ModelProto, Feeds]:
    """One projection for queries, keys and values; a bias per head on the scores."""
    n = Net(8)
    b, s, h, d = 2, 19, 3, 8
    x = n.input(b, s, h * d)
    qkv = n.op("Reshape", _linear(n, x, h * d, 3 * h * d), n.ints(b, s, 3, h, d))
    qkv = n.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (n.op("Gather", qkv, n.const(i, np.int64), axis=0) for i in range(3))
    q = n.op("Mul", q, n.const(d**-0.5))
    p = n.op("Add", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2])), n.w(1, h, s, s, scale=1.0))
    y = n.op("MatMul", n.op("Softmax", p, axis=-1), v)
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(b, s, h * d))
    y = n.op("Add", y, x)
    return n.finish(n.op("LayerNormalization", y, n.w(h * d), n.w(h * d)), n.op("Relu", y))


@model
def masked_attention() -> tuple[onnx.ModelProto, Feeds]:
    """A padding mask per batch, as BERT has it, and cross attention on a memory of another length."""
    n = Net(9)
    b, s, t, h, d = 2, 11, 6, 2, 12
    x, memory = n.input(b, s, h * d), n.input(b, t, h * d)
    mask = n.op("Where", n.op("Greater", n.input(b, 1, 1, s), n.const(-1.0)), n.const(0.0), n.const(-1e4))

    def attend(a: str, m: str, size: int, masks: bool) -> str:
        q, k, v = (
            n.op("Transpose", n.op("Reshape", _linear(n, o, h * d, h * d), n.ints(0, 0, h, d)), perm=[0, 2, 1, 3])
            for o in (a, m, m)
        )
        p = n.op("Div", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2])), n.const(d**0.5))
        p = n.op("Softmax", n.op("Add", p, mask) if masks else p, axis=-1)
        y = n.op("Transpose", n.op("MatMul", p, v), perm=[0, 2, 1, 3])
        y = n.op("Add", a, _linear(n, n.op("Reshape", y, n.ints(0, 0, h * d)), h * d, h * d))
        return n.op("LayerNormalization", y, n.w(h * d), n.w(h * d))  # type: ignore[no-any-return]

    return n.finish(attend(attend(x, x, s, True), memory, t, False))


@model
def cached_attention() -> tuple[onnx.ModelProto, Feeds]:
    """Decoding: one query on a cache that grows, masked by Where; and probabilities that are an output too."""
    n = Net(10)
    b, past, s, h, d = 2, 9, 1, 2, 16
    x = n.input(b, s, h * d)
    old_k, old_v = n.input(b, h, past, d), n.input(b, h, past, d)
    q, k, v = (
        n.op("Transpose", n.op("Reshape", n.op("MatMul", x, n.w(h * d, h * d)), n.ints(0, 0, h, d)), perm=[0, 2, 1, 3])
        for _ in range(3)
    )
    keys, values = n.op("Concat", old_k, k, axis=2), n.op("Concat", old_v, v, axis=2)
    scores = n.op("Mul", n.op("MatMul", q, n.op("Transpose", keys, perm=[0, 1, 3, 2])), n.const(0.25))
    seen = n.const(np.arange(past + s)[None, None, None, :] > 1, np.bool_)
    p = n.op("Softmax", n.op("Where", seen, scores, n.const(-3e38)), axis=3)
    y = n.op("Reshape", n.op("Transpose", n.op("MatMul", p, values), perm=[0, 2, 1, 3]), n.ints(b, s, h * d))
    plain = n.op("Softmax", n.op("MatMul", q, n.op("Transpose", old_k, perm=[0, 1, 3, 2])), axis=-1)
    return n.finish(y, keys, values, plain, n.op("MatMul", plain, old_v))


@model
def volume_conv() -> tuple[onnx.ModelProto, Feeds]:
    n = Net(8)
    x = n.input(1, 4, 6, 7, 8)
    y = n.op("Relu", n.op("Conv", x, n.w(8, 4, 3, 3, 3), n.w(8), pads=[1, 1, 1, 1, 1, 1]))
    y = n.op("MaxPool", y, kernel_shape=[2, 2, 2], strides=[2, 2, 2])
    y = n.op("Add", n.op("Conv", y, n.w(8, 8, 1, 1, 1)), y)
    return n.finish(n.op("GlobalAveragePool", y), n.op("AveragePool", y, kernel_shape=[2, 2, 2]))


@model
def attention_unit() -> tuple[onnx.ModelProto, Feeds]:
    """Deep Interest Network: columns that depend on one another, and a weighted sum."""
    n = Net(40)
    behaviours, target = n.input(1, 20, 8), n.input(1, 8)
    wide = n.op("Expand", n.op("Unsqueeze", target, n.ints(1)), n.ints(1, 20, 8))
    columns = [behaviours, wide, n.op("Sub", behaviours, wide), n.op("Mul", behaviours, wide)]
    y = n.op("Sigmoid", n.op("Add", n.op("MatMul", n.op("Concat", *columns, axis=2), n.w(32, 12)), n.w(12)))
    weights = n.op("Softmax", n.op("MatMul", y, n.w(12, 1)), axis=1)
    kept = n.op("ReduceSum", n.op("Mul", behaviours, weights), n.ints(1), keepdims=1)
    short = n.op("ReduceSum", n.op("Mul", weights, behaviours), n.ints(1), keepdims=0)
    again = n.op("MatMul", n.op("Concat", behaviours, n.op("Add", wide, behaviours), wide, axis=2), n.w(24, 5))
    return n.finish(kept, n.op("Concat", short, target, axis=1), again)


@model
def one_hot_rows() -> tuple[onnx.ModelProto, Feeds]:
    """Rows of a matrix chosen by comparison with 0, 1, 2 …; some choices are out of range."""
    n = Net(41)
    x = n.op("Cast", n.op("Mul", n.input(3, 40), n.const(4.0)), to=TensorProto.INT32)
    hot = n.op("Equal", n.op("Unsqueeze", x, n.ints(2)), n.const(np.arange(7).reshape(1, 1, 7), np.int32))
    y = n.op("MatMul", n.op("Cast", hot, to=TensorProto.FLOAT), n.w(7, 12))
    return n.finish(n.op("Relu", n.op("Add", y, n.w(12))))


@model
def convolutions_in_one_dimension() -> tuple[onnx.ModelProto, Feeds]:
    """Epilogues behind a change of shape, an axis of size 1 taken out, GELU with its cube from the right."""
    n = Net(42)
    x = n.input(2, 6, 30)
    y = n.op("Relu", n.bn(n.op("Conv", x, n.w(10, 6, 3), pads=[1, 1]), 10))
    y = n.op("Conv", n.op("Unsqueeze", y, n.ints(3)), n.w(12, 10, 5, 1), n.w(12))
    y = n.op("Add", n.op("Squeeze", y, n.ints(3)), n.w(1, 12, 1))
    cube = n.op("Mul", y, n.op("Mul", y, n.op("Mul", n.const(0.044715), y)))
    tanh = n.op("Tanh", n.op("Mul", n.const(np.sqrt(2 / np.pi)), n.op("Add", y, cube)))
    y = n.op("Mul", y, n.op("Mul", n.const(0.5), n.op("Add", n.const(1.0), tanh)))
    return n.finish(n.op("ReduceMax", y, axes=[2], keepdims=1), n.op("Add", y, y))


@model
def concatenations_in_place() -> tuple[onnx.ModelProto, Feeds]:
    """Branches of many kinds that end in a concatenation of channels; one operand has two readers."""
    n = Net(43)
    x = n.input(2, 20, 14, 13)
    ones = n.op("Relu", n.op("Conv", x, n.w(7, 20, 1, 1), n.w(7)))
    threes = n.op("Relu", n.op("Conv", x, n.w(33, 20, 3, 3), n.w(33), pads=[1, 1, 1, 1]))
    fives = n.op("Sigmoid", n.op("Conv", x, n.w(16, 20, 5, 5), pads=[2, 2, 2, 2]))
    most = n.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    mean = n.op("AveragePool", x, kernel_shape=[2, 2], pads=[0, 0, 1, 1])
    y = n.op("Concat", ones, threes, n.op("Neg", x), fives, most, mean, axis=1)
    few = n.op("Conv", n.op("Conv", y, n.w(5, 116, 1, 1)), n.w(9, 5, 3, 3), strides=[2, 2])
    grouped = n.op("Conv", y, n.w(12, 58, 3, 3), strides=[2, 2], group=2)
    shared = n.op("Conv", y, n.w(18, 116, 3, 3), strides=[2, 2])
    z = n.op("Concat", few, grouped, shared, axis=1)
    return n.finish(n.op("Conv", z, n.w(6, 39, 1, 1)), n.op("Relu", shared))
