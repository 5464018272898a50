"""References of ai.onnx.ml against ONNX Runtime, and against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnpy.decompose.builder import evaluate
from mnnpy.decompose.infer import Operand, infer, operand_of
from mnnpy.errors import MnnpyError, ShapeError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import MapType, SequenceType, TensorType


def against_runtime(
    name: str, inputs: list[Any], attrs: dict[str, Any], outputs: int = 1, tolerance: float = 1e-5
) -> None:
    """Compare a reference and its shape function with ONNX Runtime."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    ins, outs = [f"i{k}" for k in range(len(inputs))], [f"o{k}" for k in range(outputs)]
    node = onnx.helper.make_node(name.removeprefix("ml."), ins, outs, domain="ai.onnx.ml", **attrs)
    infos = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in zip(ins, inputs, strict=True)
    ]
    graph = onnx.helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name=o) for o in outs])
    opsets = [onnx.helper.make_opsetid("ai.onnx.ml", 3), onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, dict(zip(ins, inputs, strict=True)))
    got = evaluate(name, inputs, attrs)
    types = infer(name, [operand_of(x) for x in inputs], attrs, outputs)
    for k, (g, w) in enumerate(zip(got, want, strict=True)):
        if isinstance(w, list):
            assert [{a: pytest.approx(b) for a, b in m.items()} for m in w] == g
            continue
        w = np.asarray(w)
        assert g.shape == w.shape, f"output {k}: {g.shape} instead of {w.shape}"
        assert types[k] == TensorType(DType.of(g.dtype), g.shape), f"output {k}: {types[k]}"
        if w.dtype.kind in "OUS":
            assert g.tolist() == w.tolist()
        else:
            assert g.dtype == w.dtype
            np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance, err_msg=f"output {k}")


def rows(n: int = 6, f: int = 3, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, f)).astype(np.float32)


def numbers(n: int, seed: int = 1) -> tuple[float, ...]:
    return tuple(float(v) for v in np.random.default_rng(seed).normal(size=n).astype(np.float32))


