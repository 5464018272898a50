"""References of linear models, support vector machines and tree ensembles of ai.onnx.ml.

The specification leaves open what a binary classifier with a single score returns; here it is what the converters
of scikit-learn and others rely on: two scores, of which the second belongs to the positive class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from mnnpy.decompose.ops.ml_models import AGGREGATES, POST_TRANSFORMS
from mnnpy.decompose.registry import reference
from mnnpy.errors import ModelError
from mnnpy.graph.ir import Array


def post_transformed(scores: Array, how: str) -> Array:
    """Apply a *post_transform* along the last axis."""
    if how == "LOGISTIC":
        return 1 / (1 + np.exp(-scores))
    if how == "PROBIT":
        return np.asarray(np.vectorize(_probit, otypes=[np.float64])(scores))
    if how in ("SOFTMAX", "SOFTMAX_ZERO"):
        top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        e = np.exp(scores - top)
        if how == "SOFTMAX_ZERO":  # a score of zero means "no vote" and stays zero
            e = np.where(scores == 0, 0, e)
            return np.asarray(e / np.where(e.sum(axis=-1, keepdims=True) == 0, 1, e.sum(axis=-1, keepdims=True)))
        return np.asarray(e / e.sum(axis=-1, keepdims=True))
    return scores


def _probit(p: float) -> float:
    """Quantile of the standard normal distribution."""
    if p <= 0 or p >= 1:
        return -np.inf if p == 0 else np.inf if p == 1 else np.nan
    return NormalDist().inv_cdf(p)


def _pick(labels: Sequence[Any], chosen: Array) -> Array:
    table = np.empty(len(labels), object if labels and isinstance(labels[0], str) else np.int64)
    table[:] = labels
    return table[chosen]


def _labels(ints: tuple[int, ...] | None, strings: tuple[str, ...] | None) -> Sequence[Any]:
    return strings if strings is not None else ints or ()


def _matrix(x: Array) -> Array:
    return (x.reshape(1, -1) if x.ndim == 1 else x).astype(np.float64)


def _floats(values: Sequence[float] | Array | None) -> Array:
    """An attribute of f32 numbers (or a tensor) in float64."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float64).reshape(-1)
    return np.asarray(values if values is not None else (), np.float32).astype(np.float64)


@reference("ml.LinearRegressor")
def linear_regressor(
    x: Array,
    *,
    coefficients: tuple[float, ...] | None = None,
    intercepts: tuple[float, ...] | None = None,
    post_transform: str = "NONE",
    targets: int = 1,
) -> Array:
    y = _matrix(x) @ _floats(coefficients).reshape(targets, -1).T
    if intercepts:
        y = y + _floats(intercepts)
    return post_transformed(y, post_transform).astype(np.float32)


