"""The encoders and scalers of ai.onnx.ml as atomic ops. Strings and maps stay host ops."""

from __future__ import annotations

import math

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import to_float
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

#: Up to so many keys (or comparisons in all) LabelEncoder compares with every key; beyond, it searches.
_SCAN = 16
_SCAN_BLOCK = 1 << 16


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


@rule("ml.OneHotEncoder")
def one_hot_encoder(
    g: Builder,
    x: Var,
    *,
    cats_int64s: tuple[int, ...] | None = None,
    cats_strings: tuple[str, ...] | None = None,
    zeros: int = 1,
) -> Var | None:
    # with zeros=0 an unknown category is an error, which only the values tell: left to the host
    if cats_int64s is None or x.dtype is DType.STRING or not zeros:
        return None
    places = {c: k for k, c in enumerate(cats_int64s)}  # the last of equal categories counts
    last = np.asarray([places[c] == k for k, c in enumerate(cats_int64s)], np.bool_)
    if x.dtype.is_float:
        x = g.unary("Trunc", x)
        typed = np.asarray(cats_int64s, np.int64).astype(x.dtype.numpy)
        exact = np.asarray([int(t) == c for t, c in zip(typed, cats_int64s, strict=True)], np.bool_)
        categories = np.where(exact & last, typed, typed.dtype.type(np.nan))
        last |= True
    else:
        x, categories = g.cast(x, DType.I64), np.asarray(cats_int64s, np.int64)
    hit = g.binary("Equal", g.reshape(x, (*x.shape, 1)), g.const(categories))
    if not last.all():
        hit = g.binary("And", hit, g.const(last))
    return g.cast(hit, DType.F32)


@rule("ml.LabelEncoder")
def label_encoder(
    g: Builder,
    x: Var,
    *,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: Array | None = None,
    keys_floats: tuple[float, ...] | None = None,
    keys_int64s: tuple[int, ...] | None = None,
    keys_strings: tuple[str, ...] | None = None,
    keys_tensor: Array | None = None,
    values_floats: tuple[float, ...] | None = None,
    values_int64s: tuple[int, ...] | None = None,
    values_strings: tuple[str, ...] | None = None,
    values_tensor: Array | None = None,
) -> Var | None:
    keys = next((k for k in (keys_floats, keys_int64s, keys_tensor) if k is not None), None)
    if values_tensor is not None:
        values = values_tensor.reshape(-1)
        default = -0.0 if values.dtype.kind == "f" else -1
        default = default_tensor.reshape(-1)[0] if default_tensor is not None else default
    elif values_int64s is not None:
        values, default = np.asarray(values_int64s, np.int64), default_int64
    else:
        values, default = np.asarray(values_floats if values_floats is not None else (), np.float32), default_float
    strings = x.dtype is DType.STRING or values_strings is not None or values.dtype.kind not in "fiu"
    if keys is None or strings or np.asarray(keys).dtype.kind not in "fiu":
        return None
    ordered, at = _last_of_equal(np.asarray(keys).reshape(-1).astype(x.dtype.numpy))
    # row 0 of the table is what unknown elements become
    table = np.concatenate([np.asarray([default]), values[at]]).astype(values.dtype)
    unknown = np.isnan(ordered) if x.dtype.is_float else np.zeros(len(ordered), np.bool_)
    place = _find(g, x, ordered[~unknown], np.nonzero(~unknown)[0] + 1)
    if unknown.any():
        place = g.select(g.unary("IsNaN", x), g.const(np.nonzero(unknown)[0][0] + 1, DType.I32), place)
    return g.gather(g.const(table), place)


def _last_of_equal(keys: Array) -> tuple[Array, Array]:
    """Distinct *keys* in order (NaN last, once), and where each stands for the last time."""
    ordered, at = np.unique(keys[::-1], return_index=True)
    return ordered, len(keys) - 1 - at


def _find(g: Builder, x: Var, keys: Array, places: Array) -> Var:
    """The entry (i32) of *places* for each element of *x* among sorted *keys*, 0 where it is none of them."""
    if len(keys) <= _SCAN or len(keys) * math.prod(x.shape) <= _SCAN_BLOCK:
        hit = g.binary("Equal", g.reshape(x, (*x.shape, 1)), g.const(keys, x.dtype))
        return g.reduce("Sum", g.mul(g.cast(hit, DType.I32), g.const(places, DType.I32)), [-1], keepdims=False)
    # binary search for the last key that is no larger, over a table filled up with its last entry
    levels = (len(keys) - 1).bit_length()
    fill = (1 << levels) - len(keys)
    table, order = g.const(np.pad(keys, (0, fill), "edge"), x.dtype), np.pad(places, (0, fill), "edge")
    at = g.const(np.zeros(x.shape), DType.I32)
    for level in reversed(range(levels)):
        probe = g.add(at, 1 << level)
        at = g.select(g.binary("LessEqual", g.gather(table, probe), x), probe, at)
    hit = g.binary("Equal", g.gather(table, at), x)
    return g.select(hit, g.gather(g.const(order, DType.I32), at), 0)
