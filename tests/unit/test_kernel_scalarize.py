"""Kernels with vectors give the same results where a dialect has none: their lanes become scalars."""

from __future__ import annotations

import numpy as np
import pytest

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.kernels.driver import Binding, Launch
from mnnpy.backends.kernels.ir import Expr, Kernel, Type, const, select, walk
from mnnpy.backends.kernels.render_cuda import CudaRenderer
from mnnpy.backends.kernels.scalarize import scalarize
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array
from tests.unit.kernel_ops import emulated, opencl

LANES = 4


def _kernel() -> Kernel:
    """Every construct that has lanes: loads, stores, arrays, splats, casts, selects, one lane, a rotation in place."""
    b = KernelBuilder("lanes", (2, 1, 1))
    x, y = b.buffer("x", DType.F32), b.buffer("y", DType.F32, "w")
    i = b.let(b.global_id())
    v = b.let(b.load(x, i * LANES, LANES))
    kept = b.array(DType.F32, 2, lanes=LANES)
    b.write(kept, 0, v * v)
    b.write(kept, 1, v.lane(2).splat(LANES) + 1.0)
    total = b.mutable(const(0.0, Type(DType.F32, LANES)))
    with b.loop(0, 2) as k:
        b.assign(total, total + b.read(kept, k))
    b.assign(total, total - total.lane(0))  # every lane reads the one that is assigned first
    positive = select(v > 0.0, total, v.cast(DType.I32).cast(DType.F32))
    b.store(y, i * LANES, positive)
    with b.when(v.lane(1) < v.lane(3)):
        b.store(y, i * LANES, v.call("fma", v, v))
    return b.build()


def _expected(x: Array) -> Array:
    v = x.reshape(-1, LANES)
    total = v * v + v[:, 2:3] + 1
    total = total - total[:, :1]
    plain = np.where(v > 0, total, np.trunc(v))
    return np.where(v[:, 1:2] < v[:, 3:4], v * v + v, plain).astype(np.float32)


def _run(device: KernelDevice, kernel: Kernel, x: Array) -> Array:
    driver = device.driver
    memory = [driver.allocate(x.nbytes) for _ in range(2)]
    places = [Binding(m, 0, x.nbytes) for m in memory]
    driver.upload(places[0], x)
    recording = driver.record([Launch(driver.compile([kernel])[0], tuple(places), (), (x.size // LANES // 2, 1, 1))])
    driver.submit(recording)
    found = np.empty_like(x)
    driver.download(places[1], found)
    driver.release(recording)
    for m in memory:
        driver.free(m)
    return found.reshape(-1, LANES)


@pytest.mark.parametrize("where", ["opencl", "opencl-scalar", "cuda", "metal"])
def test_lanes(where: str) -> None:
    device = opencl() if where.startswith("opencl") else emulated(where)
    kernel = scalarize(_kernel()) if where == "opencl-scalar" else _kernel()
    x = np.random.default_rng(0).standard_normal(8 * LANES).astype(np.float32) * 3
    np.testing.assert_allclose(_run(device, kernel, x), _expected(x), rtol=1e-6, atol=1e-5)


def test_nothing_wide_is_left() -> None:
    kernel = scalarize(_kernel())
    assert all(e.type.lanes == 1 and e.op not in ("splat", "lane", "vload") for e in walk(kernel.body)
               if isinstance(e, Expr))  # fmt: skip
    assert [a.size for a in kernel.arrays] == [2 * LANES]
    assert kernel.buffers == _kernel().buffers
    assert "float4" not in CudaRenderer(_kernel()).source()


def test_kernels_without_vectors_stay_as_they_are() -> None:
    b = KernelBuilder("plain")
    b.store(b.buffer("y", DType.F32, "w"), b.global_id(), 1.0)
    kernel = b.build()
    assert scalarize(kernel) is kernel
