"""Rules of signal processing: transforms as products with constant matrices."""

from __future__ import annotations

from math import prod

import numpy as np

from mnnpy.decompose.builder import Builder, Var, evaluate
from mnnpy.decompose.ops.element_types import ElementType
from mnnpy.decompose.ops.signal import dft_axis
from mnnpy.decompose.raster import Region
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import to_float
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

#: Largest number of elements of a constant transform matrix; longer transforms run as host ops (by FFT).
MATRIX_LIMIT = 1 << 23
#: Above this many elements a transform is split into two stages where its length has a fitting divisor.
SPLIT_ABOVE = 1 << 20


def dft_matrix(size: int, bins: int, *, complex_input: bool, inverse: bool = False) -> Array:
    """``[size, parts, bins, 2]``: real signals times this give real and imaginary parts of the spectrum.

    *parts* is 2 for complex input, whose last dim is then contracted as well.
    """
    # the exponent is reduced modulo size first: exact integers keep long transforms accurate
    turns = np.outer(np.arange(size), np.arange(bins)) % max(size, 1) / max(size, 1)
    angle = (2 if inverse else -2) * np.pi * turns
    c, s = np.cos(angle), np.sin(angle)
    if inverse:
        c, s = c / max(size, 1), s / max(size, 1)
    real = np.stack([c, s], axis=-1)
    if not complex_input:
        return real[:, None]
    return np.stack([real, np.stack([-s, c], axis=-1)], axis=1)


def irfft_matrix(bins: int, length: int) -> Array:
    """``[bins, 2, length]``: one-sided spectra times this give the real signal."""
    turns = np.outer(np.arange(bins), np.arange(length)) % max(length, 1) / max(length, 1)
    weight = np.full((bins, 1), 2.0)
    weight[0] = 1
    if length % 2 == 0 and bins == length // 2 + 1:
        weight[-1] = 1
    angle = 2 * np.pi * turns
    return np.stack([weight * np.cos(angle), -weight * np.sin(angle)], axis=1) / max(length, 1)


