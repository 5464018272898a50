"""References of the encoders, scalers and maps of ai.onnx.ml."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnnpy.backends.reference.kernels.text import map_strings, text_of
from mnnpy.decompose.registry import reference
from mnnpy.errors import InputError
from mnnpy.graph.ir import Array


@reference("ml.ArrayFeatureExtractor")
def array_feature_extractor(x: Array, y: Array) -> Array:
    indices = y.reshape(-1)
    if indices.size and not (indices.min() >= 0 and indices.max() < x.shape[-1]):
        raise InputError(f"indices {indices.min()} to {indices.max()} for {x.shape[-1]} features")
    return (x[None] if x.ndim == 1 else x)[..., indices]


@reference("ml.Binarizer")
def binarizer(x: Array, *, threshold: float = 0.0) -> Array:
    return (x > threshold).astype(x.dtype)


@reference("ml.CastMap")
def cast_map(x: dict[int, Any], *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1) -> Array:
    dtype: Any = {"TO_FLOAT": np.float32, "TO_STRING": object, "TO_INT64": np.int64}[cast_to]
    convert = {"TO_FLOAT": float, "TO_STRING": text_of, "TO_INT64": lambda v: int(float(v))}[cast_to]
    pairs = sorted((int(k), convert(v)) for k, v in x.items())  # type: ignore[operator]
    if map_form == "DENSE":
        out = np.empty((1, len(pairs)), dtype)
        out[0, :] = [v for _, v in pairs]
        return out
    out = np.full((1, max_map), "" if cast_to == "TO_STRING" else 0, dtype)
    for key, value in pairs:
        if not 0 <= key < max_map:
            raise InputError(f"key {key} is outside of a sparse tensor of max_map={max_map}")
        out[0, key] = value
    return out


@reference("ml.CategoryMapper")
def category_mapper(
    x: Array,
    *,
    cats_int64s: tuple[int, ...] | None = None,
    cats_strings: tuple[str, ...] | None = None,
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Array:
    pairs = list(zip(cats_int64s or (), cats_strings or (), strict=True))
    if x.dtype.kind == "O":
        to_int = {s: i for i, s in pairs}
        return map_strings(lambda s: to_int.get(s, default_int64), np.int64, x)
    to_text = dict(pairs)
    out = np.empty(x.shape, object)
    out.reshape(-1)[:] = [to_text.get(int(v), default_string) for v in x.reshape(-1)]
    return out


@reference("ml.DictVectorizer")
def dict_vectorizer(
    x: dict[Any, Any],
    *,
    int64_vocabulary: tuple[int, ...] | None = None,
    string_vocabulary: tuple[str, ...] | None = None,
) -> Array:
    vocabulary: Sequence[Any] = int64_vocabulary if int64_vocabulary is not None else string_vocabulary or ()
    values = list(x.values())
    dtype: Any = np.asarray(values[0]).dtype if values else np.dtype(np.float32)
    if dtype.kind in "USO":
        dtype = np.dtype(object)
    elif isinstance(values[0], float):
        dtype = np.dtype(np.float32)
    out = np.full((1, len(vocabulary)), "" if dtype.kind == "O" else 0, dtype)
    places = {key: k for k, key in enumerate(vocabulary)}
    for key, value in x.items():
        if key in places:
            out[0, places[key]] = value
    return out


@reference("ml.FeatureVectorizer")
def feature_vectorizer(*xs: Array, inputdimensions: tuple[int, ...] | None = None) -> Array:
    parts = []
    for k, x in enumerate(xs):
        rows = x.reshape(1, -1) if x.ndim == 1 else x.reshape(x.shape[0], -1)
        width = inputdimensions[k] if inputdimensions else rows.shape[1]
        part = np.zeros((rows.shape[0], width), np.float32)
        used = min(width, rows.shape[1])
        part[:, :used] = rows[:, :used]
        parts.append(part)
    return np.concatenate(parts, axis=1)


@reference("ml.Imputer")
def imputer(
    x: Array,
    *,
    imputed_value_floats: tuple[float, ...] | None = None,
    imputed_value_int64s: tuple[int, ...] | None = None,
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Array:
    if x.dtype.kind == "f":
        old = x.dtype.type(replaced_value_float)
        missing = np.isnan(x) if np.isnan(old) else x == old
        return np.where(missing, np.asarray(imputed_value_floats, x.dtype), x)
    return np.where(x == replaced_value_int64, np.asarray(imputed_value_int64s).astype(x.dtype), x)


@reference("ml.LabelEncoder")
def label_encoder(
    x: Array,
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
) -> Array:
    keys = next(k for k in (keys_floats, keys_int64s, keys_strings, keys_tensor) if k is not None)
    default: Any
    if values_tensor is not None:
        values: Sequence[Any] = values_tensor.reshape(-1).tolist()
        dtype: Any = values_tensor.dtype
        default = default_tensor.reshape(-1)[0] if default_tensor is not None else _default(dtype)
    elif values_strings is not None:
        values, dtype, default = values_strings, object, default_string
    elif values_int64s is not None:
        values, dtype, default = values_int64s, np.int64, default_int64
    else:
        values, dtype, default = values_floats or (), np.float32, default_float
    if len(keys) != len(values):
        raise InputError(f"{len(keys)} keys for {len(values)} values")
    table, nan_value = _table(np.asarray(keys).reshape(-1), values, x.dtype)
    out = np.empty(x.shape, dtype)
    flat = out.reshape(-1)
    for k, v in enumerate(x.reshape(-1).tolist()):
        if isinstance(v, float) and v != v:
            flat[k] = default if nan_value is None else nan_value[0]
        else:
            flat[k] = table.get(text_of(v) if x.dtype.kind == "O" else v, default)
    return flat.reshape(x.shape)


def _default(dtype: np.dtype[Any]) -> Any:
    return "_Unused" if dtype.kind == "O" else -0.0 if dtype.kind == "f" else -1


def _table(keys: Array, values: Sequence[Any], dtype: np.dtype[Any]) -> tuple[dict[Any, Any], tuple[Any] | None]:
    """Key → value in the element type of the input, and the value of NaN; the last of equal keys counts."""
    table: dict[Any, Any] = {}
    nan_value: tuple[Any] | None = None
    typed = [text_of(k) for k in keys] if dtype.kind == "O" else keys.astype(dtype).tolist()
    for key, value in zip(typed, values, strict=True):
        if isinstance(key, float) and key != key:
            nan_value = (value,)
        else:
            table[key] = value
    return table, nan_value


@reference("ml.Normalizer")
def normalizer(x: Array, *, norm: str = "MAX") -> Array:
    v = x.astype(np.float64)
    if norm == "MAX":
        divisor = v.max(axis=-1, keepdims=True, initial=-np.inf)
    elif norm == "L1":
        divisor = np.abs(v).sum(axis=-1, keepdims=True)
    else:
        divisor = np.sqrt((v * v).sum(axis=-1, keepdims=True))
    return (v / np.where(divisor == 0, 1, divisor)).astype(np.float32)


@reference("ml.OneHotEncoder")
def one_hot_encoder(
    x: Array,
    *,
    cats_int64s: tuple[int, ...] | None = None,
    cats_strings: tuple[str, ...] | None = None,
    zeros: int = 1,
) -> Array:
    categories: Sequence[Any] = cats_strings if cats_strings is not None else cats_int64s or ()
    places = {c: k for k, c in enumerate(categories)}
    out = np.zeros((x.size, len(categories)), np.float32)
    for row, value in zip(out, x.reshape(-1).tolist(), strict=True):
        known = cats_strings is not None or math.isfinite(value)
        place = places.get(text_of(value) if cats_strings is not None else int(value)) if known else None
        if place is not None:
            row[place] = 1
        elif not zeros:
            raise InputError(f"category {value!r} is not among {len(categories)} known ones, and zeros=0")
    return out.reshape(*x.shape, len(categories))


@reference("ml.Scaler")
def scaler(x: Array, *, offset: tuple[float, ...] | None = None, scale: tuple[float, ...] | None = None) -> Array:
    shifted = x.astype(np.float64) - np.asarray(offset or (0.0,), np.float32)
    return (shifted * np.asarray(scale or (1.0,), np.float32)).astype(np.float32)


@reference("ml.ZipMap")
def zip_map(
    x: Array,
    *,
    classlabels_int64s: tuple[int, ...] | None = None,
    classlabels_strings: tuple[str, ...] | None = None,
) -> list[Any]:
    labels: Sequence[Any] = classlabels_int64s if classlabels_int64s is not None else classlabels_strings or ()
    return [dict(zip(labels, row.tolist(), strict=True)) for row in x.reshape(-1, len(labels))]
