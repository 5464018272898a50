"""From an ONNX model to an answer: ``python examples/quickstart.py [model.onnx]``.

Without an argument a small convolution network is made on the spot.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import mnnpy


def small_model(path: Path) -> Path:
    """Conv → Relu → GlobalAveragePool → Flatten, with a symbolic batch."""
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["features"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 8])
    graph = helper.make_graph(nodes, "small", [image], [features], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else small_model(Path(folder) / "small.onnx")
        session = mnnpy.Session(path)
        feeds = {
            i.name: np.ones([d if isinstance(d, int) else 1 for d in i.shape or ()], np.float32)
            for i in session.get_inputs()
        }
        for output, value in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            print(f"{output.name} {value.shape}: {value.reshape(-1)[:4]}")
        print(session.explain())
        mnnpy.convert(path, Path(folder) / "model.mnnpy")  # one safetensors file, mapped on load
        print(mnnpy.Session(Path(folder) / "model.mnnpy").get_outputs())


if __name__ == "__main__":
    main()
