"""torch modules, against eager torch."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from mnnpy.convert import convert, from_torch
from mnnpy.errors import ModelError
from mnnpy.graph.dims import sym
from mnnpy.graph.ir import TensorType
from tests.unit.onnx_models import run

torch = pytest.importorskip("torch")


def cnn() -> tuple[Any, tuple[Any, ...]]:
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-1, 1)
            m.running_var.uniform_(0.5, 2)
    return net, (torch.randn(2, 3, 16, 16),)


def encoder() -> tuple[Any, tuple[Any, ...]]:
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True)
    return layer, (torch.randn(2, 5, 16),)


class Recurrent(torch.nn.Module):  # type: ignore[misc, name-defined]
    """An LSTM whose result a GRU reads."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 6, 2, bidirectional=True)
        self.gru = torch.nn.GRU(12, 5)

    def forward(self, x: Any, h: Any) -> Any:
        y, (_, c) = self.lstm(x)
        z, n = self.gru(y, h)
        return z, n, c


def recurrent() -> tuple[Any, tuple[Any, ...]]:
    return Recurrent(), (torch.randn(7, 2, 4), torch.randn(1, 2, 5))


@pytest.mark.parametrize("architecture", [cnn, encoder, recurrent])
def test_same_as_eager(architecture: Any) -> None:
    torch.manual_seed(0)
    module, inputs = architecture()
    graph = from_torch(module, inputs)
    with torch.no_grad():
        wanted = module.eval()(*inputs)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    got = run(graph, {v.name: x.numpy() for v, x in zip(graph.inputs, inputs, strict=True)})
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_allclose(g, w.numpy(), rtol=1e-4, atol=1e-5)


def test_dynamic_sizes_and_input_names() -> None:
    module, inputs = cnn()
    graph = convert(module, example_inputs=inputs, dynamic_shapes={"input": {0: "batch"}})
    assert graph.inputs[0].name == "input"
    found = graph.inputs[0].type
    assert isinstance(found, TensorType)
    assert found.shape == (sym("batch"), 3, 16, 16)
    x = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        want = module.eval()(x).numpy()
    np.testing.assert_allclose(run(graph, {"input": x.numpy()})[0], want, rtol=1e-4, atol=1e-5)


def test_module_stays_in_its_mode() -> None:
    module, inputs = cnn()
    module.train()
    module[1].eval()
    from_torch(module, inputs)
    assert module.training
    assert module[0].training
    assert not module[1].training


def test_mistakes_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = cnn()
    with pytest.raises(ModelError, match="example_inputs"):
        convert(module)
    with pytest.raises(ModelError, match="dynamic_shapes names 'y'; the inputs are input"):
        from_torch(module, inputs, dynamic_shapes={"y": {0: "n"}})
    with pytest.raises(ModelError, match="torch cannot export Sequential"):
        from_torch(module, (torch.randn(2, 9),))
    with pytest.raises(ModelError, match=r"torch\.nn\.Module is needed, not int"):
        from_torch(3, inputs)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match="pip install torch"):
        from_torch(module, inputs)
