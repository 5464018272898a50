"""A small writer of ONNX graphs with seeded weights, for the benchmark models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Dims", "Net"]

#: A declared shape: sizes, or names of symbolic ones.
Dims = Sequence[int | str]


class Net:
    """Collects nodes and weights; methods return the name of what they computed.

    Convolutions and matrix products add to ``flops`` (2 per multiply-add, at batch 1).
    """

    def __init__(self, name: str, opset: int, seed: int) -> None:
        self.name, self.opset = name, opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.flops = 0.0
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._names = 0

    def fresh(self, stem: str) -> str:
        self._names += 1
        return f"{stem}_{self._names}"

    def input(self, name: str, shape: Dims, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def weight(self, array: NDArray[Any], stem: str = "weight") -> str:
        """An initializer of its own."""
        name = self.fresh(stem)
        self.weights.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        """A small constant; equal ones are shared."""
        array = np.asarray(value, dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.weight(array, "const")
        return self._known[key]

    def normal(self, shape: Sequence[int], std: float) -> NDArray[np.float32]:
        out: NDArray[np.float32] = self.rng.standard_normal(tuple(shape), dtype=np.float32) * np.float32(std)
        return out

    def uniform(self, shape: Sequence[int], low: float, high: float) -> NDArray[np.float32]:
        return self.rng.uniform(low, high, tuple(shape)).astype(np.float32)

    def add(self, op: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1, **attrs: Any) -> Any:
        """Append a node; returns its output's name, or a list of names."""
        names = [self.fresh(op) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self.nodes.append(helper.make_node(op, list(inputs), names, name=self.fresh(f"node_{op}"), **attrs))
        return names[0] if len(names) == 1 else names

    def conv(
        self,
        x: str,
        cin: int,
        cout: int,
        kernel: int,
        out_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        pad: int | None = None,
    ) -> str:
        """A square convolution with He-normal weights; *out_size* is the output's side, for the flop count."""
        pad = (kernel - 1) // 2 if pad is None else pad
        fan_in = cin // groups * kernel * kernel
        inputs = [x, self.weight(self.normal((cout, cin // groups, kernel, kernel), (2.0 / fan_in) ** 0.5))]
        if bias:
            inputs.append(self.weight(self.normal((cout,), 0.05)))
        self.flops += 2.0 * fan_in * cout * out_size * out_size
        return str(
            self.add(
                "Conv",
                inputs,
                kernel_shape=[kernel] * 2,
                strides=[stride] * 2,
                pads=[pad] * 4,
                dilations=[1, 1],
                group=groups,
            )
        )

    def batch_norm(self, x: str, channels: int, gain: float = 1.0) -> str:
        """Inference batch normalisation with statistics as training leaves them."""
        params = [
            self.uniform((channels,), 0.8 * gain, 1.2 * gain),
            self.normal((channels,), 0.1),
            self.normal((channels,), 0.1),
            self.uniform((channels,), 0.6, 1.4),
        ]
        return str(self.add("BatchNormalization", [x, *(self.weight(p, "bn") for p in params)], epsilon=1e-5))

    def linear(self, x: str, n_in: int, n_out: int, rows: int, *, gain: float = 1.0) -> str:
        """``x @ W + b`` on the last axis, written as exporters do for rank-3 inputs: MatMul, then Add."""
        w = self.weight(self.normal((n_in, n_out), gain * (1.0 / n_in) ** 0.5))
        self.flops += 2.0 * rows * n_in * n_out
        return str(self.add("Add", [self.weight(self.normal((n_out,), 0.02)), self.add("MatMul", [x, w])]))

    def gemm(self, x: str, n_in: int, n_out: int) -> str:
        """``x @ Wᵀ + b`` of a rank-2 input, with torch's (out, in) weight."""
        w = self.weight(self.normal((n_out, n_in), (2.0 / n_in) ** 0.5))
        self.flops += 2.0 * n_in * n_out
        return str(self.add("Gemm", [x, w, self.weight(self.normal((n_out,), 0.05))], transB=1))

    def finish(self, outputs: Sequence[tuple[str, str, Dims]]) -> onnx.ModelProto:
        """The checked model; *outputs* are (value, name it gets, shape)."""
        infos = []
        for value, name, shape in outputs:
            self.nodes.append(helper.make_node("Identity", [value], [name], name=f"output_{name}"))
            infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        graph = helper.make_graph(self.nodes, self.name, self.inputs, infos, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], producer_name="mnnpy")
        model.ir_version = min(model.ir_version, 10)
        onnx.checker.check_model(model, full_check=True)
        return model
