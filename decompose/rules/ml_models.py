"""Linear models and support vector machines of ai.onnx.ml as products, comparisons and constant matrices.

Models with string labels have no rule: they stay host ops.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.registry import rule
from mnnpy.decompose.rules.helpers import to_float
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["floats", "labelled", "post_transformed", "two_scores"]

#: Elements of the differences between all rows and support vectors; beyond, squares of distances are expanded.
_RBF_BLOCK = 1 << 24
#: Sweeps of the coupling of probabilities. Two classes settle in 2; more did in 4 whatever the probabilities.
_COUPLE_SWEEPS = 5
#: With more classes the sweeps, unrolled over all of them, become too many nodes: a host op.
_COUPLE_CLASSES = 64

# Quantiles of the normal distribution, AS 241 (Wichura, Applied Statistics 37, 1988, PPND16): numerator and
# denominator for the centre, the tails and the far tails, lowest power first.
_PPND = np.asarray([
    [3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3],
    [1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3],
    [1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4],
    [1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9],
    [6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7],
    [1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15],
])  # fmt: skip


def floats(values: Sequence[float] | Array | None) -> Array:
    """An attribute of f32 numbers (or a tensor of any floating type) as a flat f64 array."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float64).reshape(-1)
    return np.asarray(values if values is not None else (), np.float32).astype(np.float64)


def _rows(g: Builder, x: Var) -> Var:
    """``[N, F]`` in f32 or f64; a vector is one row."""
    y = to_float(g, x)
    return g.reshape(y, (1, x.shape[0])) if x.rank == 1 else y


def _probit(g: Builder, p: Var) -> Var:
    """Quantile of the standard normal distribution; ±inf at 0 and 1, NaN outside."""
    q = g.sub(p, 0.5)
    central = g.binary("LessEqual", g.unary("Abs", q), 0.425)
    tail = g.unary("Sqrt", g.unary("Neg", g.unary("Log", g.binary("Min", p, g.sub(g.const(1, p.dtype), p)))))
    far = g.binary("Greater", tail, 5)
    near = g.select(far, g.sub(tail, 5), g.sub(tail, 1.6))
    r = g.select(central, g.sub(g.const(0.180625, p.dtype), g.unary("Square", q)), near)
    # all coefficients and powers are positive: the sums lose no digits
    powers = g.binary("Pow", g.reshape(r, (*r.shape, 1)), g.const(np.arange(8), p.dtype))
    sums = g.matmul(powers, g.const(np.ascontiguousarray(_PPND.T), p.dtype))
    top, bottom = (
        g.select(central, parts[0], g.select(far, parts[2], parts[1]))
        for parts in (
            [g.reshape(g.slice(sums, sums.rank - 1, k, k + 1), p.shape) for k in (first, first + 2, first + 4)]
            for first in (0, 1)
        )
    )
    size = g.div(top, bottom)
    y = g.mul(size, g.select(central, q, g.unary("Sign", q)))
    for edge, value in ((0, -np.inf), (1, np.inf)):
        y = g.select(g.binary("Equal", p, edge), g.const(value, p.dtype), y)
    return y


def post_transformed(g: Builder, scores: Var, how: str) -> Var:
    """Apply a *post_transform* along the last axis."""
    if how == "LOGISTIC":
        return g.unary("Sigmoid", scores)
    if how == "SOFTMAX":
        return g.op("Softmax", scores, axis=-1)  # type: ignore[no-any-return]
    if how == "PROBIT":
        return _probit(g, scores)
    if how == "SOFTMAX_ZERO":  # a score of zero means "no vote" and stays zero
        e = g.unary("Exp", g.sub(scores, g.reduce("Max", scores, [-1])))
        e = g.select(g.binary("Equal", scores, 0), g.const(0, scores.dtype), e)
        total = g.reduce("Sum", e, [-1])
        return g.div(e, g.select(g.binary("Equal", total, 0), g.const(1, scores.dtype), total))
    return scores


def two_scores(g: Builder, score: Var, how: str, *, mixed: bool) -> Var:
    """Scores ``[N, 2]`` of both classes from that of the positive one ``[N, 1]``: opposites or complements."""
    pair = g.mul(score, g.const([[-1, 1]], score.dtype))
    if mixed:
        return g.unary("Sigmoid", pair) if how == "LOGISTIC" else pair
    return g.add(pair, g.const([[1, 0]], score.dtype))


def labelled(g: Builder, labels: Sequence[int], scores: Var) -> Var:
    """Label ``[N]`` of the highest of *scores* ``[N, C]``, the first one where several are equal."""
    top = g.op("ArgReduce", scores, fn="Max", axis=1, keepdims=False, select_last=False)
    return g.gather(g.const(np.asarray(labels, np.int64)), top)


