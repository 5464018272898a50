"""ai.onnx.ml: encoders, scalers and maps."""

from __future__ import annotations

from collections.abc import Sequence

from mnnpy.decompose.infer import Operand, data_dim
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dims import Dim, numel
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, MapType, SequenceType, TensorType, Type, tensor_type_of

NUMERIC = (DType.F32, DType.F64, DType.I64, DType.I32)


def numeric(x: Operand) -> None:
    """Raise ShapeError unless *x* has one of the element types that the numeric ops of ai.onnx.ml take."""
    if x.dtype not in NUMERIC:
        raise ShapeError(f"the input is {x.dtype}; f32, f64, i64 or i32 is needed")


def one_of(**given: object) -> str:
    """The name of the single argument that is given; raises ShapeError for none or several."""
    found = [k for k, v in given.items() if v is not None]
    if len(found) != 1:
        raise ShapeError(f"exactly one of {', '.join(given)} must be given, not {', '.join(found) or 'none'}")
    return found[0]


def per_feature(x: Operand, values: Sequence[object], what: str) -> None:
    """Check that *values* has one entry, or one per column of *x*."""
    width = x.shape[-1] if x.rank else 1
    if len(values) != 1 and isinstance(width, int) and len(values) != width:
        raise ShapeError(f"{what} has {len(values)} entries for {width} features")


@op("ml.ArrayFeatureExtractor", OpClass.COMPOSITE)
def array_feature_extractor(x: Operand, y: Operand) -> TensorType:
    """Columns of *x* by index, in the order of *y*."""
    if x.rank == 0:
        raise ShapeError("the input is a scalar; at least one axis is needed")
    lead: tuple[Dim, ...] = x.shape[:-1] if x.rank > 1 else (1,)
    return TensorType(x.dtype, (*lead, numel(y.shape)))


@op("ml.Binarizer", OpClass.COMPOSITE)
def binarizer(x: Operand, *, threshold: float = 0.0) -> TensorType:
    """1 where the input is above *threshold*, else 0."""
    numeric(x)
    return x.type


@op("ml.CastMap", OpClass.HOST)
def cast_map(x: Operand, *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1) -> Type:
    """The values of a map in order of its keys, ``[1, n]``."""
    kinds = {"TO_FLOAT": DType.F32, "TO_STRING": DType.STRING, "TO_INT64": DType.I64}
    if cast_to not in kinds:
        raise ShapeError(f"cast_to '{cast_to}' is not one of {', '.join(kinds)}")
    if map_form not in ("DENSE", "SPARSE"):
        raise ShapeError(f"map_form '{map_form}' is not DENSE or SPARSE")
    return TensorType(kinds[cast_to], (1, max_map if map_form == "SPARSE" else data_dim("keys")))


