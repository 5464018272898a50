"""The numeric ops of ai.onnx.ml as atomic ops. Strings, maps, trees and votes stay host ops."""

from __future__ import annotations

import math

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import to_float
from mnnpy.graph.dtypes import DType


@rule("ml.ArrayFeatureExtractor")
def array_feature_extractor(g: Builder, x: Var, y: Var) -> Var | None:
    if x.dtype is DType.STRING:
        return None
    if x.rank == 1:
        x = g.reshape(x, (1, x.shape[0]))
    return g.gather(x, g.reshape(y, (math.prod(y.shape),)), x.rank - 1)


@rule("ml.Binarizer")
def binarizer(g: Builder, x: Var, *, threshold: float = 0.0) -> Var:
    # An integer is above 0.5 exactly where it is above 0.
    limit = threshold if x.dtype.is_float else math.floor(threshold)
    return g.cast(g.binary("Greater", x, limit), x.dtype)


@rule("ml.FeatureVectorizer")
def feature_vectorizer(g: Builder, *xs: Var, inputdimensions: tuple[int, ...] | None = None) -> Var:
    parts = []
    for k, x in enumerate(xs):
        columns = math.prod(x.shape[1:]) if x.rank > 1 else x.shape[0]
        part = g.reshape(g.cast(x, DType.F32), (x.shape[0] if x.rank > 1 else 1, columns))
        width = inputdimensions[k] if inputdimensions else columns
        if width < columns:
            part = g.slice(part, 1, 0, width)
        elif width > columns:
            part = g.pad(part, (0, 0), (0, width - columns))
        parts.append(part)
    return parts[0] if len(parts) == 1 else g.concat(parts, 1)


@rule("ml.Imputer")
def imputer(
    g: Builder,
    x: Var,
    *,
    imputed_value_floats: tuple[float, ...] | None = None,
    imputed_value_int64s: tuple[int, ...] | None = None,
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Var:
    if x.dtype.is_float:
        missing = (
            g.unary("IsNaN", x) if math.isnan(replaced_value_float) else g.binary("Equal", x, replaced_value_float)
        )
        return g.select(missing, g.const(imputed_value_floats, x.dtype), x)
    missing = g.binary("Equal", x, replaced_value_int64)
    return g.select(missing, g.const(np.asarray(imputed_value_int64s).astype(x.dtype.numpy)), x)


@rule("ml.Scaler")
def scaler(
    g: Builder, x: Var, *, offset: tuple[float, ...] | None = None, scale: tuple[float, ...] | None = None
) -> Var:
    y = to_float(g, x)
    if offset is not None and any(offset):
        y = g.sub(y, g.const(np.asarray(offset, np.float32), y.dtype))
    if scale is not None:
        y = g.mul(y, g.const(np.asarray(scale, np.float32), y.dtype))
    return g.cast(y, DType.F32)


@rule("ml.Normalizer")
def normalizer(g: Builder, x: Var, *, norm: str = "MAX") -> Var:
    y = to_float(g, x)
    divisor = g.reduce({"MAX": "Max", "L1": "L1", "L2": "L2"}[norm], y, [-1])
    divisor = g.select(g.binary("Equal", divisor, 0), g.const(1, y.dtype), divisor)
    return g.cast(g.div(y, divisor), DType.F32)


@rule("ml.LinearRegressor")
def linear_regressor(
    g: Builder,
    x: Var,
    *,
    coefficients: tuple[float, ...] | None = None,
    intercepts: tuple[float, ...] | None = None,
    post_transform: str = "NONE",
    targets: int = 1,
) -> Var | None:
    if post_transform in ("SOFTMAX_ZERO", "PROBIT"):
        return None
    rows = to_float(g, x)
    if x.rank == 1:
        rows = g.reshape(rows, (1, x.shape[0]))
    weights = np.asarray(coefficients or (), np.float32).reshape(targets, -1).T
    y = g.matmul(rows, g.const(np.ascontiguousarray(weights), rows.dtype))
    if intercepts:
        y = g.add(y, g.const(np.asarray(intercepts, np.float32), rows.dtype))
    if post_transform == "LOGISTIC":
        y = g.unary("Sigmoid", y)
    elif post_transform == "SOFTMAX":
        y = g.op("Softmax", y, axis=-1)
    return g.cast(y, DType.F32)
