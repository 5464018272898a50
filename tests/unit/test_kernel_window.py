"""Convolution templates against the reference: every algorithm, strides, pads, dilations, groups, 1–3 spatial dims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mnnpy.backends.base import NodeView, Segment
from mnnpy.backends.kernels.driver import Caps
from mnnpy.backends.kernels.templates.conv import ALGORITHMS
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node
from tests.emulation.interpreter import interpreted
from tests.unit.kernel_ops import close, emulated, node_graph, opencl, oracle, run_node


@dataclass(frozen=True)
class Case:
    """One convolution: input and weight shapes, attributes."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    group: int = 1

    def attrs(self) -> dict[str, Any]:
        return {"strides": self.strides, "pads": self.pads, "dilations": self.dilations, "group": self.group}

    def operands(self, seed: int = 0) -> tuple[Array, Array, Array]:
        rng = np.random.default_rng(seed)
        return tuple(rng.standard_normal(s, dtype=np.float32) for s in (self.x, self.w, self.w[:1]))  # type: ignore[return-value]

    def expected(self, *operands: Array) -> Array:
        return oracle("Convolution", [o.astype(np.float64) for o in operands], self.attrs())


SAME = (1, 1, 1, 1)
CASES = {
    "3x3": Case((2, 5, 9, 11), (7, 5, 3, 3), pads=SAME),
    "3x3-valid": Case((1, 16, 14, 14), (33, 16, 3, 3)),
    "3x3-uneven-pads": Case((1, 3, 8, 7), (5, 3, 3, 3), pads=(0, 2, 1, 0)),
    "3x3-stride2": Case((2, 6, 15, 13), (9, 6, 3, 3), (2, 2), SAME),
    "3x3-dilated": Case((1, 4, 12, 12), (6, 4, 3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    "1x1": Case((2, 24, 7, 9), (13, 24, 1, 1)),
    "1x1-small": Case((1, 8, 2, 2), (5, 8, 1, 1)),
    "1x1-stride2": Case((1, 12, 9, 9), (20, 12, 1, 1), (2, 2)),
    "7x7": Case((1, 3, 20, 22), (10, 3, 7, 7), (2, 2), (3, 3, 3, 3)),
    "5x3": Case((1, 3, 9, 10), (4, 3, 5, 3), (1, 2), (2, 0, 1, 1)),
    "groups": Case((2, 8, 8, 8), (12, 2, 3, 3), pads=SAME, group=4),
    "depthwise": Case((2, 6, 10, 9), (6, 1, 3, 3), pads=SAME, group=6),
    "depthwise-stride2": Case((1, 5, 11, 70), (5, 1, 3, 3), (2, 2), SAME, group=5),
    "depthwise-multiplier": Case((1, 4, 9, 9), (12, 1, 5, 5), pads=(2, 2, 2, 2), group=4),
    "depthwise-7x7": Case((1, 3, 12, 12), (3, 1, 7, 7), pads=(3, 3, 3, 3), group=3),
    "1d": Case((2, 6, 40), (8, 6, 5), (2,), (2, 2), (1,)),
    "3d": Case((1, 3, 5, 6, 7), (4, 3, 3, 3, 3), (1, 2, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1)),
}


def applies(case: Case, algorithm: str) -> bool:
    if algorithm.startswith("winograd"):
        return case.w[2:] == (3, 3) and set(case.strides + case.dilations) == {1} and case.group == 1
    return algorithm != "depthwise" or (case.w[1] == 1 and len(case.w) == 4)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "", "direct"])
def test_cases_on_opencl(algorithm: str) -> None:
    device = opencl()
    for name, case in CASES.items():
        if not applies(case, algorithm):
            continue
        operands = case.operands()
        expected = case.expected(*operands)
        for constants in ((1, 2), ()):
            if algorithm.startswith("winograd") and not constants:
                continue
            y, kernels = run_node(
                device, "Convolution", operands, expected.shape, case.attrs(), constants=constants, algorithm=algorithm
            )  # fmt: skip
            close(y, expected, 3e-5 if "winograd" in kernels[0] else 2e-6)
            if algorithm == "direct":
                assert not any("winograd" in k for k in kernels), name


