"""Weights on their way into kernels: factors, odd addresses, pages of mapped files."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import mnnpy
from mnnpy.backends.cpu import _native
from mnnpy.backends.cpu.mapped import forget_pages, map_of
from tests.unit.native_helpers import ISAS, THREADS, Array


def odd(array: Array) -> Array:
    """The same numbers one byte off their natural address."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
    return np.frombuffer(raw.data, array.dtype, array.size, 1).reshape(array.shape)


def run_one(op: str, attrs: dict[str, Any], x: Array, w: Array, out: tuple[int, ...], isa: str, threads: int) -> Array:
    tensors = [("f32", x.shape, "input", 0), ("f32", w.shape, "constant", w), ("f32", out, "output", 0)]
    program = _native.Program(tensors, [(op, "node", attrs, [0, 1], [2])], 0, threads, isa)
    result = np.empty(out, np.float32)
    program.run([x], [result])
    return result


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("algorithm", ["direct", "winograd4"])
@pytest.mark.parametrize("misplaced", [False, True])
def test_scaled_weights_are_exactly_the_product(isa: str, threads: int, algorithm: str, misplaced: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 12, 12, 20), dtype=np.float32)
    w = rng.standard_normal((33, 20, 3, 3), dtype=np.float32)
    factors = rng.standard_normal(33, dtype=np.float32)
    attrs = {"strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1), "group": 1, "layout": "NHWC"}
    attrs["algorithm"] = algorithm
    out = (1, 12, 12, 33)
    want = run_one("Convolution", attrs, x, w * factors[:, None, None, None], out, isa, threads)
    scaled = {**attrs, "weight_scale": tuple(factors.tolist())}
    assert (run_one("Convolution", scaled, x, odd(w) if misplaced else w, out, isa, threads) == want).all()


def test_factors_that_do_not_fit_are_refused() -> None:
    x, w = np.zeros((1, 4, 4, 2), np.float32), np.zeros((3, 2, 1, 1), np.float32)
    attrs = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "group": 1, "layout": "NHWC"}
    with pytest.raises(ValueError, match="weight_scale"):
        run_one("Convolution", {**attrs, "weight_scale": (1.0, 2.0)}, x, w, (1, 4, 4, 3), ISAS[0], 1)


@pytest.mark.parametrize("isa", ISAS)
def test_constants_at_odd_addresses(isa: str) -> None:
    """A packed one, and one that the kernel goes on reading: its source may vanish."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 40), dtype=np.float32)
    w, b = rng.standard_normal((40, 24), dtype=np.float32), rng.standard_normal((5, 40), dtype=np.float32)
    assert (run_one("MatMul", {}, x, odd(w), (5, 24), isa, 2) == run_one("MatMul", {}, x, w, (5, 24), isa, 2)).all()
    placed = odd(b)
    assert not placed.flags.aligned
    program = _native.Program(
        [("f32", x.shape, "input", 0), ("f32", b.shape, "constant", placed), ("f32", x.shape, "output", 0)],
        [("Binary", "node", {"fn": "Add"}, [0, 1], [2])], 0, 1, isa,
    )  # fmt: skip
    base = placed.base
    del placed
    if isinstance(base, memoryview):
        base[:] = bytes(len(base))  # the bytes that were copied are not read again
    result = np.empty_like(x)
    program.run([x], [result])
    assert (result == x + b).all()


def test_only_maps_that_nobody_writes_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(np.arange(8192, dtype=np.float32).tobytes())
    with path.open("r+b") as file:
        read = np.frombuffer(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), np.float32)
        private = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.float32)
    assert map_of(read.reshape(2, -1)[1:].T) is not None
    assert map_of(private) is None
    assert map_of(np.zeros(3)) is None
    private[:] = 7
    forget_pages([read, private])
    assert (private == 7).all()
    assert read[8191] == 8191


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps")
def test_packed_weights_do_not_stay_mapped(tmp_path: Path) -> None:
    """After the first run the model file's pages are out of the resident set, the packed copy is in it."""
    rng = np.random.default_rng(2)
    weights = [rng.standard_normal((1024, 1024), dtype=np.float32) for _ in range(4)]
    names = ["x", "a", "b", "c", "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[k], f"w{k}"], [names[k + 1]]) for k in range(4)],
        "chain",
        [helper.make_tensor_value_info("x", 1, [2, 1024])],
        [helper.make_tensor_value_info("y", 1, [2, 1024])],
        [numpy_helper.from_array(w, f"w{k}") for k, w in enumerate(weights)],
    )
    path = tmp_path / "chain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    session = mnnpy.Session(path, threads=2)
    x = rng.standard_normal((2, 1024), dtype=np.float32)
    (got,) = session.run(None, {"x": x})
    want = x.astype(np.float64)
    for w in weights:
        want = want @ w
    assert np.abs(got - want).max() <= 3e-5 * np.abs(want).max()
    maps = Path("/proc/self/smaps").read_text()
    resident = re.findall(re.escape(str(path)) + r"\n(?:.*\n)*?Rss:\s+(\d+) kB", maps)
    assert resident, "the file is mapped"
    assert sum(map(int, resident)) < 1024
