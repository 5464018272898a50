"""Tiny models that together touch control flow, shapes as data, indices, integers, sequences and quantisation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.models import MODELS, Feeds, Net

__all__ = ["SEEDS"]

SEEDS: dict[str, Callable[[], tuple[onnx.ModelProto, Feeds]]] = dict(MODELS)
F, I64 = TensorProto.FLOAT, TensorProto.INT64


def seed(fn: Callable[[], tuple[onnx.ModelProto, Feeds]]) -> Callable[[], tuple[onnx.ModelProto, Feeds]]:
    SEEDS[fn.__name__] = fn
    return fn


class _Net(Net):
    def feed(self, array: np.ndarray, symbolic: tuple[int | str, ...] | None = None) -> str:
        """An input of any type."""
        name = self.name("x")
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, symbolic or array.shape))
        self.feeds[name] = array
        return name


@seed
def shapes_as_data() -> tuple[onnx.ModelProto, Feeds]:
    n = _Net(1)
    x = n.input(2, 3, 4)
    target = n.feed(np.array([4, 6], np.int64))
    y = n.op("Reshape", x, target)
    z = n.op("Expand", n.op("ReduceSum", y, n.ints(1)), target)
    f = n.op("ConstantOfShape", n.ints(4, 6), value=helper.make_tensor("v", F, [1], [2.0]))
    r = n.op("Range", n.const(0, np.int64), n.const(6, np.int64), n.const(1, np.int64))
    t = n.op("Tile", n.op("Add", z, f), n.ints(1, 2))
    p = n.op("Pad", t, n.ints(1, 0, 0, 1), n.const(0.5))
    s = n.op("Slice", p, n.ints(0), n.ints(4), n.ints(1), n.ints(1))
    return n.finish(s, r, n.op("OneHot", r, n.const(8, np.int64), n.const([0.0, 1.0])))


@seed
def indices() -> tuple[onnx.ModelProto, Feeds]:
    n = _Net(2)
    x, k = n.input(5, 4), n.feed(np.array([[0, 2], [3, 1]], np.int64))
    g = n.op("Gather", x, k, axis=0)
    e = n.op("GatherElements", x, k, axis=1)
    nd = n.op("GatherND", x, n.const([[0, 1], [4, 3]], np.int64))
    s = n.op("ScatterND", x, n.const([[1], [2]], np.int64), n.const(np.ones((2, 4))))
    values, where = n.op("TopK", s, n.ints(3), outputs=2, axis=1)
    m = n.op("ScatterElements", x, k, n.const(np.ones((2, 2))), axis=0)
    c = n.op("Compress", x, n.const([1, 0, 1], bool), axis=0)
    return n.finish(g, e, nd, values, where, m, n.op("NonZero", x), c)


@seed
def integers() -> tuple[onnx.ModelProto, Feeds]:
    n = _Net(3)
    a, b = n.feed(np.array([7, -8, 9], np.int32)), n.feed(np.array([2, 3, -2], np.int32))
    d = n.op("Mod", n.op("Div", a, b), n.const(3, np.int32))
    u = n.op("Cast", n.op("Abs", d), to=TensorProto.UINT8)
    sh = n.op("BitShift", u, n.const([1, 2, 3], np.uint8), direction="LEFT")
    q = n.op("QuantizeLinear", n.op("Cast", a, to=F), n.const(0.5), n.const(3, np.uint8))
    dq = n.op("DequantizeLinear", q, n.const(0.5), n.const(3, np.uint8))
    mm = n.op("MatMulInteger", n.op("Reshape", u, n.ints(1, 3)), n.const(np.ones((3, 2)), np.uint8))
    c = n.op("CumSum", dq, n.const(0, np.int64))
    return n.finish(sh, mm, c, n.op("ArgMax", dq, axis=0), n.op("Unique", d))


@seed
def control() -> tuple[onnx.ModelProto, Feeds]:
    n = _Net(4)
    x, trips = n.input(2, 3), n.feed(np.array(3, np.int64))
    flag = n.feed(np.array(True))
    info = helper.make_tensor_value_info
    step = helper.make_graph(
        [
            helper.make_node("Add", ["v", x], ["v2"]),
            helper.make_node("Cast", ["i"], ["fi"], to=F),
            helper.make_node("Identity", ["c"], ["c2"]),
        ],
        "step",
        [info("i", I64, []), info("c", TensorProto.BOOL, []), info("v", F, [2, 3])],
        [info("c2", TensorProto.BOOL, []), info("v2", F, [2, 3]), info("fi", F, [])],
    )
    looped, rows = n.op("Loop", trips, "", x, outputs=2, body=step)
    branches = {
        key: helper.make_graph([helper.make_node(op, [looped], [key])], key, [], [info(key, F, [2, 3])])
        for key, op in (("then_branch", "Neg"), ("else_branch", "Abs"))
    }
    y = n.op("If", flag, **branches)
    row = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["s2"]), helper.make_node("Identity", ["s2"], ["o"])],
        "row",
        [info("s", F, [3]), info("e", F, [3])],
        [info("s2", F, [3]), info("o", F, [3])],
    )
    last, scanned = n.op("Scan", n.const(np.zeros(3)), y, outputs=2, body=row, num_scan_inputs=1)
    seq = n.op("SplitToSequence", y, n.ints(1, 1), axis=0)
    joined = n.op("ConcatFromSequence", seq, axis=1)
    return n.finish(rows, last, scanned, joined, n.op("SequenceAt", seq, n.const(0, np.int64)))


@seed
def pooling() -> tuple[onnx.ModelProto, Feeds]:
    n = _Net(5)
    x = n.input(1, 2, 6, 5)
    a = n.op("AveragePool", x, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])
    m, k = n.op("MaxPool", x, outputs=2, kernel_shape=[2, 2])
    r = n.op("LRN", n.op("LpPool", a, kernel_shape=[2, 2], p=2), size=3)
    d = n.op("DepthToSpace", n.op("Conv", x, n.w(4, 1, 2, 2), group=2, dilations=[2, 1]), blocksize=2)
    i = n.op("InstanceNormalization", d, n.const([1.0]), n.const([0.5]))
    e = n.op("Flatten", i)
    return n.finish(r, m, k, n.op("Softmax", e), n.op("Einsum", e, equation="ij->ji"))
