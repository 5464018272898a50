"""What MNN's own test runs leave out on OpenCL and Vulkan because it hangs or computes wrongly there, on our kernels.

The names are those of its test_stages.json (commit 4d40bdb); each case computes what the test of that name does,
wholly on the device. Int8 variants are quantised around the op, as ONNX writes them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import NodeProto
from onnx.helper import make_node

import mnnpy
from mnnpy.backends.kernels.device import KernelDevice
from tests.emulation.sessions import KINDS, device, opened
from tests.unit.kernel_helpers import assert_close
from tests.unit.onnx_models import model

#: Cases that become many kernels.
LARGE = frozenset({"op/ROIPooling", "op/GridSample3D", "op/Deconvolutionfull"})
Arrays = dict[str, Any]
#: Nodes from ``x`` (and more inputs) to ``y``, inputs, constants.
Given = tuple[list[NodeProto], Arrays, Arrays]
CASES: dict[str, Callable[[np.random.Generator], Given]] = {}


def case(*names: str) -> Callable[[Callable[[np.random.Generator], Given]], Callable[[np.random.Generator], Given]]:
    def add(fn: Callable[[np.random.Generator], Given]) -> Callable[[np.random.Generator], Given]:
        CASES.update(dict.fromkeys(names, fn))
        return fn

    return add


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def quantised(nodes: list[NodeProto], inputs: Arrays, constants: Arrays) -> Given:
    """The nodes with int8 inputs in steps of 1/16 and an int8 output in steps of 1/4."""
    steps = {"sx": np.float32(1 / 16), "sy": np.float32(1 / 4), "zero": np.int8(3)}
    before = [make_node("DequantizeLinear", [f"{n}8", "sx", "zero"], [n]) for n in inputs]
    after = [make_node("QuantizeLinear", ["y32", "sy", "zero"], ["y"])]
    middle = [make_node(n.op_type, n.input, ["y32" if o == "y" else o for o in n.output]) for n in nodes]
    for old, new in zip(nodes, middle, strict=True):
        new.attribute.extend(old.attribute)
    fed = {f"{n}8": np.clip(np.rint(a * 16) + 3, -128, 127).astype(np.int8) for n, a in inputs.items()}
    return [*before, *middle, *after], fed, constants | steps


@case("op/BatchMatMul")
def batch_matmul(rng: np.random.Generator) -> Given:
    """Sums of 2000 products in every batch."""
    return [make_node("MatMul", ["x", "z"], ["y"])], {"x": normal(rng, 3, 5, 2000), "z": normal(rng, 3, 2000, 7)}, {}


@case("op/col2im")
def col2im(rng: np.random.Generator) -> Given:
    """Overlapping blocks add up, in the second image of the batch too."""
    sizes = {"image": np.array([9, 8], np.int64), "block": np.array([3, 2], np.int64)}
    node = make_node("Col2Im", ["x", "image", "block"], ["y"], strides=[2, 1], pads=[1, 0, 1, 1])
    return [node], {"x": normal(rng, 2, 4 * 6, 5 * 8)}, sizes


@case("op/cumsum")
def cumsum(rng: np.random.Generator) -> Given:
    """Every element of the running sum, backwards and exclusive."""
    node = make_node("CumSum", ["x", "axis"], ["y"], exclusive=1, reverse=1)
    return [node], {"x": normal(rng, 3, 300, 2)}, {"axis": np.int64(1)}


@case("op/cumsum_reshape")
def cumsum_reshape(rng: np.random.Generator) -> Given:
    nodes = [make_node("CumSum", ["x", "axis"], ["s"]), make_node("Reshape", ["s", "shape"], ["y"])]
    return nodes, {"x": np.ones((1, 5), np.float32)}, {"axis": np.int64(1), "shape": np.array([5, 1], np.int64)}


@case("op/cumprod")
def cumprod(rng: np.random.Generator) -> Given:
    feeds = {"x": rng.uniform(0.9, 1.1, (4, 200)).astype(np.float32)}
    return [make_node("CumProd", ["x", "axis"], ["y"])], feeds, {"axis": np.int64(1)}


@case("op/ROIPooling")
def roi_pooling(rng: np.random.Generator) -> Given:
    """Regions of two images, one of them empty in part."""
    rois = np.array([[0, 0, 0, 12, 12], [1, 4, 2, 9, 15], [1, 8, 8, 30, 30], [0, 3, 3, 3, 3]], np.float32)
    node = make_node("MaxRoiPool", ["x", "rois"], ["y"], pooled_shape=[3, 2], spatial_scale=0.5)
    return [node], {"x": normal(rng, 2, 3, 8, 8), "rois": rois}, {}


def _scatter(rng: np.random.Generator, reduction: str) -> Given:
    node = make_node("ScatterElements", ["x", "at", "z"], ["y"], axis=1, reduction=reduction)
    at = np.array([[1, 1, 0, 1, 4, 4], [2, 2, 2, 2, 2, 2]], np.int64)
    return [node], {"x": normal(rng, 2, 5), "at": at, "z": normal(rng, 2, 6)}, {}


@case("op/ScatterElementsTest")
def scatter_elements(rng: np.random.Generator) -> Given:
    """Every update of an index that repeats is multiplied in."""
    return _scatter(rng, "mul")


@case("op/ScatterElementsTest/add")
def scatter_elements_add(rng: np.random.Generator) -> Given:
    return _scatter(rng, "add")


@case("op/ScatterElementsTest/none")
def scatter_elements_last(rng: np.random.Generator) -> Given:
    """Of updates of one index the last remains."""
    return _scatter(rng, "none")


@case("op/ScatterNdTest")
def scatter_nd(rng: np.random.Generator) -> Given:
    node = make_node("ScatterND", ["x", "at", "z"], ["y"], reduction="add")
    at = np.array([[[0, 1], [3, 2]], [[0, 1], [2, 0]]], np.int64)
    return [node], {"x": normal(rng, 4, 3, 5), "at": at, "z": normal(rng, 2, 2, 5)}, {}


@case("op/ConvInt8/winograd")
def conv_int8(rng: np.random.Generator) -> Given:
    """3×3 in int8, of a size that Winograd's algorithm takes."""
    w = rng.integers(-127, 128, (20, 16, 3, 3)).astype(np.int8)
    scalars = {"sx": np.float32(0.05), "zx": np.int8(4), "sw": np.float32(0.01), "zw": np.int8(0)}
    scalars |= {"sy": np.float32(0.4), "zy": np.int8(-3)}
    node = make_node("QLinearConv", ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy"], ["y"], pads=[1, 1, 1, 1])
    return [node], {"x": rng.integers(-128, 128, (1, 16, 12, 12)).astype(np.int8)}, {"w": w, **scalars}


@case("op/convolution/weighti8i4conv2d")
def conv_int4_weights(rng: np.random.Generator) -> Given:
    """Weights of four bits with a scale per output channel."""
    w = rng.integers(-8, 8, (12, 8, 3, 3)).astype(ml_dtypes.int4)
    scale = rng.uniform(0.05, 0.1, 12).astype(np.float32)
    nodes = [make_node("DequantizeLinear", ["w", "scale"], ["w32"], axis=0)]
    nodes += [make_node("Conv", ["x", "w32", "b"], ["y"], pads=[1, 1, 1, 1])]
    return nodes, {"x": normal(rng, 2, 8, 9, 7)}, {"w": w, "scale": scale, "b": normal(rng, 12)}


@case("op/convolution/weighti8i4conv2d/int8")
def conv_int8_weights(rng: np.random.Generator) -> Given:
    w = rng.integers(-127, 128, (12, 8, 1, 1)).astype(np.int8)
    nodes = [make_node("DequantizeLinear", ["w", "scale"], ["w32"], axis=0), make_node("Conv", ["x", "w32"], ["y"])]
    scale = rng.uniform(0.005, 0.01, 12).astype(np.float32)
    return nodes, {"x": normal(rng, 2, 8, 9, 7)}, {"w": w, "scale": scale}


@case("op/lowMemory/mixedKernel")
def mixed_weights(rng: np.random.Generator) -> Given:
    """A product with four-bit weights in blocks of 32, then one with eight-bit weights."""
    constants = {
        "w": rng.integers(-8, 8, (64, 48)).astype(ml_dtypes.int4),
        "sw": rng.uniform(0.01, 0.02, (2, 48)).astype(np.float32),
        "v": rng.integers(-127, 128, (48, 10)).astype(np.int8),
        "sv": rng.uniform(0.001, 0.002, 10).astype(np.float32),
    }
    nodes = [
        make_node("DequantizeLinear", ["w", "sw"], ["w32"], axis=0, block_size=32),
        make_node("MatMul", ["x", "w32"], ["h"]),
        make_node("DequantizeLinear", ["v", "sv"], ["v32"], axis=1),
        make_node("MatMul", ["h", "v32"], ["y"]),
    ]
    return nodes, {"x": normal(rng, 9, 64)}, constants


@case("op/convolution/depthwise_conv")
def depthwise(rng: np.random.Generator) -> Given:
    """Dilated and strided, one filter a channel."""
    node = make_node("Conv", ["x", "w", "b"], ["y"], group=10, strides=[2, 1], dilations=[1, 2], pads=[1, 2, 0, 2])
    return [node], {"x": normal(rng, 2, 10, 11, 13)}, {"w": normal(rng, 10, 1, 3, 3), "b": normal(rng, 10)}


@case("op/Deconvolutionfull")
def deconvolution(rng: np.random.Generator) -> Given:
    """Groups, strides, dilations and extra rows at once."""
    attrs: Arrays = {"group": 2, "strides": [2, 3], "dilations": [2, 1], "pads": [1, 0, 2, 1], "output_padding": [1, 2]}
    node = make_node("ConvTranspose", ["x", "w", "b"], ["y"], **attrs)
    return [node], {"x": normal(rng, 2, 6, 5, 7)}, {"w": normal(rng, 6, 4, 3, 3), "b": normal(rng, 8)}


@case("op/binary/pow")
def power(rng: np.random.Generator) -> Given:
    """Bases of both signs, whole and broken exponents (NaN where there is no real power is left out)."""
    x = np.concatenate([rng.uniform(-3, 3, 40), rng.uniform(0.1, 4, 40)]).astype(np.float32)
    z = np.concatenate([rng.integers(-3, 4, 40), rng.uniform(-2, 2, 40)]).astype(np.float32)
    return [make_node("Pow", ["x", "z"], ["y"])], {"x": x, "z": z}, {}


@case("op/binary/powInt8")
def power_int8(rng: np.random.Generator) -> Given:
    return quantised(*power(rng))


@case("op/binary/AddBroast")
def add_broadcast(rng: np.random.Generator) -> Given:
    """Both operands grow."""
    return [make_node("Add", ["x", "z"], ["y"])], {"x": normal(rng, 3, 1, 5, 1), "z": normal(rng, 4, 1, 7)}, {}


@case("op/GridSample3D")
def grid_sample(rng: np.random.Generator) -> Given:
    """Trilinear, with points outside the volume."""
    grid = rng.uniform(-1.3, 1.3, (2, 3, 4, 5, 3)).astype(np.float32)
    node = make_node("GridSample", ["x", "grid"], ["y"], mode="linear", padding_mode="reflection")
    return [node], {"x": normal(rng, 2, 3, 4, 5, 6), "grid": grid}, {}


@case("op/AvePool3d")
def average_pool(rng: np.random.Generator) -> Given:
    node = make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 2, 3], strides=[2, 1, 2], pads=[1, 0, 1, 1, 1, 1])
    return [node], {"x": normal(rng, 2, 3, 7, 6, 8)}, {}


