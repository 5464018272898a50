"""Dims of size 0 pass through the rules and references of windows, norms, quantisation, images and signals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnnpy.graph.ir import Array
from tests.rule_check import check_rule


def f(*shape: int) -> Array:
    return np.random.default_rng(0).uniform(0.5, 2, shape).astype(np.float32)


def i(*values: int) -> Array:
    return np.asarray(values, np.int64)


SCALE = np.float32(0.1).reshape(())
DOUBLE = np.asarray([1, 1, 2, 2], np.float32)
POOL = {"kernel_shape": (2, 2)}
CASES: list[tuple[str, list[Array | None], dict[str, Any], int, tuple[int, ...]]] = [
    ("Conv", [f(0, 2, 5, 5), f(3, 2, 2, 2)], {}, 1, ()),
    ("Conv", [f(1, 2, 5, 5), f(0, 2, 2, 2)], {}, 1, ()),
    ("ConvTranspose", [f(0, 2, 5, 5), f(2, 3, 2, 2)], {"strides": (2, 2)}, 1, ()),
    ("ConvTranspose", [f(1, 2, 1, 1), f(2, 3, 2, 2), f(3)], {"pads": (1, 1, 1, 1)}, 1, ()),
    ("DeformConv", [f(0, 2, 4, 4), f(3, 2, 2, 2), f(0, 8, 3, 3)], {}, 1, ()),
    ("Col2Im", [f(0, 4, 4), i(4, 4), i(2, 2)], {"strides": (2, 2)}, 1, (1, 2)),
    ("Gemm", [f(0, 4), f(4, 5), f(5)], {}, 1, ()),
    ("Gemm", [f(3, 0), f(0, 5), f(5)], {}, 1, ()),
    ("Einsum", [f(0, 3), f(3, 4)], {"equation": "ij,jk->ik"}, 1, ()),
    ("AveragePool", [f(0, 2, 5, 5)], POOL, 1, ()),
    ("MaxPool", [f(0, 2, 5, 5)], POOL, 2, ()),
    ("MaxPool", [f(1, 0, 5, 5)], POOL, 2, ()),
    ("LpPool", [f(0, 2, 5, 5)], POOL, 1, ()),
    ("MaxUnpool", [f(0, 2, 2, 2), np.zeros((0, 2, 2, 2), np.int64)], {**POOL, "strides": (2, 2)}, 1, ()),
    ("BatchNormalization", [f(0, 2, 5), f(2), f(2), f(2), f(2)], {}, 1, ()),
    ("LayerNormalization", [f(0, 3, 5), f(5)], {}, 3, ()),
    ("RMSNormalization", [f(0, 3, 5), f(5)], {}, 1, ()),
    ("GroupNormalization", [f(0, 4, 5), f(4), f(4)], {"num_groups": 2}, 1, ()),
    ("InstanceNormalization", [f(0, 4, 5), f(4), f(4)], {}, 1, ()),
    ("LRN", [f(0, 4, 5)], {"size": 3}, 1, ()),
    ("LpNormalization", [f(0, 4, 5)], {}, 1, ()),
    ("MeanVarianceNormalization", [f(2, 4, 0, 3)], {"axes": (1,)}, 1, ()),
    ("QuantizeLinear", [f(0, 4), SCALE], {}, 1, ()),
    ("DequantizeLinear", [np.zeros((0, 4), np.int8), SCALE], {}, 1, ()),
    ("DynamicQuantizeLinear", [f(0, 4)], {}, 3, ()),
    ("GridSample", [f(2, 3, 4, 4), f(2, 0, 3, 2)], {}, 1, ()),
    ("GridSample", [f(0, 3, 4, 4), f(0, 2, 3, 2)], {}, 1, ()),
    ("Resize", [f(0, 3, 4, 4), None, DOUBLE], {"mode": "linear"}, 1, (2,)),
    ("Resize", [f(1, 0, 4, 4), None, DOUBLE], {}, 1, (2,)),
    ("Resize", [f(4, 4), None, None, i(0, 3)], {}, 1, (3,)),
    ("RoiAlign", [f(1, 2, 4, 4), f(0, 4), i()], {}, 1, ()),
    ("AffineGrid", [f(0, 2, 3), i(0, 1, 3, 3)], {}, 1, (1,)),
    ("DFT", [f(0, 4, 1)], {}, 1, ()),
    ("STFT", [f(0, 8, 1), np.asarray(2, np.int64), f(4)], {}, 1, (1,)),
]


@pytest.mark.parametrize("name,inputs,attrs,outputs,const", CASES, ids=[f"{k}-{c[0]}" for k, c in enumerate(CASES)])
def test_zero_sizes(
    name: str, inputs: list[Array | None], attrs: dict[str, Any], outputs: int, const: tuple[int, ...]
) -> None:
    check_rule(name, inputs, attrs, outputs=outputs, const=const)
