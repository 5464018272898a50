"""Geometry of sliding windows, shared by the convolution and pooling families.

Formulas from the ONNX operator specification of Conv, ConvTranspose, AveragePool and MaxPool.
"""

from __future__ import annotations

from collections.abc import Sequence

from mnnpy.classes import dataclass
from mnnpy.decompose.infer import UnknownTypeError
from mnnpy.decompose.ops.atomic import window_size
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim, SymDim

__all__ = ["Ints", "TransposedWindow", "Window", "conv_window", "fits", "pool_window", "transposed_window"]

Ints = tuple[int, ...]
_AUTO = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


@dataclass(frozen=True, slots=True)
class Window:
    """A window over *k* spatial dims with explicit *pads* (all begins, all ends) and output sizes *out*.

    *pads* is empty where a symbolic size leaves it open (``auto_pad`` SAME_*).
    """

    kernel: Ints
    strides: Ints
    dilations: Ints
    pads: Ints
    out: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class TransposedWindow:
    """Geometry of ConvTranspose: *begins* elements are cropped at the start, *out* ones are kept."""

    kernel: Ints
    strides: Ints
    dilations: Ints
    begins: Ints
    out: tuple[Dim, ...]


def _filled(value: Sequence[int] | None, count: int, default: int, what: str, least: int) -> Ints:
    result = tuple(int(v) for v in value) if value else (default,) * count
    if len(result) != count:
        raise ShapeError(f"{what} has {len(result)} entries, {count} are needed")
    if any(v < least for v in result):
        raise ShapeError(f"{what} {result} has entries below {least}")
    return result


def _check_auto(auto_pad: str) -> None:
    if auto_pad not in _AUTO:
        raise ShapeError(f"auto_pad '{auto_pad}' is not one of {', '.join(_AUTO)}")


def _kernel(kernel_shape: Sequence[int] | None, weight: Sequence[Dim], count: int) -> Ints:
    """The kernel sizes: from the weight, checked against the attribute where both are known."""
    if any(isinstance(d, SymDim) for d in weight):
        if not kernel_shape:
            raise UnknownTypeError(f"kernel sizes {tuple(weight)} are not static; give kernel_shape")
        return _filled(kernel_shape, count, 1, "kernel_shape", 0)
    known = tuple(int(d) for d in weight)  # type: ignore[arg-type]
    if kernel_shape and tuple(kernel_shape) != known:
        raise ShapeError(f"kernel_shape is {tuple(kernel_shape)}, but the weight has {known}")
    if len(known) != count:
        raise ShapeError(f"input has {count} spatial dims, the kernel {len(known)}")
    return known


def _same(size: Dim, kernel: int, stride: int, dilation: int, upper: bool, out: Dim) -> tuple[int, int] | None:
    if isinstance(size, SymDim) or isinstance(out, SymDim):
        # with stride 1 the padding does not depend on the size
        if stride != 1:
            return None
        total = (kernel - 1) * dilation
    else:
        total = max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size)
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


