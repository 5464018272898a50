"""ai.onnx.ml: linear models, support vector machines and tree ensembles."""

from __future__ import annotations

from collections.abc import Sequence

from mnnpy.decompose.infer import Operand
from mnnpy.decompose.ops.ml import one_of, rows_and_columns
from mnnpy.decompose.registry import OpClass, op
from mnnpy.errors import ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, TensorType

POST_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
KERNELS = ("LINEAR", "POLY", "RBF", "SIGMOID")


def _choice(value: str, known: Sequence[str], what: str) -> None:
    if value not in known:
        raise ShapeError(f"{what} '{value}' is not one of {', '.join(known)}")


def _labels(ints: tuple[int, ...] | None, strings: tuple[str, ...] | None, ints_name: str) -> tuple[DType, int]:
    one_of(**{ints_name: ints, "classlabels_strings": strings})
    return (DType.STRING, len(strings)) if strings is not None else (DType.I64, len(ints or ()))


def _check_features(x: Operand, features: Sequence[int], leaf: Sequence[bool]) -> None:
    """Raise ShapeError where a branch reads a column that *x* has not."""
    width = x.shape[-1] if x.rank else 1
    used = [f for f, is_leaf in zip(features, leaf, strict=True) if not is_leaf]
    if used and (min(used) < 0 or (isinstance(width, int) and max(used) >= width)):
        raise ShapeError(f"nodes_featureids go from {min(used)} to {max(used)}, but the input has {width} features")


@op("ml.LinearRegressor", OpClass.COMPOSITE)
def linear_regressor(
    x: Operand,
    *,
    coefficients: tuple[float, ...] | None = None,
    intercepts: tuple[float, ...] | None = None,
    post_transform: str = "NONE",
    targets: int = 1,
) -> TensorType:
    """``x · coefficientsᵀ + intercepts``, f32 ``[N, targets]``."""
    _choice(post_transform, POST_TRANSFORMS, "post_transform")
    n, features = rows_and_columns(x)
    if isinstance(features, int) and len(coefficients or ()) != features * targets:
        raise ShapeError(f"{len(coefficients or ())} coefficients for {features} features and {targets} targets")
    if intercepts and len(intercepts) != targets:
        raise ShapeError(f"{len(intercepts)} intercepts for {targets} targets")
    return TensorType(DType.F32, (n, targets))


