"""References of the optimiser steps (ONNX operator specification, ai.onnx.preview.training)."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from mnnpy.decompose.ops.training import refuse_gradient
from mnnpy.decompose.registry import reference
from mnnpy.graph.ir import Array


def _scalars(R: Array, T: Array) -> tuple[float, int]:
    return float(R.reshape(-1)[0]), int(T.reshape(-1)[0])


@reference("training.Adagrad")
def adagrad(
    R: Array,
    T: Array,
    *tensors: Array,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> tuple[Array, ...]:
    rate, t = _scalars(R, T)
    rate = rate / (1 + t * decay_factor)
    n = len(tensors) // 3
    new_x: list[Array] = []
    new_h: list[Array] = []
    for x, g, h in zip(tensors[:n], tensors[n : 2 * n], tensors[2 * n :], strict=True):
        v = x.astype(np.float64)
        slope = norm_coefficient * v + g
        squares = h + slope * slope
        new_x.append((v - rate * slope / (np.sqrt(squares) + epsilon)).astype(x.dtype))
        new_h.append(squares.astype(x.dtype))
    return (*new_x, *new_h)


@reference("training.Adam")
def adam(
    R: Array,
    T: Array,
    *tensors: Array,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Array, ...]:
    rate, t = _scalars(R, T)
    if t > 0:
        rate = rate * np.sqrt(1 - beta**t) / (1 - alpha**t)
    n = len(tensors) // 4
    new_x: list[Array] = []
    new_v: list[Array] = []
    new_h: list[Array] = []
    for k in range(n):
        x, g, v, h = (a.astype(np.float64) for a in tensors[k::n])
        slope = norm_coefficient * x + g
        v = alpha * v + (1 - alpha) * slope
        h = beta * h + (1 - beta) * slope * slope
        x = (1 - norm_coefficient_post) * (x - rate * v / (np.sqrt(h) + epsilon))
        for out, value in zip((new_x, new_v, new_h), (x, v, h), strict=True):
            out.append(value.astype(tensors[k].dtype))
    return (*new_x, *new_v, *new_h)


@reference("training.Momentum")
def momentum(
    R: Array, T: Array, *tensors: Array, alpha: float, beta: float, mode: str, norm_coefficient: float
) -> tuple[Array, ...]:
    rate, t = _scalars(R, T)
    scale = beta if t > 0 else 1.0
    n = len(tensors) // 3
    new_x: list[Array] = []
    new_v: list[Array] = []
    for k in range(n):
        x, g, v = (a.astype(np.float64) for a in tensors[k::n])
        slope = norm_coefficient * x + g
        v = alpha * v + scale * slope
        step = slope + alpha * v if mode == "nesterov" else v
        new_x.append((x - rate * step).astype(tensors[k].dtype))
        new_v.append(v.astype(tensors[k].dtype))
    return (*new_x, *new_v)


@reference("training.Gradient")
def gradient(*inputs: Array, xs: tuple[str, ...] = (), y: str = "", zs: tuple[str, ...] | None = None) -> NoReturn:
    refuse_gradient()
