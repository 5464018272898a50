"""The Session: load a model, plan it for the chosen backends, run it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnnpy.backends.base import Device
from mnnpy.classes import dataclass, replace
from mnnpy.errors import BackendUnavailableError, InputError
from mnnpy.graph.dims import Dim, SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, OptionalType, SequenceType, TensorType, Type, Value
from mnnpy.options import Options
from mnnpy.plan_cache import PlanCache
from mnnpy.runtime import Context, Executable, without_collector

if TYPE_CHECKING:
    from mnnpy.binding import Binding
    from mnnpy.explain import Explanation
    from mnnpy.search.chooser import Chooser
    from mnnpy.search.observe import Observer
    from mnnpy.search.shipping import Shipment

__all__ = ["NodeArg", "Session", "load_graph"]

#: Bits of ``ndarray.flags.num``: C-contiguous and aligned, what kernels read without a copy.
_DENSE = 0x0001 | 0x0100
_ORT_NAMES = {
    "bool": "bool", "i4": "int4", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "u4": "uint4",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64", "f16": "float16", "bf16": "bfloat16",
    "f32": "float", "f64": "double", "string": "string", "c64": "complex64", "c128": "complex128",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NodeArg:
    """An input or output of a model: ``shape`` holds ints, names of symbolic sizes, or is None (unknown rank)."""

    name: str
    shape: tuple[int | str, ...] | None
    type: str  #: as ONNX Runtime writes it: ``tensor(float)``, ``seq(tensor(int64))``

    @classmethod
    def of(cls, value: Value) -> NodeArg:
        t = value.type
        shape = None
        if isinstance(t, TensorType) and t.shape is not None:
            shape = tuple(str(d) if isinstance(d, SymDim) else d for d in t.shape)
        return cls(value.name, shape, _type_name(t))


def _type_name(t: Type | None) -> str:
    if isinstance(t, TensorType):
        return f"tensor({_ORT_NAMES.get(t.dtype.value, t.dtype.value)})"
    if isinstance(t, SequenceType):
        return f"seq({_type_name(t.elem)})"
    if isinstance(t, OptionalType):
        return f"optional({_type_name(t.elem)})"
    return "?" if t is None else str(t)


class Session:
    """A model ready to run.

    model: path of an ``.onnx`` or ``.mnnpy`` file, the bytes of an ONNX model, an ``onnx.ModelProto``, or a Graph.
    backends: ``"auto"``, a backend name, or a list of names in order of preference. An opened device may stand for a
        name: sessions that share it share what it keeps, such as compiled kernels.
    options / keywords: see ``mnnpy.Options``.
    tuning: what ``tuning_results()`` of another session gave, or a JSON file of it: counts as if it had been measured
        here, where the devices are of the same kind. Records of others are skipped with a warning.
    observer: called with a ``search.observe.Event`` for all that is measured while planning.

    Many threads may call ``run`` on one Session. Raises ModelError, UnsupportedOpError, BackendUnavailableError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | Graph | Any,
        backends: str | Device | Sequence[str | Device] = "auto",
        options: Options | None = None,
        *,
        tuning: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        observer: Observer | None = None,
        **keywords: Any,
    ) -> None:
        self.options = Options.make(options, **keywords)
        context = _context(backends, self.options, observer, tuning)
        if self.options.tune == "background":
            from mnnpy.background import Tuner, Watch

            self._watch = Watch()
            context = replace(context, tuner=Tuner(self._watch))
        self._context = context
        shipped = "" if context.shipment is None else context.shipment.identity
        cache = PlanCache.of(model, context.devices, self.options, context.memory_limit, shipped)
        graph = None
        if cache is None or cache.interface is None:
            with without_collector():
                graph = load_graph(model) if cache is None else cache.graph()
        self._executable = Executable(graph, context, 0, cache)
        self._inputs, self._outputs = self._executable.inputs, self._executable.outputs
        self._names = tuple(v.name for v in self._outputs)
        self._positions = {v.name: k for k, v in enumerate(self._inputs)}
        # A model whose inputs have defaults is read in any case: its interface is not kept.
        self._defaults = {
            k: np.require(graph.constants[v.name], requirements="A")
            for k, v in enumerate(self._inputs)
            if graph is not None and v.name in graph.constants
        }
        self._fast: tuple[tuple[tuple[int, ...], Any], ...] | None = None
        self._executable.prepare()
        if context.tuner is not None:
            self._watch_runs()

    # -- running --

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """Run the model on ``{input name: array}``; returns the named outputs, or all of them for ``None``.

        Arrays may be anything with ``__array__`` or DLPack; C-contiguous ones of the right dtype are not copied.
        Raises InputError for missing, unknown or misfit inputs.
        """
        args = self._feeds(feeds)
        if output_names is None:
            return self._executable.run(args)
        wanted = self._selected(output_names)
        plan = self._executable.plan(args)
        some = getattr(plan.direct, "run_bound", None)
        if some is not None:  # only what is asked for leaves the device
            results = some(args, [None if k in wanted else ... for k in range(len(self._names))])
        else:
            results = plan.run(args)
        return [results[k] for k in wanted]

    def __call__(self, *args: Any, **feeds: Any) -> list[Any]:
        """Run on positional inputs in model order, or on keywords."""
        if len(args) > len(self._inputs):
            raise InputError(f"{len(args)} inputs given, the model takes {len(self._inputs)}")
        return self.run(None, {**dict(zip(self._positions, args, strict=False)), **feeds})

    def binding(self) -> Binding:
        """A new, empty binding for ``run_with_binding``."""
        from mnnpy.binding import Binding

        return Binding(self)

    def run_with_binding(self, binding: Binding) -> dict[str, Any]:
        """Run on bound inputs; the results are in ``binding.outputs`` and returned."""
        if binding._call is None:
            binding._call = binding._prepare()
        binding.outputs = binding._call()
        return binding.outputs

    def _watch_runs(self) -> None:
        """From now on runs say when they begin and end, and bindings take up better plans."""
        self.run = self._watch.watched(self, "run")  # type: ignore[method-assign]
        self.run_with_binding = self._watch.watched(self, "_run_binding_anew")  # type: ignore[method-assign]

    def _run_binding_anew(self, binding: Binding) -> dict[str, Any]:
        """As ``run_with_binding``, by the newest plan where inputs and outputs are the host's."""
        tuner = self._context.tuner
        if tuner is not None and binding._call is not None and binding.swaps != tuner.swaps and binding.on_host:
            binding._call = None
        if tuner is not None and binding._call is None:
            binding.swaps = tuner.swaps
        return Session.run_with_binding(self, binding)

    # -- looking --

    def get_inputs(self) -> list[NodeArg]:
        """Inputs that must be fed (those with defaults come last and may be)."""
        required = [v for k, v in enumerate(self._inputs) if k not in self._defaults]
        return [NodeArg.of(v) for v in required]

    def get_outputs(self) -> list[NodeArg]:
        """All outputs."""
        return [NodeArg.of(v) for v in self._outputs]

    @property
    def graph(self) -> Graph:
        """The model as imported."""
        return self._executable.graph

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of the backends in use, in order of preference; ``backend:device`` where several are of one backend."""
        return self._context.names

    def explain(self, feeds: Mapping[str, Any] | None = None) -> Explanation:
        """What runs where, by which algorithm and why: for all plans made so far, or the plan for *feeds*."""
        if feeds is not None:
            self._executable.plan(self._feeds(feeds))
        from mnnpy.explain import explain_plans

        return explain_plans(self._executable, self.options)

    def tuning_results(self) -> dict[str, Any]:
        """What was measured for the plans made so far, as plain data: ``json.dump`` it, and give it to other sessions
        as ``tuning=``, here or on machines with devices of the same kind (see ``search/shipping.py``).
        """
        from mnnpy.search.shipping import results

        return results(self._executable)

    def parts(self, feeds: Mapping[str, Any]) -> list[tuple[str, Graph]]:
        """What is compiled for *feeds*: (backend, static graph) per part, in order of execution."""
        from mnnpy.explain import plan_parts

        return plan_parts(self._executable.plan(self._feeds(feeds)))

    def profile(self, feeds: Mapping[str, Any], repeat: int = 1) -> dict[str, Any]:
        """Run *repeat* times op by op; returns a Chrome trace (``json.dump`` it and open it in Perfetto)."""
        from mnnpy.explain import profile_plan

        args = self._feeds(feeds)
        return profile_plan(self._executable.plan(args), args, repeat)

    # -- inputs --

    def _feeds(self, feeds: Mapping[str, Any]) -> list[Any]:
        args: list[Any] = [None] * len(self._positions)
        if not hasattr(feeds, "items"):
            raise InputError(f"feeds must map input names to arrays, got {type(feeds).__name__}; give {{name: array}}")
        try:
            for name, value in feeds.items():
                args[self._positions[name]] = value
        except KeyError:
            self._unknown(feeds)
        if self._fast is not None:
            for a, known in zip(args, self._fast, strict=True):
                if type(a) is not np.ndarray or a.shape != known[0] or a.dtype != known[1]:
                    break
                if a.flags.num & _DENSE != _DENSE:
                    break
            else:
                return args
        return self._checked(feeds, args)

    def _checked(self, feeds: Mapping[str, Any], args: list[Any]) -> list[Any]:
        missing = []
        sizes: dict[str, tuple[int, str]] = {}
        for k, value in enumerate(self._inputs):
            if value.name not in feeds:
                if k in self._defaults:
                    args[k] = self._defaults[k]
                    continue
                missing.append(value.name)
                continue
            args[k] = self._check(value.name, args[k], sizes)
        if missing:
            shown = ", ".join(str(v) for v in self._inputs if v.name in missing)
            raise InputError(f"missing input(s): {shown}; give every input of get_inputs()")
        if all(type(a) is np.ndarray for a in args):
            self._fast = tuple((a.shape, a.dtype) for a in args)
        return args

    def _check(self, name: str, value: Any, sizes: dict[str, tuple[int, str]] | None = None) -> Any:
        declared = self._inputs[self._index(name)].type
        if declared is not None and not isinstance(declared, TensorType):
            return value if value is None or isinstance(value, dict) else _as_sequence(name, value, declared)
        array = _as_array(name, value)
        if declared is None:
            return array
        want = declared.dtype
        if want is DType.STRING:
            if array.dtype != object:
                array = array.astype(object)
        elif array.dtype != want.numpy:
            raise InputError(f"input '{name}' must be {want.numpy}, got {array.dtype}; use .astype({want.numpy})")
        if declared.shape is not None:
            _check_shape(name, array.shape, declared.shape, {} if sizes is None else sizes)
        return array

    def _index(self, name: str) -> int:
        if name not in self._positions:
            self._unknown({name: None})
        return self._positions[name]

    def _unknown(self, feeds: Mapping[str, Any]) -> None:
        bad = [n for n in feeds if n not in self._positions]
        near = difflib.get_close_matches(str(bad[0]), self._positions, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the model takes {', '.join(self._positions) or 'none'}"
        raise InputError(f"unknown input '{bad[0]}'; {hint}")

    def _selected(self, names: Sequence[str]) -> list[int]:
        found = []
        for name in names:
            if name not in self._names:
                near = difflib.get_close_matches(name, self._names, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"the model has {', '.join(self._names)}"
                raise InputError(f"unknown output '{name}'; {hint}")
            found.append(self._names.index(name))
        return found


def load_graph(model: Any) -> Graph:
    """A Graph from what Session accepts: a path, the bytes of an ONNX model, a ModelProto or a Graph."""
    if isinstance(model, Graph):
        return model
    if isinstance(model, (str, os.PathLike)) and os.fspath(model).endswith(".mnnpy"):
        from mnnpy.graph.serialize import load

        return load(os.fspath(model))
    from mnnpy.convert.onnx import from_onnx

    return from_onnx(model)


def _context(
    backends: str | Device | Sequence[str | Device],
    options: Options,
    observer: Observer | None,
    tuning: Mapping[str, Any] | str | os.PathLike[str] | None,
) -> Context:
    from mnnpy.backends.registry import open_device

    names: list[str | Device] = []
    if isinstance(backends, str) or not isinstance(backends, Sequence):
        names.append("cpu" if backends == "auto" else backends)
    else:
        names += backends
    if not names:
        raise BackendUnavailableError("backends=[] leaves nothing to run on; give 'auto' or a list of names")
    wanted: dict[str, Any] = {"threads": options.thread_count}
    if options.isa is not None:
        wanted["isa"] = options.isa
    devices = tuple(open_device(n, **wanted) if isinstance(n, str) else n for n in names)
    if options.algorithms:
        _check_algorithms(devices, options)
    shipment = None
    if tuning is not None:
        from mnnpy.search.shipping import Shipment

        if options.tune == "off":
            raise InputError("tuning= gives records that tune='off' would not look at; leave one of them out")
        shipment = Shipment.of(tuning, devices)
    chooser = _chooser(devices, options, observer, shipment)
    return Context(devices, options, options.memory_limit or _physical_memory(), chooser, observer, shipment)


def _chooser(
    devices: Sequence[Device], options: Options, observer: Observer | None, shipment: Shipment | None
) -> Chooser | None:
    """What chooses among several devices; the interpreter only ever takes what nobody else does."""
    if options.placement == "order" or sum(d.info.backend != "reference" for d in devices) < 2:
        return None
    from mnnpy.search.chooser import Chooser

    return Chooser(devices, options, observer, shipment)


def _check_algorithms(devices: Sequence[Device], options: Options) -> None:
    """Every forced algorithm must exist on a chosen device, and keep the error bar of the precision."""
    known: dict[str, dict[str, frozenset[str]]] = {}
    for device in devices:
        for op, algorithms in getattr(device, "algorithms", {}).items():
            for name, precisions in algorithms.items():
                table = known.setdefault(op, {})
                table[name] = table.get(name, frozenset()) | precisions
    for op, name in options.algorithms.items():
        if op not in known:
            hint = _near(op, known) or f"; ops that have: {', '.join(sorted(known)) or 'none on the chosen backends'}"
            raise InputError(f"algorithms: op '{op}' has no algorithms to choose from{hint}")
        if name not in known[op]:
            hint = _near(name, known[op]) or f"; it has {', '.join(known[op])}"
            raise InputError(f"algorithms: op '{op}' has no algorithm '{name}'{hint}")
        if options.precision not in known[op][name]:
            allowed = ", ".join(sorted(known[op][name]))
            raise InputError(
                f"algorithms: '{name}' of op '{op}' does not keep precision '{options.precision}', only {allowed}"
            )


def _near(name: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 40


def _as_array(name: str, value: Any) -> Array:
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        array = np.from_dlpack(value)
    else:
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"input '{name}' is not convertible to an array: {error}") from error
    return array if array.flags.num & _DENSE == _DENSE else np.require(array, requirements=["C", "A"])


def _as_sequence(name: str, value: Any, declared: Type) -> Any:
    elem = declared.elem if isinstance(declared, (SequenceType, OptionalType)) else None
    if isinstance(declared, OptionalType) and isinstance(elem, TensorType):
        return _as_array(name, value)
    if not isinstance(value, (list, tuple)):
        raise InputError(f"input '{name}' is {declared}; give a list of arrays, not {type(value).__name__}")
    return [v if v is None or isinstance(v, (list, dict)) else _as_array(name, v) for v in value]


def _check_shape(name: str, got: tuple[int, ...], want: tuple[Dim, ...], sizes: dict[str, tuple[int, str]]) -> None:
    if len(got) != len(want):
        raise InputError(f"input '{name}' must have rank {len(want)} {_dims(want)}, got shape {got}")
    for k, (g, w) in enumerate(zip(got, want, strict=True)):
        if not isinstance(w, SymDim):
            if g != w:
                raise InputError(f"input '{name}' must have shape {_dims(want)}, got {got} (dimension {k})")
        elif len(w.terms) == 1 and w.terms[0][1] == 1 and w.constant == 0:
            symbol = w.terms[0][0]
            first = sizes.setdefault(symbol, (g, name))
            if first[0] != g:
                raise InputError(
                    f"input '{name}' has {symbol}={g} (dimension {k}), but input '{first[1]}' has {symbol}={first[0]}"
                )


def _dims(shape: tuple[Dim, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
