"""The benchmark models: well-known architectures with seeded random weights, in the form exporters write them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from onnx import ModelProto, TensorProto

from benchmarks.netbuilder import Net

__all__ = [
    "bert",
    "din",
    "lstm",
    "minilm",
    "mlp",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "shufflenet_v2",
    "squeezenet",
    "vit_tiny",
]

Built = tuple[ModelProto, float]


def _done(net: Net, value: str, *shape: int | str) -> Built:
    return net.finish([(value, "output", shape)]), net.flops


def mlp(widths: tuple[int, ...]) -> Built:
    """A perceptron: Gemm and Relu."""
    net = Net("mlp", 17, 1)
    x = net.input("input", ("batch", widths[0]))
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        x = net.gemm(x, n_in, n_out)
        if i < len(widths) - 2:
            x = net.add("Relu", [x])
    return _done(net, x, "batch", widths[-1])


def _conv_bn(
    net: Net, x: str, cin: int, cout: int, kernel: int, size: int, stride: int = 1, groups: int = 1, gain: float = 1.0
) -> str:
    return net.batch_norm(net.conv(x, cin, cout, kernel, size, stride=stride, groups=groups), cout, gain)


def _head(net: Net, x: str, channels: int, classes: int = 1000) -> Built:
    x = net.add("Flatten", [net.add("GlobalAveragePool", [x])], axis=1)
    return _done(net, net.gemm(x, channels, classes), "batch", classes)


def _stem(net: Net) -> str:
    x = net.input("input", ("batch", 3, 224, 224))
    x = net.add("Relu", [_conv_bn(net, x, 3, 64, 7, 112, 2)])
    return str(net.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))


def resnet18() -> Built:
    """ResNet-18 (He et al., 2015)."""
    net = Net("resnet18", 17, 18)
    x, cin, size = _stem(net), 64, 56
    for stage, cout in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            size //= stride
            y = net.add("Relu", [_conv_bn(net, x, cin, cout, 3, size, stride)])
            y = _conv_bn(net, y, cout, cout, 3, size, gain=0.4)
            skip = _conv_bn(net, x, cin, cout, 1, size, stride) if stride != 1 else x
            x, cin = net.add("Relu", [net.add("Add", [y, skip])]), cout
    return _head(net, x, 512)


def resnet50() -> Built:
    """ResNet-50 v1.5: the stride sits in the 3×3 convolution."""
    net = Net("resnet50", 18, 50)
    x, cin, size = _stem(net), 64, 56
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = net.add("Relu", [_conv_bn(net, x, cin, width, 1, size)])
            size //= stride
            y = net.add("Relu", [_conv_bn(net, y, width, width, 3, size, stride)])
            y = _conv_bn(net, y, width, 4 * width, 1, size, gain=0.4)
            skip = x if block else _conv_bn(net, x, cin, 4 * width, 1, size, stride)
            x, cin = net.add("Relu", [net.add("Add", [y, skip])]), 4 * width
    return _head(net, x, 2048)


def mobilenet_v2() -> Built:
    """MobileNetV2 (Sandler et al., 2018), Clip as Relu6."""
    net = Net("mobilenet_v2", 17, 2)

    def relu6(v: str) -> str:
        return str(net.add("Clip", [v, net.const(0.0, np.float32), net.const(6.0, np.float32)]))

    x = net.input("input", ("batch", 3, 224, 224))
    x, cin, size = relu6(_conv_bn(net, x, 3, 32, 3, 112, 2)), 32, 112
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, cout, repeat, first in table:
        for i in range(repeat):
            stride, wide, y = (first if i == 0 else 1), cin * expand, x
            if expand != 1:
                y = relu6(_conv_bn(net, y, cin, wide, 1, size))
            size //= stride
            y = relu6(_conv_bn(net, y, wide, wide, 3, size, stride, groups=wide))
            y = _conv_bn(net, y, wide, cout, 1, size, gain=0.7)
            x, cin = (net.add("Add", [x, y]) if stride == 1 and cin == cout else y), cout
    return _head(net, relu6(_conv_bn(net, x, cin, 1280, 1, size)), 1280)


def squeezenet() -> Built:
    """SqueezeNet 1.1 (Iandola et al., 2016): no batch normalisation, biases, ceil-mode pooling."""
    net = Net("squeezenet", 17, 11)

    def pool(v: str) -> str:
        return str(net.add("MaxPool", [v], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1))

    def fire(v: str, cin: int, squeeze: int, expand: int, size: int) -> str:
        s = net.add("Relu", [net.conv(v, cin, squeeze, 1, size, bias=True)])
        a = net.add("Relu", [net.conv(s, squeeze, expand, 1, size, bias=True)])
        b = net.add("Relu", [net.conv(s, squeeze, expand, 3, size, bias=True)])
        return str(net.add("Concat", [a, b], axis=1))

    x = net.input("input", ("batch", 3, 224, 224))
    x = pool(net.add("Relu", [net.conv(x, 3, 64, 3, 111, stride=2, pad=0, bias=True)]))
    x = pool(fire(fire(x, 64, 16, 64, 55), 128, 16, 64, 55))
    x = pool(fire(fire(x, 128, 32, 128, 27), 256, 32, 128, 27))
    for cin, squeeze, expand in ((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)):
        x = fire(x, cin, squeeze, expand, 13)
    x = net.add("Relu", [net.conv(x, 512, 1000, 1, 13, bias=True)])
    return _done(net, net.add("Flatten", [net.add("GlobalAveragePool", [x])], axis=1), "batch", 1000)


def shufflenet_v2() -> Built:
    """ShuffleNetV2 x1.0 (Ma et al., 2018)."""
    net = Net("shufflenet_v2", 18, 22)

    def relu(v: str) -> str:
        return str(net.add("Relu", [v]))

    def shuffle(v: str, channels: int, size: int) -> str:
        v = net.add("Reshape", [v, net.const([-1, 2, channels // 2, size, size])])
        v = net.add("Transpose", [v], perm=[0, 2, 1, 3, 4])
        return str(net.add("Reshape", [v, net.const([-1, channels, size, size])]))

    def branch(v: str, cin: int, mid: int, size: int, stride: int) -> str:
        v = relu(_conv_bn(net, v, cin, mid, 1, size * stride))
        v = _conv_bn(net, v, mid, mid, 3, size, stride, groups=mid, gain=0.7)
        return relu(_conv_bn(net, v, mid, mid, 1, size))

    x = net.input("input", ("batch", 3, 224, 224))
    x = relu(_conv_bn(net, x, 3, 24, 3, 112, 2))
    x, cin, size = str(net.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)), 24, 56
    for cout, repeat in ((116, 4), (232, 8), (464, 4)):
        mid, size = cout // 2, size // 2
        left = _conv_bn(net, x, cin, cin, 3, size, 2, groups=cin, gain=0.7)
        left = relu(_conv_bn(net, left, cin, mid, 1, size))
        x = shuffle(net.add("Concat", [left, branch(x, cin, mid, size, 2)], axis=1), cout, size)
        for _ in range(repeat - 1):
            left, right = net.add("Split", [x, net.const([mid, mid])], 2, axis=1)
            x = shuffle(net.add("Concat", [left, branch(right, mid, mid, size, 1)], axis=1), cout, size)
        cin = cout
    x = relu(_conv_bn(net, x, cin, 1024, 1, size))
    x = net.add("ReduceMean", [x, net.const([2, 3])], keepdims=0)
    return _done(net, net.gemm(x, 1024, 1000), "batch", 1000)


class _Encoder:
    """Transformer encoder layers, spelled as torch's exporters spell them for dynamic batch and length."""

    def __init__(self, net: Net, width: int, heads: int, length: int, eps: float) -> None:
        self.net, self.width, self.heads, self.length, self.eps = net, width, heads, length, eps

    def norm(self, x: str) -> str:
        """LayerNormalization: one node from opset 17 on, nine small ones before."""
        net = self.net
        gain, bias = net.weight(net.uniform((self.width,), 0.8, 1.2)), net.weight(net.normal((self.width,), 0.05))
        if net.opset >= 17:
            return str(net.add("LayerNormalization", [x, gain, bias], axis=-1, epsilon=self.eps))
        centred = net.add("Sub", [x, net.add("ReduceMean", [x], axes=[-1])])
        square = net.add("Pow", [centred, net.const(2.0, np.float32)])
        var = net.add("Add", [net.add("ReduceMean", [square], axes=[-1]), net.const(self.eps, np.float32)])
        scaled = net.add("Div", [centred, net.add("Sqrt", [var])])
        return str(net.add("Add", [net.add("Mul", [scaled, gain]), bias]))

    def gelu(self, x: str) -> str:
        """The exact GELU: one node from opset 20 on, five small ones before."""
        net = self.net
        if net.opset >= 20:
            return str(net.add("Gelu", [x]))
        erf = net.add("Erf", [net.add("Div", [x, net.const(2.0**0.5, np.float32)])])
        x = net.add("Mul", [x, net.add("Add", [erf, net.const(1.0, np.float32)])])
        return str(net.add("Mul", [x, net.const(0.5, np.float32)]))

    def _size(self, x: str, axis: int) -> str:
        """One size of *x* as a 1-d tensor, read at run time."""
        net = self.net
        size = net.add("Gather", [net.add("Shape", [x]), net.const(axis)], axis=0)
        return str(net.add("Unsqueeze", [size, net.const([0])]))

    def attention(self, x: str, mask: str | None) -> str:
        """Multi-head self-attention of *x* [batch, length, width]; *mask* is added to the scores."""
        net, width, heads = self.net, self.width, self.heads
        depth = width // heads
        batch, length = self._size(x, 0), self._size(x, 1)
        split = net.add("Concat", [batch, length, net.const([heads]), net.const([depth])], axis=0)
        q, k, v = (
            net.add("Reshape", [net.linear(x, width, width, self.length, gain=gain), split]) for gain in (1.5, 1.5, 1.0)
        )
        q = net.add("Transpose", [q], perm=[0, 2, 1, 3])
        k = net.add("Transpose", [k], perm=[0, 2, 3, 1])
        v = net.add("Transpose", [v], perm=[0, 2, 1, 3])
        scores = net.add("Div", [net.add("MatMul", [q, k]), net.const(depth**0.5, np.float32)])
        if mask is not None:
            scores = net.add("Add", [scores, mask])
        mixed = net.add("MatMul", [net.add("Softmax", [scores], axis=-1), v])
        net.flops += 4.0 * self.length * self.length * width
        mixed = net.add("Transpose", [mixed], perm=[0, 2, 1, 3])
        joined = net.add("Concat", [batch, length, net.const([width])], axis=0)
        return net.linear(net.add("Reshape", [mixed, joined]), width, width, self.length)

    def feed_forward(self, x: str, inner: int) -> str:
        hidden = self.gelu(self.net.linear(x, self.width, inner, self.length))
        return self.net.linear(hidden, inner, self.width, self.length)

    def post_norm_layer(self, x: str, mask: str | None, inner: int) -> str:
        x = self.norm(self.net.add("Add", [self.attention(x, mask), x]))
        return self.norm(self.net.add("Add", [self.feed_forward(x, inner), x]))

    def pre_norm_layer(self, x: str, inner: int) -> str:
        x = self.net.add("Add", [x, self.attention(self.norm(x), None)])
        return str(self.net.add("Add", [x, self.feed_forward(self.norm(x), inner)]))