@case("op/Interp")
def cubic(rng: np.random.Generator) -> Given:
    """Bicubic, up and down."""
    node = make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="cubic", cubic_coeff_a=-0.5)
    return [node], {"x": normal(rng, 1, 3, 7, 11)}, {"sizes": np.array([1, 3, 16, 6], np.int64)}


@case("op/Interp/linear")
def bilinear(rng: np.random.Generator) -> Given:
    node = make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="align_corners"
    )
    return [node], {"x": normal(rng, 2, 3, 7, 11)}, {"sizes": np.array([2, 3, 15, 23], np.int64)}


@case("op/InterpInt8")
def cubic_int8(rng: np.random.Generator) -> Given:
    return quantised(*bilinear(rng))


@case("op/strideSliceWrite")
def strided_write(rng: np.random.Generator) -> Given:
    """``x[1:7:2, ::3] = z``, as exporters write it: ScatterND with indices that are known."""
    at = np.stack(np.meshgrid(np.arange(1, 7, 2), np.arange(0, 9, 3), indexing="ij"), -1)
    feeds = {"x": normal(rng, 8, 9, 4), "z": normal(rng, 3, 3, 4)}
    return [make_node("ScatterND", ["x", "at", "z"], ["y"])], feeds, {"at": at.astype(np.int64)}