STORAGE = frozenset({"storage8", "storage16"})
DEVICES = {
    "cpu16": Caps(STORAGE, lanes=16, cpu_like=True), "cpu8": Caps(STORAGE, lanes=8, cpu_like=True),
    "cpu4": Caps(STORAGE, lanes=4, cpu_like=True), "cpu1": Caps(STORAGE, cpu_like=True),
    "gpu": Caps(STORAGE, max_group=64),
}  # fmt: skip
TINY = {
    "3x3": Case((2, 2, 5, 6), (5, 2, 3, 3), pads=SAME),
    "3x3-uneven-pads": Case((1, 2, 7, 6), (13, 2, 3, 3), pads=(0, 2, 1, 0)),
    "3x3-stride2": Case((1, 2, 5, 7), (3, 2, 3, 3), (2, 2), SAME),
    "1x1": Case((1, 3, 6, 7), (5, 3, 1, 1)),
    "groups-dilated": Case((1, 4, 6, 6), (6, 2, 3, 3), pads=(2, 2, 2, 2), dilations=(2, 2), group=2),
    "depthwise": Case((2, 2, 5, 7), (4, 1, 3, 3), pads=SAME, group=2),
    "depthwise-valid": Case((1, 2, 5, 6), (2, 1, 3, 3), group=2),
    "depthwise-7x7": Case((1, 1, 8, 8), (1, 1, 7, 7), pads=(3, 3, 3, 3), group=1),
    "1d": Case((2, 3, 9), (4, 3, 5), (1,), (2, 2), (1,)),
    "3d": Case((1, 2, 3, 4, 3), (2, 2, 3, 3, 3), (1, 1, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1)),
}