def _bert(name: str, opset: int, layers: int, width: int, heads: int, length: int) -> Built:
    net = Net(name, opset, layers)
    ids = net.input("input_ids", ("batch", "sequence"), TensorProto.INT64)
    kinds = net.input("token_type_ids", ("batch", "sequence"), TensorProto.INT64)
    mask = net.input("attention_mask", ("batch", "sequence"), TensorProto.INT64)
    encoder = _Encoder(net, width, heads, length, 1e-12)
    x = net.add("Gather", [net.weight(net.normal((30522, width), 0.05)), ids])
    x = net.add("Add", [x, net.add("Gather", [net.weight(net.normal((2, width), 0.05)), kinds])])
    stop = encoder._size(ids, 1)
    where = net.add("Slice", [net.weight(np.arange(512)[None]), net.const([0]), stop, net.const([1]), net.const([1])])
    x = encoder.norm(net.add("Add", [x, net.add("Gather", [net.weight(net.normal((512, width), 0.05)), where])]))
    m = net.add("Unsqueeze", [net.add("Unsqueeze", [mask, net.const([1])]), net.const([2])])
    m = net.add("Sub", [net.const(1.0, np.float32), net.add("Cast", [m], to=TensorProto.FLOAT)])
    m = net.add("Mul", [m, net.const(-10000.0, np.float32)])
    for _ in range(layers):
        x = encoder.post_norm_layer(x, m, 4 * width)
    first = net.add("Gather", [x, net.const(0)], axis=1)
    pooled = net.add("Tanh", [net.gemm(first, width, width)])
    return net.finish(
        [(x, "last_hidden_state", ("batch", "sequence", width)), (pooled, "pooler_output", ("batch", width))]
    ), net.flops


