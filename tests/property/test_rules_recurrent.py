"""LSTM, GRU and RNN: unrolled rules against the references, and the references against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.decompose.builder import Builder, evaluate
from mnnpy.decompose.infer import infer, operand_of
from mnnpy.decompose.ops.recurrent import activation_sets, gates_of
from mnnpy.errors import ShapeError
from tests.rule_check import check_rule

FUNCTIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
ACTIVATIONS = (
    "Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu", "Softsign",
    "Softplus",
)  # fmt: skip


def operands(
    name: str, steps: int = 3, batch: int = 2, size: int = 3, hidden: int = 2, direction: str = "forward",
    layout: int = 0, optional: str = "BshcP", dtype: Any = np.float32, seed: int = 0,
) -> list[Any]:  # fmt: skip
    """Random operands; *optional* names those that are present: B, s(equence_lens), h, c, P."""
    r = np.random.default_rng(seed)
    d = 2 if direction == "bidirectional" else 1
    n = gates_of(name)

    def make(*shape: int) -> Any:
        return r.uniform(-1, 1, shape).astype(dtype)

    state = (batch, d, hidden) if layout else (d, batch, hidden)
    xs = [
        make(*((batch, steps, size) if layout else (steps, batch, size))), make(d, n * hidden, size),
        make(d, n * hidden, hidden), make(d, 2 * n * hidden) if "B" in optional else None,
        r.integers(0, steps + 1, batch).astype(np.int32) if "s" in optional else None,
        make(*state) if "h" in optional else None,
    ]  # fmt: skip
    if name == "LSTM":
        xs += [make(*state) if "c" in optional else None, make(d, 3 * hidden) if "P" in optional else None]
    return xs


def outputs(name: str) -> int:
    return 3 if name == "LSTM" else 2


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rule(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FUNCTIONS)))
    direction = data.draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    layout = data.draw(st.integers(0, 1))
    attrs: dict[str, Any] = {"direction": direction, "layout": layout}
    if data.draw(st.booleans()):
        count = FUNCTIONS[name] * (2 if direction == "bidirectional" else 1)
        attrs["activations"] = tuple(data.draw(st.lists(st.sampled_from(ACTIVATIONS), min_size=count, max_size=count)))
        attrs["activation_alpha"] = tuple(data.draw(st.lists(st.floats(0.125, 1.5, width=32), max_size=count)))
        attrs["activation_beta"] = tuple(data.draw(st.lists(st.floats(0.125, 1.5, width=32), max_size=count)))
    if data.draw(st.booleans()):
        attrs["clip"] = 0.4
    if name == "GRU":
        attrs["linear_before_reset"] = data.draw(st.integers(0, 1))
    if name == "LSTM":
        attrs["input_forget"] = data.draw(st.integers(0, 1))
    sizes = [data.draw(st.integers(0 if k < 2 else 1, 3)) for k in range(4)]
    optional = "".join(c for c in "BshcP" if data.draw(st.booleans()))
    xs = operands(name, *sizes, direction, layout, optional, seed=data.draw(st.integers(0, 99)))
    check_rule(name, xs, attrs, outputs=outputs(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(name: str, dtype: Any) -> None:
    tolerance = 2e-3 if dtype is np.float16 else 1e-12
    check_rule(name, operands(name, dtype=dtype), outputs=outputs(name), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name, each", [("LSTM", 15), ("GRU", 15), ("RNN", 4)])
def test_nodes_per_step(name: str, each: int) -> None:
    def count(steps: int, direction: str) -> int:
        xs = operands(name, steps, direction=direction, optional="B")
        return len(check_rule(name, xs, {"direction": direction}, outputs=outputs(name), const=(1, 2, 3)))

    forward = count(6, "forward") - count(5, "forward")
    assert forward <= each
    assert count(6, "bidirectional") - count(5, "bidirectional") == forward


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize("clip", [None, 0.3])
def test_reference_against_onnxruntime(name: str, direction: str, clip: float | None) -> None:
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    xs = operands(name, direction=direction)
    xs[4] = np.asarray([3, 2], np.int32)
    attrs: dict[str, Any] = {"direction": direction, "hidden_size": 2}
    if clip is not None:
        attrs["clip"] = clip
    if name == "GRU":
        attrs["linear_before_reset"] = 1
    names = [f"i{k}" for k in range(len(xs))]
    outs = [f"o{k}" for k in range(outputs(name))]
    infos = [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
             for n, x in zip(names, xs, strict=True)]  # fmt: skip
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(name, names, outs, **attrs)], "g", infos,
        [onnx.helper.make_tensor_value_info(o, 1, None) for o in outs],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, dict(zip(names, xs, strict=True)))
    got = evaluate(name, xs, attrs)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=f"output {k}")


def test_parameters_go_to_the_functions_that_take_them() -> None:
    (a,) = activation_sets("LSTM", "forward", ("Sigmoid", "LeakyRelu", "HardSigmoid"), (0.5, 0.25), (0.75,))
    assert [(x.fn, x.alpha, x.beta) for x in a] == [
        ("Sigmoid", 0, 0),
        ("LeakyRelu", 0.5, 0),
        ("HardSigmoid", 0.25, 0.75),
    ]


@pytest.mark.parametrize(
    "attrs, message",
    [
        ({"direction": "up"}, "direction 'up'"),
        ({"activations": ("Tanh",)}, "takes 3"),
        ({"activations": ("Tanh", "Than", "Tanh")}, "'Than' is not one of Relu"),
        ({"hidden_size": 7}, "hidden_size is 7"),
        ({"direction": "bidirectional"}, r"W has shape \(1, 8, 3\); this bidirectional LSTM takes \(2, 8, 3\)"),
    ],
)
def test_errors(attrs: dict[str, Any], message: str) -> None:
    xs = [None if x is None else operand_of(x) for x in operands("LSTM")]
    with pytest.raises(ShapeError, match=message):
        infer("LSTM", xs, attrs, 3)


def test_constant_initial_products_fold() -> None:
    g = Builder(fold=True)
    xs = operands("RNN", 1, optional="")
    args = [g.var("x", operand_of(xs[0]).type), g.const(xs[1]), g.const(xs[2])]
    from mnnpy.decompose.registry import find_rule

    find_rule("RNN")(g, *args)  # type: ignore[misc]
    assert sum(n.op == "MatMul" for n in g.nodes) == 1
