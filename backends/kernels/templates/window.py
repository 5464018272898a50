"""Pool, and convolution without reuse: one item per output element, 1 to 3 spatial dims."""

from __future__ import annotations

from math import prod

import numpy as np

from mnnpy.backends.kernels.builder import KernelBuilder
from mnnpy.backends.kernels.ir import Expr, const, ne, register_type, select
from mnnpy.backends.kernels.lowering import Lowering, template
from mnnpy.backends.kernels.templates.epilogue import Epilogue
from mnnpy.backends.kernels.templates.lines import Lines, Window, applies
from mnnpy.backends.kernels.templates.reduce import _as, identity
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Node

__all__ = ["direct"]

LOCAL = 64
_FLOATS = frozenset({DType.F16, DType.F32, DType.F64})


def direct(work: Lowering, node: Node, epilogue: Epilogue) -> None:
    """Convolution of any type: one item per output; padding is skipped by bounds on the window, not by tests in it."""
    name, weights = node.inputs[:2]
    out = node.outputs[0]
    n_spatial = len(work.shape(name)) - 2
    dtype = work.dtype(name)
    kernel, group = work.shape(weights)[2:], node.attrs.get("group", 1)
    b = KernelBuilder(f"convolution{n_spatial}d", (LOCAL, 1, 1))
    x, w, y = b.buffer("x", dtype), b.buffer("w", dtype), b.buffer("y", dtype, "w")
    tail = epilogue.attach(b)
    buffers = {"x": name, "w": weights, "y": out, **tail.buffers()}
    count, channels, depth = b.scalar("count"), b.scalar("m"), b.scalar("cg")
    per_group = b.scalar("mg")
    m, cg = work.shape(weights)[:2]
    scalars: dict[str, int | float] = {"count": work.count(out), "m": m, "cg": cg, "mg": m // group, "c": cg * group}
    all_channels = b.scalar("c")
    sizes = _Sizes(b, work.shape(name)[2:], work.shape(out)[2:], kernel, node, scalars)
    i = b.let(b.global_id())
    with b.when(i < count):
        batch_channel, place = sizes.split(i)
        channel = b.let(batch_channel % channels)
        batch = b.let(batch_channel / channels)
        first = b.let((channel / per_group) * depth)
        kind = register_type(dtype)
        total = b.mutable(const(0.0 if kind in _FLOATS else 0, kind))
        with b.loop(0, depth) as c:
            base_x = b.let((batch * all_channels + first + c) * sizes.volume)
            base_w = b.let((channel * depth + c) * sizes.taps)
            with sizes.window(place) as (at_x, at_w):
                b.assign(total, total + b.load(x, base_x + at_x) * b.load(w, base_w + at_w))
        b.store(y, i, tail.finish(total, i, tail.load_bias(channel)))
    work.launch(node, b.build(), buffers, work.grid(work.count(out), LOCAL), {**scalars, **tail.scalars()})


class _Sizes:
    """Geometry of a window as scalars, and the loops over it."""

    def __init__(
        self,
        b: KernelBuilder,
        size: tuple[int, ...],
        out: tuple[int, ...],
        kernel: tuple[int, ...],
        node: Node,
        scalars: dict[str, int | float],
    ) -> None:
        self.b = b
        self.rank = len(size)
        strides, pads, dilations = (node.attrs[a] for a in ("strides", "pads", "dilations"))
        for d in range(self.rank):
            scalars |= {
                f"i{d}": size[d], f"o{d}": out[d], f"k{d}": kernel[d], f"s{d}": strides[d], f"d{d}": dilations[d],
                f"p{d}": pads[d],
            }  # fmt: skip
        scalars |= {"volume": prod(size), "taps": prod(kernel)}
        self.size, self.out, self.kernel, self.stride, self.dilation, self.pad = (
            [b.scalar(f"{h}{d}") for d in range(self.rank)] for h in "ioksdp"
        )
        self.volume, self.taps = b.scalar("volume"), b.scalar("taps")

    def split(self, flat: Expr) -> tuple[Expr, list[Expr]]:
        """(everything before the spatial dims, spatial coordinates) of an output index."""
        found = self.b.unravel(flat, [1, *self.out])
        return found[0], found[1:]

    def window(self, place: list[Expr]) -> _Window:
        return _Window(self, place)


class _Window:
    """Nested loops over the taps that lie inside the input: (offset in the input, offset in the kernel)."""

    def __init__(self, sizes: _Sizes, place: list[Expr]) -> None:
        self.sizes, self.place = sizes, place
        self.open: list[object] = []

    def __enter__(self) -> tuple[Expr, Expr]:
        z, b = self.sizes, self.sizes.b
        at_x: Expr = const(0)
        at_w: Expr = const(0)
        for d in range(z.rank):
            start = b.let(self.place[d] * z.stride[d] - z.pad[d])
            low = b.let(select(start < 0, (z.dilation[d] - 1 - start) / z.dilation[d], const(0)))
            room = b.let(z.size[d] - start)
            high = b.let(select(room > 0, (room + z.dilation[d] - 1) / z.dilation[d], const(0)).min(z.kernel[d]))
            loop = b.loop(low, high)
            tap = loop.__enter__()
            self.open.append(loop)
            at_x = b.let(at_x * z.size[d] + start + tap * z.dilation[d])
            at_w = b.let(at_w * z.kernel[d] + tap)
        return at_x, at_w

    def __exit__(self, *error: object) -> None:
        while self.open:
            self.open.pop().__exit__(None, None, None)  # type: ignore[attr-defined]


@template("Pool")
def pool(work: Lowering, node: Node) -> None:
    """Max (with indices), Average and Lp."""
    name, out = node.inputs[0], node.outputs[0]
    with_indices = len(node.outputs) > 1 and bool(node.outputs[1])
    fn, dtype = node.attrs["fn"], work.dtype(name)
    size, result = work.shape(name)[2:], work.shape(out)[2:]
    if fn in ("Max", "Average") and not with_indices and len(size) == 2:
        a = node.attrs
        window = Window(size, result, a["kernel"], a["strides"], a["pads"][:2], a["dilations"])
        if applies(work, name, window) and work.count(out):
            _pool_lines(work, node, window)
            return
    b = KernelBuilder(f"pool_{fn.lower()}", (LOCAL, 1, 1))
    x, y = b.buffer("x", dtype), b.buffer("y", dtype, "w")
    places = b.buffer("at", DType.I64, "w") if with_indices else None
    count = b.scalar("count")
    scalars: dict[str, int | float] = {"count": work.count(out)}
    sizes = _Sizes(b, size, result, node.attrs["kernel"], node, scalars)
    p = int(node.attrs.get("p", 2))
    i = b.let(b.global_id())
    with b.when(i < count):
        line, place = sizes.split(i)
        line = b.let(line)
        kind = register_type(dtype)
        total = b.mutable(_as(identity("Max", dtype) if fn == "Max" else 0, kind))
        best = b.mutable(const(-1))
        seen = b.mutable(const(0))
        base = b.let(line * sizes.volume)
        with sizes.window(place) as (at, _):
            v = b.let(b.load(x, base + at))
            if fn == "Max":
                ahead = (v > total) | (best < 0)
                ahead = ahead | v.call("isnan") if kind in _FLOATS else ahead
                with b.when(ahead):
                    b.assign(total, v)
                    b.assign(best, at)
            elif fn == "Average":
                b.assign(total, total + v)
                b.assign(seen, seen + 1)
            else:
                size_of = v.call("abs") if p != 2 else v
                power = size_of if p == 1 else size_of * size_of if p == 2 else size_of.call("pow", float(p))
                b.assign(total, total + power)
        b.store(y, i, _finished(b, node, sizes, place, fn, total, seen, p))
        if places is not None:
            b.store(places, i, (base + _order(b, node, sizes, best)).cast(DType.I64))
    buffers = {"x": name, "y": out} | ({"at": node.outputs[1]} if with_indices else {})
    work.launch(node, b.build(), buffers, work.grid(work.count(out), LOCAL), scalars)


def _pool_lines(work: Lowering, node: Node, w: Window) -> None:
    """Max and Average by explicit vectors."""
    largest = node.attrs["fn"] == "Max"
    lines = Lines(work, node, "pool_lines", w, node.inputs[0], node.outputs[0])
    b = lines.b
    if largest:

        def maximum(total: Expr, value: Expr, here: Expr, tap: int) -> Expr:
            value = b.let(select(here, value, const(float("-inf"), value.type)))
            return select(ne(value, value), value, select(value > total, value, total))  # NaN stays

        lines.write(float("-inf"), maximum, lambda total, *_: total)
        return
    counts = [b.buffer(f"n{d}", DType.F32) for d in range(2)]
    for d, pad in enumerate(lines.lanes * d for d in range(2)):
        found = np.ones(w.result[d] + pad, np.float32)
        found[: w.result[d]] = np.maximum(1, _taps_counted(node, w, d))
        lines.values[f"n{d}"] = work.constant(found, "counts")

    def total_of(total: Expr, value: Expr, here: Expr, tap: int) -> Expr:
        return total + select(here, value, const(0.0, total.type))

    def mean(total: Expr, _: Expr, column: Expr) -> Expr:
        lanes = total.type.lanes
        return total / (b.load(counts[1], column, lanes) * b.load(counts[0], lines.line).splat(lanes))

    lines.write(0.0, total_of, mean)


def _taps_counted(node: Node, w: Window, d: int) -> Array:
    """How many taps of a window Average counts in dim *d*, by output: those inside, or inside with the padding."""
    start = np.arange(w.result[d]) * w.strides[d] - w.pads[d]
    taps = start[:, None] + np.arange(w.kernel[d]) * w.dilations[d]
    if node.attrs.get("count_include_pad", False):
        counted: Array = taps < w.size[d] + int(node.attrs["pads"][2 + d])
    else:
        counted = (taps >= 0) & (taps < w.size[d])
    found: Array = counted.sum(1)
    return found


def _finished(
    b: KernelBuilder, node: Node, sizes: _Sizes, place: list[Expr], fn: str, total: Expr, seen: Expr, p: int
) -> Expr:
    if fn == "Max":
        return total
    if fn == "Average":
        number = seen
        if node.attrs.get("count_include_pad", False):
            pads = node.attrs["pads"]
            number = const(1)
            for d in range(sizes.rank):
                start = place[d] * sizes.stride[d] - sizes.pad[d]
                room = sizes.size[d] + int(pads[sizes.rank + d]) - start
                inside = ((room + sizes.dilation[d] - 1) / sizes.dilation[d]).min(sizes.kernel[d])
                number = number * inside
        return total / number.max(1).cast(total.dtype)
    if p == 1:
        return total
    return total.call("sqrt") if p == 2 else total.call("pow", 1.0 / p)


def _order(b: KernelBuilder, node: Node, sizes: _Sizes, at: Expr) -> Expr:
    """The flat index within the spatial dims, column-major where asked."""
    if not node.attrs.get("column_major", False):
        return at
    coordinates = b.unravel(at, [1, *sizes.size])[1:]
    flat: Expr = const(0)
    for d in reversed(range(sizes.rank)):
        flat = flat * sizes.size[d] + coordinates[d]
    return flat
