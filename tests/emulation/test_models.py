"""Whole models of reduced size on emulated CUDA and Metal [E], against the cpu backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

import mnnpy
from benchmarks.zoo import Workload
from mnnpy.backends.kernels.templates import library
from tests.emulation.sessions import device, opened
from tests.unit.kernel_helpers import assert_close, elsewhere

#: Allowed difference over the largest value of an output.
TOLERANCE = 1e-4


def workload(name: str) -> tuple[onnx.ModelProto, Mapping[str, Any]]:
    """A benchmark model and inputs of a size that the emulator manages: pictures of 32×32, 8 tokens."""
    found = Workload.parse(name)
    model = onnx.load(found.model.build())
    feeds = found.inputs(3)
    if name == "mobilenet_v2":
        for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
            dim.dim_value = 32
        feeds["input"] = np.ascontiguousarray(feeds["input"][:, :, ::7, ::7])
    return model, feeds


@pytest.mark.parametrize("kind", ["cuda", "metal"])
@pytest.mark.parametrize("products", ["kernels", "library"])
@pytest.mark.parametrize("name", ["mobilenet_v2", "minilm_l6@length=8", "din"])
def test_agrees_with_cpu(name: str, products: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if products == "library":  # these are too small for it
        monkeypatch.setattr(library, "WORTH", 1 << 10)
    model, feeds = workload(name)
    wanted = mnnpy.Session(model, "cpu").run(None, feeds)
    dev = device(kind)
    with opened({kind: dev}):
        session = mnnpy.Session(model, [kind, "reference"])
    assert_close(session, session.run(None, feeds), wanted, TOLERANCE)
    assert elsewhere(session, kind) == []
    api: Any = dev.driver._api  # type: ignore[attr-defined]
    assert (api.products > 0) == (products == "library")
