"""Adapters of the inference engines that ``peers.py`` compares: load a model, run it on given inputs.

Each engine gets what serves it best: static input shapes where it can use them, a latency hint, the stated number
of threads. An adapter is ``open_<engine>(path, feeds, threads) -> run``, where ``run(feeds)`` returns a list of arrays.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.zoo import CACHE

__all__ = ["ENGINES", "ENVIRONMENT", "PEERS", "version_of"]

Array = NDArray[Any]
Feeds = dict[str, Array]
Run = Callable[[Feeds], list[Array]]


def _mnnpy(**options: Any) -> Callable[[Path, Feeds, int], Run]:
    def open_mnnpy(path: Path, feeds: Feeds, threads: int) -> Run:
        import mnnpy

        session = mnnpy.Session(path, "cpu", threads=threads, tune=0.5, **options)
        return lambda f: session.run(None, f)

    return open_mnnpy


def open_mnnpy_bound(path: Path, feeds: Feeds, threads: int) -> Run:
    """Inputs and outputs are bound once."""
    import mnnpy

    session = mnnpy.Session(path, "cpu", threads=threads, tune=0.5)
    binding = session.binding()
    for name, array in feeds.items():
        binding.bind_input(name, array)
    results: list[Array] = session.run(None, feeds)
    for out, array in zip(session.get_outputs(), results, strict=True):
        binding.bind_output(out.name, array)

    def run(_: Feeds) -> list[Array]:
        session.run_with_binding(binding)
        return results

    return run


def open_onnxruntime_bound(path: Path, feeds: Feeds, threads: int) -> Run:
    """Inputs and outputs are bound once, outputs to memory of the first run."""
    import onnxruntime

    session = _onnxruntime(path, feeds, threads)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    results: list[Array] = session.run(None, feeds)
    for out, array in zip(session.get_outputs(), results, strict=True):
        binding.bind_ortvalue_output(out.name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def run(_: Feeds) -> list[Array]:
        session.run_with_iobinding(binding)
        return results  # the same values: bound outputs stay in memory of the runtime

    return run


def open_onnxruntime(path: Path, feeds: Feeds, threads: int) -> Run:
    """Symbolic input sizes are fixed by override; sequential execution, all optimisations."""
    session = _onnxruntime(path, feeds, threads)
    return lambda f: session.run(None, f)


def _onnxruntime(path: Path, feeds: Feeds, threads: int) -> Any:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    sizes: dict[str, set[int]] = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        if value.name in feeds:
            for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True):
                if dim.dim_param:
                    sizes.setdefault(dim.dim_param, set()).add(size)
    for name, found in sizes.items():
        if len(found) == 1:  # some exporters call every free size "?": those stay free
            options.add_free_dimension_override_by_name(name, found.pop())
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _openvino(config: dict[str, Any]) -> Callable[[Path, Feeds, int], Run]:
    def open_openvino(path: Path, feeds: Feeds, threads: int) -> Run:
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({name: list(array.shape) for name, array in feeds.items()})
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, **config}
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        count = len(model.outputs)

        def run(f: Feeds) -> list[Array]:
            request.infer(f, share_inputs=True)
            return [request.get_output_tensor(k).data for k in range(count)]

        return run

    return open_openvino


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Native code that prints to stdout would break the worker's protocol."""
    saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def _mnn_file(path: Path) -> Path:
    """The model in MNN's format, beside the other benchmark models."""
    import _tools

    target = CACHE / f"{path.stem}-{path.stat().st_size}.mnn"
    if not target.is_file():
        part = target.with_suffix(f".{os.getpid()}.part")
        with _silent():
            _tools.mnnconvert(
                ["mnnconvert", "-f", "ONNX", "--modelFile", str(path), "--MNNModel", str(part), "--bizCode", "MNN"]
            )
        if not part.is_file():
            raise RuntimeError("its converter wrote no model")
        part.replace(target)
    return target


def open_mnn(path: Path, feeds: Feeds, threads: int) -> Run:
    """Converted once and kept, then loaded by the Module interface with fixed shapes and rearranged weights.

    The number of threads has to come through a runtime manager: the argument of ``load_module_from_file`` is ignored.
    """
    import MNN
    import onnx

    outputs = [o.name for o in onnx.load(path, load_external_data=False).graph.output]
    runtime = MNN.nn.create_runtime_manager(({"backend": 0, "numThread": threads, "precision": "high"},))
    with _silent():
        module = MNN.nn.load_module_from_file(
            str(_mnn_file(path)),
            list(feeds),
            outputs,
            runtime_manager=runtime,
            shape_mutable=False,
            rearrange=True,
        )
    kinds = {"float32": MNN.expr.float, "int32": MNN.expr.int, "int64": MNN.expr.int}

    def variable(array: Array) -> Any:
        if array.dtype == np.int64:
            array = array.astype(np.int32)
        return MNN.expr.const(array, list(array.shape), MNN.expr.NCHW, kinds[str(array.dtype)])

    def run(f: Feeds) -> list[Array]:
        results = module.forward([variable(f[name]) for name in feeds])
        results = results if isinstance(results, (list, tuple)) else [results]
        out = []
        for r in results:
            if r.data_format == MNN.expr.NC4HW4:
                r = MNN.expr.convert(r, MNN.expr.NCHW)
            out.append(np.asarray(r.read()))
        return out

    return run


def open_torch(path: Path, feeds: Feeds, threads: int) -> Run:
    """An equivalent module (torch reads no ONNX), eager, with its own weights: its outputs are not comparable."""
    import torch

    from benchmarks.torch_nets import build

    torch.set_num_threads(threads)
    module, order = build(path.name.partition(".")[0])
    module.eval()

    def run(f: Feeds) -> list[Array]:
        with torch.inference_mode():
            results = module(*(torch.from_numpy(f[name]) for name in order))
        return [r.numpy() for r in (results if isinstance(results, tuple) else (results,))]

    return run


#: Engine → adapter. Names with a suffix are other settings of the same engine.
ENGINES: dict[str, Callable[[Path, Feeds, int], Run]] = {
    "mnnpy": _mnnpy(),
    "mnnpy-high": _mnnpy(precision="high"),
    "mnnpy-low": _mnnpy(precision="low"),
    "mnnpy-avx2": _mnnpy(isa="avx2"),
    "mnnpy-bound": open_mnnpy_bound,
    "onnxruntime": open_onnxruntime,
    "onnxruntime-bound": open_onnxruntime_bound,
    "openvino": _openvino({"INFERENCE_PRECISION_HINT": "f32"}),
    "openvino-default": _openvino({}),
    "openvino-avx2": _openvino({"INFERENCE_PRECISION_HINT": "f32"}),
    "mnn": open_mnn,
    "torch": open_torch,
    "torch-avx2": open_torch,
}

#: Instruction sets can be masked by environment variables here; onnxruntime and MNN have no such switch.
ENVIRONMENT: dict[str, dict[str, str]] = {
    "openvino-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"},
    "torch-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}

#: Engines that compute in fp32 as ``mnnpy`` does: the best of these is what ratios refer to.
PEERS = ("onnxruntime", "openvino", "openvino-avx2", "mnn", "torch", "torch-avx2")

_DISTRIBUTIONS = {"mnnpy": "mnnpy-engine", "mnn": "MNN"}


def version_of(engine: str) -> str:
    """The installed version, or empty where the engine is not installed."""
    name = engine.partition("-")[0]
    if name == "mnnpy":
        import mnnpy

        return mnnpy.__version__
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return ""