@pytest.mark.parametrize("caps", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_cases_interpreted(algorithm: str, caps: Caps) -> None:
    """No index out of range, nothing written twice, no race; with bias, residual and activation."""
    device = interpreted(caps)
    for case in TINY.values():
        if not applies(case, algorithm):
            continue
        x, w, bias = case.operands()
        plain = case.expected(x, w, bias)
        residual = np.random.default_rng(5).standard_normal(plain.shape).astype(np.float32)
        y, _ = run_node(
            device, "Convolution", [x, w, bias, residual], plain.shape, {**case.attrs(), "act": "Relu"},
            constants=(1, 2), algorithm=algorithm,
        )  # fmt: skip
        close(y, np.maximum(plain + residual, 0), 1e-5)


@pytest.mark.parametrize("kind", ["cuda", "metal"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_cases_emulated(kind: str, algorithm: str) -> None:
    device = emulated(kind)
    small = {
        "3x3": Case((2, 3, 6, 5), (5, 3, 3, 3), pads=SAME),
        "stride2": Case((1, 2, 7, 7), (3, 2, 3, 3), (2, 2), SAME),
        "depthwise": Case((1, 3, 6, 5), (3, 1, 3, 3), pads=SAME, group=3),
    }
    for case in small.values():
        if applies(case, algorithm):
            operands = case.operands()
            expected = case.expected(*operands)
            y, _ = run_node(
                device, "Convolution", operands, expected.shape, case.attrs(), constants=(1, 2), algorithm=algorithm
            )  # fmt: skip
            close(y, expected, 3e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_epilogues(algorithm: str) -> None:
    """Bias by channel, residual and activation."""
    device = opencl()
    case = CASES["depthwise"] if algorithm == "depthwise" else CASES["3x3"]
    x, w, bias = case.operands()
    plain = case.expected(x, w)
    residual = np.random.default_rng(5).standard_normal(plain.shape).astype(np.float32)
    with_bias = plain + bias[:, None, None]
    cases: list[tuple[list[Array | None], dict[str, Any], Array]] = [
        ([bias], {"act": "Relu"}, np.maximum(with_bias, 0)),
        ([None, residual], {"act": "Clip", "act_alpha": 0.0, "act_beta": 6.0}, np.clip(plain + residual, 0, 6)),
        ([bias, residual], {"act": "LeakyRelu", "act_alpha": 0.25}, with_bias + residual),
    ]
    cases[2] = (*cases[2][:2], np.where(cases[2][2] < 0, 0.25 * cases[2][2], cases[2][2]))
    for more, attrs, expected in cases:
        y, _ = run_node(
            device, "Convolution", [x, w, *more], expected.shape, {**case.attrs(), **attrs}, constants=(1,),
            algorithm=algorithm,
        )  # fmt: skip
        close(y, expected, 3e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_narrow_floats_are_summed_in_f32(algorithm: str, dtype: DType) -> None:
    device = opencl()
    case = CASES["depthwise"] if algorithm == "depthwise" else Case((1, 40, 8, 8), (9, 40, 3, 3), pads=SAME)
    operands = [o.astype(dtype.numpy) for o in case.operands()]
    expected = case.expected(*operands)
    y, _ = run_node(
        device, "Convolution", operands, expected.shape, case.attrs(), constants=(1, 2), algorithm=algorithm
    )  # fmt: skip
    assert y.dtype == dtype.numpy
    close(y, expected, 2e-3 if dtype is DType.F16 else 1e-2)


def test_precision_high_is_direct() -> None:
    device = opencl()
    case = Case((1, 64, 16, 16), (64, 64, 3, 3), pads=SAME)
    operands = case.operands()
    for precision, winograd in (("normal", True), ("high", False)):
        y, kernels = run_node(
            device, "Convolution", operands, (1, 64, 16, 16), case.attrs(), constants=(1, 2), precision=precision
        )  # fmt: skip
        assert any("winograd" in k for k in kernels) == winograd
        close(y, case.expected(*operands), 3e-5 if winograd else 1e-6)
    with pytest.raises(BackendError, match="algorithm 'winograd4' does not apply"):
        run_node(
            device, "Convolution", operands, (1, 64, 16, 16), case.attrs(), constants=(1, 2), precision="high",
            algorithm="winograd4",
        )  # fmt: skip


def test_f64_takes_the_plain_kernel() -> None:
    device = opencl()
    case = CASES["3x3"]
    operands = [o.astype(np.float64) for o in case.operands()]
    y, kernels = run_node(device, "Convolution", operands, case.expected(*operands).shape, case.attrs())
    assert kernels == ["convolution2d"]
    close(y, case.expected(*operands), 1e-14)


@pytest.mark.parametrize("caps", DEVICES.values(), ids=DEVICES)
def test_candidates(caps: Caps) -> None:
    """Named, the chosen one first, with launches; Winograd not for every precision."""
    case = Case((1, 32, 14, 14), (32, 32, 3, 3), pads=SAME)
    graph, _ = node_graph("Convolution", list(case.operands()), (1, 32, 14, 14), case.attrs(), (1, 2))
    node, device = graph.nodes[0], interpreted(caps)
    types = [graph.types[n] for n in (*node.inputs, *node.outputs)]
    view = NodeView(node, tuple(types[:3]), tuple(types[3:]), graph.constants)  # type: ignore[arg-type]
    found = {c.algorithm: c for c in device.candidates(view)}
    assert set(found) == {"packed", "tiles", "winograd2", "winograd4", "plain"}
    assert next(iter(found)).startswith("winograd")
    assert found["winograd4"].launches == 3
    assert "high" not in found["winograd4"].parameters["precisions"]
    assert found["tiles"].launches == 1
    assert list(found)[-1] in ("plain", "tiles", "packed")
    unary = Node("Unary", node.inputs[:1], node.inputs[:1], {"fn": "Relu"})
    (only,) = device.candidates(NodeView(unary, tuple(types[:1]), tuple(types[:1]), {}))  # type: ignore[arg-type]
    assert only.algorithm == "default"


def test_a_choice_by_op_is_taken_where_it_applies() -> None:
    """Unlike the attribute of a node, which must apply."""
    device = interpreted(DEVICES["gpu"])
    for case, kernels in ((TINY["3x3"], 3), (TINY["1x1"], 1)):
        operands = case.operands()
        graph, fed = node_graph("Convolution", list(operands), case.expected(*operands).shape, case.attrs(), (1, 2))
        program = device.compile(Segment(graph, algorithms={"Convolution": "winograd2"}))
        assert len(program.describe()) == kernels
        close(np.array(program.run(fed)[0]), case.expected(*operands), 1e-5)


def test_empty_tensors() -> None:
    device = interpreted(DEVICES["cpu16"])
    case = Case((0, 3, 6, 7), (5, 3, 1, 1))
    x, w, bias = case.operands()
    y, kernels = run_node(device, "Convolution", [x, w, bias], (0, 5, 6, 7), case.attrs(), constants=(1, 2))
    assert y.shape == (0, 5, 6, 7)
    assert not kernels
