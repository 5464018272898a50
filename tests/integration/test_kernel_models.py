"""Every benchmark model and every trained one wholly on ``opencl`` and on ``vulkan``, against the cpu backend."""

from __future__ import annotations

from typing import Any

import pytest

import mnnpy
from benchmarks.zoo import ZOO, ZooModel
from tests.unit.kernel_helpers import assert_close, device, elsewhere

#: Allowed difference over the largest value of an output.
TOLERANCE = 1e-4
#: Models that a software device runs in seconds; the others have the marker ``full``.
QUICK = frozenset({
    "mlp_64_64_10", "mlp_64_128_128_10", "din", "mobilenet_v2", "minilm_l6", "lstm", "ppocr_cls", "silero_vad",
    "silero_vad_16k_op15", "silero_vad_16k_sequence", "silero_vad_op18_ifless", "silero_vad_half",
    "silero_vad_openvino_16k",
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


@pytest.mark.parametrize("name", ["opencl", "vulkan"])
@pytest.mark.parametrize("model", params())
def test_agrees_with_cpu(model: ZooModel, name: str) -> None:
    device(name)
    if reason := model.available():
        pytest.skip(reason)
    feeds = model.inputs(7)
    wanted = mnnpy.Session(model.build(), "cpu").run(None, feeds)
    session = mnnpy.Session(model.build(), [name, "reference"])
    assert_close(session, session.run(None, feeds), wanted, TOLERANCE)
    assert elsewhere(session, name) == []
