"""ONNX tensors and types as numpy arrays and graph types.

Source: ONNX IR specification, ``TensorProto``, ``SparseTensorProto``, ``TypeProto``, "External data".
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnnpy.convert.onnx.proto import DATA_TYPES
from mnnpy.convert.onnx.schemas import reader_version
from mnnpy.errors import ModelError
from mnnpy.graph.dims import Dim, sym
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, MapType, OptionalType, SequenceType, TensorType, Type

if TYPE_CHECKING:
    import onnx
    from onnx import TensorProto

__all__ = ["ExternalData", "dtype_of", "onnx_number", "read_sparse", "read_tensor", "read_type"]

#: ONNX name → DType.
_DTYPE_NAMES: dict[str, DType] = {
    "FLOAT": DType.F32,
    "UINT8": DType.U8,
    "INT8": DType.I8,
    "UINT16": DType.U16,
    "INT16": DType.I16,
    "INT32": DType.I32,
    "INT64": DType.I64,
    "STRING": DType.STRING,
    "BOOL": DType.BOOL,
    "FLOAT16": DType.F16,
    "DOUBLE": DType.F64,
    "UINT32": DType.U32,
    "UINT64": DType.U64,
    "COMPLEX64": DType.C64,
    "COMPLEX128": DType.C128,
    "BFLOAT16": DType.BF16,
    "FLOAT8E4M3FN": DType.F8E4M3FN,
    "FLOAT8E4M3FNUZ": DType.F8E4M3FNUZ,
    "FLOAT8E5M2": DType.F8E5M2,
    "FLOAT8E5M2FNUZ": DType.F8E5M2FNUZ,
    "UINT4": DType.U4,
    "INT4": DType.I4,
    "FLOAT4E2M1": DType.F4E2M1,
    "FLOAT8E8M0": DType.F8E8M0,
    "UINT2": DType.U2,
    "INT2": DType.I2,
}
_DTYPES = {DATA_TYPES[name]: dtype for name, dtype in _DTYPE_NAMES.items()}
_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}
#: Bits of the types that files pack several to a byte.
_PACKED = {DType.U4: 4, DType.I4: 4, DType.F4E2M1: 4, DType.U2: 2, DType.I2: 2}
#: Field that carries a type's elements where ``raw_data`` is not used.
_FIELDS: dict[DType, str] = {
    DType.F32: "float_data",
    DType.C64: "float_data",
    DType.F64: "double_data",
    DType.C128: "double_data",
    DType.I64: "int64_data",
    DType.U32: "uint64_data",
    DType.U64: "uint64_data",
}
#: ``TensorProto.DataLocation.EXTERNAL``
_EXTERNAL = 1
#: Names of sizes that are none.
_UNKNOWN = frozenset({"None", "-1", "*", "unk", "unknown", "N/A"})
#: A sparse tensor is densified; nobody means a weight larger than this.
_DENSE_LIMIT = 1 << 34
#: Bytes from which on an unaligned tensor is kept as a view of the file instead of copied.
VIEW_BYTES = 1 << 20


def dtype_of(number: int, where: str) -> DType:
    """The DType of a ``TensorProto.DataType`` number."""
    found = _DTYPES.get(number)
    if found is None:
        raise ModelError(f"{where}: element type number {number} is not one that {reader_version()} defines")
    return found


def onnx_number(dtype: DType) -> int:
    """The ``TensorProto.DataType`` number of a DType."""
    return _NUMBERS[dtype]


class ExternalData:
    """Weights beside the model file, memory-mapped once per file.

    Only regular files inside the model's folder are read: locations are relative, without ``..``, and may not
    leave the folder through symbolic links.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._maps: dict[Path, tuple[mmap.mmap | bytes, int]] = {}
        #: Arrays that are copies of bytes of a file, by address, with the address of those bytes.
        self.copies: dict[int, tuple[Array, int]] = {}

    def files(self) -> list[tuple[Path, mmap.mmap | bytes]]:
        """The files that were read, with their bytes."""
        return [(path, data) for path, (data, _) in self._maps.items()]

    def note(self, array: Array, raw: Any) -> Array:
        """*array*, remembered where it is a copy of all bytes of *raw* (tiny ones are not worth it)."""
        if array.nbytes >= 64 and array.nbytes == len(raw) and array.dtype != np.bool_:
            address, source = _address(array), _address(np.frombuffer(raw, np.uint8))
            if address != source:
                self.copies[address] = (array, source)
        return array

    def read(self, tensor: TensorProto, expected: int, where: str) -> memoryview:
        """The *expected* bytes of one external tensor, without copying."""
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        data, size = self._open(location, where)
        try:
            offset, length = int(entries.get("offset") or 0), int(entries.get("length") or expected)
        except ValueError as error:
            raise ModelError(f"{where}: offset or length of its external data is not a number ({error})") from error
        if length != expected:
            raise ModelError(f"{where}: external data has length {length}, shape and type need {expected} bytes")
        if offset < 0 or offset + length > size:
            raise ModelError(
                f"{where}: bytes {offset}–{offset + length} lie outside '{location}' ({size} bytes); "
                "the file is truncated or belongs to another model"
            )
        return memoryview(data)[offset : offset + length]

    def _open(self, location: str, where: str) -> tuple[mmap.mmap | bytes, int]:
        path = self._resolve(location, where)
        if path not in self._maps:
            try:
                with path.open("rb") as file:
                    info = os.fstat(file.fileno())
                    if not stat.S_ISREG(info.st_mode):
                        raise ModelError(f"{where}: external data '{location}' is not a regular file")
                    size = info.st_size
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            except OSError as error:
                raise ModelError(
                    f"{where}: cannot read external data '{location}' ({error.strerror or error}); "
                    "keep the file beside the model"
                ) from error
            self._maps[path] = (data, size)
        return self._maps[path]

    def _resolve(self, location: str, where: str) -> Path:
        if self._folder is None:
            raise ModelError(
                f"{where}: its data lie in '{location}', but the model was given as bytes; "
                "pass the path of the .onnx file, or load the data into the model first"
            )
        parts = location.replace("\\", "/").split("/")
        if not location or "\0" in location or location[0] in "/\\" or ".." in parts or ":" in parts[0]:
            raise ModelError(
                f"{where}: external data location {location!r} is not a relative path inside the model's folder"
            )
        folder = Path(os.path.realpath(self._folder))
        path = Path(os.path.realpath(folder / Path(*parts)))
        if not path.is_relative_to(folder):
            raise ModelError(
                f"{where}: external data '{location}' leads outside the model's folder through a symbolic link; "
                "copy the file beside the model"
            )
        # A pipe or device would block the reader: look before opening.
        if path.exists() and not path.is_file():
            raise ModelError(f"{where}: external data '{location}' is not a regular file")
        return path


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def read_tensor(tensor: TensorProto, external: ExternalData, where: str) -> Array:
    """The array of a TensorProto; a read-only view of its bytes where the element layout allows that."""
    dtype = dtype_of(tensor.data_type, where)
    shape = _shape(tensor.dims, where)
    if tensor.HasField("segment"):
        raise ModelError(f"{where}: segmented tensors are not supported; save the model with whole tensors")
    if dtype is DType.STRING:
        return _strings(tensor, shape, where)
    count = prod(shape)
    bits = _PACKED.get(dtype)
    width = -(-count * bits // 8) if bits else count * dtype.itemsize
    if tensor.data_location == _EXTERNAL:
        data = external.read(tensor, width, where)
        return external.note(_from_bytes(data, dtype, shape), data)
    if tensor.HasField("raw_data"):
        raw = tensor.raw_data
        if len(raw) != width:
            raise ModelError(
                f"{where}: raw_data has {len(raw)} bytes, {dtype}{list(shape)} needs {width}; the model is damaged"
            )
        return external.note(_from_bytes(raw, dtype, shape), raw)
    found = _from_fields(tensor, dtype, shape, width, where)
    data = getattr(tensor, _FIELDS.get(dtype, "int32_data"))
    if dtype in (DType.F32, DType.F64) and isinstance(data, np.ndarray):
        return external.note(found, data.view(np.uint8))
    return found


def _shape(dims: Any, where: str) -> tuple[int, ...]:
    shape = tuple(int(d) for d in dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"{where}: shape {list(shape)} has a negative size")
    return shape


def _strings(tensor: TensorProto, shape: tuple[int, ...], where: str) -> Array:
    if len(tensor.string_data) != prod(shape):
        raise ModelError(f"{where}: {len(tensor.string_data)} strings for shape {list(shape)}")
    out = np.empty(len(tensor.string_data), object)
    for k, text in enumerate(tensor.string_data):
        try:
            out[k] = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{where}: string {k} is not UTF-8 ({error.reason} at byte {error.start})") from error
    return out.reshape(shape)


def _from_bytes(raw: Any, dtype: DType, shape: tuple[int, ...]) -> Array:
    if dtype in _PACKED:
        return _unpack(np.frombuffer(raw, np.uint8), dtype, shape)
    if dtype is DType.BOOL:
        bools: Array = np.frombuffer(raw, np.uint8) != 0  # any other byte in a numpy bool is undefined
        return bools.reshape(shape)
    found = np.frombuffer(raw, dtype.numpy).reshape(shape)
    # Large weights stay where the file is mapped, even at odd addresses: whoever reads them raw copies them then.
    return found if found.flags.aligned or found.nbytes >= VIEW_BYTES else found.copy()


def _unpack(packed: Array, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Sub-byte elements, lowest bits first, to one byte each."""
    bits = _PACKED[dtype]
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    codes = codes.reshape(-1)[: prod(shape)].reshape(shape)
    if dtype is DType.F4E2M1:
        return np.ascontiguousarray(codes).view(dtype.numpy)
    if dtype in (DType.I4, DType.I2):
        sign = np.uint8(1 << (bits - 1))
        return ((codes ^ sign).astype(np.int8) - np.int8(sign)).astype(dtype.numpy)
    return codes.astype(dtype.numpy)


def _from_fields(tensor: TensorProto, dtype: DType, shape: tuple[int, ...], width: int, where: str) -> Array:
    field = _FIELDS.get(dtype, "int32_data")
    data = getattr(tensor, field)
    count = width if dtype in _PACKED else prod(shape) * (2 if dtype.is_complex else 1)
    if len(data) != count:
        raise ModelError(
            f"{where}: {field} has {len(data)} entries, {dtype}{list(shape)} needs {count}; "
            "the model is damaged or its data are in another field"
        )
    if dtype in _PACKED:
        return _unpack(np.array(data, np.int64).astype(np.uint8), dtype, shape)
    if dtype.is_complex:
        parts = np.array(data, np.float32 if dtype is DType.C64 else np.float64)
        return parts.view(dtype.numpy).reshape(shape)
    if field != "int32_data" or dtype is DType.I32:
        return np.array(data, dtype.numpy).reshape(shape)
    values = np.array(data, np.int64)
    if dtype is DType.BOOL:
        bools: Array = values != 0
        return bools.reshape(shape)
    if dtype.is_int:
        return values.astype(dtype.numpy).reshape(shape)
    # Small floats are stored as the number that their bits spell.
    return values.astype(f"u{dtype.itemsize}").view(dtype.numpy).reshape(shape)


def read_sparse(sparse: onnx.SparseTensorProto, external: ExternalData, where: str) -> Array:
    """A sparse tensor as a dense array."""
    shape = _shape(sparse.dims, where)
    values = read_tensor(sparse.values, external, where)
    indices = read_tensor(sparse.indices, external, where)
    dtype = DType.of(values.dtype)
    if prod(shape) * dtype.itemsize > _DENSE_LIMIT:
        raise ModelError(f"{where}: the dense form of sparse {dtype}{list(shape)} would exceed {_DENSE_LIMIT} bytes")
    if indices.dtype != np.int64 or values.ndim != 1:
        raise ModelError(f"{where}: a sparse tensor needs one-dimensional values and i64 indices")
    if indices.ndim == 2 and indices.shape[1] == len(shape):
        if (indices < 0).any() or (indices >= np.array(shape, np.int64)).any():
            raise ModelError(f"{where}: a sparse index lies outside shape {list(shape)}")
        strides = np.array([prod(shape[k + 1 :]) for k in range(len(shape))], np.int64)
        indices = indices @ strides
    if indices.shape != values.shape or ((indices < 0) | (indices >= prod(shape))).any():
        raise ModelError(f"{where}: sparse indices of shape {list(indices.shape)} do not fit {list(shape)}")
    dense = np.full(prod(shape), "" if dtype is DType.STRING else 0, values.dtype)
    dense[indices] = values
    return dense.reshape(shape)


def read_type(proto: onnx.TypeProto, name: str, fresh: Callable[[str], str], where: str, depth: int = 0) -> Type | None:
    """A TypeProto; unknown sizes become symbols called ``<name>_d<axis>``, made unique by *fresh*."""
    if depth > 32:
        raise ModelError(f"{where}: its type nests more than 32 levels deep")
    kind = proto.WhichOneof("value")
    if kind is None:
        return None
    inner: Callable[[onnx.TypeProto], Type | None] = lambda p: read_type(p, name, fresh, where, depth + 1)  # noqa: E731
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(proto, kind)
        if tensor.elem_type == DATA_TYPES["UNDEFINED"]:
            return None
        dtype = dtype_of(tensor.elem_type, where)
        if not tensor.HasField("shape"):
            return TensorType(dtype)
        return TensorType(dtype, tuple(_dim(d, f"{name}_d{k}", fresh, where) for k, d in enumerate(tensor.shape.dim)))
    if kind == "map_type":
        value = inner(proto.map_type.value_type)
        return None if value is None else MapType(dtype_of(proto.map_type.key_type, where), value)
    if kind in ("sequence_type", "optional_type"):
        elem = inner(getattr(proto, kind).elem_type)
        if elem is None:
            return None
        return SequenceType(elem) if kind == "sequence_type" else OptionalType(elem)
    raise ModelError(f"{where}: values of ONNX type '{kind}' are not supported")


def _dim(dim: onnx.TensorShapeProto.Dimension, hint: str, fresh: Callable[[str], str], where: str) -> Dim:
    kind = dim.WhichOneof("value")
    if kind == "dim_value" and dim.dim_value != -1:  # some exporters write −1 for a size that is not known
        if dim.dim_value < 0:
            raise ModelError(
                f"{where}: size {dim.dim_value} is negative; a size that is not known needs a name (dim_param)"
            )
        return int(dim.dim_value)
    name = dim.dim_param if kind == "dim_param" else ""
    # Exporters also write "?" and the like for sizes that they do not know: two of those need not be equal.
    return sym(fresh(hint) if not name or name[0] == "?" or name in _UNKNOWN else name)
