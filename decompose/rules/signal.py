"""Rules of signal processing: transforms as products with constant matrices."""

from __future__ import annotations

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
    if used * parts * bins * 2 > MATRIX_LIMIT or not used or not bins:
        return None
    if back:
        matrix = irfft_matrix(length // 2 + 1, length)[:used]
        out_parts = 1
    else:
        full = dft_matrix(length, bins, complex_input=parts == 2, inverse=bool(inverse))
        matrix, out_parts = full[:used], 2
    data = to_float(g, x)
    if used < size:
        data = g.slice(data, along, 0, used)
    others = tuple(k for k in range(x.rank - 1) if k != along)
    lead = tuple(x.shape[k] for k in others)
    rows = g.reshape(
        g.transpose(data, (*others, along, x.rank - 1)), (int(np.prod(lead, dtype=np.int64)), used * parts)
    )
    y = g.matmul(rows, g.const(matrix.reshape(used * parts, -1), data.dtype))
    y = g.reshape(y, (*lead, bins, out_parts))
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
    if length * parts * bins * 2 > MATRIX_LIMIT:
        return None
    data = to_float(g, signal)
    matrix = g.const(dft_matrix(length, bins, complex_input=parts == 2), data.dtype)
    if window is not None:
        matrix = g.mul(matrix, g.reshape(g.cast(window, data.dtype), (length, 1, 1, 1)))
    columns = g.reshape(matrix, (length * parts, bins * 2))
    width = length * parts
    region = Region(0, (n, frames, width), 0, (total * parts, step * parts, 1), 0, (frames * width, width, 1))
    framed = g.raster([data], [region], (n, frames, width))
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
