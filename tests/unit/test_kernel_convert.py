"""Convert on the kernel devices: every code of the narrow types, and what rounds, saturates and overflows."""

from __future__ import annotations

import numpy as np
import pytest

from mnnpy.backends.reference.kernels.conversion import convert_array
from mnnpy.graph.dtypes import DType
from tests.unit.kernel_helpers import DEVICES, device, run_node

FLOATS8 = (DType.F8E4M3FN, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ)
REAL = DEVICES[:2]  #: the emulator compiles for seconds: one case below
NARROW = (*FLOATS8, DType.F8E8M0, DType.F4E2M1)


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    """Equal values; NaN equals NaN, and zeros have equal signs."""
    assert got.dtype == wanted.dtype
    if wanted.dtype.kind in "iub" or DType.of(wanted.dtype).is_int:
        np.testing.assert_array_equal(got.astype(np.int64), wanted.astype(np.int64))
        return
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    np.testing.assert_array_equal(a, b)
    real = ~np.isnan(b)
    np.testing.assert_array_equal(np.signbit(a)[real], np.signbit(b)[real])


def halves() -> np.ndarray:
    """Every f16 as f32: all ties of the eight-bit formats are among them."""
    return np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("kind", NARROW, ids=str)
def test_every_code_is_decoded(name: str, kind: DType) -> None:
    codes = np.arange(16 if kind is DType.F4E2M1 else 256, dtype=np.uint8).view(kind.numpy)
    for to in (DType.F32, DType.F16) if kind is not DType.F8E8M0 else (DType.F32,):
        assert_same(run_node(device(name), "Convert", codes, to=to)[0], convert_array(codes, to))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("kind", [*FLOATS8, DType.F4E2M1], ids=str)
def test_every_half_is_encoded(name: str, kind: DType, saturate: bool) -> None:
    x = halves()
    if kind is DType.F4E2M1:
        x = x[~np.isnan(x)]  # there is no code for it
    assert_same(run_node(device(name), "Convert", x, to=kind, saturate=saturate)[0], convert_array(x, kind, saturate))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_powers_of_two(name: str, saturate: bool, mode: str) -> None:
    steps = np.array([1.0, 1.25, 1.4999999, 1.5, 1.75, 1.9999999], np.float32)
    powers = np.float64(2.0) ** np.arange(-149, 128)
    with np.errstate(under="ignore"):
        x = np.concatenate([(steps * powers[:, None]).reshape(-1), [0.0, np.inf, np.nan]]).astype(np.float32)
    got = run_node(device(name), "Convert", x, to=DType.F8E8M0, saturate=saturate, round_mode=mode)[0]
    assert_same(got, convert_array(x, DType.F8E8M0, saturate, mode))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("to", [DType.F16, DType.BF16], ids=str)
def test_halves_round_to_nearest_even(name: str, to: DType) -> None:
    low = np.arange(0, 0x7F80, 3, dtype=np.uint32) << 16
    x = np.concatenate([low + d for d in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001)])
    x = np.concatenate([x, x | 0x80000000, [0x7F800000, 0xFF800000, 0x7FC00000]]).astype(np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        wanted = x.astype(to.numpy)
    assert_same(run_node(device(name), "Convert", x, to=to)[0], wanted)


@pytest.mark.parametrize("name", REAL)
def test_doubles_round_once(name: str) -> None:
    """Just above a tie of f16: rounding to f32 on the way would land on the tie."""
    x = np.array([1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-11 - 2.0**-40, -1 - 2.0**-11 - 2.0**-40, 65519.999999999, 1e300])
    with np.errstate(over="ignore"):
        assert_same(run_node(device(name), "Convert", x, to=DType.F16)[0], x.astype(np.float16))
    y = np.array([17.0 + 2.0**-40, 17.0, 464.0 + 2.0**-40, 2.0**-10 + 2.0**-60])
    got = run_node(device(name), "Convert", y, to=DType.F8E4M3FN, saturate=False)[0]
    assert_same(got, np.array([18.0, 16.0, np.nan, 2.0**-9], got.dtype))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("to", [DType.I2, DType.U2, DType.I4, DType.U4, DType.I8, DType.U8], ids=str)
def test_small_integers_wrap(name: str, to: DType) -> None:
    x = np.arange(-40, 40, dtype=np.int32)
    got = run_node(device(name), "Convert", x, to=to)[0]
    assert_same(got, convert_array(x, to))
    assert_same(run_node(device(name), "Convert", got, to=DType.F32)[0], convert_array(got, DType.F32))


def test_emulated() -> None:
    x = halves()
    got = run_node(device("cuda"), "Convert", x, to=DType.F8E4M3FNUZ)[0]
    assert_same(got, convert_array(x, DType.F8E4M3FNUZ))
    assert_same(run_node(device("cuda"), "Convert", got, to=DType.F16)[0], convert_array(got, DType.F16))
