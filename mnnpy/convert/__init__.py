"""Front ends: models of other frameworks as graphs of source ops.

``convert`` takes whatever a user has; `from_onnx` and `from_torch` are the front ends it chooses from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mnnpy.errors import ModelError
from mnnpy.graph.ir import Graph

if TYPE_CHECKING:
    import onnx

__all__ = ["convert", "from_onnx", "from_torch", "to_onnx"]


def convert(
    source: str | os.PathLike[str] | bytes | Graph | Any,
    target: str | os.PathLike[str] | None = None,
    *,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    check_ops: bool = True,
) -> Graph:
    """Read a model and, where *target* is given, write it as a ``.mnnpy`` file.

    *source* is the path of an ``.onnx`` or ``.mnnpy`` file, the bytes of an ONNX file, an ``onnx.ModelProto``, a
    ``torch.nn.Module`` (with *example_inputs*, and *dynamic_shapes* and *opset* as `from_torch` takes them) or a
    Graph. Raises ModelError or UnsupportedOpError; nothing is written then.
    """
    graph = _read(source, example_inputs, dynamic_shapes, opset, check_ops)
    if target is not None:
        if Path(target).suffix != ".mnnpy":
            raise ModelError(f"'{target}' must end in .mnnpy, the only format that is written")
        from mnnpy.graph.serialize import save

        save(graph, target)
    return graph


def _read(
    source: Any, example_inputs: Sequence[Any] | None, dynamic_shapes: Any, opset: int | None, check_ops: bool
) -> Graph:
    from mnnpy.convert.torch import is_module

    if is_module(source):
        return from_torch(source, example_inputs or (), dynamic_shapes=dynamic_shapes, opset=opset)
    if example_inputs is not None or dynamic_shapes is not None or opset is not None:
        raise ModelError("example_inputs, dynamic_shapes and opset are for torch modules; the model given is none")
    if isinstance(source, Graph):
        source.check()
        return source
    if isinstance(source, (str, os.PathLike)) and Path(source).suffix == ".mnnpy":
        from mnnpy.graph.serialize import load

        return load(source)
    return from_onnx(source, check_ops=check_ops)


def from_onnx(source: str | os.PathLike[str] | bytes | onnx.ModelProto, *, check_ops: bool = True) -> Graph:
    """Read an ONNX model; see `mnnpy.convert.onnx.load.from_onnx`."""
    from mnnpy.convert.onnx.load import from_onnx as read

    return read(source, check_ops=check_ops)


def from_torch(
    module: Any, example_inputs: Sequence[Any], *, dynamic_shapes: Any = None, opset: int | None = None
) -> Graph:
    """Export and read a torch module; see `mnnpy.convert.torch.from_torch`."""
    from mnnpy.convert.torch import from_torch as read

    return read(module, example_inputs, dynamic_shapes=dynamic_shapes, opset=opset)


def to_onnx(graph: Graph, *, backends: Any = None, weights: bool = False) -> onnx.ModelProto:
    """A graph as an ONNX file to look at; see `mnnpy.convert.export.to_onnx`."""
    from mnnpy.convert.export import to_onnx as write

    return write(graph, backends=backends, weights=weights)


class _CallablePackage(ModuleType):
    """``mnnpy.convert`` is a package and, as in ``mnnpy.convert(src, dst)``, the function `convert`."""

    def __call__(self, *args: Any, **keywords: Any) -> Graph:
        return convert(*args, **keywords)


sys.modules[__name__].__class__ = _CallablePackage
