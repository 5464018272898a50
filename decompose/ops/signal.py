"""Shape functions of signal processing."""

from __future__ import annotations

from mnnpy.decompose.infer import Operand, UnknownTypeError, normalize_axis
from mnnpy.decompose.ops.element_types import ElementType, element_type
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim, SymDim
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import TensorType


def dft_axis(axis: int, rank: int) -> int:
    """The normalised signal axis; the last dim holds real and imaginary parts."""
    found = normalize_axis(axis, rank)
    if found == rank - 1:
        raise ShapeError(f"axis {axis} is the last one, which holds real and imaginary parts; choose a signal axis")
    return found


@op("DFT", OpClass.COMPOSITE)
def dft(
    x: Operand,
    dft_length: Operand | None = None,
    axis: Operand | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> TensorType:
    """Discrete Fourier transform along one axis of ``x[…, 1 | 2]``."""
    if x.rank > 1 and isinstance(x.shape[-1], SymDim):
        raise UnknownTypeError("whether the input is real or complex is not known")
    if x.rank < 2 or x.shape[-1] not in (1, 2):
        raise ShapeError(f"input has shape {x.shape}; the last dim must be 1 (real) or 2 (complex)")
    along = dft_axis(int(axis.require_ints()[0]) if axis is not None else -2, x.rank)  # type: ignore[arg-type]
    if onesided and not inverse and x.shape[-1] != 1:
        raise ShapeError("a one-sided transform needs real input (last dim 1)")
    if onesided and inverse and x.shape[-1] != 2:
        raise ShapeError("a one-sided inverse transform needs complex input (last dim 2)")
    size = x.shape[along]
    length: Dim = (size - 1) * 2 if onesided and inverse else size
    if dft_length is not None:
        length = dft_length.require_ints()[0]
    out: Dim = length // 2 + 1 if onesided and not inverse else length
    return TensorType(x.dtype, (*x.shape[:along], out, *x.shape[along + 1 : -1], 1 if onesided and inverse else 2))


@op("STFT", OpClass.COMPOSITE)
def stft(
    signal: Operand,
    frame_step: Operand,
    window: Operand | None = None,
    frame_length: Operand | None = None,
    *,
    onesided: int = 1,
) -> TensorType:
    """Short-time Fourier transform of ``signal[batch, length, 1 | 2]``."""
    if signal.rank == 3 and isinstance(signal.shape[-1], SymDim):
        raise UnknownTypeError("whether the signal is real or complex is not known")
    if signal.rank != 3 or signal.shape[-1] not in (1, 2):
        raise ShapeError(f"signal has shape {signal.shape}; [batch, length, 1 or 2] is needed")
    if onesided and signal.shape[-1] == 2:
        raise ShapeError("a one-sided transform needs a real signal; set onesided=0 for complex ones")
    step = frame_step.require_ints()[0]
    length: Dim = signal.shape[1]
    if frame_length is not None:
        length = frame_length.require_ints()[0]
    elif window is not None:
        length = window.shape[0]
    if window is not None and window.shape != (length,):
        raise ShapeError(f"the window has shape {window.shape}, but frames have {length} samples")
    if isinstance(step, int) and step < 1:
        raise ShapeError(f"frame_step is {step}; it must be positive")
    frames = (signal.shape[1] - length) // step + 1
    if isinstance(frames, int) and frames < 1:
        raise ShapeError(f"frames of {length} samples do not fit into a signal of {signal.shape[1]}")
    return TensorType(signal.dtype, (signal.shape[0], frames, length // 2 + 1 if onesided else length, 2))


@op("MelWeightMatrix", OpClass.COMPOSITE)
def mel_weight_matrix(
    num_mel_bins: Operand,
    dft_length: Operand,
    sample_rate: Operand,
    lower_edge_hertz: Operand,
    upper_edge_hertz: Operand,
    *,
    output_datatype: ElementType = DType.F32,
) -> TensorType:
    """Matrix ``[dft_length/2 + 1, num_mel_bins]`` of triangular filters on the mel scale."""
    bins, length = num_mel_bins.require_ints()[0], dft_length.require_ints()[0]
    return TensorType(element_type(output_datatype), (length // 2 + 1, bins))