@reference("ml.LinearClassifier")
def linear_classifier(
    x: Array,
    *,
    coefficients: tuple[float, ...],
    classlabels_ints: tuple[int, ...] | None = None,
    classlabels_strings: tuple[str, ...] | None = None,
    intercepts: tuple[float, ...] | None = None,
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> tuple[Array, Array]:
    labels, rows = _labels(classlabels_ints, classlabels_strings), _matrix(x)
    scores = rows @ _floats(coefficients).reshape(-1, rows.shape[1]).T
    if intercepts:
        scores = scores + _floats(intercepts)
    if scores.shape[1] == 1:
        chosen = (scores[:, 0] > 0).astype(np.int64)
        if len(labels) == 2:
            scores = _two_scores(scores[:, 0], post_transform, mixed=post_transform == "LOGISTIC")
        else:
            scores, chosen = post_transformed(scores, post_transform), chosen * 0
    else:
        chosen = scores.argmax(axis=1)
        scores = post_transformed(scores, post_transform)
    return _pick(labels, chosen), scores.astype(np.float32)


def _two_scores(score: Array, how: str, *, mixed: bool) -> Array:
    """The scores of both classes from that of the positive one: opposites where of any sign, else complements."""
    if mixed:
        pair = np.stack([-score, score], axis=1)
        return post_transformed(pair, how) if how == "LOGISTIC" else pair
    return np.stack([1 - score, score], axis=1)


# -- support vector machines (after Chang and Lin, "LIBSVM", 2011) --


def _kernel(x: Array, vectors: Array, kind: str, params: Sequence[float] | None) -> Array:
    """``[N, V]`` of kernel values."""
    gamma, coef0, degree = (*_floats(params), 0.0, 0.0, 0.0)[:3]
    if kind == "RBF":
        distance = ((x[:, None, :] - vectors[None]) ** 2).sum(axis=2)
        return np.asarray(np.exp(-gamma * distance))
    dot = x @ vectors.T
    if kind == "POLY":
        return np.asarray((gamma * dot + coef0) ** degree)
    return np.tanh(gamma * dot + coef0) if kind == "SIGMOID" else dot


@reference("ml.SVMRegressor")
def svm_regressor(
    x: Array,
    *,
    coefficients: tuple[float, ...] | None = None,
    kernel_params: tuple[float, ...] | None = None,
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: tuple[float, ...] | None = None,
    support_vectors: tuple[float, ...] | None = None,
) -> Array:
    rows, weights = _matrix(x), _floats(coefficients)
    if n_supports:
        values = _kernel(rows, _floats(support_vectors).reshape(n_supports, -1), kernel_type, kernel_params) @ weights
    else:
        values = _kernel(rows, weights.reshape(1, -1), kernel_type, kernel_params)[:, 0]
    values = values + (_floats(rho)[0] if rho else 0.0)
    if one_class:
        values = np.where(values > 0, 1.0, -1.0)
    return post_transformed(values[:, None], post_transform).astype(np.float32)


@reference("ml.SVMClassifier")
def svm_classifier(
    x: Array,
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
) -> tuple[Array, Array]:
    labels, rows, weights = _labels(classlabels_ints, classlabels_strings), _matrix(x), _floats(coefficients)
    if not support_vectors:
        scores = _kernel(rows, weights.reshape(len(labels), -1), kernel_type, kernel_params)
        scores = scores + (_floats(rho)[0] if rho else 0.0)
        return _pick(labels, scores.argmax(axis=1)), post_transformed(scores, post_transform).astype(np.float32)
    counts = list(vectors_per_class or ())
    classes = len(counts)
    kernel = _kernel(rows, _floats(support_vectors).reshape(sum(counts), -1), kernel_type, kernel_params)
    pairs = _pairwise(kernel, weights.reshape(classes - 1, -1), counts, _floats(rho))
    votes = np.zeros((len(rows), classes))
    for column, (i, j) in zip(pairs.T, _index_pairs(classes), strict=True):
        votes[:, i] += column > 0
        votes[:, j] += column <= 0
    if prob_a:
        logits = pairs * _floats(prob_a) + _floats(prob_b)
        p = np.clip(1 / (1 + np.exp(logits)), 1e-7, 1 - 1e-7)
        scores = np.stack([_couple(row, classes) for row in p]) if len(rows) else np.zeros((0, classes))
        scores = post_transformed(scores, post_transform)
    elif classes == 2:
        scores = _two_scores(pairs[:, 0], post_transform, mixed=post_transform in ("NONE", "LOGISTIC"))
    else:
        scores = post_transformed(pairs, post_transform)
    return _pick(labels, votes.argmax(axis=1)), scores.astype(np.float32)


def _index_pairs(classes: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(classes) for j in range(i + 1, classes)]


def _pairwise(kernel: Array, weights: Array, counts: list[int], rho: Array) -> Array:
    """Decision values of every pair of classes, ``[N, C(C − 1)/2]``."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    columns = []
    for k, (i, j) in enumerate(_index_pairs(len(counts))):
        si, sj = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        columns.append(kernel[:, si] @ weights[j - 1, si] + kernel[:, sj] @ weights[i, sj] + rho[k])
    return np.stack(columns, axis=1)


def _couple(pairwise: Array, classes: int) -> Array:
    """Class probabilities from pairwise ones (Wu, Lin and Weng, "Probability estimates …", 2004, second method)."""
    r = np.zeros((classes, classes))
    for value, (i, j) in zip(pairwise, _index_pairs(classes), strict=True):
        r[i, j], r[j, i] = value, 1 - value
    q = -r.T * r
    np.fill_diagonal(q, (r**2).sum(axis=0))
    p: Array = np.full(classes, 1 / classes)
    for _ in range(max(100, classes)):
        qp = q @ p
        total = p @ qp
        if np.abs(qp - total).max() < 0.005 / classes:
            break
        for t in range(classes):
            step = (total - qp[t]) / q[t, t]
            p[t] += step
            total = (total + step * (step * q[t, t] + 2 * qp[t])) / (1 + step) ** 2
            qp = (qp + step * q[t]) / (1 + step)
            p = p / (1 + step)
    return p


# -- tree ensembles --

_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF")


@dataclass(frozen=True, slots=True)
class _Forest:
    """All trees in flat arrays; children are node numbers, and ``−1 − leaf`` where a branch ends."""

    roots: Array
    features: Array
    splits: Array
    modes: Array
    on_true: Array
    on_false: Array
    missing_true: Array
    members: dict[int, Array]

    def leaves(self, x: Array) -> Array:
        """The leaf that every row reaches in every tree, ``[N, trees]``."""
        at = np.repeat(self.roots[None], len(x), axis=0)
        for _ in range(len(self.features) + 1):
            row, tree = np.nonzero(at >= 0)
            if not row.size:
                return -1 - at
            node = at[row, tree]
            at[row, tree] = np.where(
                self._decide(x[row, self.features[node]], node), self.on_true[node], self.on_false[node]
            )
        raise ModelError("the branches of a tree form a circle")

    def _decide(self, value: Array, node: Array) -> Array:
        split, mode = self.splits[node], self.modes[node]
        out = np.zeros(len(node), np.bool_)
        compare = (np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal)
        for code, fn in enumerate(compare):
            out |= (mode == code) & fn(value, split)
        for k in np.nonzero(mode == 6)[0]:
            out[k] = bool(np.isin(value[k], self.members[int(node[k])]))
        nan = np.isnan(value)
        return np.where(nan, (self.missing_true[node] != 0) | (out & (mode == 5)), out)


def _aggregate(leaves: Array, owners: Array, values: Array, targets: Array, count: int, how: str) -> Array:
    """Combine per target the weights of the leaves reached; weight *k* belongs to leaf ``owners[k]``."""
    rows, trees = leaves.shape
    combine: np.ufunc = {"MIN": np.minimum, "MAX": np.maximum}.get(how, np.add)
    start = {"MIN": np.inf, "MAX": -np.inf}.get(how, 0.0)
    of_leaf = np.full((max(int(leaves.max(initial=-1)), int(owners.max(initial=-1))) + 1, count), start)
    combine.at(of_leaf, (owners, targets), values)
    out: Array = np.full((rows, count), start)
    for column in leaves.T:
        out = combine(out, of_leaf[column])
    if how in ("MIN", "MAX"):
        out = np.where(out == start, 0.0, out)  # no leaf voted for this target
    return out / trees if how == "AVERAGE" and trees else out


@reference("ml.TreeEnsemble")
def tree_ensemble(
    x: Array,
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
) -> Array:
    modes = np.asarray(nodes_modes).astype(np.int64).reshape(-1)
    tracks = np.asarray(nodes_missing_value_tracks_true or np.zeros(len(modes)), np.int64)
    forest = _Forest(
        np.asarray(tree_roots, np.int64), np.asarray(nodes_featureids, np.int64), _floats(nodes_splits), modes,
        _children(nodes_truenodeids, nodes_trueleafs), _children(nodes_falsenodeids, nodes_falseleafs),
        tracks, _members(modes, membership_values),
    )  # fmt: skip
    targets = np.asarray(leaf_targetids, np.int64)
    count = n_targets if n_targets is not None else int(targets.max(initial=-1)) + 1
    owners = np.arange(len(targets))
    how = AGGREGATES[aggregate_function]
    y = _aggregate(forest.leaves(x.astype(np.float64)), owners, _floats(np.asarray(leaf_weights)), targets, count, how)
    return post_transformed(y, POST_TRANSFORMS[post_transform]).astype(x.dtype)


def _children(ids: Sequence[int], is_leaf: Sequence[int]) -> Array:
    found = np.asarray(ids, np.int64)
    return np.where(np.asarray(is_leaf) != 0, -1 - found, found)


def _members(modes: Array, values: Array | None) -> dict[int, Array]:
    """Set-membership node → its values; sets are separated by NaN, in the order of their nodes."""
    nodes = np.nonzero(modes == 6)[0]
    if not len(nodes):
        return {}
    if values is None:
        raise ModelError("nodes of mode BRANCH_MEMBER need membership_values")
    flat = _floats(np.asarray(values))
    sets = np.split(flat, np.nonzero(np.isnan(flat))[0])
    return {int(n): s[~np.isnan(s)] for n, s in zip(nodes, sets, strict=False)}


def _old_forest(
    tree_ids: Sequence[int],
    node_ids: Sequence[int],
    features: Sequence[int],
    splits: Array,
    modes: Sequence[str],
    on_true: Sequence[int],
    on_false: Sequence[int],
    missing: Sequence[int] | None,
) -> tuple[_Forest, dict[tuple[int, int], int]]:
    """A forest whose leaves are nodes; also (tree, node) → its number. The first node of a tree is its root."""
    number = {key: k for k, key in enumerate(zip(tree_ids, node_ids, strict=True))}
    codes = np.asarray([_MODES.index(m) for m in modes], np.int64)
    roots: dict[int, int] = {}
    for k, t in enumerate(tree_ids):
        roots.setdefault(t, k)
    leaf = codes == 7

    def child(ids: Sequence[int]) -> Array:
        made = np.zeros(len(codes), np.int64)
        for k, (t, n) in enumerate(zip(tree_ids, ids, strict=True)):
            if not leaf[k]:
                at = number[t, n]
                made[k] = -1 - at if leaf[at] else at
        return made

    starts = np.asarray([-1 - k if leaf[k] else k for k in roots.values()], np.int64)
    tracks = np.asarray(missing if missing is not None and len(missing) else np.zeros(len(codes)), np.int64)
    forest = _Forest(starts, np.asarray(features, np.int64), splits, codes, child(on_true), child(on_false), tracks, {})
    return forest, number


def _votes(number: dict[tuple[int, int], int], tree_ids: Sequence[int], node_ids: Sequence[int]) -> Array:
    """Per vote, the number of the node that casts it."""
    return np.asarray([number[key] for key in zip(tree_ids, node_ids, strict=True)], np.int64)


@reference("ml.TreeEnsembleRegressor")
def tree_ensemble_regressor(
    x: Array,
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
) -> Array:
    splits = _floats(nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor)
    forest, number = _old_forest(
        nodes_treeids, nodes_nodeids, nodes_featureids, splits, nodes_modes, nodes_truenodeids, nodes_falsenodeids,
        nodes_missing_value_tracks_true,
    )  # fmt: skip
    targets = np.asarray(target_ids, np.int64)
    count = n_targets if n_targets is not None else int(targets.max(initial=-1)) + 1
    weights = _floats(target_weights if target_weights_as_tensor is None else target_weights_as_tensor)
    owners = _votes(number, target_treeids, target_nodeids)
    y = _aggregate(forest.leaves(_matrix(x)), owners, weights, targets, count, aggregate_function)
    base = _floats(base_values if base_values_as_tensor is None else base_values_as_tensor)
    if base.size:
        y = y + base
    return post_transformed(y, post_transform).astype(np.float32)


@reference("ml.TreeEnsembleClassifier")
def tree_ensemble_classifier(
    x: Array,
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
) -> tuple[Array, Array]:
    labels = _labels(classlabels_int64s, classlabels_strings)
    splits = _floats(nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor)
    forest, number = _old_forest(
        nodes_treeids, nodes_nodeids, nodes_featureids, splits, nodes_modes, nodes_truenodeids, nodes_falsenodeids,
        nodes_missing_value_tracks_true,
    )  # fmt: skip
    weights = _floats(class_weights if class_weights_as_tensor is None else class_weights_as_tensor)
    classes = np.asarray(class_ids, np.int64)
    owners = _votes(number, class_treeids, class_nodeids)
    base = _floats(base_values if base_values_as_tensor is None else base_values_as_tensor)
    single = len(labels) == 2 and len(set(class_ids)) == 1 and base.size < 2
    leaves = forest.leaves(_matrix(x))
    scores = _aggregate(
        leaves, owners, weights, classes * 0 if single else classes, 1 if single else len(labels), "SUM"
    )
    if base.size:
        scores = scores + base
    if not single:
        return _pick(labels, scores.argmax(axis=1)), post_transformed(scores, post_transform).astype(np.float32)
    score = scores[:, 0]
    positive = bool((weights >= 0).all())
    chosen = (score > (0.5 if positive else 0)).astype(np.int64)
    if class_ids[0] == 1:  # the votes are the positive class's own; the other one has none
        two = post_transformed(np.stack([np.zeros_like(score), score], axis=1), post_transform)
    elif post_transform == "PROBIT":
        two = np.repeat(post_transformed(score[:, None], "PROBIT"), 2, axis=1)
    else:
        two = _two_scores(score, post_transform, mixed=not positive or post_transform == "LOGISTIC")
    return _pick(labels, chosen), two.astype(np.float32)