def _resolve(
    spatial: Sequence[Dim],
    kernel: Ints,
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str,
    ceil: bool,
) -> Window:
    _check_auto(auto_pad)
    k = len(spatial)
    step = _filled(strides, k, 1, "strides", 1)
    dil = _filled(dilations, k, 1, "dilations", 1)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        same_out: tuple[Dim, ...] = tuple((d + (s - 1)) // s for d, s in zip(spatial, step, strict=True))
        upper = auto_pad == "SAME_UPPER"
        both = [_same(spatial[i], kernel[i], step[i], dil[i], upper, same_out[i]) for i in range(k)]
        known = [b for b in both if b is not None]
        explicit = tuple(b[0] for b in known) + tuple(b[1] for b in known) if len(known) == k else ()
        return Window(kernel, step, dil, explicit, same_out)
    explicit = (0,) * (2 * k) if auto_pad == "VALID" else _filled(pads, 2 * k, 0, "pads", -(1 << 40))
    out = tuple(
        window_size(spatial[i], kernel[i], step[i], dil[i], explicit[i], explicit[k + i], ceil) for i in range(k)
    )
    for i, o in enumerate(out):
        size = spatial[i]
        if isinstance(o, int) and o <= 0 and size != 0:
            raise ShapeError(
                f"the window (kernel {kernel[i]}, dilation {dil[i]}) is larger than spatial dim {i} of size "
                f"{spatial[i]} with pads {explicit[i]} and {explicit[k + i]}"
            )
    return Window(kernel, step, dil, explicit, tuple(max(o, 0) if isinstance(o, int) else o for o in out))


def conv_window(
    x: Sequence[Dim],
    w: Sequence[Dim],
    kernel_shape: Sequence[int] | None,
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str,
) -> Window:
    """The window of a convolution of ``x[N,C,…]`` by ``w[M,C/group,…]``; raises ShapeError where they clash."""
    if len(x) < 3 or len(w) != len(x):
        raise ShapeError(
            f"input of rank {len(x)} and weight of rank {len(w)}; both need the same rank ≥ 3 (N, C, spatial)"
        )
    kernel = _kernel(kernel_shape, w[2:], len(x) - 2)
    return _resolve(x[2:], kernel, strides, pads, dilations, auto_pad, False)


def pool_window(
    x: Sequence[Dim],
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int,
) -> Window:
    """The window of a pooling op over ``x[N,C,…]``."""
    if len(x) < 3:
        raise ShapeError(f"input has rank {len(x)}; pooling needs at least 3 dims (N, C, spatial)")
    kernel = _filled(kernel_shape, len(x) - 2, 1, "kernel_shape", 1)
    return _resolve(x[2:], kernel, strides, pads, dilations, auto_pad, bool(ceil_mode))


def transposed_window(
    x: Sequence[Dim],
    w: Sequence[Dim],
    kernel_shape: Sequence[int] | None,
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str,
    output_padding: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> TransposedWindow:
    """The window of ConvTranspose of ``x[N,C,…]`` by ``w[C,M/group,…]``.

    An output larger than the transposed convolution's full extent is filled with zeros (plus bias) at the end.
    """
    _check_auto(auto_pad)
    if len(x) < 3 or len(w) != len(x):
        raise ShapeError(
            f"input of rank {len(x)} and weight of rank {len(w)}; both need the same rank ≥ 3 (N, C, spatial)"
        )
    k = len(x) - 2
    kernel = _kernel(kernel_shape, w[2:], k)
    step = _filled(strides, k, 1, "strides", 1)
    dil = _filled(dilations, k, 1, "dilations", 1)
    extra = _filled(output_padding, k, 0, "output_padding", 0)
    full = [(x[2 + i] - 1) * step[i] + extra[i] + (kernel[i] - 1) * dil[i] + 1 for i in range(k)]
    wanted: tuple[Dim, ...] | None = None
    if output_shape:
        # some exporters write batch and channels as well; only the spatial sizes count
        wanted = tuple(output_shape[-k:])
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(x[2 + i] * step[i] for i in range(k))
    if wanted is None:
        explicit = (0,) * (2 * k) if auto_pad == "VALID" else _filled(pads, 2 * k, 0, "pads", -(1 << 40))
        out = tuple(full[i] - explicit[i] - explicit[k + i] for i in range(k))
        return TransposedWindow(kernel, step, dil, explicit[:k], out)
    begins = []
    for i in range(k):
        total = full[i] - wanted[i]
        if isinstance(total, SymDim):
            begins.append(0)  # only the shape is wanted; rules run on static sizes
            continue
        total = max(total, 0)
        begins.append(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
    return TransposedWindow(kernel, step, dil, tuple(begins), wanted)


def fits(shape: Sequence[Dim], wanted: Sequence[Dim | None]) -> bool:
    """Whether *shape* may be *wanted*, in which ``None`` is any size; unknown sizes fit."""
    return len(shape) == len(wanted) and all(
        want is None or isinstance(d, SymDim) or isinstance(want, SymDim) or d == want
        for d, want in zip(shape, wanted, strict=True)
    )
