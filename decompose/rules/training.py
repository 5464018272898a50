"""Optimiser steps as element-wise ops."""

from __future__ import annotations

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.registry import rule


def _scalar(g: Builder, v: Var, like: Var) -> Var:
    """A one-element operand as a scalar of the type of *like*."""
    return g.cast(g.reshape(v, ()), like.dtype)


def _regularized(g: Builder, x: Var, slope: Var, norm_coefficient: float) -> Var:
    return g.add(g.mul(x, norm_coefficient), slope) if norm_coefficient else slope


def _later(g: Builder, T: Var) -> Var:
    """Whether this is not the first step (a bool scalar)."""
    return g.binary("Greater", g.reshape(T, ()), 0)


def _grown(g: Builder, base: float, t: Var) -> Var:
    """``1 − base^t``."""
    return g.sub(g.const(1, t.dtype), g.binary("Pow", g.const(base, t.dtype), t))


@rule("training.Adagrad")
def adagrad(
    g: Builder,
    R: Var,
    T: Var,
    *tensors: Var,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> tuple[Var, ...]:
    n = len(tensors) // 3
    new_x, new_h = [], []
    for x, slope, h in zip(tensors[:n], tensors[n : 2 * n], tensors[2 * n :], strict=True):
        rate = _scalar(g, R, x)
        if decay_factor:
            rate = g.div(rate, g.add(g.mul(_scalar(g, T, x), decay_factor), 1))
        slope = _regularized(g, x, slope, norm_coefficient)
        h = g.add(h, g.unary("Square", slope))
        new_x.append(g.sub(x, g.div(g.mul(slope, rate), g.add(g.unary("Sqrt", h), epsilon))))
        new_h.append(h)
    return (*new_x, *new_h)


@rule("training.Adam")
def adam(
    g: Builder,
    R: Var,
    T: Var,
    *tensors: Var,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Var, ...]:
    n = len(tensors) // 4
    new_x, new_v, new_h = [], [], []
    for k in range(n):
        x, slope, v, h = tensors[k::n]
        slope = _regularized(g, x, slope, norm_coefficient)
        v = g.add(g.mul(v, alpha), g.mul(slope, 1 - alpha))
        h = g.add(g.mul(h, beta), g.mul(g.unary("Square", slope), 1 - beta))
        rate, t = _scalar(g, R, x), _scalar(g, T, x)
        adjusted = g.div(g.mul(rate, g.unary("Sqrt", _grown(g, beta, t))), _grown(g, alpha, t))
        rate = g.select(_later(g, T), adjusted, rate)
        x = g.sub(x, g.div(g.mul(v, rate), g.add(g.unary("Sqrt", h), epsilon)))
        new_x.append(g.mul(x, 1 - norm_coefficient_post) if norm_coefficient_post else x)
        new_v.append(v)
        new_h.append(h)
    return (*new_x, *new_v, *new_h)


@rule("training.Momentum")
def momentum(
    g: Builder, R: Var, T: Var, *tensors: Var, alpha: float, beta: float, mode: str, norm_coefficient: float
) -> tuple[Var, ...]:
    n = len(tensors) // 3
    new_x, new_v = [], []
    for k in range(n):
        x, slope, v = tensors[k::n]
        slope = _regularized(g, x, slope, norm_coefficient)
        scaled = slope
        if beta != 1:
            scaled = g.mul(slope, g.select(_later(g, T), g.const(beta, x.dtype), g.const(1, x.dtype)))
        v = g.add(g.mul(v, alpha), scaled)
        step = g.add(slope, g.mul(v, alpha)) if mode == "nesterov" else v
        new_x.append(g.sub(x, g.mul(step, _scalar(g, R, x))))
        new_v.append(v)
    return (*new_x, *new_v)
