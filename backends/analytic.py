"""Analytic work of a node: floating point operations and bytes, from its static types alone."""

from __future__ import annotations

from math import prod

from mnnpy.backends.base import NodeView
from mnnpy.graph.ir import TensorType

__all__ = ["moved_bytes", "node_flops"]


def moved_bytes(view: NodeView) -> float:
    """Bytes read and written once each; a Gather or Raster reads no more than it writes."""
    written = sum(_bytes(t) for t in view.outputs)
    read = [_bytes(t) for t in view.inputs]
    if view.node.op in ("Gather", "Raster") and read:
        return 2 * written + sum(read[1:] if view.node.op == "Gather" else ())
    return written + sum(read)


def node_flops(view: NodeView) -> float:
    """Multiplications and additions; one operation per element for whatever is not a contraction."""
    op, out = view.node.op, view.outputs[0] if view.outputs else None
    if out is None or op in ("Raster", "Gather", "Reinterpret"):
        return 0.0
    count = _count(out)
    if op == "MatMul" and view.inputs[0] is not None and view.inputs[0].shape:
        depth = -2 if view.node.attrs.get("trans_a") and len(view.inputs[0].shape) > 1 else -1
        return 2.0 * count * float(view.inputs[0].shape[depth])  # type: ignore[arg-type]
    if op == "Convolution" and len(view.inputs) > 1 and view.inputs[1] is not None:
        w = view.inputs[1]
        return 2.0 * count * _count(w) / max(1.0, float((w.shape or (1,))[0]))  # type: ignore[arg-type]
    attrs = view.node.attrs
    if op == "ConvChain":
        return _chain_flops(view)
    if op in ("LSTM", "GRU", "RNN") and view.inputs[0] is not None:  # every row of every step by both weights
        rows = _count(view.inputs[0]) / max(1.0, float((view.inputs[0].shape or (1,))[-1]))  # type: ignore[arg-type]
        return 2.0 * rows * sum(map(_count, view.inputs[1:3]))
    if op == "Pool":
        return count * float(prod(attrs["kernel"]))
    if op == "Elementwise":
        return count * len(attrs["ops"])
    if op == "FusedAttention":
        scores = float(prod(attrs["batch"]) * attrs["q_len"] * attrs["k_len"])
        return 2.0 * scores * float(attrs["dim"] + attrs["v_dim"])
    return max(count, *(_count(t) for t in view.inputs)) if view.inputs else count


def _chain_flops(view: NodeView) -> float:
    """The stages of a ConvChain: operands 1, 3, … are weights, what lies between follows from their attributes."""
    attrs, first = view.node.attrs, view.inputs[0]
    if first is None or not first.is_static:
        return 0.0
    batch, *lines = (first.shape or ())[:3]
    total = 0.0
    for k in range(len(attrs["acts"])):
        w = view.inputs[1 + 2 * k]
        assert w is not None
        assert w.shape is not None
        for d in (0, 1):
            reach = (w.shape[2 + d] - 1) * attrs["dilations"][2 * k + d] + 1
            padded = lines[d] + attrs["pads"][4 * k + d] + attrs["pads"][4 * k + 2 + d]
            lines[d] = (padded - reach) // attrs["strides"][2 * k + d] + 1
        total += 2.0 * batch * prod(lines) * _count(w)  # type: ignore[operator]
    return total


def _count(t: TensorType | None) -> float:
    if t is None or not t.is_static:
        return 0.0
    return float(prod(t.shape or ()))  # type: ignore[arg-type]


def _bytes(t: TensorType | None) -> float:
    return _count(t) * t.dtype.itemsize if t is not None else 0.0
