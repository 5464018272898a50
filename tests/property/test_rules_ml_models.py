"""Rules of trees, linear models, support vector machines and encoders against their references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnpy.decompose.builder import Builder, Var, evaluate
from mnnpy.decompose.infer import infer, operand_of
from mnnpy.decompose.registry import find_rule
from mnnpy.errors import ShapeError
from mnnpy.graph.ir import tensor_type_of
from mnnpy.session import Session
from tests.rule_check import check_rule

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
POSTS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
FEATURES = 3
# few values, so that rows meet splits exactly; among them the ends of the range
SPLITS = (0.0, -0.0, 0.5, 1.0, -1.0, float("inf"), float("-inf"), float("nan"))


def f32(values: Any) -> Any:
    return np.asarray(values, np.float32)


def declines(name: str, inputs: list[Any], attrs: dict[str, Any]) -> bool:
    g = Builder(fold=False)
    made = [Var(f"i{k}", tensor_type_of(x)) for k, x in enumerate(inputs)]
    rule = find_rule(name)
    assert rule is not None
    return rule(g, *made, **attrs) is None


def rows_of(seed: int, n: int, dtype: Any = np.float32) -> Any:
    r = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "i":
        return r.integers(-2, 3, (n, FEATURES)).astype(dtype)
    return r.choice([*SPLITS, 0.25, 0.75, 2.0], (n, FEATURES)).astype(dtype)


def old_trees(seed: int, trees: int, depth: int, modes: tuple[str, ...], tracks: bool) -> tuple[dict[str, Any], Any]:
    """Random unbalanced trees as columns, and the (tree, node) of their leaves."""
    r = np.random.default_rng(seed)
    rows: list[tuple[Any, ...]] = []
    leaves: list[tuple[int, int]] = []

    def grow(tree: int, level: int, count: list[int]) -> int:
        node = count[0]
        count[0] += 1
        at = len(rows)
        rows.append(())
        if level == depth or r.random() < 0.25:
            rows[at] = (tree, node, 0, 0.0, "LEAF", 0, 0, 0)
            leaves.append((tree, node))
            return node
        feature, split, mode = int(r.integers(FEATURES)), float(r.choice(SPLITS)), str(r.choice(modes))
        children = grow(tree, level + 1, count), grow(tree, level + 1, count)
        rows[at] = (tree, node, feature, split, mode, *children, int(tracks and r.random() < 0.5))
        return node

    for t in range(trees):
        grow(t, 0, [0])
    names = (
        "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values", "nodes_modes", "nodes_truenodeids",
        "nodes_falsenodeids", "nodes_missing_value_tracks_true",
    )  # fmt: skip
    return dict(zip(names, zip(*rows, strict=True), strict=True)), leaves


def weights_of(seed: int, n: int) -> tuple[float, ...]:
    """Multiples of 1/8: their sums are exact, so that ties are ties in every type."""
    return tuple((np.random.default_rng(seed).integers(-8, 9, n) / 8).tolist())


ensembles = st.tuples(
    st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 4),
    st.sampled_from([(m,) for m in MODES] + [MODES, MODES[:4], ("BRANCH_LT", "BRANCH_GTE")]), st.booleans(),
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    ensembles, st.sampled_from(["SUM", "AVERAGE", "MIN", "MAX"]), st.integers(1, 3), st.integers(0, 4),
    st.sampled_from([np.float32, np.float64, np.int64, np.int32]), st.sampled_from(POSTS),
)  # fmt: skip
def test_tree_ensemble_regressor(made: Any, how: str, targets: int, n: int, dtype: Any, post: str) -> None:
    attrs, leaves = old_trees(*made)
    ids = np.random.default_rng(made[0]).integers(0, targets, len(leaves))
    if made[0] % 2:  # every tree speaks for one target
        ids = np.asarray([t for t, _ in leaves]) % targets
    attrs |= {
        "target_treeids": tuple(t for t, _ in leaves), "target_nodeids": tuple(k for _, k in leaves),
        "target_ids": tuple(ids.tolist()), "target_weights": weights_of(made[0], len(leaves)), "n_targets": targets,
        "aggregate_function": how, "post_transform": post,
    }  # fmt: skip
    if made[0] % 3 == 0:
        attrs["base_values"] = weights_of(made[0] + 1, targets)
    check_rule("ml.TreeEnsembleRegressor", [rows_of(made[0], n, dtype)], attrs)


@settings(max_examples=50, deadline=None)
@given(
    ensembles, st.sampled_from([1, 2, 3]), st.sampled_from(["any", "first", "second"]), st.booleans(),
    st.integers(0, 4), st.sampled_from(POSTS),
)  # fmt: skip
def test_tree_ensemble_classifier(made: Any, labels: int, votes: str, positive: bool, n: int, post: str) -> None:
    attrs, leaves = old_trees(*made)
    ids = np.random.default_rng(made[0]).integers(0, labels, len(leaves))
    if votes != "any":
        ids[:] = min(labels - 1, int(votes == "second"))
    weights = weights_of(made[0], len(leaves))
    attrs |= {
        "class_treeids": tuple(t for t, _ in leaves), "class_nodeids": tuple(k for _, k in leaves),
        "class_ids": tuple(ids.tolist()), "class_weights": tuple(map(abs, weights)) if positive else weights,
        "classlabels_int64s": tuple(range(10, 10 + labels)), "post_transform": post,
    }  # fmt: skip
    if made[0] % 3 == 0:
        attrs["base_values"] = weights_of(made[0] + 1, labels if made[0] % 2 else 1)
    check_rule("ml.TreeEnsembleClassifier", [rows_of(made[0], n)], attrs, outputs=2)
    attrs["classlabels_strings"] = tuple("abc"[:labels])
    del attrs["classlabels_int64s"]
    assert declines("ml.TreeEnsembleClassifier", [rows_of(made[0], n)], attrs)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 4), st.booleans(), st.integers(0, 3), st.integers(0, 4),
    st.sampled_from([np.float32, np.float64, np.float16]), st.integers(0, 3), st.sampled_from([0, 1, 2]),
)  # fmt: skip
def test_tree_ensemble(seed: int, trees: int, sets: bool, how: int, n: int, dtype: Any, size: int, post: int) -> None:
    r = np.random.default_rng(seed)
    branches, leaves, targets = trees * (size + 1), 3, 2
    modes = r.integers(0, 7 if sets else 6, branches).astype(np.uint8)
    # node k of a tree leads to node k + 1 of it or to a leaf; the last one only to leaves
    last = np.arange(branches) % (size + 1) == size
    leaf = [np.where(last, 1, r.integers(0, 2, branches)) for _ in range(2)]
    ids = [np.where(f, r.integers(0, leaves, branches), np.arange(branches) + 1) for f in leaf]
    members = [r.choice([0.0, 0.5, 1.0, 2.0, -1.0], r.integers(1, 5)) for m in modes if m == 6]
    attrs: dict[str, Any] = {
        "nodes_featureids": tuple(r.integers(0, FEATURES, branches).tolist()), "nodes_modes": modes,
        "nodes_splits": r.choice(SPLITS, branches).astype(dtype), "nodes_truenodeids": tuple(ids[0].tolist()),
        "nodes_falsenodeids": tuple(ids[1].tolist()), "nodes_trueleafs": tuple(leaf[0].tolist()),
        "nodes_falseleafs": tuple(leaf[1].tolist()), "tree_roots": tuple(range(0, branches, size + 1)),
        "leaf_targetids": tuple(r.integers(0, targets, leaves).tolist()), "n_targets": targets,
        "leaf_weights": (r.integers(-8, 9, leaves) / 8).astype(dtype), "aggregate_function": how,
        "post_transform": post,
    }  # fmt: skip
    if members:
        attrs["membership_values"] = np.concatenate([[*m, np.nan] for m in members]).astype(dtype)
    if seed % 2:
        attrs["nodes_missing_value_tracks_true"] = tuple(r.integers(0, 2, branches).tolist())
    tolerance = 2e-3 if dtype is np.float16 else 1e-6
    check_rule("ml.TreeEnsemble", [rows_of(seed, n, dtype)], attrs, rtol=tolerance, atol=tolerance)


def test_large_sets_of_members_become_a_search_tree() -> None:
    values = np.random.default_rng(0).permutation(np.arange(0, 200, 2)).astype(np.float32)
    attrs: dict[str, Any] = {
        "nodes_featureids": (0,), "nodes_modes": np.asarray([6], np.uint8), "nodes_splits": f32([0]),
        "nodes_truenodeids": (1,), "nodes_falsenodeids": (0,), "nodes_trueleafs": (1,), "nodes_falseleafs": (1,),
        "tree_roots": (0,), "leaf_targetids": (0, 0), "leaf_weights": f32([0, 1]), "n_targets": 1,
    }  # fmt: skip
    attrs["membership_values"] = values
    x = f32([*range(-1, 201), np.nan]).reshape(-1, 1)
    nodes = check_rule("ml.TreeEnsemble", [x], attrs)
    assert len(nodes) < 100
    assert evaluate("ml.TreeEnsemble", [x], attrs)[0].sum() == 100
    check_rule("ml.TreeEnsemble", [x], attrs | {"nodes_missing_value_tracks_true": (1,)})


def test_trees_that_go_in_a_circle_stay_with_the_reference() -> None:
    attrs = {
        "nodes_treeids": (0, 0), "nodes_nodeids": (0, 1), "nodes_featureids": (0, 0), "nodes_values": (0.0, 0.0),
        "nodes_modes": ("BRANCH_LEQ", "LEAF"), "nodes_truenodeids": (1, 0), "nodes_falsenodeids": (0, 0),
        "target_treeids": (0,), "target_nodeids": (1,), "target_ids": (0,), "target_weights": (1.0,), "n_targets": 1,
    }  # fmt: skip
    assert declines("ml.TreeEnsembleRegressor", [np.zeros((1, 1), np.float32)], attrs)
    x = operand_of(np.zeros((1, 1), np.float32))
    with pytest.raises(ShapeError, match="go from 4 to 4, but the input has 1 features"):
        infer("ml.TreeEnsembleRegressor", [x], attrs | {"nodes_featureids": (4, 9)}, 1)


# -- linear models and support vector machines --


@pytest.mark.parametrize("post", POSTS)
@pytest.mark.parametrize("scores, labels", [(1, 1), (1, 2), (2, 2), (4, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_linear_classifier(post: str, scores: int, labels: int, dtype: Any) -> None:
    attrs = {"coefficients": weights_of(0, FEATURES * scores), "intercepts": weights_of(1, scores),
             "post_transform": post}  # fmt: skip
    x = np.random.default_rng(0).integers(-3, 4, (6, FEATURES)).astype(dtype)
    ints = attrs | {"classlabels_ints": tuple(range(5, 5 + labels))}
    for rows in (x, x[:0], x[0]):
        check_rule("ml.LinearClassifier", [rows], ints, outputs=2)
    assert declines("ml.LinearClassifier", [x], attrs | {"classlabels_strings": tuple("abcd"[:labels])})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quantiles_of_the_normal_distribution(dtype: Any) -> None:
    p = np.asarray([0, 1, -0.1, 1.5, np.nan, 0.5, 0.075, 0.925, 1e-6, 0.999, 1e-12, 1e-30, *np.linspace(0, 1, 50)])
    tolerance = 1e-5 if dtype is np.float32 else 1e-12
    attrs = {"coefficients": (1.0,), "post_transform": "PROBIT"}
    y = check_rule("ml.LinearRegressor", [p.astype(dtype).reshape(-1, 1)], attrs, rtol=tolerance)
    assert len(y) < 60


KERNELS = ("LINEAR", "POLY", "RBF", "SIGMOID")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("one_class", [0, 1])
@pytest.mark.parametrize("supports", [0, 4])
@pytest.mark.parametrize("post", ["NONE", "LOGISTIC"])
def test_svm_regressor(kernel: str, one_class: int, supports: int, post: str) -> None:
    r = np.random.default_rng(0)
    attrs: dict[str, Any] = {
        "coefficients": tuple(r.normal(size=supports or FEATURES)), "rho": (0.25,), "one_class": one_class,
        "support_vectors": tuple(r.normal(size=supports * FEATURES)), "n_supports": supports, "kernel_type": kernel,
        "kernel_params": (0.5, 0.1, 2.0), "post_transform": post,
    }  # fmt: skip
    x = r.normal(size=(5, FEATURES)).astype(np.float32)
    for rows in (x, x[:0], x[0]):
        check_rule("ml.SVMRegressor", [rows], attrs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("classes", [0, 2, 3, 5])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("post", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_svm_classifier(kernel: str, classes: int, probabilities: bool, post: str) -> None:
    r = np.random.default_rng(classes)
    counts = (2, 3, 2, 1, 4)[:classes]
    pairs, total = classes * (classes - 1) // 2, sum(counts)
    attrs: dict[str, Any] = {
        "coefficients": tuple(r.normal(size=(classes - 1) * total if classes else 2 * FEATURES)),
        "rho": tuple(r.normal(size=pairs or 1)), "support_vectors": tuple(r.normal(size=FEATURES * total)),
        "vectors_per_class": counts, "kernel_type": kernel, "kernel_params": (0.5, 0.1, 3.0),
        "classlabels_ints": tuple(range(7, 7 + (classes or 2))), "post_transform": post,
    }  # fmt: skip
    if probabilities and classes:
        attrs |= {"prob_a": tuple(-1 - abs(r.normal(size=pairs))), "prob_b": tuple(r.normal(size=pairs))}
    x = r.normal(size=(7, FEATURES)).astype(np.float32)
    if classes:
        x[0] = np.nan if not probabilities else x[0] * 30
    for rows in (x, x[:0], x[1]):
        check_rule("ml.SVMClassifier", [rows], attrs, outputs=2, rtol=1e-3, atol=2e-5)
    labels = attrs.pop("classlabels_ints")
    assert declines("ml.SVMClassifier", [x], attrs | {"classlabels_strings": tuple("abcdef"[: len(labels)])})


# -- encoders --


def test_one_hot_encoder() -> None:
    for dtype in (np.int64, np.int32, np.float32, np.float64):
        x = np.asarray([[1, 3], [2, 9], [-1, 0]]).astype(dtype)
        check_rule("ml.OneHotEncoder", [x], {"cats_int64s": (3, 1, 0, 1)})
        check_rule("ml.OneHotEncoder", [x[:0]], {"cats_int64s": (3, 1)})
    x32 = f32([2**24, 1.5, np.nan, np.inf])
    check_rule("ml.OneHotEncoder", [x32], {"cats_int64s": (2**24 + 1, 1, 2**24)})
    assert declines("ml.OneHotEncoder", [x32], {"cats_int64s": (1,), "zeros": 0})
    assert declines("ml.OneHotEncoder", [np.asarray(["a"], object)], {"cats_strings": ("a",)})


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(0, 80), st.sampled_from([np.float32, np.float64, np.int64, np.int16]),
    st.sampled_from([np.float32, np.float64, np.int64, np.int32]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_label_encoder(seed: int, keys: int, kind: Any, to: Any, long: bool, nan: bool) -> None:
    r = np.random.default_rng(seed)
    k = r.integers(-40, 41, keys).astype(kind)
    x = r.integers(-45, 46, (700, 3) if long else (2, 0, 3) if seed % 7 == 0 else (5, 2)).astype(kind)
    if nan and np.dtype(kind).kind == "f" and x.size:
        x.reshape(-1)[0] = np.nan
        if keys and seed % 2:
            k[r.integers(0, keys, 2)] = np.nan
    values = r.integers(-100, 100, keys).astype(to)
    attrs: dict[str, Any] = {"keys_tensor": k, "values_tensor": values}
    if seed % 3 == 0:
        attrs["default_tensor"] = np.asarray([7], to)
    check_rule("ml.LabelEncoder", [x], attrs)


def test_label_encoder_of_lists() -> None:
    x = np.asarray([1, 5, 2, 5])
    check_rule("ml.LabelEncoder", [x], {"keys_int64s": (5, 1, 5), "values_floats": (1.5, 2.5, 3.5)})
    check_rule("ml.LabelEncoder", [x], {"keys_int64s": (5, 1), "values_int64s": (8, 9), "default_int64": 3})
    keys = (0.5, float("nan"), float("-inf"), 0.0)
    attrs = {"keys_floats": keys, "values_int64s": (1, 2, 3, 4)}
    check_rule("ml.LabelEncoder", [f32([0.5, np.nan, -np.inf, -0.0, 7])], attrs)
    assert declines("ml.LabelEncoder", [x], {"keys_int64s": (1,), "values_strings": ("a",)})
    assert declines("ml.LabelEncoder", [np.asarray(["a"], object)], {"keys_strings": ("a",), "values_int64s": (1,)})


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([(1, 1), (1, 2), (2, 3), (2, 2)]), st.integers(0, 3),
    st.sampled_from(["TF", "IDF", "TFIDF"]), st.sampled_from([(9,), (3, 8), (2, 1), (0, 4), (2, 0)]),
)  # fmt: skip
def test_tf_idf_of_numbers(seed: int, lengths: tuple[int, int], skips: int, mode: str, shape: Any) -> None:
    r = np.random.default_rng(seed)
    sizes = r.integers(0, 5, 3)  # n-grams of 1, 2 and 3 tokens
    starts = np.concatenate([[0], np.cumsum(sizes * (1, 2, 3))])
    total = int(sizes.sum())
    attrs: dict[str, Any] = {
        "min_gram_length": lengths[0], "max_gram_length": lengths[1], "max_skip_count": skips, "mode": mode,
        "ngram_counts": tuple(starts[:3].tolist()), "pool_int64s": tuple(r.integers(0, 3, starts[-1]).tolist()),
        "ngram_indexes": tuple(r.permutation(total).tolist()),
    }  # fmt: skip
    if seed % 2:
        attrs["weights"] = weights_of(seed, total)
    for dtype in (np.int64, np.int32):
        check_rule("TfIdfVectorizer", [r.integers(0, 3, shape).astype(dtype)], attrs)


@pytest.mark.parametrize("strings", [False, True])
def test_only_string_labels_leave_the_device(strings: bool) -> None:
    onnx = pytest.importorskip("onnx")
    labels = {"classlabels_strings": ["a", "b"]} if strings else {"classlabels_ints": [3, 4]}
    node = onnx.helper.make_node(
        "LinearClassifier", ["x"], ["label", "score"], domain="ai.onnx.ml", coefficients=[1.0, -1.0], **labels
    )
    kind = onnx.TensorProto
    outputs = [
        onnx.helper.make_tensor_value_info("label", kind.STRING if strings else kind.INT64, ["n"]),
        onnx.helper.make_tensor_value_info("score", kind.FLOAT, ["n", 2]),
    ]
    x = onnx.helper.make_tensor_value_info("x", kind.FLOAT, ["n", 1])
    graph = onnx.helper.make_graph([node], "g", [x], outputs)
    opsets = [onnx.helper.make_opsetid("ai.onnx.ml", 3), onnx.helper.make_opsetid("", 17)]
    session = Session(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), ["reference:atomic"])
    label, score = session.run(None, {"x": f32([[2], [-2]])})
    assert label.tolist() == (["a", "b"] if strings else [3, 4])
    assert score.tolist() == [[2, -2], [-2, 2]]
    assert ("ml.LinearClassifier" in str(session.explain())) == strings
