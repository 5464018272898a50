"""If, Loop, Scan and SequenceMap: references and what their shape functions can tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.infer import Operand, infer, operand_of
from mnnpy.decompose.ops.control import infer_graph, merge_types
from mnnpy.errors import MnnpyError, ShapeError
from mnnpy.graph.dims import SymDim, sym
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Graph, Node, SequenceType, TensorType, Value

F32 = DType.F32


def graph(inputs: str, outputs: str, *nodes: Node, constants: dict[str, Any] | None = None) -> Graph:
    return Graph("body", tuple(map(Value, inputs.split())), tuple(map(Value, outputs.split())), nodes, constants or {})


def binary(fn: str, a: str, b: str, out: str) -> Node:
    return Node("Binary", (a, b), (out,), {"fn": fn})


def f32(*shape: Any) -> TensorType:
    return TensorType(F32, shape)


ADD, MUL = graph("a b", "y", binary("Add", "a", "b", "y")), graph("a b", "y", binary("Mul", "a", "b", "y"))
#: i, cond, x, c → cond, x + c, x
ACCUMULATE = graph("i cond x c", "cond y x", binary("Add", "x", "c", "y"))
x3, c3 = np.float32([1, 2, 3]), np.float32([10, 20, 30])


def test_if() -> None:
    for cond, want in ((True, x3 + c3), (False, x3 * c3)):
        (y,) = evaluate("If", [np.asarray(cond), x3, c3], {"then_branch": ADD, "else_branch": MUL})
        np.testing.assert_array_equal(y, want)
    with pytest.raises(MnnpyError, match="the condition has 2 elements"):
        evaluate("If", [np.asarray([True, False]), x3, c3], {"then_branch": ADD, "else_branch": MUL})


def test_if_types() -> None:
    cond = Operand(TensorType(DType.BOOL, ()))
    shrink = graph("a b", "s", Node("Reduce", ("a",), ("s",), {"fn": "Sum", "axes": (0,), "keepdims": True}))
    attrs = {"then_branch": ADD, "else_branch": shrink}
    (t,) = infer("If", [cond, operand_of(x3), operand_of(c3)], attrs, 1)
    assert isinstance(t, TensorType)
    assert t.dtype is F32
    assert isinstance(t.shape[0], SymDim)  # 3 or 1
    (t,) = infer("If", [operand_of(np.asarray(False)), operand_of(x3), operand_of(c3)], attrs, 1)
    assert t == f32(1)
    with pytest.raises(ShapeError, match="2 inputs, the node gives it 1"):
        infer("If", [cond, operand_of(x3)], {"then_branch": ADD, "else_branch": MUL}, 1)


def test_loop() -> None:
    attrs = {"body": ACCUMULATE, "captures": 1}
    final, scan = evaluate("Loop", [np.asarray(3), None, x3, c3], attrs)
    np.testing.assert_array_equal(final, x3 + 3 * c3)
    np.testing.assert_array_equal(scan, np.stack([x3, x3 + c3, x3 + 2 * c3]))


def test_loop_that_stops_itself() -> None:
    #: x → x + c while x < 3, counted from the body's condition
    body = graph(
        "i cond x c",
        "go y",
        binary("Add", "x", "c", "y"),
        binary("Less", "y", "c3", "go"),
        constants={"c3": np.float32(3)},
    )
    values = [np.float32(0), np.float32(1)]
    (y,) = evaluate("Loop", [np.asarray(10), np.asarray(True), *values], {"body": body, "captures": 1})
    assert y == 3
    (y,) = evaluate("Loop", [None, np.asarray(True), *values], {"body": body, "captures": 1})
    assert y == 3
    # Without a first condition the body's one is ignored.
    (y,) = evaluate("Loop", [np.asarray(10), None, *values], {"body": body, "captures": 1})
    assert y == 10
    (y,) = evaluate("Loop", [np.asarray(10), np.asarray(False), *values], {"body": body, "captures": 1})
    assert y == 0


def test_loop_without_iterations_keeps_shapes() -> None:
    _, scan = evaluate("Loop", [np.asarray(0), None, x3, c3], {"body": ACCUMULATE, "captures": 1})
    assert scan.shape == (0, 3)
    assert scan.dtype == np.float32


def test_loop_types() -> None:
    x, c = Operand(f32(3)), Operand(f32(3))
    attrs = {"body": ACCUMULATE, "captures": 1}
    assert infer("Loop", [operand_of(np.asarray(4)), None, x, c], attrs, 2) == (f32(3), f32(4, 3))
    final, scan = infer("Loop", [Operand(TensorType(DType.I64, ())), None, x, c], attrs, 2)
    assert final == f32(3)
    assert isinstance(scan, TensorType)
    assert isinstance(scan.shape[0], SymDim)
    assert scan.shape[1] == 3


def test_loop_that_grows() -> None:
    body = graph("i cond x c", "cond y", Node("Concat", ("x", "c"), ("y",), {"axis": 0}))
    (y,) = evaluate("Loop", [np.asarray(2), None, x3, c3], {"body": body, "captures": 1})
    assert y.shape == (9,)
    (t,) = infer(
        "Loop", [operand_of(np.asarray(2)), None, Operand(f32(3)), Operand(f32(3))], {"body": body, "captures": 1}, 1
    )
    assert isinstance(t, TensorType)
    assert isinstance(t.shape[0], SymDim)


def test_loop_scan_of_changing_shape() -> None:
    body = graph("i cond x c", "cond y x", Node("Concat", ("x", "c"), ("y",), {"axis": 0}))
    with pytest.raises(MnnpyError, match="changes its shape between iterations"):
        evaluate("Loop", [np.asarray(2), None, x3, c3], {"body": body, "captures": 1})


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("prepend", [0, 1])
def test_scan(axis: int, backwards: int, prepend: int) -> None:
    body = graph(
        "s x c",
        "t t2",
        binary("Add", "s", "x", "u"),
        binary("Mul", "u", "c", "t"),
        Node("Unary", ("t",), ("t2",), {"fn": "Neg"}),
    )
    xs = np.arange(6, dtype=np.float32).reshape(2, 3)
    axes = axis % 2
    s, c = np.zeros(xs.shape[1 - axes], np.float32), np.float32(2)
    attrs = {"body": body, "num_scan_inputs": 1, "captures": 1, "scan_input_axes": (axis,),
             "scan_input_directions": (backwards,),
             "scan_output_axes": (axis,), "scan_output_directions": (prepend,)}  # fmt: skip
    state, out = evaluate("Scan", [s, xs, c], attrs)
    want_state, rows = s, []
    order = range(xs.shape[axes])
    for k in reversed(order) if backwards else order:
        want_state = (want_state + np.take(xs, k, axis)) * c
        rows.append(-want_state)
    np.testing.assert_array_equal(state, want_state)
    np.testing.assert_array_equal(out, np.stack(rows[::-1] if prepend else rows, axis))
    types = infer("Scan", [operand_of(v) for v in (s, xs, c)], attrs, 2)
    assert types == (f32(*state.shape), f32(*out.shape))


def test_scan_of_nothing() -> None:
    attrs = {"body": graph("s x", "s x"), "num_scan_inputs": 1}
    state, out = evaluate("Scan", [x3, np.zeros((0, 4), np.float32)], attrs)
    assert out.shape == (0, 4)
    np.testing.assert_array_equal(state, x3)


def test_scan_errors() -> None:
    attrs = {"body": graph("x y", "x y"), "num_scan_inputs": 2}
    with pytest.raises(ShapeError, match="scan inputs have lengths 3 and 2"):
        infer("Scan", [operand_of(x3), operand_of(x3[:2])], attrs, 2)
    with pytest.raises(ShapeError, match="scan_input_axes has 1 entries, 2 are needed"):
        infer("Scan", [operand_of(x3), operand_of(x3)], {**attrs, "scan_input_axes": (0,)}, 2)


def test_sequence_map() -> None:
    (y,) = evaluate("SequenceMap", [[x3, c3], [c3, c3]], {"body": ADD})
    assert [v.tolist() for v in y] == [(x3 + c3).tolist(), (c3 + c3).tolist()]
    (y,) = evaluate("SequenceMap", [[x3, c3], c3], {"body": ADD, "captures": 1})
    assert len(y) == 2
    with pytest.raises(MnnpyError, match="sequences have 2 and 1 elements"):
        evaluate("SequenceMap", [[x3, c3], [c3]], {"body": ADD})
    (t,) = infer("SequenceMap", [Operand(SequenceType(f32(3))), Operand(f32(3))], {"body": ADD}, 1)
    assert t == SequenceType(f32(3))


def test_bodies_understand_their_shape_arithmetic() -> None:
    body = graph(
        "x", "y", Node("Shape", ("x",), ("s",)), Node("Gather", ("s", "one"), ("n",), {"axis": 0}),
        Node("Concat", ("minus", "n"), ("target",), {"axis": 0}), Node("Reshape", ("x", "target"), ("y",)),
        constants={"one": np.asarray([1]), "minus": np.asarray([-1])},
    )  # fmt: skip
    (y,) = infer_graph(body, [Operand(f32(2, 6, 4))])
    assert y.maybe_type == f32(8, 6)


def test_merge_types() -> None:
    assert merge_types(f32(2, sym("n")), f32(2, sym("n"))) == f32(2, sym("n"))
    assert merge_types(f32(2), f32(2, 2)) == TensorType(F32, None)
    with pytest.raises(ShapeError, match="different element types"):
        merge_types(f32(2), TensorType(DType.I64, (2,)))