def _divisor(length: int, parts: int) -> int | None:
    """The first-stage length that needs the smallest matrices; None where none fits."""
    best: tuple[int, int] | None = None
    for a in range(2, length // 2 + 1):
        if a * a > 4 * length:
            break
        if length % a == 0:
            size = 2 * parts * length * a + 4 * (length // a) ** 2
            best = min(best or (size, a), (size, a))
    return best[1] if best is not None and best[0] <= MATRIX_LIMIT else None


def _two_stages(g: Builder, rows: Var, length: int, a: int, *, inverse: bool) -> Var:
    """Full transform ``[L, length, 2]`` of ``rows[L, length, parts]`` (Cooley and Tukey, 1965).

    With ``n = b·n1 + n2`` and ``k = k1 + a·k2`` the sum over *n1* is a product with a matrix for each *n2*, which takes
    the twiddle factors in, and the sum over *n2* a product with one matrix for all *k1*.
    """
    count, _, parts = rows.shape
    b = length // a
    n1, n2, k1 = np.arange(a)[None, :, None], np.arange(b)[:, None, None], np.arange(a)[None, None, :]
    turns = (n1 * k1 * b + n2 * k1) % length / length
    angle = (2 if inverse else -2) * np.pi * turns
    c, s = np.cos(angle), np.sin(angle)
    real = np.stack([c, s], axis=-1)[:, :, None]
    first = real if parts == 1 else np.concatenate([real, np.stack([-s, c], axis=-1)[:, :, None]], axis=2)
    if inverse:
        first = first / a
    second = dft_matrix(b, b, complex_input=True, inverse=inverse)
    x = g.transpose(g.reshape(rows, (count, a, b, parts)), (2, 0, 1, 3))
    y = g.matmul(g.reshape(x, (b, count, a * parts)), g.const(first.reshape(b, a * parts, a * 2), rows.dtype))
    y = g.transpose(g.reshape(y, (b, count, a, 2)), (1, 2, 0, 3))
    y = g.matmul(g.reshape(y, (count * a, b * 2)), g.const(second.reshape(b * 2, b * 2), rows.dtype))
    return g.reshape(g.transpose(g.reshape(y, (count, a, b, 2)), (0, 2, 1, 3)), (count, length, 2))


@rule("DFT")
def dft(
    g: Builder, x: Var, dft_length: Var | None = None, axis: Var | None = None, *, inverse: int = 0, onesided: int = 0
) -> Var | None:
    along = dft_axis(-2 if axis is None else axis.require_ints()[0], x.rank)
    size, parts = x.shape[along], x.shape[-1]
    back = bool(onesided and inverse)
    length = 2 * (size - 1) if back else size
    if dft_length is not None:
        length = dft_length.require_ints()[0]
    # elements of the signal that count: the others are zero or cut off
    used = min(size, length // 2 + 1 if back else length)
    bins = length // 2 + 1 if onesided and not inverse else length
    elements = used * parts * bins * 2
    split = None if back or elements <= SPLIT_ABOVE else _divisor(length, parts)
    if not used or not bins or (split is None and elements > MATRIX_LIMIT):
        return None
    others = tuple(k for k in range(x.rank - 1) if k != along)
    lead = tuple(x.shape[k] for k in others)
    data = to_float(g, x)
    if used < size:
        data = g.slice(data, along, 0, used)
    rows = g.reshape(g.transpose(data, (*others, along, x.rank - 1)), (prod(lead), used, parts))
    if split is not None:
        rows = g.pad(rows, (0, 0, 0), (0, length - used, 0)) if used < length else rows
        y = _two_stages(g, rows, length, split, inverse=bool(inverse))
        y = g.slice(y, 1, 0, bins) if bins < length else y
    else:
        if back:
            matrix = irfft_matrix(length // 2 + 1, length)[:used]
        else:
            matrix = dft_matrix(length, bins, complex_input=parts == 2, inverse=bool(inverse))[:used]
        columns = g.const(matrix.reshape(used * parts, -1), data.dtype)
        y = g.matmul(g.reshape(rows, (prod(lead), used * parts)), columns)
    y = g.reshape(y, (*lead, bins, 1 if back else 2))
    place = {old: new for new, old in enumerate((*others, along, x.rank - 1))}
    return g.cast(g.transpose(y, tuple(place[k] for k in range(x.rank))), x.dtype)


@rule("STFT")
def stft(
    g: Builder,
    signal: Var,
    frame_step: Var,
    window: Var | None = None,
    frame_length: Var | None = None,
    *,
    onesided: int = 1,
) -> Var | None:
    n, total, parts = signal.shape
    step, length = frame_step.require_ints()[0], total
    if frame_length is not None:
        length = frame_length.require_ints()[0]
    elif window is not None:
        length = window.shape[0]
    frames, bins = (total - length) // step + 1, length // 2 + 1 if onesided else length
    elements = length * parts * bins * 2
    split = _divisor(length, parts) if elements > SPLIT_ABOVE else None
    if split is None and elements > MATRIX_LIMIT:
        return None
    data = to_float(g, signal)
    width = length * parts
    region = Region(0, (n, frames, width), 0, (total * parts, step * parts, 1), 0, (frames * width, width, 1))
    framed = g.raster([data], [region], (n, frames, width))
    weights = None if window is None else g.reshape(g.cast(window, data.dtype), (length, 1, 1, 1))
    if split is not None:
        rows = g.reshape(framed, (n * frames, length, parts))
        rows = rows if weights is None else g.mul(rows, g.reshape(weights, (length, 1)))
        y = _two_stages(g, rows, length, split, inverse=False)
        y = g.slice(y, 1, 0, bins) if bins < length else y
        return g.cast(g.reshape(y, (n, frames, bins, 2)), signal.dtype)
    matrix = g.const(dft_matrix(length, bins, complex_input=parts == 2), data.dtype)
    if weights is not None:
        # the window goes into the matrix: a constant as a rule
        matrix = g.mul(matrix, weights)
    columns = g.reshape(matrix, (length * parts, bins * 2))
    return g.cast(g.reshape(g.matmul(framed, columns), (n, frames, bins, 2)), signal.dtype)


@rule("MelWeightMatrix")
def mel_weight_matrix(
    g: Builder,
    num_mel_bins: Var,
    dft_length: Var,
    sample_rate: Var,
    lower_edge_hertz: Var,
    upper_edge_hertz: Var,
    *,
    output_datatype: ElementType = DType.F32,
) -> Var:
    # a table of few numbers: calculated once, while planning
    values = [v.require_value() for v in (num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz)]
    return g.const(evaluate("MelWeightMatrix", values, {"output_datatype": output_datatype})[0])
