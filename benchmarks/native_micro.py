"""Single kernels of the CPU backend against the measured peak and against ONNX Runtime.

    python benchmarks/native_micro.py [--threads 1] [--seconds 0.25] [--only resnet|mobilenet|bert] [--algorithm auto]

Each row is one layer with bias and Relu where the network has them; times are the best of many runs, the two engines
taking turns. Needs onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mnnpy.backends.cpu import _native

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Conv:
    """Square convolution: input size, input and output channels, kernel, stride, groups."""

    size: int
    c: int
    m: int
    kernel: int
    stride: int = 1
    group: int = 1

    @property
    def out(self) -> int:
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    @property
    def flops(self) -> float:
        return 2.0 * self.out**2 * self.m * self.c / self.group * self.kernel**2

    def __str__(self) -> str:
        kind = f"dw{self.kernel}x{self.kernel}" if self.group > 1 else f"{self.kernel}x{self.kernel}"
        return f"conv {kind} s{self.stride} {self.c}->{self.m} @{self.size}"


@dataclass(frozen=True)
class Gemm:
    """A[batch, m, k] · B, where B is constant unless *batch* > 1."""

    m: int
    k: int
    n: int
    batch: int = 1

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.m * self.k * self.n

    def __str__(self) -> str:
        return f"gemm {self.batch}x{self.m}x{self.k}x{self.n}"


RESNET = [
    Conv(224, 3, 64, 7, 2),
    Conv(56, 64, 64, 1),
    Conv(56, 64, 64, 3),
    Conv(56, 64, 256, 1),
    Conv(56, 256, 64, 1),
    Conv(56, 256, 128, 1),
    Conv(56, 128, 128, 3, 2),
    Conv(28, 128, 512, 1),
    Conv(56, 256, 512, 1, 2),
    Conv(28, 512, 128, 1),
    Conv(28, 128, 128, 3),
    Conv(28, 512, 256, 1),
    Conv(28, 256, 256, 3, 2),
    Conv(14, 256, 1024, 1),
    Conv(28, 512, 1024, 1, 2),
    Conv(14, 1024, 256, 1),
    Conv(14, 256, 256, 3),
    Conv(14, 1024, 512, 1),
    Conv(14, 512, 512, 3, 2),
    Conv(7, 512, 2048, 1),
    Conv(14, 1024, 2048, 1, 2),
    Conv(7, 2048, 512, 1),
    Conv(7, 512, 512, 3),
]
MOBILENET = [
    Conv(224, 3, 32, 3, 2),
    Conv(112, 32, 32, 3, 1, 32),
    Conv(112, 32, 16, 1),
    Conv(112, 16, 96, 1),
    Conv(112, 96, 96, 3, 2, 96),
    Conv(56, 96, 24, 1),
    Conv(56, 24, 144, 1),
    Conv(56, 144, 144, 3, 1, 144),
    Conv(56, 144, 24, 1),
    Conv(56, 144, 144, 3, 2, 144),
    Conv(28, 144, 32, 1),
    Conv(28, 32, 192, 1),
    Conv(28, 192, 192, 3, 1, 192),
    Conv(28, 192, 192, 3, 2, 192),
    Conv(14, 192, 64, 1),
    Conv(14, 64, 384, 1),
    Conv(14, 384, 384, 3, 1, 384),
    Conv(14, 384, 96, 1),
    Conv(14, 576, 576, 3, 2, 576),
    Conv(7, 576, 160, 1),
    Conv(7, 160, 960, 1),
    Conv(7, 960, 960, 3, 1, 960),
    Conv(7, 960, 320, 1),
    Conv(7, 320, 1280, 1),
]
BERT = [
    Gemm(128, 768, 768),
    Gemm(128, 768, 3072),
    Gemm(128, 3072, 768),
    Gemm(128, 384, 1536),
    Gemm(128, 64, 128, 12),
    Gemm(128, 128, 64, 12),
    Gemm(1, 2048, 1000),
    Gemm(1, 768, 768),
    Gemm(16, 768, 768),
    Gemm(512, 512, 512),
]


def aligned(a: Array) -> Array:
    """A copy at a 64-byte boundary, as tensors inside a network have it."""
    raw = np.empty(a.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def peak(threads: int) -> float:
    """Best GFLOP/s of a product that stays in cache: what the register tile reaches."""
    layer = Gemm(192 * threads, 512, 192)
    run, _ = native(layer, threads, "auto")
    return layer.flops / min(best([run], 0.5)) / 1e9


def native(layer: Conv | Gemm, threads: int, algorithm: str) -> tuple[Callable[[], object], str]:
    """A function that runs the layer once, and the kernel's name."""
    rng = np.random.default_rng(0)

    def make(*shape: int) -> Array:
        return aligned(rng.standard_normal(shape).astype(np.float32))

    if isinstance(layer, Conv):
        x, w, b = (
            make(1, layer.size, layer.size, layer.c),
            make(layer.m, layer.c // layer.group, *(layer.kernel,) * 2),
            make(layer.m),
        )
        y = aligned(np.zeros((1, layer.out, layer.out, layer.m), np.float32))
        attrs = {
            "strides": (layer.stride,) * 2,
            "pads": (layer.kernel // 2,) * 4,
            "dilations": (1, 1),
            "group": layer.group,
            "layout": "NHWC",
            "act": "Relu",
            "algorithm": algorithm,
        }
        tensors = [
            ("f32", x.shape, "input", 0),
            ("f32", w.shape, "constant", w),
            ("f32", b.shape, "constant", b),
            ("f32", y.shape, "output", 0),
        ]
        program = _native.Program(tensors, [("Convolution", "layer", attrs, [0, 1, 2], [3])], 0, threads)
        arrays = [x]
    else:
        x = make(layer.batch, layer.m, layer.k)
        w = make(layer.k, layer.n) if layer.batch == 1 else make(layer.batch, layer.k, layer.n)
        y = aligned(np.zeros((layer.batch, layer.m, layer.n), np.float32))
        second = ("f32", w.shape, "constant", w) if layer.batch == 1 else ("f32", w.shape, "input", 1)
        tensors = [("f32", x.shape, "input", 0), second, ("f32", y.shape, "output", 0)]
        program = _native.Program(tensors, [("MatMul", "layer", {}, [0, 1], [2])], 0, threads)
        arrays = [x] if layer.batch == 1 else [x, w]
    return lambda: program.run(arrays, [y]), str(program.describe()[0]["algorithm"])


def ort(layer: Conv | Gemm, threads: int) -> Callable[[], object]:
    """The same layer as a one-op model in ONNX Runtime, on bound buffers, in the layout it prefers."""
    rng = np.random.default_rng(0)

    def make(*shape: int) -> Array:
        return aligned(rng.standard_normal(shape).astype(np.float32))

    def value(name: str, a: Array) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape)

    if isinstance(layer, Conv):
        x, w, b = (
            make(1, layer.c, layer.size, layer.size),
            make(layer.m, layer.c // layer.group, *(layer.kernel,) * 2),
            make(layer.m),
        )
        y = aligned(np.zeros((1, layer.m, layer.out, layer.out), np.float32))
        nodes = [
            helper.make_node(
                "Conv",
                ["x", "w", "b"],
                ["c"],
                strides=[layer.stride] * 2,
                pads=[layer.kernel // 2] * 4,
                group=layer.group,
            ),
            helper.make_node("Relu", ["c"], ["y"]),
        ]
        inputs, constants = {"x": x}, {"w": w, "b": b}
    else:
        x = make(layer.batch, layer.m, layer.k)
        w = make(layer.k, layer.n) if layer.batch == 1 else make(layer.batch, layer.k, layer.n)
        y = aligned(np.zeros((layer.batch, layer.m, layer.n), np.float32))
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        inputs, constants = ({"x": x}, {"w": w}) if layer.batch == 1 else ({"x": x, "w": w}, {})
    graph = helper.make_graph(
        nodes,
        "layer",
        [value(k, v) for k, v in inputs.items()],
        [value("y", y)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, a in inputs.items():
        binding.bind_cpu_input(name, a)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def run(keep: object = (inputs, y)) -> None:
        session.run_with_iobinding(binding)

    return run


def best(runs: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Shortest time of each function; they take turns in short bursts for *seconds* each."""
    times = [math.inf] * len(runs)
    for run in runs:
        run()
    deadline = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < deadline:
        for k, run in enumerate(runs):
            for _ in range(5):
                begin = time.perf_counter()
                run()
                times[k] = min(times[k], time.perf_counter() - begin)
    return times


def main() -> None:
    """Prints one row per layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.25)
    parser.add_argument("--only", choices=("resnet", "mobilenet", "bert"))
    parser.add_argument("--algorithm", default="auto", help="of convolutions: auto, direct, winograd2, winograd4")
    args = parser.parse_args()
    top = peak(args.threads)
    print(f"instruction set {_native.isa()}, {args.threads} thread(s), product in cache {top:.0f} GFLOP/s")
    for name, layers in (("resnet", RESNET), ("mobilenet", MOBILENET), ("bert", BERT)):
        if args.only not in (None, name):
            continue
        total = [0.0, 0.0]
        for layer in layers:
            run, algorithm = native(layer, args.threads, args.algorithm)
            mine, theirs = best([run, ort(layer, args.threads)], args.seconds)
            total = [total[0] + mine, total[1] + theirs]
            rate = layer.flops / mine / 1e9
            print(
                f"{layer!s:34} {algorithm:16} {mine * 1e6:8.1f} us {rate:6.1f} GFLOP/s {rate / top:5.0%} of peak | "
                f"ort {theirs * 1e6:8.1f} us | {theirs / mine:5.2f}x",
                flush=True,
            )
        print(f"{name}: {total[0] * 1e3:.2f} ms against {total[1] * 1e3:.2f} ms, {total[1] / total[0]:.2f}x")


if __name__ == "__main__":
    main()