def bert() -> Built:
    """BERT-base (Devlin et al., 2018) at opset 13: LayerNormalization and GELU as small ops."""
    return _bert("bert_base", 13, 12, 768, 12, 256)


def minilm() -> Built:
    """MiniLM-L6 (Wang et al., 2020) at opset 17: LayerNormalization nodes, GELU by Erf."""
    return _bert("minilm_l6", 17, 6, 384, 12, 128)


def vit_tiny() -> Built:
    """ViT-Ti/16 (Touvron et al., 2020) at opset 20: LayerNormalization and Gelu nodes."""
    net, width, length = Net("vit_tiny", 20, 16), 192, 197
    encoder = _Encoder(net, width, 3, length, 1e-6)
    x = net.input("input", ("batch", 3, 224, 224))
    x = net.conv(x, 3, width, 16, 14, stride=16, pad=0, bias=True)
    x = net.add("Transpose", [net.add("Reshape", [x, net.const([0, width, -1])])], perm=[0, 2, 1])
    shape = net.add("Concat", [encoder._size(x, 0), net.const([1]), net.const([width])], axis=0)
    token = net.add("Expand", [net.weight(net.normal((1, 1, width), 0.5)), shape])
    x = net.add("Concat", [token, x], axis=1)
    x = net.add("Add", [x, net.weight(net.normal((1, length, width), 0.2))])
    for _ in range(12):
        x = encoder.pre_norm_layer(x, 4 * width)
    x = net.add("Gather", [encoder.norm(x), net.const(0)], axis=1)
    return _done(net, net.gemm(x, width, 1000), "batch", 1000)


