"""The ``cpu`` backend: provider, device, and the pipeline of passes in front of the native program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mnnpy.backends.base import API_VERSION, Candidate, DeviceInfo, NodeView, Program, Segment, Support
from mnnpy.classes import replace
from mnnpy.errors import BackendUnavailableError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, TensorType

if TYPE_CHECKING:
    from mnnpy.search.cost import Peaks
    from mnnpy.search.records import Records

__all__ = ["CpuBackend", "CpuDevice"]

#: Composites with kernels of their own; the native factory has the last word on dtypes and attributes.
CLAIMS = frozenset({"Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "LSTM", "GRU", "RNN"})
ATOMIC = frozenset(
    {"Unary", "Binary", "Select", "Convert", "Reinterpret", "Reduce", "ArgReduce", "PrefixScan", "MatMul",
     "Convolution", "Pool", "Raster", "Gather", "Scatter", "Sort", "Random"}
)  # fmt: skip
#: Ops whose kernels compute in f32: half-precision operands are converted on the way in and out.
WIDENED = frozenset({"MatMul", "Convolution", "Pool", "PrefixScan"})
HALF = frozenset({DType.F16, DType.BF16})


class CpuBackend:
    """Provider of the native CPU backend."""

    api_version = API_VERSION
    name = "cpu"

    def devices(self) -> list[DeviceInfo]:
        try:
            from mnnpy.backends.cpu import _native
        except ImportError as error:
            return [DeviceInfo(self.name, "cpu", unavailable=f"the native extension cannot be imported: {error}")]
        return [DeviceInfo(self.name, "cpu", facts={"isa": _native.isa(), **_facts(_native)})]

    def open(self, info: DeviceInfo, **options: Any) -> CpuDevice:
        if info.unavailable:
            raise BackendUnavailableError(
                f"backend 'cpu' cannot be used: {info.unavailable}; reinstall mnnpy-engine, "
                "or in a checkout run `make setup`"
            )
        return CpuDevice(info, **options)


def _facts(native: Any) -> dict[str, Any]:
    missing = native.missing_amx()
    facts = {"features": native.cpu_features(), "threads": native.default_threads()}
    return {**facts, "amx": f"unavailable: {missing}"} if missing else facts


class CpuDevice:
    """The CPU with a number of threads and an instruction set."""

    def __init__(self, info: DeviceInfo, threads: int = 0, isa: str | None = None) -> None:
        """*isa* caps the instruction set; raises BackendUnavailableError where the processor lacks it."""
        from mnnpy.backends.cpu import _native

        known = _native.available_isas()
        self.isa: str = known[-1] if isa is None else isa
        if self.isa not in known:
            raise BackendUnavailableError(
                f"isa='{isa}' was asked for, but this processor and build have {', '.join(known)} only (features: "
                f"{', '.join(_native.cpu_features())}); give one of these, or None for the best"
            )
        self.info = replace(info, facts={**info.facts, "isa": self.isa, "features": _native.cpu_features(self.isa)})
        self.threads = threads
        self._native = _native
        self._ops = frozenset(_native.ops())
        self._known: dict[Any, Support] = {}

    def supports(self, view: NodeView) -> Support:
        """Asks the native factory; answers are remembered by op, attributes and types."""
        node = view.node
        if node.op not in ATOMIC and node.op not in CLAIMS:
            return Support(False, f"'{node.op}' has no native kernel")
        if any(name and t is None for name, t in zip(node.inputs, view.inputs, strict=True)):
            return Support(False, "an operand is not a tensor of static type")
        if node.op in CLAIMS:
            used = [o for o in node.outputs if o]
            if node.op.endswith("Normalization") and len(used) > 1:
                return Support(False, "only the first output has a kernel")
        key = None
        try:
            key = (node.op, tuple(node.attrs.items()), view.inputs, view.outputs, tuple(bool(o) for o in node.outputs))
            known = self._known.get(key)
            if known is not None:
                return known
        except TypeError:
            key = None
        answer = self._ask(view)
        if key is not None:
            self._known[key] = answer
        return answer

    def _ask(self, view: NodeView) -> Support:
        from mnnpy.backends.cpu.program import native_attrs

        node = view.node
        widen = node.op in WIDENED

        def desc(t: TensorType | None) -> tuple[str, tuple[Any, ...]] | None:
            if t is None:
                return None
            dtype = DType.F32 if widen and t.dtype in HALF else t.dtype
            return (str(dtype), tuple(t.shape or ()))

        if node.op == "Reinterpret":
            return Support(True)
        for t in (*view.inputs, *view.outputs):
            if t is not None and (t.dtype is DType.STRING or t.dtype.is_complex):
                return Support(False, f"no kernels for {t.dtype}")
        outputs = [desc(t) if o else None for o, t in zip(node.outputs, view.outputs, strict=True)]
        inputs = [desc(t) for t in view.inputs]
        ok, reason = self._native.supports(node.op, native_attrs(node), inputs, outputs, self.isa)
        return Support(ok, reason)

    def candidates(self, view: NodeView) -> list[Candidate]:
        """All algorithms with a kernel for this node, with analytic costs; ``precisions``: tiers that allow them."""
        from mnnpy.backends.cpu.algorithms import TABLE, selectable
        from mnnpy.backends.cpu.select import accepted, family

        group = family(view.node.op, self.isa, self._threads)
        view = _channels_last(view)
        if not selectable(view):
            from mnnpy.backends.analytic import moved_bytes, node_flops

            return [Candidate("direct", node_flops(view), moved_bytes(view), 1, {"family": group})]
        low = replace(view, node=view.node.replace(attrs={**view.node.attrs, "precision": "low"}))
        entries = [a for a in TABLE[view.node.op] if a.applies(view)]
        found = [a.candidate(view) for a in entries if a.name == "direct" or accepted(low, a.name, self.isa)]
        return [replace(c, parameters={**c.parameters, "family": group}) for c in found]

    @property
    def algorithms(self) -> Mapping[str, Mapping[str, frozenset[str]]]:
        """Op → algorithm → precisions that allow it; what ``Options.algorithms`` may name."""
        from mnnpy.backends.cpu.algorithms import TABLE

        return {op: {a.name: a.precisions for a in entries} for op, entries in TABLE.items()}

    @property
    def _threads(self) -> int:
        return self.threads or int(self._native.default_threads())

    @property
    def records(self) -> Records:
        """Decisions and measurements of this processor and build."""
        from mnnpy.backends.cpu.select import records

        return records()

    @property
    def kind(self) -> str:
        """What decisions can be shipped for: any machine with this processor, instruction set and version."""
        from mnnpy.backends.cpu.machine import processor

        features = ",".join(self.info.facts["features"])
        return f"cpu; {processor()}; {self.isa}; {features}; {self._native.missing_amx()}"

    def peaks(self) -> Peaks:
        """What the kernels reach with this device's threads."""
        from mnnpy.backends.cpu.calibrate import peaks

        return peaks(self.records.fingerprint, self._threads, self.isa)

    def compile(self, segment: Segment) -> Program:
        """Run the passes that are switched on and build the native program."""
        from mnnpy.backends.cpu.mapped import forget_pages
        from mnnpy.backends.cpu.passes.concat import write_concats
        from mnnpy.backends.cpu.passes.strips import fuse_strips
        from mnnpy.backends.cpu.program import build_program
        from mnnpy.backends.cpu.select import select_algorithms
        from mnnpy.decompose.lower import prune

        threads = segment.threads or self._threads
        graph = lower(segment.graph, segment.optimize, segment.precision)
        graph, choices = select_algorithms(
            graph, segment.precision, threads, segment.tuning, segment.algorithms, self.isa, segment.records,
            segment.observer, segment.shipped,
        )  # fmt: skip
        if "fuse_strips" in segment.optimize:
            graph = prune(fuse_strips(graph, threads))
        in_place = "in_place" in segment.optimize
        if in_place:
            graph = write_concats(graph)
        forget_pages(graph.constants.values())  # what the passes looked at would stay beside the packed copies
        recipe = segment.recipe and all(c.final for c in choices.values())
        program = build_program(graph, threads, in_place=in_place, choices=choices, isa=self.isa, recipe=recipe)
        forget_pages(graph.constants.values())
        return program

    @property
    def fingerprint(self) -> str:
        """All that programs depend on beside graph and options."""
        from mnnpy.backends.cpu.machine import fingerprint

        return f"{fingerprint()}; {self.isa}; {self._native.missing_amx()}"

    def restore(self, build: Any, facts: Callable[[], Any]) -> Program:
        """A program of its recipe."""
        from mnnpy.backends.cpu.compiled import restore_program
        from mnnpy.backends.cpu.mapped import forget_pages

        program = restore_program(build, facts, self.isa)
        forget_pages(where for _, _, kind, where in build["tensors"] if kind == "constant")
        return program

    def upload(self, array: Array) -> Array:
        return np.ascontiguousarray(array)

    def download(self, buffer: Any) -> Array:
        return np.asarray(buffer)

    def synchronize(self) -> None:
        return None


