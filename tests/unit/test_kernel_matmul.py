"""MatMul templates against NumPy: every algorithm, odd sizes, batches, broadcast, element types, epilogues."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.driver import Binding, Caps, Launch
from mnnpy.backends.kernels.ir import Array as Registers
from mnnpy.backends.kernels.ir import Buffer
from mnnpy.backends.kernels.lowering import Declined
from mnnpy.backends.kernels.templates.matmul import ALGORITHMS
from mnnpy.backends.kernels.templates.packed import choose_block, column_panels, row_panels
from mnnpy.backends.kernels.templates.tiles import TILES, choose_tile
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array
from tests.emulation.interpreter import KernelError, interpreted
from tests.unit.kernel_ops import close, emulated, opencl, run_node

SHAPES = [
    ((1, 1), (1, 1)), ((5, 7), (7, 3)), ((64, 48), (48, 64)), ((13, 33), (33, 70)), ((130, 20), (20, 150)),
    ((3, 65), (65, 33)), ((7,), (7,)), ((19,), (19, 40)), ((21, 18), (18,)), ((2, 3, 9, 17), (2, 3, 17, 20)),
    ((2, 1, 9, 17), (1, 3, 17, 20)), ((4, 9, 17), (17, 35)), ((9, 17), (4, 17, 35)), ((3, 1, 5, 16), (2, 16, 40)),
]  # fmt: skip


def _pair(a: tuple[int, ...], b: tuple[int, ...], seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(a, dtype=np.float32), rng.standard_normal(b, dtype=np.float32)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, ""])
@pytest.mark.parametrize("constants", [(), (1,)], ids=["fed", "constant"])
def test_shapes_on_opencl(algorithm: str, constants: tuple[int, ...]) -> None:
    device = opencl()
    for a, b in SHAPES:
        x, w = _pair(a, b)
        expected = np.asarray(np.matmul(x.astype(np.float64), w.astype(np.float64)))
        y, kernels = run_node(
            device, "MatMul", [x, w], expected.shape, {}, constants=constants, algorithm=algorithm
        )  # fmt: skip
        close(y, expected, 1e-6)
        if algorithm:
            assert kernels[-1] == {"plain": "matmul"}.get(algorithm, f"matmul_{algorithm}")


STORAGE = frozenset({"storage8", "storage16"})


@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_shapes_interpreted(algorithm: str, lanes: int) -> None:
    """No index out of range, nothing written twice, no race in local memory; fed and constant weights."""
    device = interpreted(Caps(STORAGE, max_group=64, lanes=lanes, cpu_like=lanes > 4))
    for a, b in (((1, 3), (3, 1)), ((9,), (9, 18)), ((13, 3), (3, 33)), ((2, 1, 5, 2), (1, 3, 2, 7)), ((7, 2), (2,))):
        x, w = _pair(a, b)
        expected = np.asarray(np.matmul(x, w))
        bias = np.linspace(-1, 1, b[-1] if len(b) > 1 else 1, dtype=np.float32)
        for constants in ((), (1,)):
            y, _ = run_node(
                device, "MatMul", [x, w, bias], expected.shape, {}, constants=constants, algorithm=algorithm
            )  # fmt: skip
            close(y, expected + (bias if len(b) > 1 else bias[0]), 1e-6)


def test_empty_operands() -> None:
    device = interpreted(Caps(STORAGE, lanes=16, cpu_like=True))
    for a, b in (((0, 3), (3, 4)), ((2, 3), (3, 0)), ((2, 0), (0, 40))):
        x, w = _pair(a, b)
        y, _ = run_node(device, "MatMul", [x, w], (a[0], b[1]), {}, constants=(1,))
        np.testing.assert_array_equal(y, x @ w)


def test_interpreter_finds_what_devices_leave_undefined() -> None:
    def run(write: Callable[[KernelBuilder, Buffer, Registers], None]) -> None:
        b = KernelBuilder("bad", (2, 1, 1))
        y = b.buffer("y", DType.F32, "w")
        shared = b.array(DType.F32, 2, "local")
        write(b, y, shared)
        driver = interpreted(Caps()).driver
        place = Binding(driver.allocate(8), 0, 8)
        driver.submit(driver.record([Launch(driver.compile([b.build()])[0], (place,), (), (1, 1, 1))]))

    def outside(b: KernelBuilder, y: Buffer, shared: Registers) -> None:
        b.store(y, b.local_id() + 1, 0.0)

    def twice(b: KernelBuilder, y: Buffer, shared: Registers) -> None:
        b.store(y, b.local_id() * 0, 0.0)

    def race(b: KernelBuilder, y: Buffer, shared: Registers) -> None:
        b.write(shared, b.local_id(), 1.0)
        b.store(y, b.local_id(), b.read(shared, 1 - b.local_id()))

    def divergent(b: KernelBuilder, y: Buffer, shared: Registers) -> None:
        with b.when(b.local_id() < 1):
            b.barrier()

    def fine(b: KernelBuilder, y: Buffer, shared: Registers) -> None:
        b.write(shared, b.local_id(), 1.0)
        b.barrier()
        b.store(y, b.local_id(), b.read(shared, 1 - b.local_id()))

    run(fine)
    for bad, text in (
        (outside, "it has 2 elements"),
        (twice, "two items"),
        (race, "between barriers"),
        (divergent, "only some items"),
    ):
        with pytest.raises(KernelError, match=text):
            run(bad)


@pytest.mark.parametrize("kind", ["cuda", "metal"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("a", "b"), [((9, 17), (17, 35)), ((2, 1, 5, 6), (1, 3, 6, 9))])
def test_shapes_emulated(kind: str, algorithm: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, w = _pair(a, b)
    expected = np.matmul(x, w)
    y, _ = run_node(emulated(kind), "MatMul", [x, w], expected.shape, {}, constants=(1,), algorithm=algorithm)
    close(y, expected, 1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_narrow_floats_are_summed_in_f32(algorithm: str, dtype: DType) -> None:
    """Error of one rounding of operands and result, not of 300 additions in the narrow type."""
    device = opencl()
    x, w = (m.astype(dtype.numpy) for m in _pair((20, 300), (300, 50)))
    expected = x.astype(np.float64) @ w.astype(np.float64)
    for constants in ((), (1,)):
        y, _ = run_node(device, "MatMul", [x, w], (20, 50), {}, constants=constants, algorithm=algorithm)
        assert y.dtype == dtype.numpy
        close(y, expected, 2e-3 if dtype is DType.F16 else 1e-2)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float64"])
def test_other_types_take_the_plain_kernel(dtype: str) -> None:
    device = opencl()
    rng = np.random.default_rng(3)
    x, w = rng.integers(0, 5, (6, 40)).astype(dtype), rng.integers(0, 5, (40, 33)).astype(dtype)
    y, kernels = run_node(device, "MatMul", [x, w], (6, 33), {})
    assert kernels == ["matmul"]
    np.testing.assert_array_equal(y, x @ w)
    with pytest.raises(BackendError, match="algorithm 'tiles' does not apply"):
        run_node(device, "MatMul", [x, w], (6, 33), {}, algorithm="tiles")


def _gelu(x: Array) -> Array:
    from math import erf

    return np.asarray(0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2))))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_epilogues(algorithm: str) -> None:
    """alpha, bias over columns, residual and activation, in whole blocks and at edges."""
    device = opencl()
    x, w = _pair((2, 26, 40), (40, 70))
    rng = np.random.default_rng(1)
    bias, residual = rng.standard_normal(70).astype(np.float32), rng.standard_normal((2, 26, 70)).astype(np.float32)
    plain = x.astype(np.float64) @ w
    cases: list[tuple[list[Array | None], dict[str, object], Array]] = [
        ([bias], {"act": "Relu"}, np.maximum(plain + bias, 0)),
        ([None, residual], {"act": "Clip", "act_alpha": 0.0, "act_beta": 6.0}, np.clip(plain + residual, 0, 6)),
        ([bias, residual], {"alpha": 0.125}, plain * 0.125 + bias + residual),
        ([bias], {"act": "Gelu"}, _gelu(plain + bias)),
    ]
    for more, attrs, expected in cases:
        y, _ = run_node(
            device, "MatMul", [x, w, *more], (2, 26, 70), attrs, constants=(1,), algorithm=algorithm
        )  # fmt: skip
        close(y, expected, 2e-6)


def test_epilogue_emulated() -> None:
    x, w = _pair((13, 20), (20, 37))
    bias = np.linspace(-1, 1, 37, dtype=np.float32)
    for algorithm in ("packed", "tiles"):
        y, _ = run_node(
            emulated("cuda"), "MatMul", [x, w, bias], (13, 37), {"act": "Relu"}, constants=(1,), algorithm=algorithm
        )  # fmt: skip
        close(y, np.maximum(x @ w + bias, 0), 1e-6)


@pytest.mark.parametrize("caps", [Caps(lanes=16, cpu_like=True), Caps(lanes=8, cpu_like=True), Caps(lanes=4), Caps()])
def test_blocks_never_have_more_rows_than_the_matrix(caps: Caps) -> None:
    for m in (1, 2, 3, 5, 7, 12, 100):
        block = choose_block(caps, m, 49)
        assert 1 <= block.rows <= m
        assert block.lanes <= max(1, caps.lanes)


@pytest.mark.parametrize(("block", "lanes"), [((4, 2), 8), ((3, 2), 4), ((4, 4), 1)])
def test_blocks_of_other_devices_on_opencl(block: tuple[int, int], lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths that this machine does not choose by itself."""
    from mnnpy.backends.kernels.templates import matmul
    from mnnpy.backends.kernels.templates.packed import Block

    device = opencl()
    monkeypatch.setattr(matmul, "choose_block", lambda caps, m, n: Block(*block, lanes))
    for a, b in (((11, 30), (30, 41)), ((2, 4, 6), (2, 6, 5))):
        x, w = _pair(a, b)
        y, _ = run_node(device, "MatMul", [x, w], np.matmul(x, w).shape, {}, algorithm="packed")
        close(y, np.matmul(x, w), 1e-6)


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.rows}x{t.columns}")
def test_every_tile_on_opencl(tile: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnnpy.backends.kernels.templates import matmul

    device = opencl()
    monkeypatch.setattr(matmul, "choose_tile", lambda *_: tile)
    x, w = _pair((2, 70, 21), (2, 21, 131))
    y, _ = run_node(device, "MatMul", [x, w], (2, 70, 131), {}, algorithm="tiles")
    close(y, np.matmul(x, w), 1e-6)


def test_tiles_fit_the_device() -> None:
    small = Caps(max_group=64, local_memory=8 << 10)
    assert choose_tile(small, 4096, 4096, 1).local <= 64
    assert choose_tile(Caps(units=80), 4096, 4096, 1) == TILES[0]
    assert choose_tile(Caps(units=80), 64, 64, 1).rows < 64  # small outputs are spread over the units


def test_panels() -> None:
    b = np.arange(10, dtype=np.float32).reshape(2, 5)
    panels = column_panels(b, 4)
    assert panels.shape == (2, 2, 4)
    np.testing.assert_array_equal(panels[1], [[4, 0, 0, 0], [9, 0, 0, 0]])
    np.testing.assert_array_equal(row_panels(b, 2)[0].T, b)


def test_supports_packs_nothing() -> None:
    """Asking whether a node runs must not copy its weights."""
    from mnnpy.backends.kernels.lowering import Lowering
    from tests.unit.kernel_ops import node_graph

    x, w = _pair((8, 64), (64, 64))
    graph, _ = node_graph("MatMul", [x, w], (8, 64), {}, (1,))
    types = dict(graph.types)
    work = Lowering(Caps(lanes=16, cpu_like=True), types, graph.constants)  # type: ignore[arg-type]
    work.node(graph.nodes[0])
    assert not work.added
    assert len(work.late) == 1
    with pytest.raises(Declined, match="no kernel template"):
        work.node(graph.nodes[0].replace(op="Nothing"))
