"""Every benchmark model and every trained one wholly on ``opencl`` and on ``vulkan``, against the cpu backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mnnpy
from benchmarks.zoo import ZOO, ZooModel
from mnnpy.decompose.registry import OpClass, get_op
from tests.unit.kernel_helpers import device

#: Allowed difference over the largest value of an output.
TOLERANCE = 1e-4
#: Models that a software device runs in seconds; the others have the marker ``full``.
QUICK = frozenset({
    "mlp_64_64_10", "mlp_64_128_128_10", "din", "squeezenet", "shufflenet_v2", "lstm", "ppocr_cls", "silero_vad",
    "silero_vad_16k_op15", "silero_vad_op18_ifless", "silero_vad_half", "silero_vad_openvino_16k",
})  # fmt: skip


def params() -> list[Any]:
    return [
        pytest.param(
            m,
            id=m.name,
            marks=[pytest.mark.slow] * m.slow + [pytest.mark.models] * m.trained
            + [pytest.mark.full] * (m.name not in QUICK),
        )
        for m in ZOO.values()
    ]  # fmt: skip


def elsewhere(session: mnnpy.Session, name: str) -> list[str]:
    """Steps that did not run on the device and are no host ops, with their reasons."""
    rows = [r for r in session.explain().rows if r["backend"] != name]
    hosted = (OpClass.HOST, OpClass.CONTROL)
    return [f"{r['op']} ({r['node']}): {r['reason']}" for r in rows if get_op(r["op"]).op_class not in hosted]


@pytest.mark.parametrize("name", ["opencl", "vulkan"])
@pytest.mark.parametrize("model", params())
def test_agrees_with_cpu(model: ZooModel, name: str) -> None:
    device(name)
    if reason := model.available():
        pytest.skip(reason)
    feeds = model.inputs(7)
    wanted = mnnpy.Session(model.build(), "cpu").run(None, feeds)
    session = mnnpy.Session(model.build(), [name, "reference"])
    for arg, g, w in zip(session.get_outputs(), session.run(None, feeds), wanted, strict=True):
        assert g.shape == w.shape, arg.name
        assert g.dtype == w.dtype, arg.name
        error = float(np.abs(g.astype(np.float64) - w).max() / max(np.abs(w).max(), 1e-30))
        assert error <= TOLERANCE, f"output '{arg.name}': {error:.2e}"
    assert elsewhere(session, name) == []