def din() -> Built:
    """Deep Interest Network (Zhou et al., 2018): attention of a target item over a user's behaviours."""
    net, width, length = Net("din", 17, 3), 32, 100
    seen = net.input("behaviours", ("batch", "length", width))
    item = net.input("target", ("batch", width))
    target = net.add("Expand", [net.add("Unsqueeze", [item, net.const([1])]), net.add("Shape", [seen])])
    parts = [seen, target, net.add("Sub", [seen, target]), net.add("Mul", [seen, target])]
    x = net.add("Concat", parts, axis=-1)
    x = net.add("Sigmoid", [net.linear(x, 4 * width, 80, length)])
    x = net.add("Sigmoid", [net.linear(x, 80, 40, length)])
    weight = net.add("Softmax", [net.linear(x, 40, 1, length)], axis=1)
    interest = net.add("ReduceSum", [net.add("Mul", [weight, seen]), net.const([1])], keepdims=0)
    x = net.add("Concat", [interest, item], axis=-1)
    for n_in, n_out in ((2 * width, 200), (200, 80)):
        x = net.add("PRelu", [net.gemm(x, n_in, n_out), net.weight(net.uniform((n_out,), 0.1, 0.3))])
    return _done(net, net.add("Sigmoid", [net.gemm(x, 80, 1)]), "batch", 1)


def lstm() -> Built:
    """Two bidirectional LSTM layers (hidden size 128) over 100 steps of 64 features, and a classifier."""
    net, hidden, n_in = Net("lstm", 17, 4), 128, 64
    x = net.input("input", (100, "batch", n_in))
    for _ in range(2):
        batch = net.add("Slice", [net.add("Shape", [x]), net.const([1]), net.const([2]), net.const([0])])
        shape = net.add("Concat", [net.const([2]), batch, net.const([hidden])], axis=0)
        zero = net.add("Expand", [net.const(0.0, np.float32), shape])
        bound = hidden**-0.5
        shapes = ((2, 4 * hidden, n_in), (2, 4 * hidden, hidden), (2, 8 * hidden))
        w, r, b = (net.weight(net.uniform(s, -bound, bound)) for s in shapes)
        y, _, _ = net.add("LSTM", [x, w, r, b, "", zero, zero], 3, hidden_size=hidden, direction="bidirectional")
        net.flops += 2.0 * 100 * 2 * 4 * hidden * (n_in + hidden)
        x = net.add("Reshape", [net.add("Transpose", [y], perm=[0, 2, 1, 3]), net.const([0, 0, -1])])
        n_in = 2 * hidden
    last = net.add("Gather", [x, net.const(-1)], axis=0)
    return _done(net, net.gemm(last, n_in, 10), "batch", 10)
