"""ONNX Runtime as a backend of mnnpy: whole segments become ONNX models and run on an execution provider.

One device per execution provider: ``mnnpy.Session(model, "onnxruntime")`` or ``"onnxruntime:CUDAExecutionProvider"``.
Importing this module imports no runtime, so that listing backends stays cheap.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnnpy.backends.base import API_VERSION, Candidate, DeviceInfo, NodeView, Segment, Support
from mnnpy.errors import BackendError, BackendUnavailableError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Value

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeDevice", "OnnxRuntimeProgram"]

#: Element types that ONNX Runtime takes and gives as NumPy arrays.
DTYPES = frozenset(
    {DType.BOOL, DType.I8, DType.I16, DType.I32, DType.I64, DType.U8, DType.U16, DType.U32, DType.U64, DType.F16,
     DType.F32, DType.F64}
)  # fmt: skip
#: The newest operator set that is asked for; a newer one may be unknown to the runtime.
OPSET = 23
#: Execution providers that run nothing here: they send tensors to a server.
REMOTE = frozenset({"AzureExecutionProvider"})
#: Providers that run on hardware of their own; others (OpenVINO, oneDNN, XNNPACK …) may well be a processor.
GPUS = frozenset(
    f"{name}ExecutionProvider"
    for name in ("CUDA", "Tensorrt", "NvTensorRTRTX", "ROCM", "MIGraphX", "Dml", "CoreML", "WebGpu", "QNN")
)


class OnnxRuntimeBackend:
    """Provider of one device per execution provider."""

    api_version = API_VERSION
    name = "onnxruntime"

    def devices(self) -> list[DeviceInfo]:
        try:
            import onnxruntime
        except ImportError as error:
            reason = f"onnxruntime cannot be imported: {error}; pip install onnxruntime"
            return [DeviceInfo(self.name, "onnxruntime", unavailable=reason)]
        found = [p for p in onnxruntime.get_available_providers() if p not in REMOTE]
        found.sort(key=lambda p: p != "CPUExecutionProvider")
        return [
            DeviceInfo(
                self.name, p, k,
                facts={"version": onnxruntime.__version__, "label": "H" if p in GPUS else "R"},
            )
            for k, p in enumerate(found)
        ]  # fmt: skip

    def open(self, info: DeviceInfo, *, threads: int = 0, **options: Any) -> OnnxRuntimeDevice:
        if info.unavailable:
            raise BackendUnavailableError(f"backend 'onnxruntime' cannot be used: {info.unavailable}")
        return OnnxRuntimeDevice(info, threads)


class OnnxRuntimeDevice:
    """An execution provider. Its buffers are NumPy arrays."""

    def __init__(self, info: DeviceInfo, threads: int) -> None:
        self.info = info
        self._threads = threads
        self._known: dict[Any, Support] = {}

    def supports(self, view: NodeView) -> Support:
        """Builds a model of the one node and asks the runtime; answers are remembered."""
        from mnnpy.convert.onnx.schemas import schema_for

        node = view.node
        domain, _, op = ("", "", node.op) if "." not in node.op else node.op.partition(".")
        if domain not in ("", "ml") or not schema_for("ai.onnx.ml" if domain else "", op, 1000):
            return Support(False, f"'{node.op}' is no op of ONNX")
        types = (*view.inputs, *view.outputs)
        names = (*node.inputs, *node.outputs)
        for name, t in zip(names, types, strict=True):
            if name and (t is None or not t.is_static):
                return Support(False, "an operand is no tensor of static type")
            if name and t is not None and t.dtype not in DTYPES:
                return Support(False, f"no NumPy arrays of {t.dtype} in ONNX Runtime's interface")
        constants = {n: a for n, a in view.constants.items() if a.nbytes <= 1024}
        key = (node.op, str(sorted(node.attrs.items())), types, tuple((n, a.tobytes()) for n, a in constants.items()))
        if key not in self._known:
            self._known[key] = self._asked(node, dict(zip(names, types, strict=True)), constants)
        return self._known[key]

    def _asked(self, node: Node, types: Mapping[str, Any], constants: Mapping[str, Array]) -> Support:
        inputs = tuple(Value(n, types[n]) for n in dict.fromkeys(node.inputs) if n and n not in constants)
        outputs = tuple(Value(n, types[n]) for n in node.outputs if n)
        known = {n: t for n, t in types.items() if n}
        try:
            self._session(Graph("node", inputs, outputs, (node,), constants, known), 1)
        except BackendError as error:
            return Support(False, f"ONNX Runtime: {error}")
        return Support(True)

    def candidates(self, view: NodeView) -> list[Candidate]:
        """One, by bytes alone: the runtime does not tell how it would run a node."""
        tensors = [t for t in (*view.inputs, *view.outputs) if t is not None and t.is_static]
        moved = sum(t.dtype.itemsize * float(np.prod(t.shape or (1,))) for t in tensors)
        return [Candidate("onnxruntime", 0.0, moved)]

    def compile(self, segment: Segment) -> OnnxRuntimeProgram:
        """A session of the whole segment; raises BackendError."""
        return OnnxRuntimeProgram(segment.graph, self._session(segment.graph, segment.threads or self._threads))

    def _session(self, graph: Graph, threads: int) -> Any:
        import onnxruntime

        from mnnpy.convert.export import to_onnx

        model = to_onnx(graph, weights=True)
        model.ir_version = min(model.ir_version, 11)
        for known in model.opset_import:
            if known.domain == "":
                known.version = min(known.version, OPSET)
        for node in model.graph.node:
            node.name = ""  # what one source node was decomposed into shares its name, which the runtime refuses
        del model.graph.value_info[:]  # the runtime infers them, and complains of any that it would not have written
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        options.use_deterministic_compute = True
        if self.info.name != "CPUExecutionProvider":  # else it would take over silently
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            content = model.SerializeToString()
            session = onnxruntime.InferenceSession(content, options, providers=[self.info.name])
            if session.get_providers()[0] != self.info.name:
                raise BackendError(f"{self.info.name} could not be loaded")
            return session
        except BackendError:
            raise
        except Exception as error:  # the runtime has many exception classes of its own
            raise BackendError(str(error).partition("\n")[0]) from error

    def upload(self, array: Array) -> Array:
        return array

    def download(self, buffer: Any) -> Array:
        return np.asarray(buffer)

    def synchronize(self) -> None:
        """Runs return when they are done."""


class OnnxRuntimeProgram:
    """A segment as a session. ONNX Runtime allows runs from several threads at once."""

    def __init__(self, graph: Graph, session: Any) -> None:
        self._graph = graph
        self._session = session
        self._outputs = list(dict.fromkeys(graph.output_names))

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Raises BackendError with the runtime's words."""
        feeds = dict(zip(self._graph.input_names, inputs, strict=True))
        try:
            found = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise BackendError(f"backend 'onnxruntime': {error}") from error
        results = dict(zip(self._outputs, found, strict=True))
        return [results[n] for n in self._graph.output_names]

    def time(self, inputs: Sequence[Any]) -> float:
        begin = time.perf_counter()
        self.run(inputs)
        return time.perf_counter() - begin

    def profile(self, inputs: Sequence[Any]) -> list[tuple[str, str, str, float, float]]:
        """The whole segment as one op."""
        return [("Segment", self._graph.name, "onnxruntime", 0.0, self.time(inputs))]

    def describe(self) -> list[dict[str, Any]]:
        types = self._graph.types
        rows = []
        for node in self._graph.nodes:
            t = types.get(node.outputs[0])
            shape = t.shape if isinstance(t, TensorType) else None
            rows.append({"op": node.op, "node": node.label, "algorithm": "onnxruntime", "shape": shape})
        return rows

    @property
    def memory(self) -> Mapping[str, int]:
        """The runtime keeps its arena to itself."""
        return {"arena": 0, "weights": sum(a.nbytes for a in self._graph.constants.values()), "scratch": 0}
