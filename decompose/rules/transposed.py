"""Rule of ConvTranspose: one ordinary convolution whose output channels hold all phases of the strided output.

With stride *s* the output position ``q·s + p`` reads ``sum_t x[q − t] · w[p + t·s]``: for each of the *s* phases *p* a
stride-1 convolution with every *s*-th kernel element (sub-pixel convolution, arXiv 1609.07009). The phases are extra
output channels of a single Convolution; a raster interleaves them. Nothing is multiplied by inserted zeros.
"""

from __future__ import annotations

import itertools
from math import prod

from mnnpy.classes import dataclass
from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.ops.windows import Ints, transposed_window
from mnnpy.decompose.raster import Region, row_major
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.contract import MAX_SPATIAL
from mnnpy.decompose.rules.helpers import along_channel


@dataclass(frozen=True, slots=True)
class _Axis:
    """One spatial dim: *phases* output phases, *taps* elements of the new kernel, *cut* rows of the result left out."""

    kernel: int
    dilation: int
    phases: int
    taps: int
    step: int  #: dilation of the new kernel
    cut: tuple[int, int]
    size: int  #: extent of the convolution's result
    base: int  #: output position of its first element
    out: int

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, dilation: int, begin: int, out: int) -> _Axis:
        if stride == 1:
            taps, step = kernel, dilation
        else:
            taps, step = -(-((kernel - 1) * dilation + 1) // stride), 1
        reach = (taps - 1) * step
        head = min(max(begin, 0) // stride, reach)
        tail = min(max(size + reach - -(-(begin + out) // stride), 0), reach)
        return cls(
            kernel, dilation, stride, taps, step, (head, tail), size + reach - head - tail, head * stride - begin, out
        )

    @property
    def reach(self) -> int:
        return (self.taps - 1) * self.step

    @property
    def span(self) -> tuple[int, int]:
        """First and last (exclusive) element of ``q·phases + p`` that is kept."""
        return max(0, -self.base), max(0, -self.base, min(self.size * self.phases, self.out - self.base))

    @property
    def covers(self) -> bool:
        low, high = self.span
        return low + self.base == 0 and high + self.base == self.out

    def pieces(self) -> list[tuple[int, int, int, int]]:
        """(first q, count of q, first p, count of p) blocks that make up the span; the fewer of two ways."""
        low, high = self.span
        s = self.phases
        by_phase = []
        for p in range(s):
            q0, q1 = -(-(low - p) // s), -(-(high - p) // s)
            if q1 > q0:
                by_phase.append((q0, q1 - q0, p, 1))
        blocks = []
        at = low
        if at % s and at < high:
            end = min(high, at - at % s + s)
            blocks.append((at // s, 1, at % s, end - at))
            at = end
        if high // s > at // s:
            blocks.append((at // s, high // s - at // s, 0, s))
            at = high // s * s
        if at < high:
            blocks.append((at // s, 1, 0, high - at))
        return min(blocks, by_phase, key=len)

    def kernel_pieces(self) -> list[tuple[int, int, tuple[tuple[int, int, int, int], ...]]]:
        """Blocks of the kernel: (first source element, first tap, ((size, source step, tap step, phase step), …))."""
        k, s, t = self.kernel, self.phases, self.taps
        if s == 1:
            return [(k - 1, 0, ((k, -1, 1, 0),))]
        if self.dilation > 1:
            return [(i, t - 1 - i * self.dilation // s, ((1, 0, 0, 0),)) for i in range(k)]
        found: list[tuple[int, int, tuple[tuple[int, int, int, int], ...]]] = []
        if t > 1:
            found.append(((t - 2) * s, 1, ((s, 1, 0, 1), (t - 1, -s, 1, 0))))
        found.append(((t - 1) * s, 0, ((k - (t - 1) * s, 1, 0, 1),)))
        return found

    def first_phase(self, source: int) -> int:
        """The phase that a kernel block starting at *source* begins with."""
        return source * self.dilation % self.phases if self.dilation > 1 and self.phases > 1 else 0

    @property
    def fills_kernel(self) -> bool:
        return self.phases == 1 or (self.dilation == 1 and self.kernel == self.taps * self.phases)


def _phase_kernel(g: Builder, w: Var, group: int, axes: list[_Axis]) -> Var:
    """``w[C, M/group, …]`` as the weight ``[M·phases, C/group, taps…]`` of the convolution."""
    c, mg = w.shape[:2]
    cg = c // group
    taps, phases = tuple(a.taps for a in axes), tuple(a.phases for a in axes)
    source = row_major(tuple(w.shape))
    row, p_count = cg * prod(taps), prod(phases)
    tap_strides, phase_strides = row_major(taps), row_major(phases)
    regions = []
    for choice in itertools.product(*(a.kernel_pieces() for a in axes)):
        size, src, dst = (
            [group, mg, cg],
            [cg * source[0], source[1], source[0]],
            [mg * p_count * row, p_count * row, prod(taps)],
        )
        src_offset = dst_offset = 0
        for j, (first, tap, dims) in enumerate(choice):
            src_offset += first * source[2 + j]
            dst_offset += tap * tap_strides[j] + axes[j].first_phase(first) * phase_strides[j] * row
            for count, step, tap_step, phase_step in dims:
                size.append(count)
                src.append(step * source[2 + j])
                dst.append(tap_step * tap_strides[j] + phase_step * phase_strides[j] * row)
        regions.append(Region(0, tuple(size), src_offset, tuple(src), dst_offset, tuple(dst)))
    full = all(a.fills_kernel for a in axes)
    return g.raster([w], regions, (group * mg * p_count, cg, *taps), fill=None if full else 0)


def _interleave(g: Builder, z: Var, channels: int, axes: list[_Axis]) -> Var:
    """Phases in the channels of *z* to their places ``[N, M, out…]``."""
    n, k = z.shape[0], len(axes)
    sizes, out = tuple(a.size for a in axes), tuple(a.out for a in axes)
    phases = tuple(a.phases for a in axes)
    area, p_strides = prod(sizes), row_major(phases)
    z_strides, o_strides = row_major(sizes), row_major(out)
    regions = []
    for choice in itertools.product(*(a.pieces() for a in axes)):
        size = [n, channels]
        src, dst = [channels * prod(phases) * area, prod(phases) * area], [channels * prod(out), prod(out)]
        src_offset = dst_offset = 0
        for j in range(k):
            q, q_count, p, p_count = choice[j]
            s = phases[j]
            src_offset += q * z_strides[j] + p * p_strides[j] * area
            dst_offset += (axes[j].base + q * s + p) * o_strides[j]
            size += [q_count, p_count]
            src += [z_strides[j], p_strides[j] * area]
            dst += [s * o_strides[j], o_strides[j]]
        regions.append(Region(0, tuple(size), src_offset, tuple(src), dst_offset, tuple(dst)))
    return g.raster([z], regions, (n, channels, *out), fill=None if all(a.covers for a in axes) else 0)


@rule("ConvTranspose")
def conv_transpose(
    g: Builder,
    x: Var,
    w: Var,
    b: Var | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Var | None:
    win = transposed_window(
        x.shape, w.shape, kernel_shape, strides, pads, dilations, auto_pad, output_padding, output_shape
    )
    k, channels = len(win.kernel), w.shape[1] * group
    if 0 in win.out:
        return g.raster([x], (), (x.shape[0], channels, *map(int, win.out)), fill=0)  # type: ignore[arg-type]
    if k > MAX_SPATIAL or 0 in x.shape[2:]:
        return None
    axes = [
        _Axis.of(x.shape[2 + j], win.kernel[j], win.strides[j], win.dilations[j], win.begins[j], int(win.out[j]))  # type: ignore[arg-type]
        for j in range(k)
    ]
    phases = prod(a.phases for a in axes)
    covered = all(a.covers for a in axes)
    bias = b if covered else None
    if bias is not None and phases > 1:
        spread = Region(0, (channels, phases), 0, (1, 0), 0, (phases, 1))
        bias = g.raster([bias], [spread], (channels * phases,))
    y = g.op(
        "Convolution",
        x,
        _phase_kernel(g, w, group, axes),
        bias,
        strides=(1,) * k,
        pads=(*(a.reach - a.cut[0] for a in axes), *(a.reach - a.cut[1] for a in axes)),
        dilations=tuple(a.step for a in axes),
        group=group,
    )
    if phases > 1 or not all(a.covers and a.base == 0 and a.size == a.out for a in axes):
        y = _interleave(g, y, channels, axes)
    return y if covered or b is None else g.add(y, along_channel(g, b, x.rank))