@case("op/unary/erfInt8")
def erf_int8(rng: np.random.Generator) -> Given:
    return quantised([make_node("Erf", ["x"], ["y"])], {"x": normal(rng, 5, 40)}, {})


@case("op/unary/erfcInt8")
def erfc_int8(rng: np.random.Generator) -> Given:
    nodes = [make_node("Erf", ["x"], ["e"]), make_node("Sub", ["one", "e"], ["y"])]
    return quantised(nodes, {"x": normal(rng, 5, 40)}, {"one": np.float32(1)})


@cache
def opened_once(kind: str) -> KernelDevice:
    return device(kind)


def params() -> list[Any]:
    """Case and backend; where the emulator would compile for more than some seconds, with the marker ``full``."""
    return [
        pytest.param(name, kind, id=f"{name}-{kind}", marks=[pytest.mark.full] * (label == "E" and name in LARGE))
        for name in CASES
        for kind, label in KINDS.items()
    ]


@pytest.mark.parametrize(("name", "kind"), params())
def test_agrees_with_the_reference(name: str, kind: str) -> None:
    nodes, feeds, constants = CASES[name](np.random.default_rng(len(name)))
    given = model(nodes, feeds, ["y"], constants=constants)
    wanted = mnnpy.Session(given, "reference").run(None, feeds)
    assert np.unique(wanted[0]).size > 4, "the case tells right from wrong"
    with opened({kind: opened_once(kind)}):
        session = mnnpy.Session(given, [kind, "reference"])
    got = session.run(None, feeds)
    if wanted[0].dtype == np.int8:  # a value halfway between two steps may go either way
        off = np.abs(got[0].astype(np.int32) - wanted[0])
        assert off.max() <= 1
        assert np.mean(off > 0) <= 0.02
    else:
        assert np.isfinite(wanted[0]).all()
        assert_close(session, got, wanted, 1e-5)
    assert all(r["backend"] == kind for r in session.explain().rows)
