"""NumPy references of signal processing, from the ONNX operator specification."""

from __future__ import annotations

import numpy as np

from mnnpy.backends.reference.kernels.numeric import narrow, wide
from mnnpy.decompose.ops.element_types import ElementType, element_type
from mnnpy.decompose.ops.signal import dft_axis
from mnnpy.decompose.registry import reference
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array


def _complex(x: Array) -> Array:
    values = wide(x)
    return values[..., 0] + 1j * values[..., 1] if x.shape[-1] == 2 else values[..., 0].astype(np.complex128)


def _pair(z: Array) -> Array:
    return np.stack([z.real, z.imag], axis=-1)


@reference("DFT")
def dft(
    x: Array, dft_length: Array | None = None, axis: Array | None = None, *, inverse: int = 0, onesided: int = 0
) -> Array:
    along = dft_axis(-2 if axis is None else int(axis.reshape(-1)[0]), x.ndim)
    length = None if dft_length is None else int(dft_length.reshape(-1)[0])
    z = _complex(x)
    if onesided and inverse:
        length = 2 * (x.shape[along] - 1) if length is None else length
        return narrow(np.fft.irfft(z, length, axis=along)[..., None], x.dtype)
    if onesided:
        return narrow(_pair(np.fft.rfft(z.real, length, axis=along)), x.dtype)
    return narrow(_pair((np.fft.ifft if inverse else np.fft.fft)(z, length, axis=along)), x.dtype)


@reference("STFT")
def stft(
    signal: Array,
    frame_step: Array,
    window: Array | None = None,
    frame_length: Array | None = None,
    *,
    onesided: int = 1,
) -> Array:
    step = int(frame_step.reshape(-1)[0])
    length = signal.shape[1]
    if frame_length is not None:
        length = int(frame_length.reshape(-1)[0])
    elif window is not None:
        length = window.shape[0]
    frames = (signal.shape[1] - length) // step + 1
    z = _complex(signal)[:, np.arange(frames)[:, None] * step + np.arange(length)]
    if window is not None:
        z = z * wide(window)
    return narrow(_pair(np.fft.rfft(z.real) if onesided else np.fft.fft(z)), signal.dtype)


@reference("MelWeightMatrix")
def mel_weight_matrix(
    num_mel_bins: Array,
    dft_length: Array,
    sample_rate: Array,
    lower_edge_hertz: Array,
    upper_edge_hertz: Array,
    *,
    output_datatype: ElementType = DType.F32,
) -> Array:
    bins, length, rate = (int(np.asarray(v).reshape(-1)[0]) for v in (num_mel_bins, dft_length, sample_rate))
    edges = [
        2595 * np.log10(1 + float(wide(np.asarray(v)).reshape(-1)[0]) / 700)
        for v in (lower_edge_hertz, upper_edge_hertz)
    ]
    # bins + 2 corner points, evenly spaced on the mel scale, rounded down to bins of the transform
    mel = edges[0] + np.arange(bins + 2) * ((edges[1] - edges[0]) / (bins + 2))
    corners = np.floor((length + 1) * (700 * (10 ** (mel / 2595) - 1)) / rate).astype(np.int64)
    matrix = np.zeros((length // 2 + 1, bins))
    rows = np.arange(length // 2 + 1)
    for b in range(bins):
        low, centre, high = corners[b : b + 3]
        if centre == low:
            matrix[centre : centre + 1, b] = 1
        else:
            rising = (rows >= low) & (rows <= centre)
            matrix[rising, b] = (rows[rising] - low) / (centre - low)
        if high > centre:
            falling = (rows >= centre) & (rows < high)
            matrix[falling, b] = (high - rows[falling]) / (high - centre)
    return narrow(matrix, element_type(output_datatype).numpy)
