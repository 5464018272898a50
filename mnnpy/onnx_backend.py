"""The ``onnx.backend`` interface: ``prepare``, ``run_model``, ``run_node``, ``supports_device``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx.backend.base import Backend, BackendRep

from mnnpy.session import Session

__all__ = ["MnnpyBackend", "MnnpyRep", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]


class MnnpyRep(BackendRep):
    """A prepared model."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        """Run on a sequence in model order, or a mapping by name."""
        if isinstance(inputs, dict):
            return tuple(self.session.run(None, inputs))
        names = self.session.graph.input_names
        return tuple(self.session.run(None, dict(zip(names, inputs, strict=False))))


class MnnpyBackend(Backend):
    """Devices are backend names: ``CPU`` means ``cpu``."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> MnnpyRep:
        return MnnpyRep(Session(model, device.partition(":")[0].lower(), **kwargs))

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,  # noqa: ARG003  part of the interface
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node on arrays."""
        import numpy as np

        arrays = [inputs[n] for n in node.input if n] if isinstance(inputs, dict) else [np.asarray(x) for x in inputs]
        names = [n for n in node.input if n]
        infos = [
            onnx.helper.make_tensor_value_info(
                n, onnx.helper.np_dtype_to_tensor_dtype(np.asarray(a).dtype), np.shape(a)
            )
            for n, a in zip(names, arrays, strict=True)
        ]
        graph = onnx.helper.make_graph([node], "node", infos, [onnx.ValueInfoProto(name=o) for o in node.output if o])
        opset = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)])
        return cls.run_model(model, dict(zip(names, arrays, strict=True)), device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True for backends that have a usable device here."""
        from mnnpy.api import backends

        return any(d.backend == device.partition(":")[0].lower() and d.available for d in backends())

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """True if the model can be planned."""
        from mnnpy.errors import MnnpyError

        try:
            cls.prepare(model, device, **kwargs)
        except MnnpyError:
            return False
        return True


prepare = MnnpyBackend.prepare
run_model = MnnpyBackend.run_model
run_node = MnnpyBackend.run_node
supports_device = MnnpyBackend.supports_device
is_compatible = MnnpyBackend.is_compatible
