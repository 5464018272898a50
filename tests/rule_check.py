"""Check a decomposition rule: expand it down to atomic ops, run those, compare with the op's own reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mnnpy.decompose.builder import Builder, Var, evaluate
from mnnpy.decompose.registry import OpClass, find_rule, get_op
from mnnpy.graph.ir import Array, Node, tensor_type_of

__all__ = ["check_rule", "compare", "expand_to_atomic", "run_rule"]

_MAX_DEPTH = 12


def run_rule(
    name: str,
    inputs: Sequence[Array | None],
    attrs: dict[str, Any] | None = None,
    *,
    outputs: int = 1,
    const: Sequence[int | str] = (),
    backend: str | None = None,
) -> tuple[list[Array], list[Node]]:
    """Results of the rule of *name* run through atomic references, and the atomic nodes that made them.

    Inputs are plain values except those listed in *const*, by position or parameter name, whose value the
    rule may read.
    """
    g = Builder(prefix="r_", fold=False)
    names = get_op(name).signature.inputs
    known: dict[str, Any] = {}
    operands: list[Var | None] = []
    for k, array in enumerate(inputs):
        if array is None:
            operands.append(None)
            continue
        is_const = k in const or (k < len(names) and names[k] in const)
        var = Var(f"in{k}", tensor_type_of(array), array if is_const else None)
        known[var.name] = array
        g.types[var.name] = tensor_type_of(array)
        operands.append(var)
    results = g.op(name, *operands, outputs=outputs, **(attrs or {}))
    results = (results,) if outputs == 1 else results
    constant_inputs = {v.name: v.value for v in operands if v is not None and v.value is not None}
    nodes, constants = expand_to_atomic(g, constant_inputs, backend)
    env = {**known, **constants}
    for node in nodes:
        values = evaluate(node.op, [env[i] if i else None for i in node.inputs], node.attrs)
        env.update({o: v for o, v in zip(node.outputs, values, strict=False) if o})
    return [env[r.name] for r in results], nodes


def expand_to_atomic(
    g: Builder, constants: dict[str, Array], backend: str | None = None
) -> tuple[list[Node], dict[str, Array]]:
    """Apply rules to the nodes of *g* until only atomic ops (and ops without a rule) are left."""
    values = {**constants, **g.constants}
    types = {k: tensor_type_of(v) for k, v in values.items()} | dict(g.types)
    renamed: dict[str, str] = {}
    done: list[Node] = []
    counter = [0]

    def visit(node: Node, depth: int) -> None:
        node = node.replace(inputs=tuple(renamed.get(i, i) for i in node.inputs))
        rule = None if get_op(node.op).op_class is OpClass.ATOMIC else find_rule(node.op, backend)
        if rule is None:
            done.append(node)
            return
        assert depth < _MAX_DEPTH, f"the rule of {node.op} does not come to an end"
        counter[0] += 1
        inner = Builder(prefix=f"{node.op}{counter[0]}_", fold=False)
        args = [Var(i, types.get(i), values.get(i)) if i else None for i in node.inputs]
        result = rule(inner, *args, **node.attrs)
        if result is None:
            done.append(node)
            return
        values.update(inner.constants)
        types.update(inner.types)
        for child in inner.nodes:
            visit(child, depth + 1)
        results = result if isinstance(result, (tuple, list)) else (result,)
        for out, var in zip(node.outputs, results, strict=False):
            if out and var is not None:
                expected, got = types.get(out), var.maybe_type
                assert expected is None or got is None or str(expected) == str(got), (
                    f"the rule of {node.op} gives {got}, its shape function says {expected}"
                )
                renamed[out] = renamed.get(var.name, var.name)

    for node in g.nodes:
        visit(node, 0)
    wanted = {o for n in g.nodes for o in n.outputs}
    done.extend(Node("Identity", (source,), (out,)) for out, source in renamed.items() if out in wanted)
    return done, values


def check_rule(
    name: str,
    inputs: Sequence[Array | None],
    attrs: dict[str, Any] | None = None,
    *,
    outputs: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    const: Sequence[int | str] = (),
    backend: str | None = None,
    expect: Sequence[Array] | None = None,
    max_nodes: int | None = None,
) -> list[Node]:
    """Assert that the rule of *name* gives what its reference (or *expect*) gives; returns the atomic nodes."""
    got, nodes = run_rule(name, inputs, attrs, outputs=outputs, const=const, backend=backend)
    want = expect if expect is not None else evaluate(name, list(inputs), attrs or {})
    for k in range(outputs):
        compare(got[k], want[k], rtol=rtol, atol=atol, what=f"{name} output {k}")
    atomic = [n for n in nodes if n.op != "Identity"]
    for node in atomic:
        assert get_op(node.op).op_class is OpClass.ATOMIC, f"{name} leaves the {node.op} node, which is not atomic"
    if max_nodes is not None:
        assert len(atomic) <= max_nodes, f"{name} became {len(atomic)} nodes: {[n.op for n in atomic]}"
    return atomic


def compare(got: Any, want: Any, *, rtol: float, atol: float, what: str) -> None:
    """Same dtype and shape, values within tolerance (NaN equals NaN); types outside NumPy compare as float64."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if want.dtype == object:
        assert got.tolist() == want.tolist(), what
        return
    if want.dtype.kind not in "biufc":
        got, want = got.astype(np.float32), want.astype(np.float32)
    if want.dtype.kind in "biu":
        np.testing.assert_array_equal(got, want, err_msg=what)
    else:
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, equal_nan=True, err_msg=what)
