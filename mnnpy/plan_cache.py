"""Plans on disk: what planning found out about a model, so that the next Session need not even read its graph.

An entry belongs to the bytes of a model, our own code, a device with all that its programs depend on, and the options.
It names weights by their place in the model's file; other constants lie in it. Whatever does not fit, is damaged, or
belongs to something else counts as absent, and the plan is made anew.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnnpy.classes import dataclass, field, field_names
from mnnpy.graph.codec import plain_type, type_of
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, TensorType, Value
from mnnpy.store import Store, cache_folder, digest

if TYPE_CHECKING:
    from mnnpy.options import Options

__all__ = ["Interface", "LateTexts", "ModelFile", "PlanCache", "StoredPlan", "StoredStep", "signature_of"]

#: Raised with every change of the form of entries.
FORMAT = 2
#: From this size on, a file is mapped, and known by name, size and times instead of by its contents.
MAPPED = 1 << 20
#: Models given as bytes, and files changed a moment ago, are known by their contents up to this size, larger ones not.
HASHED = 64 << 20
#: Seconds within which a file may change again without its times showing it.
SETTLED = 2.0
#: Bytes of constants that a plan may hold beside those that lie in the model's file.
INLINE = 4 << 20
#: Numbers from which on a list is kept as an array: it is read ten times as fast as text.
LONG = 16
_PLAIN = {int, float, str, bool, type(None)}
#: Options that say nothing about a plan.
_FREE = frozenset({"cache", "max_plans", "memory_limit", "threads"})
#: Folders of the package whose modules decide what a plan looks like.
_CODE = (
    "", "graph", "convert/onnx", "decompose", "decompose/ops", "decompose/rules", "search", "backends", "backends/cpu",
    "backends/cpu/passes", "backends/passes", "backends/reference", "backends/reference/kernels",
)  # fmt: skip


def _measured(device: Any, options: Options) -> int:
    """Bytes of the records that a plan may rest on: where something was measured since, plans are made anew."""
    if options.tune == "off":
        return 0
    try:
        return (cache_folder() / f"{device.info.backend}.jsonl").stat().st_size
    except OSError:
        return 0


class _UnfitError(Exception):
    """A plan cannot be kept, or an entry does not belong to what is there."""


@dataclass(frozen=True, slots=True)
class Interface:
    """What a Session must know of a model before it plans: inputs, outputs, inputs whose values decide shapes."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    value_inputs: tuple[int, ...] = ()


@dataclass(slots=True)
class StoredStep:
    """One program of a plan: what its device needs to build it again, and what ``explain`` tells of it."""

    device: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    build: Any
    facts: Callable[[], Any]


