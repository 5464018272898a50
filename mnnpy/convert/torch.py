"""The torch front end: torch's own ONNX exporter, then the ONNX front end.

The TorchScript exporter (``dynamo=False``) is used because it needs nothing beside torch; the newer one needs the
package ``onnxscript``. It traces: Python control flow is frozen as the example inputs take it.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mnnpy.convert.onnx import from_onnx
from mnnpy.errors import ModelError
from mnnpy.graph.ir import Graph

__all__ = ["from_torch", "is_module"]


def is_module(value: Any) -> bool:
    """Whether *value* is a torch module; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def from_torch(
    module: Any,
    example_inputs: Sequence[Any] | Any,
    *,
    dynamic_shapes: Mapping[str, Mapping[int, str] | Sequence[int]] | None = None,
    opset: int | None = None,
) -> Graph:
    """Export *module* in inference mode, as it runs on *example_inputs*, and read it.

    *example_inputs* are the tensors of one call. *dynamic_shapes* names the sizes that may change, per input called
    as in ``forward``: ``{"x": {0: "batch"}}``. *opset* is the ONNX opset to go through (default: torch's newest).
    The module is left in the mode it was in. Raises ModelError where torch is missing or cannot export the module.
    """
    try:
        import torch
    except ImportError as error:
        raise ModelError("reading torch modules needs torch: install it with `pip install torch`") from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"a torch.nn.Module is needed, not {type(module).__name__}")
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    if not inputs:
        raise ModelError("reading a torch module needs example_inputs: the tensors of one call of it")
    names = _input_names(module, inputs)
    unknown = sorted(set(dynamic_shapes or {}) - set(names))
    if unknown:
        raise ModelError(f"dynamic_shapes names '{unknown[0]}'; the inputs are {', '.join(names)}")
    buffer = io.BytesIO()
    modes = [(m, m.training) for m in module.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer has no ONNX form, its parts have
        module.eval()
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter's remarks on its own deprecation and on tracing
            torch.onnx.export(
                _call_of(module),
                inputs,
                buffer,
                dynamo=False,
                input_names=list(names),
                dynamic_axes=dict(dynamic_shapes or {}),
                opset_version=opset,
            )
    except Exception as error:  # the exporter raises whatever the module's code does
        raise ModelError(
            f"torch cannot export {type(module).__name__} to ONNX ({type(error).__name__}: {error}); "
            "check that it runs on the example inputs, or export it yourself and pass the .onnx file"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for m, training in modes:
            m.training = training
    return from_onnx(buffer.getvalue())


def _call_of(module: Any) -> Any:
    """A module that calls *module*: of ``forward`` itself the exporter would turn defaults into further inputs."""
    import torch

    class Call(torch.nn.Module):  # type: ignore[misc] # torch is optional, mypy may not see it
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any) -> Any:
            return self.module(*args)

    return Call().eval()


def _input_names(module: Any, inputs: Sequence[Any]) -> tuple[str, ...]:
    """The parameter names of ``forward``, as many as there are inputs; nested inputs are numbered."""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(names) < len(inputs) or any(isinstance(i, (tuple, list, dict)) for i in inputs):
        return tuple(f"input_{k}" for k in range(_count(inputs)))
    return tuple(names[: len(inputs)])


def _count(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_count(v) for v in value.values())
    if isinstance(value, (tuple, list)):
        return sum(_count(v) for v in value)
    return 1