@op("ml.CategoryMapper", OpClass.HOST)
def category_mapper(
    x: Operand,
    *,
    cats_int64s: tuple[int, ...] | None = None,
    cats_strings: tuple[str, ...] | None = None,
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> TensorType:
    """Strings to integers or integers to strings."""
    if len(cats_int64s or ()) != len(cats_strings or ()):
        raise ShapeError(f"{len(cats_int64s or ())} cats_int64s for {len(cats_strings or ())} cats_strings")
    if x.dtype not in (DType.STRING, DType.I64):
        raise ShapeError(f"the input is {x.dtype}, not string or i64")
    return TensorType(DType.I64 if x.dtype is DType.STRING else DType.STRING, x.shape)


@op("ml.DictVectorizer", OpClass.HOST)
def dict_vectorizer(
    x: Operand,
    *,
    int64_vocabulary: tuple[int, ...] | None = None,
    string_vocabulary: tuple[str, ...] | None = None,
) -> Type | None:
    """The values of a map in the order of a vocabulary, ``[1, n]``, 0 (or "") where a key is missing."""
    one_of(int64_vocabulary=int64_vocabulary, string_vocabulary=string_vocabulary)
    t = x.maybe_type
    if not isinstance(t, MapType):
        if t is None:
            return None
        raise ShapeError(f"'{x.name}' is {t}, but a map is needed here")
    if not isinstance(t.value, TensorType):
        return None
    return TensorType(t.value.dtype, (1, len(int64_vocabulary or string_vocabulary or ())))


@op("ml.FeatureVectorizer", OpClass.COMPOSITE)
def feature_vectorizer(*xs: Operand, inputdimensions: tuple[int, ...] | None = None) -> TensorType:
    """All inputs side by side as f32 ``[N, ΣC]``, each cut or filled up with zeros to its *inputdimensions*."""
    if not xs:
        raise ShapeError("at least one input is needed")
    if inputdimensions is not None and len(inputdimensions) != len(xs):
        raise ShapeError(f"inputdimensions has {len(inputdimensions)} entries for {len(xs)} inputs")
    total: Dim = 0
    for k, x in enumerate(xs):
        numeric(x)
        if not x.rank:
            raise ShapeError(f"input {k} is a scalar; [C] or [N, C] is needed")
        total = total + (inputdimensions[k] if inputdimensions else numel(x.shape[1:] if x.rank > 1 else x.shape))
    return TensorType(DType.F32, (xs[0].shape[0] if xs[0].rank > 1 else 1, total))


@op("ml.Imputer", OpClass.COMPOSITE)
def imputer(
    x: Operand,
    *,
    imputed_value_floats: tuple[float, ...] | None = None,
    imputed_value_int64s: tuple[int, ...] | None = None,
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> TensorType:
    """Replace one value (maybe NaN) by another, per feature."""
    numeric(x)
    values: Sequence[object] | None = imputed_value_floats if x.dtype.is_float else imputed_value_int64s
    if not values:
        raise ShapeError(
            f"{'imputed_value_floats' if x.dtype.is_float else 'imputed_value_int64s'} must be given for {x.dtype}"
        )
    per_feature(x, values, "imputed values")
    return x.type


@op("ml.LabelEncoder", OpClass.COMPOSITE)
def label_encoder(
    x: Operand,
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
) -> TensorType:
    """Map every element through parallel lists of keys and values."""
    one_of(keys_floats=keys_floats, keys_int64s=keys_int64s, keys_strings=keys_strings, keys_tensor=keys_tensor)
    name = one_of(
        values_floats=values_floats,
        values_int64s=values_int64s,
        values_strings=values_strings,
        values_tensor=values_tensor,
    )
    if values_tensor is not None:
        return TensorType(tensor_type_of(values_tensor).dtype, x.shape)
    kind = {"values_floats": DType.F32, "values_int64s": DType.I64, "values_strings": DType.STRING}[name]
    return TensorType(kind, x.shape)


@op("ml.Normalizer", OpClass.COMPOSITE)
def normalizer(x: Operand, *, norm: str = "MAX") -> TensorType:
    """Rows of ``[N, C]`` (or a vector) divided by their maximum, L1 or L2 norm; f32."""
    numeric(x)
    if norm not in ("MAX", "L1", "L2"):
        raise ShapeError(f"norm '{norm}' is not one of MAX, L1, L2")
    if x.rank not in (1, 2):
        raise ShapeError(f"the input has shape {x.shape}; [N, C] or [C] is needed")
    return TensorType(DType.F32, x.shape)


@op("ml.OneHotEncoder", OpClass.COMPOSITE)
def one_hot_encoder(
    x: Operand,
    *,
    cats_int64s: tuple[int, ...] | None = None,
    cats_strings: tuple[str, ...] | None = None,
    zeros: int = 1,
) -> TensorType:
    """A new last axis with a 1 at the category's place; f32."""
    name = one_of(cats_int64s=cats_int64s, cats_strings=cats_strings)
    if (name == "cats_strings") != (x.dtype is DType.STRING):
        raise ShapeError(f"the input is {x.dtype}, but {name} is given")
    return TensorType(DType.F32, (*x.shape, len(cats_int64s or cats_strings or ())))


@op("ml.Scaler", OpClass.COMPOSITE)
def scaler(
    x: Operand, *, offset: tuple[float, ...] | None = None, scale: tuple[float, ...] | None = None
) -> TensorType:
    """``(x − offset) · scale`` per feature; f32."""
    numeric(x)
    per_feature(x, offset or (0.0,), "offset")
    per_feature(x, scale or (1.0,), "scale")
    return TensorType(DType.F32, x.shape)


@op("ml.ZipMap", OpClass.HOST)
def zip_map(
    x: Operand,
    *,
    classlabels_int64s: tuple[int, ...] | None = None,
    classlabels_strings: tuple[str, ...] | None = None,
) -> Type:
    """A sequence of maps from class label to score, one per row."""
    name = one_of(classlabels_int64s=classlabels_int64s, classlabels_strings=classlabels_strings)
    labels = classlabels_int64s or classlabels_strings or ()
    width = x.shape[-1] if x.rank else 1
    if isinstance(width, int) and width != len(labels):
        raise ShapeError(f"{len(labels)} class labels for {width} columns")
    key = DType.I64 if name == "classlabels_int64s" else DType.STRING
    return SequenceType(MapType(key, TensorType(x.dtype, ())))


def rows_and_columns(x: Operand) -> tuple[Dim, Dim]:
    """``[N, F]`` of a rank 2 operand, ``[1, F]`` of a vector."""
    numeric(x)
    if x.rank not in (1, 2):
        raise ShapeError(f"the input has shape {x.shape}; [N, F] is needed")
    return (x.shape[0], x.shape[1]) if x.rank == 2 else (1, x.shape[0])


__all__ = ["NUMERIC", "numeric", "one_of", "per_feature", "rows_and_columns"]
