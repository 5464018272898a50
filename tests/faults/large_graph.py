"""Builds and runs a long chain of nodes; prints seconds per stage as JSON.

usage: python -m tests.faults.large_graph NODES [KIND]

KIND: ``chain`` (element-wise, fuses), ``mixed`` (reshapes, transposes, concatenations, matrix products, shared values),
``wide`` (one value read by all nodes, summed in one variadic node).
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import mnnpy


def build(count: int, kind: str) -> bytes:
    nodes: list[onnx.NodeProto] = []
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((rng.standard_normal((8, 8)) / 3).astype(np.float32), "w"),
        numpy_helper.from_array(np.array([4, 16], np.int64), "s1"),
        numpy_helper.from_array(np.array([8, 8], np.int64), "s2"),
    ]
    x = "x"

    def op(name: str, *inputs: str, **attrs: object) -> str:
        out = f"v{len(nodes)}"
        nodes.append(helper.make_node(name, list(inputs), [out], name=f"n{len(nodes)}", **attrs))
        return out

    if kind == "chain":
        for k in range(count):
            x = op(("Tanh", "Neg", "Abs", "Sin")[k % 4], x)
    elif kind == "mixed":
        for k in range(count // 10):
            a = op("Transpose", op("Reshape", op("Reshape", x, "s1"), "s2"), perm=[1, 0])
            b = op("Softmax", op("MatMul", x, "w"))
            c = op("Concat", a, b, axis=0)
            d = op("Slice", c, *(["one", "nine", "zero"]))
            x = op("Tanh", op("Add", op("Mul", d, x), x)) if k % 2 else op("Tanh", op("Add", op("Sub", d, b), x))
        for name, value in (("one", [1]), ("nine", [9]), ("zero", [0])):
            weights.append(numpy_helper.from_array(np.array(value, np.int64), name))
    else:
        many = [op("Sin" if k % 2 else "Neg", x) for k in range(count - 1)]
        x = op("Sum", *many)
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 8])],
        [onnx.ValueInfoProto(name=x)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def main() -> int:
    count, kind = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "chain"
    data = build(count, kind)
    start = time.perf_counter()
    graph = mnnpy.load_graph(data) if hasattr(mnnpy, "load_graph") else mnnpy.convert.from_onnx(data)
    loaded = time.perf_counter()
    session = mnnpy.Session(graph, threads=1)
    planned = time.perf_counter()
    (result,) = session.run(None, {"x": np.full((8, 8), 0.25, np.float32)})
    ran = time.perf_counter()
    print(
        json.dumps(
            {
                "nodes": count,
                "kind": kind,
                "load": round(loaded - start, 2),
                "plan": round(planned - loaded, 2),
                "run": round(ran - planned, 3),
                "cpu_seconds": round(time.process_time(), 1),
                "finite": bool(np.isfinite(result).all()),
                "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