@pytest.mark.parametrize("post", ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("targets", [1, 3])
def test_linear_regressor(post: str, targets: int) -> None:
    if targets == 1 and post != "NONE":
        pytest.skip("ONNX Runtime treats one target as a class here")
    attrs = {
        "coefficients": numbers(3 * targets),
        "intercepts": numbers(targets, 2),
        "targets": targets,
        "post_transform": post,
    }
    against_runtime("ml.LinearRegressor", [rows()], attrs)


@pytest.mark.parametrize("post", ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("scores, labels", [(1, 2), (2, 2), (4, 4)])
def test_linear_classifier(post: str, scores: int, labels: int) -> None:
    attrs = {"coefficients": numbers(3 * scores), "intercepts": numbers(scores, 2), "post_transform": post,
             "classlabels_ints": tuple(range(10, 10 + labels))}  # fmt: skip
    against_runtime("ml.LinearClassifier", [rows()], attrs, 2)


def test_linear_classifier_strings() -> None:
    attrs = {"coefficients": numbers(6), "classlabels_strings": ("a", "b"), "intercepts": (0.0, 0.1)}
    against_runtime("ml.LinearClassifier", [rows()], attrs, 2)


@pytest.mark.parametrize("kernel", ["LINEAR", "POLY", "RBF", "SIGMOID"])
@pytest.mark.parametrize("one_class", [0, 1])
def test_svm_regressor(kernel: str, one_class: int) -> None:
    attrs = {"coefficients": numbers(4), "support_vectors": numbers(12, 3), "n_supports": 4, "rho": (0.25,),
             "kernel_type": kernel, "kernel_params": (0.5, 0.1, 2.0), "one_class": one_class}  # fmt: skip
    against_runtime("ml.SVMRegressor", [rows()], attrs)


@pytest.mark.parametrize("post", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("positive", [False, True])
def test_svm_classifier(post: str, probabilities: bool, classes: int, positive: bool) -> None:
    counts = (2, 3, 2)[:classes]
    pairs = classes * (classes - 1) // 2
    weights = numbers((classes - 1) * sum(counts))
    attrs: dict[str, Any] = {
        "coefficients": tuple(abs(w) for w in weights) if positive else weights, "rho": numbers(pairs, 4),
        "support_vectors": numbers(3 * sum(counts), 5), "vectors_per_class": counts, "kernel_type": "RBF",
        "kernel_params": (0.5, 0.0, 3.0), "classlabels_ints": tuple(range(classes)), "post_transform": post,
    }  # fmt: skip
    if probabilities:
        attrs |= {"prob_a": tuple(-1 - abs(v) for v in numbers(pairs, 6)), "prob_b": numbers(pairs, 7)}
    against_runtime("ml.SVMClassifier", [rows()], attrs, 2, tolerance=1e-4)


def forest(n_trees: int = 3, depth: int = 2, seed: int = 0) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """Complete trees with random splits, and the (tree, node) of their leaves."""
    r = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {k: [] for k in (
        "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values", "nodes_modes", "nodes_truenodeids",
        "nodes_falsenodeids", "nodes_missing_value_tracks_true")}  # fmt: skip
    leaves = []
    modes = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"]
    for t in range(n_trees):
        mode = modes[t % 4]
        for k in range(2 ** (depth + 1) - 1):
            is_leaf = k >= 2**depth - 1
            values = (t, k, int(r.integers(3)), float(np.float32(r.normal())), "LEAF" if is_leaf else mode,
                      0 if is_leaf else 2 * k + 1, 0 if is_leaf else 2 * k + 2, int(r.integers(2)))  # fmt: skip
            for column, v in zip(columns.values(), values, strict=True):
                column.append(v)
            if is_leaf:
                leaves.append((t, k))
    return {k: tuple(v) for k, v in columns.items()}, leaves


def missing_rows() -> Any:
    x = rows(8)
    x[0, 0] = x[3, 1] = np.nan
    return x


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("base", [False, True])
def test_tree_ensemble_regressor(aggregate: str, targets: int, base: bool) -> None:
    attrs, leaves = forest(4)
    attrs |= {
        "target_treeids": tuple(t for t, _ in leaves), "target_nodeids": tuple(n for _, n in leaves),
        "target_ids": tuple(t % targets for t, _ in leaves), "target_weights": numbers(len(leaves), 8),
        "n_targets": targets, "aggregate_function": aggregate,
    }  # fmt: skip
    if base:
        attrs["base_values"] = numbers(targets, 9)
    against_runtime("ml.TreeEnsembleRegressor", [missing_rows()], attrs)


@pytest.mark.parametrize("post", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("kind", ["first", "first positive", "second", "second positive", "three"])
@pytest.mark.parametrize("base", [False, True])
def test_tree_ensemble_classifier(post: str, kind: str, base: bool) -> None:
    attrs, leaves = forest(3)
    labels = 3 if kind == "three" else 2
    weights = numbers(len(leaves), 8)
    if kind.endswith("positive"):
        weights = tuple(abs(w) / 4 for w in weights)
    single = kind != "three"
    if kind.startswith("second") and base:
        pytest.skip("ONNX Runtime adds the base value of a single class to the other one")
    attrs |= {
        "class_treeids": tuple(t for t, _ in leaves), "class_nodeids": tuple(n for _, n in leaves),
        "class_ids": tuple(int(kind.startswith("second")) if single else t % labels for t, _ in leaves),
        "class_weights": weights,
        "classlabels_strings": tuple("abc"[:labels]), "post_transform": post,
    }  # fmt: skip
    if base:
        attrs["base_values"] = numbers(1 if single else labels, 9)
    against_runtime("ml.TreeEnsembleClassifier", [missing_rows()], attrs, 2)


def test_tree_ensemble_with_two_voted_classes_takes_the_top_one() -> None:
    attrs = {
        "nodes_treeids": (0,) * 3, "nodes_nodeids": (0, 1, 2), "nodes_featureids": (0,) * 3, "nodes_values": (0.0,) * 3,
        "nodes_modes": ("BRANCH_LEQ", "LEAF", "LEAF"), "nodes_truenodeids": (1, 0, 0), "nodes_falsenodeids": (2, 0, 0),
        "class_treeids": (0,) * 4, "class_nodeids": (1, 1, 2, 2), "class_ids": (0, 1, 0, 1),
        "class_weights": (0.75, 0.25, 0.125, 0.875), "classlabels_int64s": (5, 6),
    }  # fmt: skip
    labels, scores = evaluate("ml.TreeEnsembleClassifier", [np.float32([[-1], [1]])], attrs)
    assert labels.tolist() == [5, 6]
    assert scores.tolist() == [[0.75, 0.25], [0.125, 0.875]]


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalizer(norm: str) -> None:
    x = rows()
    x[2] = 0
    against_runtime("ml.Normalizer", [x], {"norm": norm})


def test_scaler() -> None:
    against_runtime("ml.Scaler", [rows()], {"offset": numbers(3), "scale": numbers(3, 2)})
    against_runtime("ml.Scaler", [np.arange(6).reshape(2, 3)], {"offset": (1.0,), "scale": (0.5,)})


def test_imputer() -> None:
    x = missing_rows()
    against_runtime("ml.Imputer", [x], {"imputed_value_floats": (1.0, 2.0, 3.0), "replaced_value_float": float("nan")})
    ints = np.arange(6).reshape(2, 3) % 3
    against_runtime("ml.Imputer", [ints], {"imputed_value_int64s": (9,), "replaced_value_int64": 2})


def test_feature_vectorizer() -> None:
    against_runtime("ml.FeatureVectorizer", [rows(), rows(6, 2)], {"inputdimensions": (3, 2)})


def test_feature_vectorizer_cuts_and_fills() -> None:
    (y,) = evaluate(
        "ml.FeatureVectorizer", [np.ones((1, 2), np.float32), np.ones(3, np.int64)], {"inputdimensions": (3, 1)}
    )
    assert y.tolist() == [[1, 1, 0, 1]]
    assert y.dtype == np.float32


def test_array_feature_extractor() -> None:
    against_runtime("ml.ArrayFeatureExtractor", [rows(), np.asarray([2, 0, 2])], {})
    against_runtime("ml.ArrayFeatureExtractor", [rows()[0], np.asarray([[1, 2]])], {})
    with pytest.raises(MnnpyError, match="indices 0 to 3 for 3 features"):
        evaluate("ml.ArrayFeatureExtractor", [rows(), np.asarray([0, 3])], {})


def test_one_hot() -> None:
    against_runtime("ml.OneHotEncoder", [np.asarray([[1, 3], [2, 9]])], {"cats_int64s": (1, 2, 3), "zeros": 1})
    x = np.asarray(["b", "a"], object)
    (y,) = evaluate("ml.OneHotEncoder", [x], {"cats_strings": ("a", "b")})
    assert y.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(MnnpyError, match="category 7"):
        evaluate("ml.OneHotEncoder", [np.asarray([7])], {"cats_int64s": (1,), "zeros": 0})


def test_category_mapper() -> None:
    cats = {"cats_int64s": (1, 2), "cats_strings": ("one", "two")}
    (y,) = evaluate("ml.CategoryMapper", [np.asarray([2, 3])], cats)
    assert y.tolist() == ["two", "_Unused"]
    (z,) = evaluate("ml.CategoryMapper", [np.asarray(["one", "x"], object)], cats)
    assert z.tolist() == [1, -1]
    assert z.dtype == np.int64


def test_maps() -> None:
    (y,) = evaluate("ml.CastMap", [{2: 0.5, 0: 1.5}], {})
    assert y.tolist() == [[1.5, 0.5]]
    (y,) = evaluate("ml.CastMap", [{2: "0.5", 0: "1.5"}], {"map_form": "SPARSE", "max_map": 4, "cast_to": "TO_INT64"})
    assert y.tolist() == [[1, 0, 0, 0]]
    (y,) = evaluate("ml.DictVectorizer", [{"a": 4, "c": 8}], {"string_vocabulary": ("a", "c", "b", "z")})
    assert y.tolist() == [[4, 8, 0, 0]]
    (t,) = infer(
        "ml.DictVectorizer",
        [Operand(MapType(DType.STRING, TensorType(DType.F32, ())))],
        {"string_vocabulary": ("a",)},
        1,
    )
    assert t == TensorType(DType.F32, (1, 1))


def test_zip_map() -> None:
    against_runtime("ml.ZipMap", [rows(2, 2)], {"classlabels_strings": ("a", "b")})
    (t,) = infer("ml.ZipMap", [operand_of(rows(2, 2))], {"classlabels_int64s": (1, 2)}, 1)
    assert t == SequenceType(MapType(DType.I64, TensorType(DType.F32, ())))


def test_label_encoder_takes_the_last_of_equal_keys() -> None:
    (y,) = evaluate("ml.LabelEncoder", [np.asarray([1, 2])], {"keys_int64s": (1, 1), "values_floats": (5.0, 6.0)})
    assert y.tolist() == [6.0, 0.0]
    nan = float("nan")
    (y,) = evaluate("ml.LabelEncoder", [np.float32([nan, 1])], {"keys_floats": (nan,), "values_int64s": (5,)})
    assert y.tolist() == [5, -1]


@pytest.mark.parametrize(
    "name, attrs, message",
    [
        ("ml.LinearRegressor", {"coefficients": (1.0,)}, "1 coefficients for 3 features"),
        ("ml.ZipMap", {}, "exactly one of classlabels_int64s, classlabels_strings"),
        ("ml.Normalizer", {"norm": "L3"}, "norm 'L3'"),
        ("ml.Scaler", {"scale": (1.0, 2.0)}, "scale has 2 entries for 3 features"),
    ],
)
def test_errors(name: str, attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        infer(name, [operand_of(rows())], attrs, 1)
