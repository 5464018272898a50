"""Torch modules equivalent to the models of ``nets.py``: the same layers and sizes, torch's own random weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["build"]


def _conv_bn(
    cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = None
) -> Any:
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class _Sum(nn.Module):
    """``after(body(x) + skip(x))``."""

    def __init__(self, body: nn.Module, skip: nn.Module | None, *, relu: bool) -> None:
        super().__init__()
        self.body, self.skip, self.relu = body, skip or nn.Identity(), relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) + self.skip(x)
        return F.relu(y) if self.relu else y


def _classifier(features: list[nn.Module], channels: int) -> nn.Module:
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def _resnet(blocks: tuple[int, ...], *, bottleneck: bool) -> nn.Module:
    layers: list[nn.Module] = [_conv_bn(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    cin = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        cout = 4 * width if bottleneck else width
        for k in range(count):
            stride = 2 if stage and not k else 1
            if bottleneck:
                body = [_conv_bn(cin, width, 1, act=nn.ReLU), _conv_bn(width, width, 3, stride, act=nn.ReLU)]
                body.append(_conv_bn(width, cout, 1))
            else:
                body = [_conv_bn(cin, width, 3, stride, act=nn.ReLU), _conv_bn(width, width, 3)]
            skip = _conv_bn(cin, cout, 1, stride) if stride != 1 or cin != cout else None
            layers.append(_Sum(nn.Sequential(*body), skip, relu=True))
            cin = cout
    return _classifier(layers, cin)


def _mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [_conv_bn(3, 32, 3, 2, act=nn.ReLU6)]
    cin = 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, cout, repeat, first in table:
        for k in range(repeat):
            stride, wide = (first if k == 0 else 1), cin * expand
            body = [_conv_bn(cin, wide, 1, act=nn.ReLU6)] if expand != 1 else []
            body += [_conv_bn(wide, wide, 3, stride, wide, nn.ReLU6), _conv_bn(wide, cout, 1)]
            block = nn.Sequential(*body)
            layers.append(_Sum(block, None, relu=False) if stride == 1 and cin == cout else block)
            cin = cout
    return _classifier([*layers, _conv_bn(cin, 1280, 1, act=nn.ReLU6)], 1280)


class _Fire(nn.Module):
    def __init__(self, cin: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeeze, 1)
        self.small, self.large = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        s = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.small(s)), F.relu(self.large(s))], 1)


def _squeezenet() -> nn.Module:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    fires = ((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256))
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), _Fire(64, 16, 64), _Fire(128, 16, 64), pool()),
        *(_Fire(128, 32, 128), _Fire(256, 32, 128), pool(), *(_Fire(*f) for f in fires)),
        *(nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


class _Shuffle(nn.Module):
    """A unit of ShuffleNetV2."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        mid, self.split = cout // 2, stride == 1
        seen = mid if self.split else cin
        self.right = nn.Sequential(
            _conv_bn(seen, mid, 1, act=nn.ReLU), _conv_bn(mid, mid, 3, stride, mid), _conv_bn(mid, mid, 1, act=nn.ReLU)
        )
        self.left = nn.Identity() if self.split else nn.Sequential(
            _conv_bn(cin, cin, 3, 2, cin), _conv_bn(cin, mid, 1, act=nn.ReLU)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1) if self.split else (x, x)
        return F.channel_shuffle(torch.cat([self.left(a), self.right(b)], 1), 2)


def _shufflenet_v2() -> nn.Module:
    layers: list[nn.Module] = [_conv_bn(3, 24, 3, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    cin = 24
    for cout, repeat in ((116, 4), (232, 8), (464, 4)):
        layers += [_Shuffle(cin, cout, 2), *(_Shuffle(cout, cout, 1) for _ in range(repeat - 1))]
        cin = cout
    return _classifier([*layers, _conv_bn(cin, 1024, 1, act=nn.ReLU)], 1024)


class _Layer(nn.Module):
    """A transformer encoder layer on scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int, *, pre_norm: bool) -> None:
        super().__init__()
        self.heads, self.pre_norm = heads, pre_norm
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, w = x.shape
        q, k, v = (f(x).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, n, w))
        return y

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.pre_norm:
            x = x + self.attend(self.norm1(x), mask)
            return x + self.down(F.gelu(self.up(self.norm2(x))))
        x = self.norm1(x + self.attend(x, mask))
        y: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return y


class _Bert(nn.Module):
    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.words, self.kinds, self.places = (nn.Embedding(n, width) for n in (30522, 2, 512))
        self.norm, self.pool = nn.LayerNorm(width), nn.Linear(width, width)
        self.layers = nn.ModuleList(_Layer(width, heads, pre_norm=False) for _ in range(layers))

    def forward(self, ids: Tensor, kinds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.words(ids) + self.kinds(kinds) + self.places(torch.arange(ids.shape[1])[None]))
        added = (1.0 - mask[:, None, None].float()) * -10000.0
        for layer in self.layers:
            x = layer(x, added)
        return x, torch.tanh(self.pool(x[:, 0]))


class _Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 192, 16, 16), nn.Parameter(torch.randn(1, 1, 192))
        self.place, self.norm, self.head = (
            nn.Parameter(torch.randn(1, 197, 192)),
            nn.LayerNorm(192),
            nn.Linear(192, 1000),
        )
        self.layers = nn.Sequential(*(_Layer(192, 3, pre_norm=True) for _ in range(12)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        y: Tensor = self.head(self.norm(self.layers(x))[:, 0])
        return y


class _Din(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(128, 80), nn.Sigmoid(), nn.Linear(80, 40), nn.Sigmoid(), nn.Linear(40, 1))
        self.top = nn.Sequential(
            nn.Linear(64, 200), nn.PReLU(200), nn.Linear(200, 80), nn.PReLU(80), nn.Linear(80, 1), nn.Sigmoid()
        )

    def forward(self, seen: Tensor, item: Tensor) -> Tensor:
        target = item[:, None].expand_as(seen)
        weight = self.score(torch.cat([seen, target, seen - target, seen * target], -1)).softmax(1)
        y: Tensor = self.top(torch.cat([(weight * seen).sum(1), item], -1))
        return y


class _Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(64, 128, 2, bidirectional=True), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(x)[0][-1])
        return y


def _mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


_TOKENS = ("input_ids", "token_type_ids", "attention_mask")
_NETS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "mlp_64_64_10": (lambda: _mlp(64, 64, 10), ("input",)),
    "mlp_64_128_128_10": (lambda: _mlp(64, 128, 128, 10), ("input",)),
    "din": (_Din, ("behaviours", "target")),
    "squeezenet": (_squeezenet, ("input",)),
    "shufflenet_v2": (_shufflenet_v2, ("input",)),
    "mobilenet_v2": (_mobilenet_v2, ("input",)),
    "resnet18": (lambda: _resnet((2, 2, 2, 2), bottleneck=False), ("input",)),
    "resnet50": (lambda: _resnet((3, 4, 6, 3), bottleneck=True), ("input",)),
    "vit_tiny": (_Vit, ("input",)),
    "lstm": (_Lstm, ("input",)),
    "minilm_l6": (lambda: _Bert(6, 384, 12), _TOKENS),
    "bert_base": (lambda: _Bert(12, 768, 12), _TOKENS),
}


def build(name: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The module called *name* and its inputs in order; raises LookupError where there is none."""
    if name not in _NETS:
        raise LookupError(f"torch reads no ONNX, and no equivalent module of '{name}' is written in torch_nets.py")
    make, order = _NETS[name]
    torch.manual_seed(0)
    return make(), order