def _affine(g: Builder, x: Var, weights: Array, bias: Array) -> Var:
    """``x · weights + bias`` with constants."""
    y = g.matmul(x, g.const(np.ascontiguousarray(weights), x.dtype))
    return g.add(y, g.const(bias, x.dtype)) if bias.any() else y


@rule("ml.LinearRegressor")
def linear_regressor(
    g: Builder,
    x: Var,
    *,
    coefficients: tuple[float, ...] | None = None,
    intercepts: tuple[float, ...] | None = None,
    post_transform: str = "NONE",
    targets: int = 1,
) -> Var:
    y = _affine(g, _rows(g, x), floats(coefficients).reshape(targets, -1).T, floats(intercepts))
    return g.cast(post_transformed(g, y, post_transform), DType.F32)


@rule("ml.LinearClassifier")
def linear_classifier(
    g: Builder,
    x: Var,
    *,
    coefficients: tuple[float, ...],
    classlabels_ints: tuple[int, ...] | None = None,
    classlabels_strings: tuple[str, ...] | None = None,
    intercepts: tuple[float, ...] | None = None,
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> tuple[Var, Var] | None:
    if classlabels_ints is None:
        return None
    rows = _rows(g, x)
    scores = _affine(g, rows, floats(coefficients).reshape(-1, rows.shape[1]).T, floats(intercepts))
    if scores.shape[1] > 1:
        label = labelled(g, classlabels_ints, scores)
        return label, g.cast(post_transformed(g, scores, post_transform), DType.F32)
    if len(classlabels_ints) != 2:
        label = g.const(np.full(rows.shape[0], classlabels_ints[0], np.int64))
        return label, g.cast(post_transformed(g, scores, post_transform), DType.F32)
    above = g.reshape(g.binary("Greater", scores, 0), (rows.shape[0],))
    label = g.select(above, g.const(np.int64(classlabels_ints[1])), classlabels_ints[0])
    pair = two_scores(g, scores, post_transform, mixed=post_transform == "LOGISTIC")
    return label, g.cast(pair, DType.F32)


# -- support vector machines --


def _kernel(g: Builder, x: Var, vectors: Array, kind: str, params: Sequence[float] | None) -> Var:
    """``[N, V]`` of kernel values of ``x[N, F]`` and constant ``vectors[V, F]``."""
    gamma, coef0, degree = (*floats(params), 0.0, 0.0, 0.0)[:3]
    columns = g.const(np.ascontiguousarray(vectors.T), x.dtype)
    if kind == "RBF":
        (n, f), v = x.shape, len(vectors)
        if n * v * f <= _RBF_BLOCK:
            parts = g.binary("SquaredDifference", g.reshape(x, (n, 1, f)), g.const(vectors, x.dtype))
            distance = g.reduce("Sum", parts, [2], keepdims=False)
        else:  # |x|² − 2·x·v + |v|², which rounding may push below 0
            own = g.reduce("SumSquare", x, [1])
            cross = g.mul(g.matmul(x, columns), -2)
            distance = g.add(g.add(cross, own), g.const((vectors**2).sum(axis=1), x.dtype))
            distance = g.binary("Max", distance, 0)
        return g.unary("Exp", g.mul(distance, -gamma))
    dot = g.matmul(x, columns)
    if kind == "LINEAR":
        return dot
    dot = g.add(g.mul(dot, gamma), coef0)
    return g.binary("Pow", dot, degree) if kind == "POLY" else g.unary("Tanh", dot)


@rule("ml.SVMRegressor")
def svm_regressor(
    g: Builder,
    x: Var,
    *,
    coefficients: tuple[float, ...] | None = None,
    kernel_params: tuple[float, ...] | None = None,
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: tuple[float, ...] | None = None,
    support_vectors: tuple[float, ...] | None = None,
) -> Var:
    rows, weights = _rows(g, x), floats(coefficients)
    if n_supports:
        kernel = _kernel(g, rows, floats(support_vectors).reshape(n_supports, -1), kernel_type, kernel_params)
        y = g.matmul(kernel, g.const(weights.reshape(-1, 1), rows.dtype))
    else:
        y = _kernel(g, rows, weights.reshape(1, -1), kernel_type, kernel_params)
    if rho:
        y = g.add(y, floats(rho)[0])
    if one_class:
        y = g.select(g.binary("Greater", y, 0), g.const(1, y.dtype), -1)
    return g.cast(post_transformed(g, y, post_transform), DType.F32)


def _one_against_one(weights: Array, counts: list[int]) -> tuple[Array, Array]:
    """Matrices from kernel values ``[V, P]`` to decision values of all pairs, and from (won, lost) to votes."""
    classes = len(counts)
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    starts = np.concatenate([[0], np.cumsum(counts)])
    matrix = np.zeros((int(starts[-1]), len(pairs)))
    votes = np.zeros((2, len(pairs), classes))
    for k, (i, j) in enumerate(pairs):
        si, sj = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        matrix[si, k] = weights[j - 1, si]
        matrix[sj, k] = weights[i, sj]
        votes[0, k, i] = votes[1, k, j] = 1
    return matrix, votes.reshape(-1, classes)


def _coupling(g: Builder, logits: Var, classes: int) -> Var:
    """The matrices Q ``[N, C, C]`` of the second method of Wu, Lin and Weng (2004)."""
    n, pairs = logits.shape
    # both tails from their own sigmoid: 1 − p would lose the digits of a p near 1
    both = g.unary("Sigmoid", g.concat([g.unary("Neg", logits), logits], 1))
    both = g.unary("Clip", both, alpha=1e-7, beta=1 - 1e-7)
    place, turned = np.zeros((2, 2 * pairs, classes * classes))
    found = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    for k, (i, j) in enumerate(found):
        place[k, i * classes + j] = place[pairs + k, j * classes + i] = 1
        turned[k, j * classes + i] = turned[pairs + k, i * classes + j] = 1
    diagonal = np.zeros((classes * classes, classes * classes))
    for i in range(classes):
        diagonal[np.arange(classes) * classes + i, i * classes + i] = 1
    r, r_turned = (g.matmul(both, g.const(m, logits.dtype)) for m in (place, turned))
    squares = g.matmul(g.unary("Square", r), g.const(diagonal, logits.dtype))
    return g.reshape(g.sub(squares, g.mul(r, r_turned)), (n, classes, classes))


def _coupled(g: Builder, logits: Var, classes: int) -> Var:
    """Class probabilities ``[N, C]`` from the logits of pairwise ones; rows that have settled stop changing."""
    n = logits.shape[0]
    q = _coupling(g, logits, classes)
    rows = [g.reshape(g.slice(q, 1, t, t + 1), (n, classes)) for t in range(classes)]
    # a step along class t changes p by unit[t] and Q·p by row t of Q; both at once in [N, 2C]
    units = np.eye(classes)
    moves = [g.concat([g.expand(g.const(units[t : t + 1], q.dtype), (n, classes)), rows[t]], 1) for t in range(classes)]
    own = [g.slice(rows[t], 1, t, t + 1) for t in range(classes)]
    p = g.expand(g.const(np.full((1, classes), 1 / classes), q.dtype), (n, classes))
    for _ in range(2 if classes == 2 else _COUPLE_SWEEPS):
        qp = g.reshape(g.matmul(q, g.reshape(p, (n, classes, 1))), (n, classes))
        total = g.reduce("Sum", g.mul(p, qp), [1])
        off = g.reduce("Max", g.unary("Abs", g.sub(qp, total)), [1])
        settled = g.binary("Less", off, 0.005 / classes)
        both = g.concat([p, qp], 1)
        for t in range(classes):
            slope = g.slice(both, 1, classes + t, classes + t + 1)
            step = g.div(g.sub(total, slope), own[t])
            scale = g.add(step, 1)
            total = g.div(g.div(g.add(total, g.mul(step, g.add(total, slope))), scale), scale)
            both = g.div(g.add(both, g.mul(step, moves[t])), scale)
        p = g.select(settled, p, g.slice(both, 1, 0, classes))
    return p


@rule("ml.SVMClassifier")
def svm_classifier(
    g: Builder,
    x: Var,
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
) -> tuple[Var, Var] | None:
    counts = list(vectors_per_class or ())
    classes = len(counts)
    if classlabels_ints is None or (prob_a and classes > _COUPLE_CLASSES):
        return None
    rows, weights = _rows(g, x), floats(coefficients)
    if not support_vectors:
        scores = _kernel(g, rows, weights.reshape(len(classlabels_ints), -1), kernel_type, kernel_params)
        scores = g.add(scores, floats(rho)[0]) if rho else scores
        label = labelled(g, classlabels_ints, scores)
        return label, g.cast(post_transformed(g, scores, post_transform), DType.F32)
    kernel = _kernel(g, rows, floats(support_vectors).reshape(sum(counts), -1), kernel_type, kernel_params)
    matrix, votes = _one_against_one(weights.reshape(classes - 1, -1), counts)
    pairs = _affine(g, kernel, matrix, floats(rho))
    won = g.cast(g.concat([g.binary("Greater", pairs, 0), g.binary("LessEqual", pairs, 0)], 1), pairs.dtype)
    label = labelled(g, classlabels_ints, g.matmul(won, g.const(votes, pairs.dtype)))
    if prob_a:
        logits = g.add(g.mul(pairs, g.const(floats(prob_a), pairs.dtype)), g.const(floats(prob_b), pairs.dtype))
        scores = post_transformed(g, _coupled(g, logits, classes), post_transform)
    elif classes == 2:
        scores = two_scores(g, pairs, post_transform, mixed=post_transform in ("NONE", "LOGISTIC"))
    else:
        scores = post_transformed(g, pairs, post_transform)
    return label, g.cast(scores, DType.F32)
