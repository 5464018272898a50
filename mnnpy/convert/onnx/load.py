"""Finding, parsing and vetting an ONNX model before it is read."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnnpy.convert.onnx.proto import IR_VERSION, WireError, parse_model
from mnnpy.convert.onnx.reader import Reader
from mnnpy.convert.onnx.schemas import reader_version
from mnnpy.convert.onnx.tensors import ExternalData
from mnnpy.errors import MnnpyError, ModelError
from mnnpy.graph.ir import Graph

if TYPE_CHECKING:
    import onnx

__all__ = ["from_onnx", "read_onnx"]

#: From this size on, a file is mapped instead of read.
_LARGE_FILE = 1 << 20


def from_onnx(source: str | os.PathLike[str] | bytes | onnx.ModelProto, *, check_ops: bool = True) -> Graph:
    """Read an ONNX model.

    *source* is a path, the bytes of a file, or a ModelProto. The graph holds ops of the newest opset only
    (``ai.onnx.ml`` as ``ml.<Op>``, ``ai.onnx.preview`` as ``preview.<Op>``, training ops as ``training.<Op>``),
    functions are inlined and bodies closed. Weights are read-only views of the file's bytes where possible.
    With ``check_ops=False`` ops that mnnpy does not know stay in the graph: it can be shown, not run.

    Raises ModelError where the model is damaged or breaks a rule of the ONNX specification, UnsupportedOpError
    with all unknown ops at once.
    """
    model, external, name = _parse(source)
    return _read(model, external, name, check_ops)


def read_onnx(data: bytes | mmap.mmap, name: str, folder: Path | None) -> tuple[Graph, ExternalData]:
    """Read a model out of bytes or a map; *folder* holds its external data, which is returned too."""
    external = ExternalData(folder)
    return _read(_decode(data, name), external, name, True), external


def _read(model: onnx.ModelProto, external: ExternalData, name: str, check_ops: bool) -> Graph:
    try:
        if not model.HasField("graph"):
            raise ModelError(f"'{name}' holds no graph: it is not an ONNX model")
        if model.ir_version < 1:
            raise ModelError(f"'{name}' states no IR version: it is not an ONNX model, or it is damaged")
        if model.ir_version > IR_VERSION:
            raise ModelError(
                f"'{name}' has ONNX IR version {model.ir_version}, {reader_version()} knows up to "
                f"{IR_VERSION}; update mnnpy-engine, or export with an older version"
            )
        graph = Reader(model, external, name).read(check_ops)
        graph.check()
        return graph
    except MnnpyError:
        raise
    except RecursionError as error:
        raise ModelError(f"'{name}' is nested too deeply to be read") from error
    except MemoryError as error:
        raise ModelError(f"'{name}' needs more memory than there is: {error}") from error
    except Exception as error:  # whatever a malformed file provokes is the file's fault, and the user shall learn which
        raise ModelError(
            f"'{name}' could not be read ({type(error).__name__}: {error}); check it with onnx.checker.check_model"
        ) from error


def _parse(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, ExternalData, str]:
    """The parsed model, its external data, and how errors name it."""
    if hasattr(source, "ParseFromString"):  # a ModelProto; asking for its class would import onnx
        return source, ExternalData(None), source.graph.name or "model"  # type: ignore[union-attr, return-value]
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "model"), ExternalData(None), "model"
    if not isinstance(source, (str, os.PathLike)):
        raise ModelError(f"an ONNX model is a path, bytes or a ModelProto, not {type(source).__name__}")
    path = Path(source)
    try:
        with path.open("rb") as file:
            large = os.fstat(file.fileno()).st_size >= _LARGE_FILE
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if large else file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"cannot read '{source}': {reason}") from error
    return _decode(data, str(source)), ExternalData(path.parent), str(source)


def _decode(data: Any, name: str) -> onnx.ModelProto:
    try:
        return parse_model(data)  # type: ignore[no-any-return]
    except (WireError, MemoryError) as error:
        raise ModelError(
            f"'{name}' is not an ONNX model, is truncated, or nests too deeply ({error}); download or export it again"
        ) from error
