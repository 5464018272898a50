"""Rules of contractions against their references, and references against independent truths."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.infer import infer, operand_of
from mnnpy.errors import ShapeError
from mnnpy.graph.ir import Array
from tests.rule_check import check_rule

CALM = settings(max_examples=25, deadline=None)


def randn(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def bytes_of(seed: int, *shape: int, dtype: Any = np.uint8) -> Array:
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    k = draw(st.integers(1, 3))
    pick = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(k))  # noqa: E731
    attrs: dict[str, Any] = {"strides": pick(1, 3), "dilations": pick(1, 2)}
    kernel = pick(1, 3)
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":
        attrs["pads"] = (*pick(0, 2), *pick(0, 2))
    else:
        attrs["auto_pad"] = auto
    return {"attrs": attrs, "kernel": kernel, "spatial": pick(5, 7), "group": draw(st.sampled_from([1, 1, 2]))}


@CALM
@given(windows(), st.booleans(), st.integers(0, 99))
def test_conv(w: dict[str, Any], bias: bool, seed: int) -> None:
    x, f = randn(seed, 2, 4, *w["spatial"]), randn(seed + 1, 6, 4 // w["group"], *w["kernel"])
    b = randn(seed + 2, 6) if bias else None
    check_rule("Conv", [x, f, b], {**w["attrs"], "group": w["group"]}, atol=1e-4, max_nodes=1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_conv_dtypes(dtype: Any) -> None:
    x, f, b = randn(0, 1, 3, 6, 6, dtype=dtype), randn(1, 4, 3, 3, 3, dtype=dtype), randn(2, 4, dtype=dtype)
    check_rule("Conv", [x, f, b], {"pads": (1, 1, 1, 1)}, rtol=1e-2, atol=2e-2)


def test_conv_with_cropping_pads_and_empty_batch() -> None:
    check_rule("Conv", [randn(0, 1, 2, 6, 6), randn(1, 3, 2, 2, 2)], {"pads": (-1, 0, 1, -2)}, atol=1e-5)
    check_rule("Conv", [randn(0, 0, 2, 6, 6), randn(1, 3, 2, 2, 2)], {})


@settings(max_examples=60, deadline=None)
@given(windows(), st.booleans(), st.data())
def test_conv_transpose(w: dict[str, Any], bias: bool, data: st.DataObject) -> None:
    attrs, group = dict(w["attrs"]), w["group"]
    k = len(w["kernel"])
    spatial = tuple(data.draw(st.integers(2, 4)) for _ in range(k))
    kernel = tuple(data.draw(st.integers(1, 4)) for _ in range(k))
    full = [(spatial[i] - 1) * attrs["strides"][i] + (kernel[i] - 1) * attrs["dilations"][i] + 1 for i in range(k)]
    if "pads" in attrs:
        attrs["pads"] = tuple(min(p, (full[i % k] - 1) // 2) for i, p in enumerate(attrs["pads"]))
        attrs["output_padding"] = tuple(data.draw(st.integers(0, s - 1)) for s in attrs["strides"])
        if data.draw(st.booleans()):
            attrs["output_shape"] = tuple(data.draw(st.integers(1, f + 2)) for f in full)
    x, f = randn(1, 2, 4, *spatial), randn(2, 4, 3, *kernel)
    b = randn(3, 3 * group) if bias else None
    nodes = check_rule("ConvTranspose", [x, f, b], {**attrs, "group": group}, atol=1e-4)
    assert sum(n.op == "Convolution" for n in nodes) == 1


@pytest.mark.peers
@pytest.mark.parametrize(
    "stride,kernel,pad,extra,dilation", [(2, 4, 1, 0, 1), (2, 3, 1, 1, 1), (3, 2, 0, 2, 1), (2, 3, 0, 0, 2)]
)
def test_conv_transpose_against_torch(stride: int, kernel: int, pad: int, extra: int, dilation: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, f, b = randn(1, 2, 4, 5, 6), randn(2, 4, 3, kernel, kernel), randn(3, 6)
    want = torch.nn.functional.conv_transpose2d(
        *map(torch.from_numpy, (x, f, b)), stride=stride, padding=pad, output_padding=extra, groups=2, dilation=dilation
    ).numpy()
    attrs = {
        "strides": (stride,) * 2, "pads": (pad,) * 4, "output_padding": (extra,) * 2, "dilations": (dilation,) * 2,
        "group": 2,
    }  # fmt: skip
    check_rule("ConvTranspose", [x, f, b], attrs, expect=[want], atol=1e-4)


@CALM
@given(windows(), st.sampled_from([np.uint8, np.int8]), st.booleans(), st.integers(0, 99))
def test_conv_integer(w: dict[str, Any], dtype: Any, per_channel: bool, seed: int) -> None:
    x, f = bytes_of(seed, 1, 4, *w["spatial"]), bytes_of(seed, 4, 4 // w["group"], *w["kernel"], dtype=dtype)
    zero = bytes_of(seed, 4, dtype=dtype) if per_channel else np.asarray(3, dtype)
    check_rule("ConvInteger", [x, f, np.asarray(7, np.uint8), zero], {**w["attrs"], "group": w["group"]})


@CALM
@given(windows(), st.booleans(), st.integers(0, 99))
def test_qlinear_conv(w: dict[str, Any], per_channel: bool, seed: int) -> None:
    x, f = bytes_of(seed, 1, 4, *w["spatial"]), bytes_of(seed, 4, 4 // w["group"], *w["kernel"], dtype=np.int8)
    scale = np.linspace(0.001, 0.004, 4, dtype=np.float32) if per_channel else np.float32(0.002).reshape(1)
    zero = bytes_of(seed, len(scale), dtype=np.int8)
    bias = np.random.default_rng(seed).integers(-9999, 9999, 4).astype(np.int32)
    inputs = [x, np.float32(0.02).reshape(()), np.asarray(130, np.uint8), f, scale, zero, np.float32(0.05).reshape(1),
              np.asarray([5], np.int8), bias]  # fmt: skip
    check_rule("QLinearConv", inputs, {**w["attrs"], "group": w["group"]})


@CALM
@given(st.integers(1, 3), st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.booleans(), st.integers(0, 99))
def test_deform_conv(k: int, group: int, offset_group: int, masked: bool, seed: int) -> None:
    spatial, kernel = (5, 4, 4)[:k], (2, 3, 1)[:k]
    attrs = {"group": group, "offset_group": offset_group, "pads": (1,) * (2 * k), "strides": (1, 2, 1)[:k]}
    x, w = randn(seed, 2, 4, *spatial), randn(seed + 1, 6, 4 // group, *kernel)
    out = evaluate("Conv", [x, w], {"pads": attrs["pads"], "strides": attrs["strides"], "group": group})[0].shape[2:]
    taps = int(np.prod(kernel))
    offset = randn(seed + 2, 2, offset_group * taps * k, *out) * 2
    mask = randn(seed + 3, 2, offset_group * taps, *out) if masked else None
    check_rule("DeformConv", [x, w, offset, randn(4, 6), mask], attrs, rtol=1e-4, atol=1e-3)


def test_deform_conv_without_offsets_is_conv() -> None:
    x, w = randn(0, 1, 2, 5, 5), randn(1, 3, 2, 3, 3)
    want = evaluate("Conv", [x, w], {"pads": (1, 1, 1, 1)})
    check_rule(
        "DeformConv", [x, w, np.zeros((1, 18, 5, 5), np.float32)], {"pads": (1, 1, 1, 1)}, expect=want, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int32, np.uint64])
@pytest.mark.parametrize("ta,tb,c", [(0, 0, None), (1, 0, ()), (0, 1, (5,)), (1, 1, (3, 1)), (0, 0, (1, 5))])
def test_gemm(dtype: Any, ta: int, tb: int, c: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(0)
    make = lambda *s: rng.integers(0, 9, s).astype(dtype)  # noqa: E731
    a, b = make(*((4, 3) if ta else (3, 4))), make(*((5, 4) if tb else (4, 5)))
    third = None if c is None else make(*c)
    for alpha, beta in ((1.0, 1.0), (2.0, 3.0)):
        check_rule("Gemm", [a, b, third], {"transA": ta, "transB": tb, "alpha": alpha, "beta": beta}, rtol=1e-3)


@pytest.mark.parametrize(
    "shapes", [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (5, 4, 6)), ((4,), (4, 5)), ((0, 4), (4, 5))]
)
@pytest.mark.parametrize("signed", [False, True])
def test_matmul_integer(shapes: tuple[tuple[int, ...], tuple[int, ...]], signed: bool) -> None:
    a, b = bytes_of(0, *shapes[0]), bytes_of(1, *shapes[1], dtype=np.int8 if signed else np.uint8)
    check_rule("MatMulInteger", [a, b])
    check_rule("MatMulInteger", [a, b, np.asarray(3, a.dtype), np.asarray([4], b.dtype)])
    if a.ndim == 2 and len(a):
        check_rule("MatMulInteger", [a, b, bytes_of(2, len(a)), bytes_of(3, b.shape[-1], dtype=b.dtype)])


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.float8_e4m3fn])
def test_qlinear_matmul(dtype: Any, per_row: bool) -> None:
    eight_bit = np.dtype(dtype).kind in "iu"
    a = bytes_of(0, 3, 4, dtype=dtype) if eight_bit else randn(0, 3, 4).astype(dtype)
    b = bytes_of(1, 4, 5, dtype=dtype) if eight_bit else randn(1, 4, 5).astype(dtype)
    n, m = (3, 5) if per_row else (1, 1)
    one = lambda count, v: np.full(count, v, np.float32)  # noqa: E731
    zero = lambda count, v: np.full(count, v if eight_bit else 0).astype(dtype)  # noqa: E731
    inputs = [a, one(n, 0.02), zero(n, 2), b, one(m, 0.03), zero(m, 5), one(1, 0.1), zero(1, 9)]
    check_rule("QLinearMatMul", inputs)


@CALM
@given(st.data())
def test_col2im(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 3))
    pick = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(k))  # noqa: E731
    image, block, step, dil = pick(5, 7), pick(1, 3), pick(1, 3), pick(1, 2)
    pads = (*pick(0, 1), *pick(0, 1))
    count = [(image[i] + pads[i] + pads[k + i] - (block[i] - 1) * dil[i] - 1) // step[i] + 1 for i in range(k)]
    x = randn(0, 2, 3 * int(np.prod(block)), int(np.prod(count)))
    inputs = [x, np.asarray(image, np.int64), np.asarray(block, np.int64)]
    check_rule(
        "Col2Im", inputs, {"strides": step, "dilations": dil, "pads": pads}, const=(1, 2), atol=1e-5, max_nodes=3
    )


EQUATIONS = [
    ("ij,jk->ik", [(3, 4), (4, 5)]), ("ij,jk", [(3, 4), (4, 5)]), ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
    ("...ij,...jk->...ik", [(2, 1, 3, 4), (6, 4, 5)]), ("...ij,...jk->...ik", [(3, 4), (6, 4, 5)]), ("ii->i", [(4, 4)]),
    ("ii", [(4, 4)]), ("bii->ib", [(3, 4, 4)]), ("ij->ji", [(3, 4)]), ("ij->", [(3, 4)]), ("i,j->ij", [(3,), (4,)]),
    ("i,i", [(4,), (4,)]), ("ij,ij->ij", [(3, 4), (3, 4)]), ("ij,j->i", [(3, 4), (4,)]),
    ("a,ab,bc,cd->d", [(3,), (3, 4), (4, 5), (5, 2)]), ("bqhd,bkhd->bhqk", [(2, 3, 4, 5), (2, 6, 4, 5)]),
    ("iji,jk->k", [(3, 4, 3), (4, 2)]), ("...->...", [(3, 4)]), ("i...->...", [(3, 4)]), ("Ab,bA->A", [(3, 4), (4, 3)]),
    (" i j , j k -> i k ", [(3, 4), (4, 5)]), ("ij,kl->", [(3, 4), (2, 5)]), ("ij,jk->ik", [(3, 1), (4, 5)]),
    ("ij,jk->ik", [(3, 0), (0, 5)]), (",->", [(), ()]), ("ijk,k->ij", [(2, 3, 1), (4,)]),
]  # fmt: skip


@pytest.mark.parametrize("equation,shapes", EQUATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.int64])
def test_einsum(equation: str, shapes: list[tuple[int, ...]], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    xs = [np.asarray(rng.integers(-9, 9, s)).astype(dtype) for s in shapes]
    check_rule("Einsum", xs, {"equation": equation})


def test_errors_say_what_is_wrong() -> None:
    def fails(name: str, *xs: Array, **attrs: Any) -> str:
        with pytest.raises(ShapeError) as caught:
            infer(name, [operand_of(x, f"in{k}") for k, x in enumerate(xs)], attrs, 1)
        return str(caught.value)

    assert "8 channels" in fails("Conv", randn(0, 1, 8, 5, 5), randn(0, 4, 3, 3, 3))
    assert "larger than spatial dim 0" in fails("Conv", randn(0, 1, 3, 2, 5), randn(0, 4, 3, 3, 3))
    assert "auto_pad 'SAME'" in fails("Conv", randn(0, 1, 3, 5, 5), randn(0, 4, 3, 3, 3), auto_pad="SAME")
    assert "bias" in fails("Conv", randn(0, 1, 3, 5, 5), randn(0, 4, 3, 3, 3), randn(0, 5))
    assert "inner sizes differ" in fails("Gemm", randn(0, 3, 4), randn(0, 5, 6))
    assert "terms for 2 operands" in fails("Einsum", randn(0, 3), randn(0, 3), equation="i->i")
    assert "unknown or repeated" in fails("Einsum", randn(0, 3), equation="i->j")