@dataclass(slots=True)
class StoredPlan:
    """A plan without control flow and late parts."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    borrowed: tuple[int, ...]
    direct: bool
    constants: Mapping[str, Array]
    steps: list[StoredStep]


@dataclass(slots=True)
class ModelFile:
    """The bytes of a model, opened once for all that is read of them, and what identifies them."""

    name: str
    data: bytes | mmap.mmap
    identity: str
    folder: Path | None = None

    @classmethod
    def open(cls, model: Any) -> ModelFile | None:
        """Of what a Session accepts; None for what has no bytes to know it by, or cannot be opened."""
        if isinstance(model, (bytes, bytearray, memoryview)):
            data = bytes(model)
            return cls("model", data, digest(data)) if len(data) <= HASHED else None
        if not isinstance(model, (str, os.PathLike)) or os.fspath(model).endswith(".mnnpy"):
            return None
        try:
            path = Path(model)
            with path.open("rb", buffering=0) as file:
                info = os.fstat(file.fileno())
                if not stat.S_ISREG(info.st_mode):
                    return None
                if info.st_size < MAPPED:
                    data = file.read()
                    return cls(str(model), data, digest(data), path.parent)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return None  # whoever reads the model says why
        if _settled(info):
            identity = _identity(path, info)
        elif info.st_size <= HASHED:
            identity = digest(mapped)
        else:
            return None
        return cls(str(model), mapped, identity, path.parent)


def _settled(info: os.stat_result) -> bool:
    return max(info.st_mtime, info.st_ctime) + SETTLED < time.time()


def _identity(path: Path, info: os.stat_result) -> str:
    """A file by its place, size and times. Who writes to it changes ``st_ctime`` and cannot set that back."""
    where = os.path.realpath(path)
    return digest(where, f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}")


@cache
def _code() -> str:
    """All modules that planning uses, by name, size and time; empty where they are no files."""
    root = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - a path a module would add up
    found = [sys.version, np.__version__]
    try:
        for folder in _CODE:
            with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118
                for entry in entries:
                    if entry.name.endswith((".py", ".txt")):
                        info = entry.stat()
                        found.append(f"{folder}/{entry.name} {info.st_size} {info.st_mtime_ns}")
    except OSError:
        return ""
    return digest(*sorted(found))


def _extended() -> bool:
    """Whether somebody registered ops, rules or conversions of his own: they may change what a model means."""
    modules = ("mnnpy.decompose.registry", "mnnpy.convert.onnx.conversions")
    return any(getattr(sys.modules.get(name), "extended", False) for name in modules)


@cache
def _store(folder: Path) -> Store:
    return Store(folder)


class PlanCache:
    """The plans of one model for one device and one set of options."""

    def __init__(self, model: ModelFile, device: Any, key: str) -> None:
        self.model = model
        self.device = device
        self._key = key
        self._store = _store(cache_folder() / "plans")
        self._files: list[tuple[str, bytes | mmap.mmap]] = [(model.name, model.data)]
        self._copies: dict[int, tuple[Array, int]] = {}
        self.interface = self._read_interface()

    @classmethod
    def of(
        cls, model: Any, devices: Sequence[Any], options: Options, limit: int, shipped: str = ""
    ) -> PlanCache | None:
        """The cache for a Session; None where its plans cannot be kept. *shipped* identifies records from elsewhere."""
        fingerprint = getattr(devices[0], "fingerprint", None)
        if not options.cache or len(devices) != 1 or fingerprint is None or _extended() or not _code():
            return None
        found = ModelFile.open(model)
        if found is None:
            return None
        chosen = {n: getattr(options, n) for n in field_names(options) if n not in _FREE}
        chosen["optimize"] = sorted(options.optimize)
        chosen["algorithms"] = sorted(options.algorithms.items())
        known = _measured(devices[0], options)
        described = json.dumps([FORMAT, fingerprint, options.thread_count, limit, chosen, known, shipped])
        return cls(found, devices[0], digest(found.identity, _code(), described))

    # -- the model --

    def graph(self) -> Graph:
        """The model as imported."""
        from mnnpy.convert.onnx.load import read_onnx

        graph, external = read_onnx(self.model.data, self.model.name, self.model.folder)
        self._copies = external.copies
        self._files[1:] = [(str(path), data) for path, data in external.files()]
        return graph

    def _read_interface(self) -> Interface | None:
        payload = self._store.read(f"{self._key}.model")
        if payload is None:
            return None
        try:
            form = json.loads(bytes(payload))

            def values(rows: Any) -> tuple[Value, ...]:
                return tuple(Value(name, None if t is None else type_of(t)) for name, t in rows)

            wanted = tuple(int(k) for k in form["value_inputs"])
            return Interface(str(form["name"]), values(form["inputs"]), values(form["outputs"]), wanted)
        except (ValueError, TypeError, KeyError) as error:
            self._store.discard(f"{self._key}.model", f"it cannot be understood ({error!r})")
            return None

    def keep_interface(self, graph: Graph, value_inputs: tuple[int, ...]) -> None:
        """Write down what the next Session must know before it plans, unless that is known already."""
        if any(v.name in graph.constants for v in graph.inputs):
            return  # inputs with defaults: their values are in the graph
        found = Interface(graph.name, graph.inputs, graph.outputs, value_inputs)
        if found == self.interface:
            return
        self.interface = found

        def rows(values: Sequence[Value]) -> list[Any]:
            return [[v.name, None if v.type is None else plain_type(v.type)] for v in values]

        form = {
            "name": graph.name,
            "inputs": rows(graph.inputs),
            "outputs": rows(graph.outputs),
            "value_inputs": value_inputs,
        }
        self._store.write(f"{self._key}.model", [json.dumps(form, separators=(",", ":")).encode()])

    # -- plans --

    def _name(self, signature: str) -> str:
        return f"{digest(self._key, signature)}.plan"

    def read(self, signature: str) -> StoredPlan | None:
        """The plan for a signature; None where there is none that fits."""
        name = self._name(signature)
        payload = self._store.read(name)
        if payload is None:
            return None
        try:
            files, body, facts, chunks = _sections(payload)
            decoder = _Decoder(self.model.data, json.loads(files), chunks)
            form = json.loads(body, object_hook=decoder.hook)
            steps = [
                StoredStep(device, tuple(inputs), tuple(outputs), build, lambda k=k: json.loads(facts)[k])  # type: ignore[misc]
                for k, (device, inputs, outputs, build) in enumerate(form["steps"])
            ]
            return StoredPlan(
                tuple(form["inputs"]),
                tuple(form["outputs"]),
                tuple(form["borrowed"]),
                bool(form["direct"]),
                form["constants"],
                steps,
            )
        except _UnfitError:
            return None
        except Exception as error:  # the digest is right, so it is another program's entry, or a fault of ours
            self.unusable(signature, error)
            return None

    def unusable(self, signature: str, error: Exception) -> None:
        """Take out a plan that cannot be built."""
        self._store.discard(self._name(signature), f"{type(error).__name__}: {error}")

    def keep(self, signature: str, plan: StoredPlan) -> bool:
        """Write a plan; False where it holds what cannot be kept."""
        encoder = _Encoder(self)
        form = {
            "inputs": plan.inputs,
            "outputs": plan.outputs,
            "borrowed": plan.borrowed,
            "direct": plan.direct,
            "constants": dict(plan.constants),
            "steps": [(s.device, s.inputs, s.outputs, s.build) for s in plan.steps],
        }
        try:
            body = _json(encoder.plain(form))
            facts = _json([s.facts() for s in plan.steps])
            files = _json([encoder.file(k) for k in sorted(encoder.used)])
        except (_UnfitError, TypeError, ValueError):
            return False
        sizes = np.array([len(files), len(body), len(facts)], "<u4").tobytes()
        texts = sizes + files + body + facts
        return self._store.write(self._name(signature), [texts.ljust(_aligned(len(texts)), b"\0"), *encoder.chunks])


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


def _sections(payload: memoryview) -> tuple[bytes, bytes, bytes, memoryview]:
    """The texts of an entry (files, plan, facts) and the bytes of its own arrays."""
    at, texts = 12, []
    for size in np.frombuffer(payload, "<u4", 3).tolist():
        texts.append(bytes(payload[at : at + size]))
        at += size
    files, body, facts = texts
    return files, body, facts, payload[_aligned(at) :]


@dataclass(slots=True)
class _Encoder:
    """Arrays as references: into files, as joined parts, or into the entry itself."""

    cache: PlanCache
    chunks: list[Any] = field(default_factory=list)
    size: int = 0
    used: set[int] = field(default_factory=set)
    _starts: list[int] = field(init=False)
    _ranges: list[tuple[int, int, int, int]] = field(init=False)  #: address, end, file, offset in the file

    def __post_init__(self) -> None:
        ranges = []
        for k, (_, data) in enumerate(self.cache._files):
            if len(data):
                base = _address(np.frombuffer(data, np.uint8))
                ranges.append((base, base + len(data), k, 0))
        for array, source in self.cache._copies.values():
            home = next(((source - a, k) for a, b, k, _ in ranges if a <= source < b), None)
            if home is not None:
                base = _address(array)
                ranges.append((base, base + array.nbytes, home[1], home[0]))
        self._ranges = sorted(ranges)
        self._starts = [r[0] for r in self._ranges]

    def plain(self, value: Any) -> Any:
        """*value* as JSON has it: arrays and long lists of numbers are references."""
        if value is None or isinstance(value, (str, int, float)):
            return value
        if isinstance(value, (tuple, list)):
            kinds = set(map(type, value))
            if len(value) >= LONG and kinds in ({int}, {float}):
                with suppress(OverflowError):
                    kind = np.float64 if type(value[0]) is float else np.int64
                    return {"@": ["list", self._array(np.array(value, kind))]}
            return value if kinds <= _PLAIN else [self.plain(v) for v in value]
        if isinstance(value, dict):
            return {k: self.plain(v) for k, v in value.items()}
        if isinstance(value, np.ndarray):
            return {"@": self._array(value)}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, DType):
            return value.value
        raise _UnfitError(type(value).__name__)

    def _array(self, array: Array) -> list[Any]:
        from mnnpy.graph.origin import parts_of

        dtype = DType.of(array.dtype)
        if dtype is DType.STRING:
            raise _UnfitError("strings")
        shape = list(array.shape)
        begin = _address(array)
        at = bisect_right(self._starts, begin) - 1
        if array.nbytes and at >= 0 and min(array.strides, default=0) >= 0:
            base, end, number, offset = self._ranges[at]
            reach = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) + array.itemsize
            if begin + reach <= end:
                self.used.add(number)
                strides = None if array.flags.c_contiguous else list(array.strides)
                return ["file", number, offset + begin - base, dtype.value, shape, strides]
        made = parts_of(array)
        if made is not None:
            return ["joined", made[1], [self._array(p) for p in made[0]]]
        begin = self.size
        self.size += _aligned(array.nbytes)
        if self.size > INLINE:
            raise _UnfitError("too many constants of its own")
        self.chunks += [np.ascontiguousarray(array).reshape(-1).view(np.uint8), b"\0" * (-array.nbytes % 64)]
        return ["here", begin, dtype.value, shape]

    def file(self, number: int) -> list[Any]:
        """A file beside the model: its number, path and identity."""
        if number == 0:
            return [0, "", ""]
        path = Path(self.cache._files[number][0])
        try:
            info = path.stat()
        except OSError as error:
            raise _UnfitError("gone") from error
        if not _settled(info):
            raise _UnfitError("changed a moment ago")
        return [number, str(path), _identity(path, info)]


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


class _Decoder:
    """Turns references into arrays while an entry is read."""

    def __init__(self, model: Any, files: list[Any], chunks: memoryview) -> None:
        """*files* beside the model: number, path, identity."""
        self._chunks = chunks
        self._files = {number: _mapped(Path(path), identity) if number else model for number, path, identity in files}

    def hook(self, form: dict[str, Any]) -> Any:
        found = form.get("@")
        if found is None:
            return form
        return self._array(found[1]).tolist() if found[0] == "list" else self._array(found)

    def _array(self, form: list[Any]) -> Array:
        if form[0] == "file":
            _, number, offset, dtype, shape, strides = form
            return np.ndarray(shape, DType(dtype).numpy, self._files[number], offset, strides)
        if form[0] == "joined":
            return np.concatenate([self._array(p) for p in form[2]], axis=form[1])
        _, offset, dtype, shape = form
        return np.ndarray(shape, DType(dtype).numpy, self._chunks, offset)


def _mapped(path: Path, identity: str) -> mmap.mmap:
    """A file beside the model, if it is what it was."""
    try:
        with path.open("rb", buffering=0) as file:
            if _identity(path, os.fstat(file.fileno())) != identity:
                raise _UnfitError("another file")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise _UnfitError("gone") from error


def signature_of(types: Mapping[str, Any], values: Mapping[str, Any]) -> str | None:
    """A text for types of inputs and for the values that a plan depends on; None where they have none."""
    held = {name: np.asarray(v) for name, v in values.items()}
    if any(v.dtype == object for v in held.values()):
        return None
    if not all(isinstance(t, TensorType) and t.is_static for t in types.values()):
        return None
    named = json.dumps([[name, str(t), name in held] for name, t in types.items()])
    return digest(named, *(v.tobytes() for v in held.values()))


class LateTexts(Mapping[str, str]):
    """A mapping that is made when somebody looks."""

    def __init__(self, make: Callable[[], Mapping[str, str]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Mapping[str, str]:
        return self._make()

    def __getitem__(self, key: str) -> str:
        return self._made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)