def _channels_last(view: NodeView) -> NodeView:
    """A convolution as the kernels see it, once the layout pass has been there."""
    x, y = view.inputs[0], view.outputs[0]
    if view.node.op != "Convolution" or "layout" in view.node.attrs or x is None or y is None:
        return view

    def turned(t: TensorType) -> TensorType:
        shape = tuple(t.shape or ())
        return TensorType(t.dtype, (shape[0], *shape[2:], shape[1]))

    node = view.node.replace(attrs={**view.node.attrs, "layout": "NHWC"})
    return replace(view, node=node, inputs=(turned(x), *view.inputs[1:]), outputs=(turned(y), *view.outputs[1:]))


def lower(graph: Graph, optimize: frozenset[str], precision: str = "normal") -> Graph:
    """All passes between a segment and its native program."""
    from mnnpy.backends.cpu.passes.factor import factor_concat, gather_one_hot, sums_as_products
    from mnnpy.backends.cpu.passes.layout import to_channels_last
    from mnnpy.backends.cpu.passes.merge_matmul import merge_projections
    from mnnpy.backends.cpu.passes.norm import fuse_add_norm
    from mnnpy.backends.cpu.passes.widen import widen_half
    from mnnpy.backends.passes.attention import fuse_attention
    from mnnpy.backends.passes.fuse import fuse_elementwise, fuse_epilogues
    from mnnpy.backends.passes.views import constant_gathers
    from mnnpy.decompose.lower import prune, tidy

    graph = prune(widen_half(graph, WIDENED))
    if "layout" in optimize:
        graph = tidy(to_channels_last(graph), optimize)
    if "merge_vertical" in optimize:
        graph = tidy(constant_gathers(graph), optimize & {"merge_vertical", "merge_horizontal"})
    if "fuse_attention" in optimize:
        graph = tidy(fuse_attention(prune(graph)), optimize & {"merge_vertical", "merge_horizontal"})
    if "factor" in optimize:
        graph = sums_as_products(gather_one_hot(graph))
        graph = prune(graph if precision == "high" else factor_concat(graph))
    if "fuse_epilogue" in optimize:
        graph = prune(fuse_epilogues(graph))
    if "merge_matmul" in optimize:
        graph = prune(merge_projections(graph))
    if "fuse_norm" in optimize:
        graph = prune(fuse_add_norm(graph))
    if "fuse_elementwise" in optimize:
        graph = prune(fuse_elementwise(graph))
    return graph
