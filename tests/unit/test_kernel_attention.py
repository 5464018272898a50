"""Attention in one launch on the kernel devices: found by the pass, equal to what it stands for."""

from __future__ import annotations

import numpy as np
import pytest

import mnnpy
from mnnpy.backends.base import Segment
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.kernels.driver import Caps
from mnnpy.graph.ir import Array
from mnnpy.options import OPTIMIZATIONS
from tests.emulation.interpreter import interpreted
from tests.models import Net
from tests.unit.kernel_helpers import attention, device, run_graph

RNG = np.random.default_rng(17)
STORAGE = frozenset({"storage8", "storage16"})
#: Not on PoCL taken for a GPU: its work-group vectoriser (3.1, "loopvec") loses what the groups' kernel keeps from one
#: tile of keys to the next; with POCL_WORK_GROUP_METHOD=loops or cbs it does not.
ON = ("opencl", "vulkan", "vulkan-groups", "cuda")


@pytest.fixture(params=ON)
def on(request: pytest.FixtureRequest) -> KernelDevice:
    return device(request.param)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def expected(inputs: dict[str, Array], value: float = -np.inf) -> Array:
    q, k, v = (inputs[n].astype(np.float64) for n in "qkv")
    scores = (q @ np.swapaxes(k, -1, -2)) * 0.25
    if (mask := inputs.get("mask")) is not None:
        scores = np.where(mask, scores, value) if mask.dtype == bool else scores + mask
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
    found: Array = weights / weights.sum(-1, keepdims=True) @ v
    return found


def check(on: KernelDevice, inputs: dict[str, Array], value: float = -np.inf, tolerance: float = 2e-6) -> None:
    graph, want = attention(inputs, value), expected(inputs, value)
    program = on.compile(Segment(graph, optimize=OPTIMIZATIONS))
    ops = [row["op"] for row in program.describe()]
    program.close()  # type: ignore[attr-defined]
    assert ops == ["FusedAttention"]
    (got,) = run_graph(on, graph, inputs, optimize=OPTIMIZATIONS)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * float(np.nanmax(np.abs(want))))


SIZES = [(2, 3, 37, 45, 20, 12), (1, 2, 64, 128, 32, 32), (3, 1, 5, 7, 8, 24), (1, 1, 33, 32, 64, 64)]


@pytest.mark.parametrize("sizes", SIZES)
def test_sizes(on: KernelDevice, sizes: tuple[int, ...]) -> None:
    b, h, s, t, d, e = sizes
    check(on, {"q": normal(b, h, s, d), "k": normal(b, h, t, d), "v": normal(b, h, t, e)})


@pytest.mark.parametrize("shape", [(2, 3, 19, 23), (2, 1, 1, 23), (19, 23), (2, 1, 19, 23)])
@pytest.mark.parametrize("kind", ["add", "where", "lowest"])
def test_masks(on: KernelDevice, shape: tuple[int, ...], kind: str) -> None:
    inputs = {"q": normal(2, 3, 19, 8), "k": normal(2, 3, 23, 8), "v": normal(2, 3, 23, 8)}
    mask = RNG.random(shape) > 0.4
    mask[..., :9] = False  # a whole block of keys
    inputs["mask"] = mask if kind != "add" else np.where(mask, normal(*shape), np.float32(-1e9))
    check(on, inputs, float(np.finfo(np.float32).min) if kind == "lowest" else -np.inf)


def test_a_row_without_keys_is_nan(on: KernelDevice) -> None:
    inputs = {"q": normal(1, 6, 8), "k": normal(1, 9, 8), "v": normal(1, 9, 8)}
    inputs["mask"] = np.arange(6)[:, None] != np.full(9, 2)[None]
    want = expected(inputs)
    assert np.isnan(want[0, 2]).all()
    check(on, inputs)


def test_large_scores_do_not_overflow(on: KernelDevice) -> None:
    inputs = {"q": 30 * normal(1, 20, 16), "k": 30 * normal(1, 40, 16), "v": normal(1, 40, 16)}
    check(on, inputs, tolerance=5e-4)  # scores near 1000: their rounding to f32 is an error of 1e-4 in the exponent


def test_halves(on: KernelDevice) -> None:
    inputs = {n: normal(2, 17, 16).astype(np.float16) for n in "qkv"}
    (got,) = run_graph(on, attention(inputs), inputs, optimize=OPTIMIZATIONS)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, expected(inputs), rtol=0, atol=2e-3)


@pytest.mark.parametrize("caps", [
    Caps(STORAGE, max_group=256), Caps(STORAGE, max_group=128, local_memory=16 << 10),
    Caps(STORAGE, lanes=16, cpu_like=True), Caps(STORAGE, lanes=4, cpu_like=True), Caps(STORAGE, cpu_like=True),
])  # fmt: skip
def test_interpreted(caps: Caps) -> None:
    """No access out of bounds, no race between items of a group."""
    inputs = {"q": normal(2, 1, 35, 8), "k": normal(2, 1, 41, 8), "v": normal(2, 1, 41, 12)}
    check(interpreted(caps), inputs | {"mask": RNG.random((2, 1, 35, 41)) > 0.3})


def test_few_queries_are_left_to_products() -> None:
    inputs = {"q": normal(2, 1, 8), "k": normal(2, 9, 8), "v": normal(2, 9, 8)}
    on = interpreted(Caps(STORAGE))
    program = on.compile(Segment(attention(inputs), optimize=OPTIMIZATIONS))
    assert "FusedAttention" not in {row["op"] for row in program.describe()}


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("lanes", [1, 16])
def test_few_queries_on_a_cpu(lanes: int, queries: int) -> None:
    inputs = {"q": normal(2, queries, 8), "k": normal(2, 9, 8), "v": normal(2, 9, 8)}
    check(interpreted(Caps(STORAGE, lanes=lanes, cpu_like=True)), inputs | {"mask": normal(queries, 9)})


@pytest.mark.parametrize("name", ["opencl", "vulkan"])
def test_heads_are_read_where_they_lie(name: str) -> None:
    device(name)
    n = Net(5)
    b, h, s, d = 2, 3, 21, 16
    x = n.input(b, s, h * d)

    def heads(x: str) -> str:
        return n.op("Transpose", n.op("Reshape", x, n.ints(b, s, h, d)), perm=[0, 2, 1, 3])  # type: ignore[no-any-return]

    q, k, v = (heads(n.op("MatMul", x, n.w(h * d, h * d))) for _ in range(3))
    p = n.op("Mul", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2])), n.const(0.25))
    y = n.op("MatMul", n.op("Softmax", p, axis=-1), v)
    model, feeds = n.finish(n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(b, s, h * d)))
    session = mnnpy.Session(model, name)
    (got,) = session.run(None, feeds)
    (want,) = mnnpy.Session(model, "reference").run(None, feeds)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * float(np.abs(want).max()))
    assert [row["op"] for row in session.explain().rows] == ["MatMul"] * 3 + ["FusedAttention"]
