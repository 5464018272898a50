"""The ``.mnnpy`` file: one safetensors file, the graph as JSON in its metadata.

Layout (safetensors specification): 8 bytes little-endian header length, a JSON header padded with spaces, tensor
bytes without gaps. Weights of 64 bytes and more start at multiples of 64 (small ``pad`` tensors fill up) and are
memory-mapped on loading. Nothing in a file is ever executed.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from math import isfinite, prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mnnpy.decompose.raster import Region
from mnnpy.errors import MnnpyError, ModelError
from mnnpy.graph.codec import dim_of, plain_dim, plain_type, type_of
from mnnpy.graph.dims import SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import (
    Array,
    Graph,
    MapType,
    Node,
    OptionalType,
    SequenceType,
    TensorType,
    Value,
)

__all__ = ["FORMAT_VERSION", "load", "save"]

#: Raised with every change that an older reader cannot understand.
FORMAT_VERSION = 1
_ALIGN = 64
_MAX_HEADER = 1 << 30
#: Element types that safetensors knows; all others are stored as unsigned integers of their width.
_TAGS = {
    DType.BOOL: "BOOL",
    DType.I8: "I8",
    DType.I16: "I16",
    DType.I32: "I32",
    DType.I64: "I64",
    DType.U8: "U8",
    DType.U16: "U16",
    DType.U32: "U32",
    DType.U64: "U64",
    DType.F16: "F16",
    DType.BF16: "BF16",
    DType.F32: "F32",
    DType.F64: "F64",
    DType.C64: "U64",
}


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write *graph* to *path*. The file appears complete or not at all.

    Raises ModelError where the graph holds something that has no stored form, or the file cannot be written.
    """
    writer = _Writer()
    text = json.dumps(writer.graph(graph), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    metadata = {"format": "mnnpy", "mnnpy.version": str(FORMAT_VERSION), "mnnpy.graph": text}
    header, chunks = writer.layout(metadata)
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(struct.pack("<Q", len(header)) + header)
                for chunk in chunks:
                    _write(file, chunk)
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink()
            raise
    except OSError as error:
        raise ModelError(f"cannot write '{path}': {error.strerror or error}") from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _write(file: BinaryIO, array: Array) -> None:
    if array.nbytes:
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def load(path: str | os.PathLike[str]) -> Graph:
    """Read a ``.mnnpy`` file. Weights are read-only views of the memory-mapped file.

    Raises ModelError where the file is damaged, of another kind, or written by a newer mnnpy.
    """
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise ModelError(f"'{path}' is not a .mnnpy file: it has only {size} bytes")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from error
    try:
        return _Reader(data, size, str(path)).read()
    except MnnpyError:
        raise
    except Exception as error:  # whatever damage provokes: the file is at fault
        raise ModelError(f"'{path}' is damaged ({type(error).__name__}: {error}); convert the model again") from error


class _Writer:
    """Encodes a graph; collects its arrays."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}
        self._keys: dict[tuple[int, tuple[int, ...], str], str] = {}
        self._kept: list[Array] = []  # addresses identify arrays only as long as these live

    def graph(self, graph: Graph) -> dict[str, Any]:
        return {
            "name": graph.name,
            "inputs": [self._value(v) for v in graph.inputs],
            "outputs": [self._value(v) for v in graph.outputs],
            "nodes": [self._node(n, graph.name) for n in graph.nodes],
            "constants": {k: self._array(np.asarray(a), f"constant '{k}'") for k, a in graph.constants.items()},
            "types": {k: plain_type(t) for k, t in graph.types.items()},
            "metadata": dict(graph.metadata),
        }

    def _value(self, value: Value) -> list[Any]:
        return [value.name, None if value.type is None else plain_type(value.type)]

    def _node(self, node: Node, graph: str) -> list[Any]:
        where = f"graph '{graph}', node '{node.label}' ({node.op})"
        attrs = {k: self._attr(v, f"{where}, attribute '{k}'") for k, v in node.attrs.items()}
        return [node.op, list(node.inputs), list(node.outputs), attrs, node.name]

    def _attr(self, value: Any, where: str) -> Any:
        """JSON for one attribute: tuples are JSON lists, everything else that JSON lacks is ``{kind: …}``."""
        if value is None or isinstance(value, (bool, str)) or type(value) is int:
            return value
        if type(value) is float:
            return value if isfinite(value) else {"float": repr(value)}
        if type(value) is tuple:
            return [self._attr(v, where) for v in value]
        if isinstance(value, DType):
            return {"dtype": value.value}
        if isinstance(value, np.ndarray):
            return {"array": self._array(value, where)}
        if isinstance(value, np.generic):
            return {"scalar": self._array(np.asarray(value), where)}
        if isinstance(value, Graph):
            return {"graph": self.graph(value)}
        if isinstance(value, Region):
            parts = (value.origin, value.size, value.src_offset, value.src_strides, value.dst_offset, value.dst_strides)
            return {"region": [self._attr(p, where) for p in parts]}
        if isinstance(value, SymDim):
            return {"dim": plain_dim(value)}
        if isinstance(value, (TensorType, SequenceType, OptionalType, MapType)):
            return {"type": plain_type(value)}
        if type(value) is list:
            return {"list": [self._attr(v, where) for v in value]}
        if isinstance(value, Mapping):
            return {"dict": [[self._attr(k, where), self._attr(v, where)] for k, v in value.items()]}
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": base64.b64encode(value).decode("ascii")}
        if isinstance(value, complex):
            return {"complex": [repr(value.real), repr(value.imag)]}
        raise ModelError(f"{where}: a {type(value).__name__} has no stored form")

    def _array(self, array: Array, where: str) -> Any:
        """A reference to a stored tensor; strings stay in the JSON."""
        try:
            dtype = DType.of(array.dtype)
        except TypeError as error:
            raise ModelError(f"{where}: {error}") from error
        if dtype is DType.STRING:
            texts = array.reshape(-1).tolist()
            if not all(isinstance(t, str) for t in texts):
                raise ModelError(f"{where}: an object array may hold strings only")
            return {"strings": texts, "shape": list(array.shape)}
        identity = (array.__array_interface__["data"][0], array.shape + array.strides, dtype.value)
        key = self._keys.get(identity) if array.nbytes else None
        if key is None:
            key = f"t{len(self._arrays)}"
            self._keys[identity] = key
            self._kept.append(array)
            self._arrays[key] = array
        return {"tensor": key, "dtype": dtype.value, "shape": list(array.shape)}

    def layout(self, metadata: Mapping[str, str]) -> tuple[bytes, list[Array]]:
        """The header, and the arrays in file order: large ones aligned, then small ones by falling element size."""
        entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        chunks: list[Array] = []
        position = 0

        def place(key: str, tag: str, shape: list[int], array: Array) -> None:
            nonlocal position
            entries[key] = {"dtype": tag, "shape": shape, "data_offsets": [position, position + array.nbytes]}
            chunks.append(array)
            position += array.nbytes

        large = {k: a for k, a in self._arrays.items() if a.nbytes >= _ALIGN}
        small = {k: a for k, a in self._arrays.items() if a.nbytes < _ALIGN}
        for key, array in [*large.items(), *sorted(small.items(), key=lambda item: -item[1].itemsize)]:
            gap = -position % _ALIGN
            if key in large and gap:
                place(f"pad{position}", "U8", [gap], np.zeros(gap, np.uint8))
            tag, shape = _stored_form(DType.of(array.dtype), array.shape)
            place(key, tag, shape, array)
        header = json.dumps(entries, ensure_ascii=True, separators=(",", ":")).encode("ascii")
        return header + b" " * (-(8 + len(header)) % _ALIGN), chunks


def _stored_form(dtype: DType, shape: tuple[int, ...]) -> tuple[str, list[int]]:
    """The safetensors tag and shape under which an element type is stored."""
    if dtype is DType.C128:
        return "U64", [*shape, 2]
    return _TAGS.get(dtype, "U8"), list(shape)


class _Reader:
    """Decodes one file; every claim of the header is checked against the file's size."""

    def __init__(self, data: mmap.mmap, size: int, name: str) -> None:
        self._data = data
        self._size = size
        self._name = name
        self._start = 0
        self._entries: dict[str, Any] = {}
        self._loaded: dict[tuple[str, str], Array] = {}

    def read(self) -> Graph:
        (length,) = struct.unpack("<Q", self._data[:8])
        if length > min(self._size - 8, _MAX_HEADER):
            raise ModelError(
                f"'{self._name}' is not a .mnnpy file, or it is truncated: its header would have {length} bytes"
            )
        self._start = 8 + length
        try:
            header = json.loads(self._data[8 : self._start].decode("utf-8"))
            metadata = header.pop("__metadata__")
            kind, version = metadata["format"], int(metadata["mnnpy.version"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"'{self._name}' is not a .mnnpy file ({error})") from error
        if kind != "mnnpy":
            raise ModelError(f"'{self._name}' is a safetensors file of format '{kind}', not a .mnnpy file")
        if version > FORMAT_VERSION:
            raise ModelError(
                f"'{self._name}' has format version {version}, this mnnpy reads up to {FORMAT_VERSION}; update mnnpy"
            )
        self._entries = header
        self._check_extent()
        graph = self._graph(json.loads(metadata["mnnpy.graph"]), 0)
        graph.check()
        return graph

    def _check_extent(self) -> None:
        end = max((int(e["data_offsets"][1]) for e in self._entries.values()), default=0)
        if self._start + end != self._size:
            raise ModelError(
                f"'{self._name}' is truncated or damaged: its tensors need {self._start + end} bytes, "
                f"it has {self._size}"
            )

    def _graph(self, form: Any, depth: int) -> Graph:
        if depth > 64:
            raise ModelError(f"'{self._name}': graphs nest more than 64 levels deep")
        return Graph(
            name=_str(form["name"]),
            inputs=tuple(self._value(v) for v in form["inputs"]),
            outputs=tuple(self._value(v) for v in form["outputs"]),
            nodes=tuple(self._node(n, depth) for n in form["nodes"]),
            constants={_str(k): self._array(a) for k, a in form["constants"].items()},
            types={_str(k): type_of(t) for k, t in form["types"].items()},
            metadata={_str(k): _str(v) for k, v in form["metadata"].items()},
        )

    def _value(self, form: Any) -> Value:
        name, known = form
        return Value(_str(name), None if known is None else type_of(known))

    def _node(self, form: Any, depth: int) -> Node:
        op, inputs, outputs, attrs, name = form
        return Node(
            _str(op),
            tuple(_str(i) for i in inputs),
            tuple(_str(o) for o in outputs),
            {_str(k): self._attr(v, depth) for k, v in attrs.items()},
            _str(name),
        )

    def _attr(self, form: Any, depth: int) -> Any:
        if isinstance(form, list):
            return tuple(self._attr(v, depth) for v in form)
        if not isinstance(form, dict):
            return form
        ((kind, value),) = form.items()
        decode: dict[str, Callable[[], Any]] = {
            "float": lambda: float(value),
            "dtype": lambda: DType(value),
            "array": lambda: self._array(value),
            "scalar": lambda: self._array(value)[()],
            "graph": lambda: self._graph(value, depth + 1),
            "region": lambda: Region(*(self._attr(v, depth) for v in value)),
            "dim": lambda: dim_of(value),
            "type": lambda: type_of(value),
            "list": lambda: [self._attr(v, depth) for v in value],
            "dict": lambda: {self._attr(k, depth): self._attr(v, depth) for k, v in value},
            "bytes": lambda: base64.b64decode(value, validate=True),
            "complex": lambda: complex(float(value[0]), float(value[1])),
        }
        if kind not in decode:
            raise ModelError(f"'{self._name}' holds an attribute of unknown kind '{kind}'")
        return decode[kind]()

    def _array(self, form: Any) -> Array:
        if "strings" in form:
            out = np.empty(len(form["strings"]), object)
            out[:] = [_str(s) for s in form["strings"]]
            return out.reshape(form["shape"])
        key, dtype, shape = form["tensor"], DType(form["dtype"]), tuple(form["shape"])
        identity = (key, f"{dtype}{shape}")
        if identity not in self._loaded:
            self._loaded[identity] = self._view(key, dtype, shape)
        return self._loaded[identity]

    def _view(self, key: str, dtype: DType, shape: tuple[int, ...]) -> Array:
        entry = self._entries[key]
        begin, end = entry["data_offsets"]
        tag, stored = _stored_form(dtype, shape)
        fits = all(type(d) is int and d >= 0 for d in shape) and end - begin == prod(shape) * dtype.itemsize
        if (
            entry["dtype"] != tag
            or entry["shape"] != stored
            or not fits
            or not 0 <= begin <= end <= self._size - self._start
        ):
            raise ModelError(f"'{self._name}': tensor '{key}' does not fit {dtype}{list(shape)}; the file is damaged")
        if begin == end:
            return np.empty(shape, dtype.numpy)
        if dtype is DType.BOOL:  # a byte other than 0 and 1 would be undefined
            raw = np.frombuffer(self._data, np.uint8, prod(shape), self._start + begin)
            bools: Array = raw != 0
            return bools.reshape(shape)
        return np.frombuffer(self._data, dtype.numpy, prod(shape), self._start + begin).reshape(shape)


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ModelError(f"a text was expected, found {type(value).__name__}; the file is damaged")
    return value
