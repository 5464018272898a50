"""Tree ensembles of ai.onnx.ml, one gather per level for all rows and trees at once.

Nodes are rows of constant tables. A matrix ``[N, trees]`` holds the state of every row in every tree; a level looks
up feature and split of the state, compares, and looks up the next state. Leaves lead to themselves, so that all trees
may be walked to the depth of the deepest one. Set membership becomes a search tree over the sorted members.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnnpy.classes import dataclass
from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.ops.ml_models import AGGREGATES, POST_TRANSFORMS
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import index_dtype
from mnnpy.decompose.rules.ml_models import floats, labelled, post_transformed, two_scores
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

#: Deeper trees stay host ops: a level is about eight nodes of the graph.
_MAX_LEVELS = 256
#: Elements of one block of leaf weights; larger ensembles are summed in blocks of trees.
_BLOCK = 1 << 24

_LEQ, _LT, _GTE, _GT, _EQ, _NEQ, _MEMBER, _LEAF = range(8)
_MODE_NAMES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF")
_COMPARE = {_LEQ: "LessEqual", _LT: "Less", _GTE: "GreaterEqual", _GT: "Greater"}


@dataclass(slots=True)
class _Forest:
    """All nodes in flat arrays; *missing* says where NaN goes. Children of a leaf are the leaf itself."""

    roots: Array
    features: Array
    splits: Array
    modes: Array
    on_true: Array
    on_false: Array
    missing: Array

    def walk(self) -> tuple[int, Array, Array] | None:
        """Number of levels, and the pairs (leaf, tree) that meet; None for circles and very deep trees."""
        count = len(self.roots)
        pairs = np.unique(self.roots * count + np.arange(count)) if count else np.zeros(0, np.int64)
        leaves = []
        for level in range(_MAX_LEVELS + 1):
            node, tree = np.divmod(pairs, max(count, 1))
            branch = self.modes[node] != _LEAF
            leaves.append(pairs[~branch])
            if not branch.any():
                met = np.unique(np.concatenate(leaves))
                return level, met // max(count, 1), met % max(count, 1)
            node, tree = node[branch], tree[branch]
            pairs = np.unique(np.concatenate([self.on_true[node] * count + tree, self.on_false[node] * count + tree]))
        return None


def _with_search_trees(f: _Forest, members: dict[int, Array]) -> _Forest:
    """Set-membership nodes replaced by comparisons with the sorted members, the last of which are equalities."""
    if not members:
        return f
    columns = [list(c) for c in (f.features, f.splits, f.modes, f.on_true, f.on_false, f.missing)]

    def place(at: int | None, feature: int, split: float, mode: int, yes: int, no: int, missing: int) -> int:
        row = (feature, split, mode, yes, no, missing)
        if at is None:
            at = len(columns[0])
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        else:
            for column, value in zip(columns, row, strict=True):
                column[at] = value
        return at

    for node, found in members.items():
        yes, no, feature = int(f.on_true[node]), int(f.on_false[node]), int(f.features[node])
        missing = int(f.missing[node])  # of all nodes of the search tree, so that NaN keeps to one side
        values = np.unique(found)
        if not values.size:
            place(node, feature, np.nan, _EQ, yes, no, missing)
            continue
        work: list[tuple[int, int, int]] = [(node, 0, len(values))]
        while work:
            at, low, high = work.pop()
            if high - low == 1:
                place(at, feature, float(values[low]), _EQ, yes, no, missing)
                continue
            middle = (low + high) // 2
            left, right = (place(None, feature, np.nan, _EQ, yes, no, 0) for _ in range(2))
            place(at, feature, float(values[middle - 1]), _LEQ, left, right, missing)
            work += [(left, low, middle), (right, middle, high)]
    return _Forest(
        f.roots, np.asarray(columns[0], np.int64), np.asarray(columns[1], np.float64),
        *(np.asarray(c, np.int64) for c in columns[2:]),
    )  # fmt: skip


@dataclass(slots=True)
class _Tables:
    """What a level looks up: a state passes where ``x <compare> high`` and, with *low*, ``x ≥ low``.

    *children* has a row per node: the next node where the test fails, holds, or (third column) the value is NaN.
    """

    compare: str
    high: Array
    low: Array | None
    children: Array


def _tables(f: _Forest, dtype: DType, nan: bool) -> _Tables:
    """Bring the modes of all nodes to one comparison, by swapped children and neighbouring splits."""
    modes, split = f.modes, f.splits.astype(dtype.numpy)
    own = np.arange(len(modes))
    leaf = modes == _LEAF
    yes, no = np.where(leaf, own, f.on_true), np.where(leaf, own, f.on_false)
    missing = np.where((f.missing != 0) | (modes == _NEQ), yes, no)
    present = set(modes[~leaf].tolist())
    low: Array | None = None
    if len(present) <= 1 and not present & {_EQ, _NEQ}:
        compare, high = _COMPARE[present.pop() if present else _LEQ], split
    else:
        strict = not present & {_LEQ, _GT, _EQ, _NEQ}
        compare, high = ("Less" if strict else "LessEqual"), split.copy()
        if not strict:  # x < s is x ≤ the number before s; nothing is below −inf
            exclusive = (modes == _LT) | (modes == _GTE)
            before = np.where(np.isneginf(split), np.nan, np.nextafter(split, split.dtype.type(-np.inf)))
            high = np.where(exclusive, before, split)
        swapped = (modes == _GT) | (modes == _GTE) | (modes == _NEQ)
        no, yes = np.where(swapped, yes, no), np.where(swapped, no, yes)
        never = np.isnan(split) & ((modes == _GT) | (modes == _GTE))  # comparing with NaN fails either way
        no = np.where(never, yes, no)
        if present & {_EQ, _NEQ}:
            equal = (modes == _EQ) | (modes == _NEQ)
            low = np.where(equal, split, split.dtype.type(-np.inf))
    columns = [no, yes]
    if nan and np.any((missing != no) & ~leaf):
        columns.append(np.where(leaf, own, missing))
    return _Tables(compare, high, low, np.stack(columns, axis=1))


def _states(g: Builder, x: Var, f: _Forest, levels: int) -> tuple[Var, int]:
    """The leaf ``[N or 1, trees]`` of every row in every tree, as node number · ways; and *ways*."""
    n, width = x.shape
    tables = _tables(f, DType.F32 if _single(f.splits, x.dtype) else DType.F64, x.dtype.is_float)
    x = g.cast(x, DType.of(tables.high.dtype))
    ways = tables.children.shape[1]
    kind = index_dtype(max(n * width, tables.children.size))

    def table(values: Array, dtype: DType) -> Var:
        return g.const(np.repeat(values, ways), dtype)

    features, high = table(np.where(f.modes == _LEAF, 0, f.features), kind), table(tables.high, x.dtype)
    low = None if tables.low is None else table(tables.low, x.dtype)
    children = g.const(tables.children.reshape(-1) * ways, kind)
    flat = g.reshape(x, (n * width,))
    first = g.const(np.arange(n).reshape(n, 1) * width, kind)
    at = g.const(f.roots.reshape(1, -1) * ways, kind)
    for level in range(levels):
        if level == 0:
            value = g.gather(x, g.const(np.where(f.modes == _LEAF, 0, f.features)[f.roots], kind), 1)
        else:
            value = g.gather(flat, g.add(g.gather(features, at), first))
        passed = g.binary(tables.compare, value, g.gather(high, at))
        if low is not None:
            passed = g.binary("And", passed, g.binary("GreaterEqual", value, g.gather(low, at)))
        way = g.cast(passed, kind)
        if ways == 3:
            way = g.select(g.unary("IsNaN", value), g.const(2, kind), way)
        at = g.gather(children, g.add(at, way))
    return at, ways


def _single(splits: Array, dtype: DType) -> bool:
    """True where f32 compares exactly: the input is no wider, and every split is an f32 number."""
    exact = np.all((splits.astype(np.float32).astype(np.float64) == splits) | np.isnan(splits))
    return bool(exact) and dtype.is_float and dtype is not DType.F64


def _votes(
    g: Builder, x: Var, f: _Forest, owners: Array, targets: Array, weights: Array, count: int, how: str
) -> Var | None:
    """Weights of the leaves reached, combined per target: ``[N, count]``, f64 for f64 rows, else f32."""
    walked = f.walk()
    if walked is None:
        return None
    levels, leaf, tree = walked
    n, trees = x.shape[0], len(f.roots)
    dtype = DType.F64 if x.dtype is DType.F64 else DType.F32
    start = {"MIN": np.inf, "MAX": -np.inf}.get(how, 0.0)
    combine = {"MIN": np.minimum, "MAX": np.maximum}.get(how, np.add)
    fn = {"MIN": "Min", "MAX": "Max"}.get(how, "Sum")
    of_node = np.full((len(f.modes), count), start)
    combine.at(of_node, (owners, targets), weights)
    if not trees or not count or not n:
        fill = 0.0 if how in ("MIN", "MAX") else start
        return g.const(np.full((n, count), fill), dtype)
    at, ways = _states(g, x, f, levels)
    summed = fn == "Sum"
    # does every tree speak for one target only? Then one number per tree is enough
    speaks = np.zeros((trees, count), np.bool_)
    np.logical_or.at(speaks, tree, of_node[leaf] != start)
    if count == 1 or (summed and np.all(speaks.sum(axis=1) <= 1) and np.isfinite(of_node).all()):
        value = g.gather(g.const(np.repeat(of_node[:, :1] if count == 1 else of_node.sum(axis=1), ways), dtype), at)
        if count == 1:
            y = g.reduce(fn, value, [1])
        else:
            y = g.matmul(value, g.const(speaks, dtype))
    else:
        table = g.const(np.repeat(of_node, ways, axis=0), dtype)
        y = _in_blocks(g, table, at, fn)
    if y.shape[0] != n:
        y = g.expand(y, (n, count))
    if how in ("MIN", "MAX"):  # no leaf voted for this target
        y = g.select(g.binary("Equal", y, start), g.const(0, dtype), y)
    return g.div(y, trees) if how == "AVERAGE" else y


def _in_blocks(g: Builder, table: Var, at: Var, fn: str) -> Var:
    """Rows of *table* by ``at[N, trees]``, combined over the trees: ``[N, count]``."""
    (n, trees), count = at.shape, table.shape[1]
    size = max(1, _BLOCK // max(1, n * count))
    y: Var | None = None
    for k in range(0, trees, size):
        part = at if size >= trees else g.slice(at, 1, k, min(k + size, trees))
        block = g.reduce(fn, g.gather(table, part), [1], keepdims=False)
        y = block if y is None else g.binary({"Sum": "Add"}.get(fn, fn), y, block)
    assert y is not None
    return y


@rule("ml.TreeEnsemble")
def tree_ensemble(
    g: Builder,
    x: Var,
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
) -> Var | None:
    branches, leaves = len(nodes_featureids), len(leaf_targetids)

    def filled(values: Sequence[int] | Array | None, fill: float, dtype: type = np.int64) -> Array:
        none = values is None or not len(values)
        given = np.zeros(branches) if none else np.asarray(values).astype(dtype).reshape(-1)
        return np.concatenate([given, np.full(leaves, fill)]).astype(dtype)

    def children(ids: tuple[int, ...], is_leaf: tuple[int, ...]) -> Array:
        found = np.where(np.asarray(is_leaf) != 0, branches + np.asarray(ids, np.int64), np.asarray(ids, np.int64))
        return np.concatenate([found, branches + np.arange(leaves)]).astype(np.int64)

    modes = filled(nodes_modes, _LEAF)
    members: dict[int, Array] = {}
    with_sets = np.nonzero(modes == _MEMBER)[0]
    if len(with_sets):
        if membership_values is None:
            return None  # the reference says what is wrong
        flat = floats(np.asarray(membership_values))
        sets = np.split(flat, np.nonzero(np.isnan(flat))[0])
        if len(sets) < len(with_sets):
            return None
        members = {int(k): s[~np.isnan(s)] for k, s in zip(with_sets, sets, strict=False)}
    forest = _Forest(
        np.asarray(tree_roots, np.int64), filled(nodes_featureids, 0), filled(nodes_splits, 0, np.float64), modes,
        children(nodes_truenodeids, nodes_trueleafs), children(nodes_falsenodeids, nodes_falseleafs),
        filled(nodes_missing_value_tracks_true, 0),
    )  # fmt: skip
    forest = _with_search_trees(forest, members)
    targets = np.asarray(leaf_targetids, np.int64)
    count = n_targets if n_targets is not None else int(targets.max(initial=-1)) + 1
    y = _votes(
        g, x, forest, branches + np.arange(leaves), targets, floats(np.asarray(leaf_weights)), count,
        AGGREGATES[aggregate_function],
    )  # fmt: skip
    return None if y is None else g.cast(post_transformed(g, y, POST_TRANSFORMS[post_transform]), x.dtype)


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
    """A forest from columns of (tree, node) keys; also key → node. The first node of a tree is its root."""
    number = {key: k for k, key in enumerate(zip(tree_ids, node_ids, strict=True))}
    codes = np.asarray([_MODE_NAMES.index(m) for m in modes], np.int64)
    roots: dict[int, int] = {}
    for k, t in enumerate(tree_ids):
        roots.setdefault(t, k)

    def child(ids: Sequence[int]) -> Array:
        keys = enumerate(zip(tree_ids, ids, strict=True))
        return np.asarray([k if codes[k] == _LEAF else number[key] for k, key in keys], np.int64)

    tracks = np.asarray(missing if missing is not None and len(missing) else np.zeros(len(codes)), np.int64)
    if not len(splits):
        splits = np.zeros(len(codes))
    forest = _Forest(
        np.asarray(list(roots.values()), np.int64), np.asarray(features, np.int64), splits, codes, child(on_true),
        child(on_false), tracks,
    )  # fmt: skip
    return forest, number


def _matrix(g: Builder, x: Var) -> Var:
    return g.reshape(x, (1, x.shape[0])) if x.rank == 1 else x


@rule("ml.TreeEnsembleRegressor")
def tree_ensemble_regressor(
    g: Builder,
    x: Var,
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
) -> Var | None:
    if "BRANCH_MEMBER" in nodes_modes:
        return None
    splits = floats(nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor)
    forest, number = _old_forest(
        nodes_treeids, nodes_nodeids, nodes_featureids, splits, nodes_modes, nodes_truenodeids, nodes_falsenodeids,
        nodes_missing_value_tracks_true,
    )  # fmt: skip
    targets = np.asarray(target_ids, np.int64)
    count = n_targets if n_targets is not None else int(targets.max(initial=-1)) + 1
    weights = floats(target_weights if target_weights_as_tensor is None else target_weights_as_tensor)
    owners = np.asarray([number[key] for key in zip(target_treeids, target_nodeids, strict=True)], np.int64)
    y = _votes(g, _matrix(g, x), forest, owners, targets, weights, count, aggregate_function)
    if y is None:
        return None
    base = floats(base_values if base_values_as_tensor is None else base_values_as_tensor)
    if base.size:
        y = g.add(y, g.const(base, y.dtype))
    return g.cast(post_transformed(g, y, post_transform), DType.F32)


@rule("ml.TreeEnsembleClassifier")
def tree_ensemble_classifier(
    g: Builder,
    x: Var,
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
) -> tuple[Var, Var] | None:
    if classlabels_int64s is None or "BRANCH_MEMBER" in nodes_modes:
        return None
    splits = floats(nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor)
    forest, number = _old_forest(
        nodes_treeids, nodes_nodeids, nodes_featureids, splits, nodes_modes, nodes_truenodeids, nodes_falsenodeids,
        nodes_missing_value_tracks_true,
    )  # fmt: skip
    weights = floats(class_weights if class_weights_as_tensor is None else class_weights_as_tensor)
    classes = np.asarray(class_ids, np.int64)
    owners = np.asarray([number[key] for key in zip(class_treeids, class_nodeids, strict=True)], np.int64)
    base = floats(base_values if base_values_as_tensor is None else base_values_as_tensor)
    count = len(classlabels_int64s)
    single = count == 2 and len(set(class_ids)) == 1 and base.size < 2
    rows = _matrix(g, x)
    scores = _votes(g, rows, forest, owners, classes * 0 if single else classes, weights, 1 if single else count, "SUM")
    if scores is None:
        return None
    if base.size:
        scores = g.add(scores, g.const(base, scores.dtype))
    if not single:
        label = labelled(g, classlabels_int64s, scores)
        return label, g.cast(post_transformed(g, scores, post_transform), DType.F32)
    positive = bool((weights >= 0).all())
    above = g.reshape(g.binary("Greater", scores, 0.5 if positive else 0), (rows.shape[0],))
    label = g.select(above, g.const(np.int64(classlabels_int64s[1])), classlabels_int64s[0])
    return label, g.cast(_binary_scores(g, scores, post_transform, class_ids[0], positive), DType.F32)


def _binary_scores(g: Builder, score: Var, how: str, voted: int, positive: bool) -> Var:
    """Scores ``[N, 2]`` where all leaves vote for the class *voted*."""
    if voted == 1:  # the votes are the positive class's own; the other one has none
        return post_transformed(g, g.pad(score, (0, 1), (0, 0)), how)
    if how == "PROBIT":
        return g.expand(post_transformed(g, score, how), (score.shape[0], 2))
    return two_scores(g, score, how, mixed=not positive or how == "LOGISTIC")