@op("ml.LinearClassifier", OpClass.COMPOSITE)
def linear_classifier(
    x: Operand,
    *,
    coefficients: tuple[float, ...],
    classlabels_ints: tuple[int, ...] | None = None,
    classlabels_strings: tuple[str, ...] | None = None,
    intercepts: tuple[float, ...] | None = None,
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> tuple[TensorType, TensorType]:
    """Class with the highest linear score, and the scores."""
    _choice(post_transform, POST_TRANSFORMS, "post_transform")
    kind, count = _labels(classlabels_ints, classlabels_strings, "classlabels_ints")
    n, features = rows_and_columns(x)
    if isinstance(features, int) and (not features or len(coefficients) % features):
        raise ShapeError(f"{len(coefficients)} coefficients do not divide into rows of {features} features")
    scores = len(coefficients) // features if isinstance(features, int) else count
    return TensorType(kind, (n,)), TensorType(DType.F32, (n, 2 if scores == 1 and count == 2 else scores))


@op("ml.SVMRegressor", OpClass.COMPOSITE)
def svm_regressor(
    x: Operand,
    *,
    coefficients: tuple[float, ...] | None = None,
    kernel_params: tuple[float, ...] | None = None,
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: tuple[float, ...] | None = None,
    support_vectors: tuple[float, ...] | None = None,
) -> TensorType:
    """Support vector regression, f32 ``[N, 1]``; with *one_class* +1 or −1."""
    _choice(kernel_type, KERNELS, "kernel_type")
    _choice(post_transform, POST_TRANSFORMS, "post_transform")
    n, features = rows_and_columns(x)
    if n_supports and isinstance(features, int) and len(support_vectors or ()) != n_supports * features:
        raise ShapeError(
            f"{len(support_vectors or ())} numbers for {n_supports} support vectors of {features} features"
        )
    return TensorType(DType.F32, (n, 1))


@op("ml.SVMClassifier", OpClass.COMPOSITE)
def svm_classifier(
    x: Operand,
    *,
    classlabels_ints: tuple[int, ...] | None = None,
    classlabels_strings: tuple[str, ...] | None = None,
    coefficients: tuple[float, ...] | None = None,
    kernel_params: tuple[float, ...] | None = None,
    kernel_type: str = "LINEAR",
    post_transform: str = "NONE",
    prob_a: tuple[float, ...] | None = None,
    prob_b: tuple[float, ...] | None = None,
    rho: tuple[float, ...] | None = None,
    support_vectors: tuple[float, ...] | None = None,
    vectors_per_class: tuple[int, ...] | None = None,
) -> tuple[TensorType, TensorType]:
    """Class by one-against-one votes (or probabilities), and the scores."""
    _choice(kernel_type, KERNELS, "kernel_type")
    _choice(post_transform, POST_TRANSFORMS, "post_transform")
    kind, count = _labels(classlabels_ints, classlabels_strings, "classlabels_ints")
    n, _ = rows_and_columns(x)
    if not support_vectors or prob_a:
        width = count
    else:
        classes = len(vectors_per_class or ())
        width = 2 if classes == 2 else classes * (classes - 1) // 2
    return TensorType(kind, (n,)), TensorType(DType.F32, (n, width))


@op("ml.TreeEnsemble", OpClass.COMPOSITE)
def tree_ensemble(
    x: Operand,
    *,
    leaf_targetids: tuple[int, ...],
    leaf_weights: Array,
    nodes_falseleafs: tuple[int, ...],
    nodes_falsenodeids: tuple[int, ...],
    nodes_featureids: tuple[int, ...],
    nodes_modes: Array,
    nodes_splits: Array,
    nodes_trueleafs: tuple[int, ...],
    nodes_truenodeids: tuple[int, ...],
    tree_roots: tuple[int, ...],
    aggregate_function: int = 1,
    membership_values: Array | None = None,
    n_targets: int | None = None,
    nodes_hitrates: Array | None = None,
    nodes_missing_value_tracks_true: tuple[int, ...] | None = None,
    post_transform: int = 0,
) -> TensorType:
    """Trees with numeric and set-membership splits, ``[N, targets]``."""
    if x.rank != 2 or not x.dtype.is_float:
        raise ShapeError(f"the input is {x.type}; a floating [N, F] is needed")
    if not 0 <= aggregate_function < 4 or not 0 <= post_transform < 5:
        raise ShapeError(f"aggregate_function {aggregate_function} or post_transform {post_transform} is out of range")
    columns = (
        nodes_falseleafs,
        nodes_falsenodeids,
        nodes_featureids,
        nodes_modes,
        nodes_splits,
        nodes_trueleafs,
        nodes_truenodeids,
    )
    if len({len(c) for c in columns}) != 1:
        raise ShapeError(f"attributes nodes_… have different lengths {sorted({len(c) for c in columns})}")
    _check_features(x, nodes_featureids, [False] * len(nodes_featureids))
    if len(leaf_targetids) != len(leaf_weights):
        raise ShapeError(f"{len(leaf_targetids)} leaf_targetids for {len(leaf_weights)} leaf_weights")
    targets = n_targets if n_targets is not None else max(leaf_targetids, default=-1) + 1
    return TensorType(x.dtype, (x.shape[0], targets))


@op("ml.TreeEnsembleRegressor", OpClass.COMPOSITE)
def tree_ensemble_regressor(
    x: Operand,
    *,
    aggregate_function: str = "SUM",
    base_values: tuple[float, ...] | None = None,
    base_values_as_tensor: Array | None = None,
    n_targets: int | None = None,
    nodes_falsenodeids: tuple[int, ...] = (),
    nodes_featureids: tuple[int, ...] = (),
    nodes_hitrates: tuple[float, ...] | None = None,
    nodes_hitrates_as_tensor: Array | None = None,
    nodes_missing_value_tracks_true: tuple[int, ...] | None = None,
    nodes_modes: tuple[str, ...] = (),
    nodes_nodeids: tuple[int, ...] = (),
    nodes_treeids: tuple[int, ...] = (),
    nodes_truenodeids: tuple[int, ...] = (),
    nodes_values: tuple[float, ...] | None = None,
    nodes_values_as_tensor: Array | None = None,
    post_transform: str = "NONE",
    target_ids: tuple[int, ...] = (),
    target_nodeids: tuple[int, ...] = (),
    target_treeids: tuple[int, ...] = (),
    target_weights: tuple[float, ...] | None = None,
    target_weights_as_tensor: Array | None = None,
) -> TensorType:
    """Sums (or other aggregates) of the leaves that a row reaches, f32 ``[N, targets]``."""
    _choice(aggregate_function, AGGREGATES, "aggregate_function")
    _choice(post_transform, POST_TRANSFORMS, "post_transform")
    n, _ = rows_and_columns(x)
    _check_features(x, nodes_featureids, [m == "LEAF" for m in nodes_modes])
    return TensorType(DType.F32, (n, n_targets if n_targets is not None else max(target_ids, default=-1) + 1))


@op("ml.TreeEnsembleClassifier", OpClass.COMPOSITE)
def tree_ensemble_classifier(
    x: Operand,
    *,
    base_values: tuple[float, ...] | None = None,
    base_values_as_tensor: Array | None = None,
    class_ids: tuple[int, ...] = (),
    class_nodeids: tuple[int, ...] = (),
    class_treeids: tuple[int, ...] = (),
    class_weights: tuple[float, ...] | None = None,
    class_weights_as_tensor: Array | None = None,
    classlabels_int64s: tuple[int, ...] | None = None,
    classlabels_strings: tuple[str, ...] | None = None,
    nodes_falsenodeids: tuple[int, ...] = (),
    nodes_featureids: tuple[int, ...] = (),
    nodes_hitrates: tuple[float, ...] | None = None,
    nodes_hitrates_as_tensor: Array | None = None,
    nodes_missing_value_tracks_true: tuple[int, ...] | None = None,
    nodes_modes: tuple[str, ...] = (),
    nodes_nodeids: tuple[int, ...] = (),
    nodes_treeids: tuple[int, ...] = (),
    nodes_truenodeids: tuple[int, ...] = (),
    nodes_values: tuple[float, ...] | None = None,
    nodes_values_as_tensor: Array | None = None,
    post_transform: str = "NONE",
) -> tuple[TensorType, TensorType]:
    """Class by the votes of the leaves that a row reaches, and the scores, f32 ``[N, classes]``."""
    _choice(post_transform, POST_TRANSFORMS, "post_transform")
    kind, count = _labels(classlabels_int64s, classlabels_strings, "classlabels_int64s")
    n, _ = rows_and_columns(x)
    _check_features(x, nodes_featureids, [m == "LEAF" for m in nodes_modes])
    return TensorType(kind, (n,)), TensorType(DType.F32, (n, count))
