"""``mnnpy info``."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from mnnpy.cli.output import emit_json, table


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an .onnx or .mnnpy file")


def run(args: argparse.Namespace) -> int:
    from mnnpy.decompose.registry import get_op
    from mnnpy.session import NodeArg, load_graph

    graph = load_graph(args.model)
    ops: Counter[str] = Counter()
    _count(graph, ops)
    inputs = [NodeArg.of(v) for v in graph.inputs]
    outputs = [NodeArg.of(v) for v in graph.outputs]
    weights = sum(a.nbytes for a in graph.constants.values())
    if args.json:
        emit_json(
            {
                "name": graph.name,
                "file bytes": Path(args.model).stat().st_size,
                "inputs": [{"name": a.name, "type": a.type, "shape": a.shape} for a in inputs],
                "outputs": [{"name": a.name, "type": a.type, "shape": a.shape} for a in outputs],
                "symbols": list(graph.symbols()),
                "nodes": sum(ops.values()),
                "ops": dict(ops.most_common()),
                "parameters": sum(a.size for a in graph.constants.values()),
                "weight bytes": weights,
                "metadata": {k: v for k, v in graph.metadata.items() if len(v) < 1000},
            }
        )
        return 0
    print(f"{args.model}: graph '{graph.name}', {sum(ops.values())} nodes, {weights / 1e6:.2f} MB of weights")
    for key, value in graph.metadata.items():
        print(f"  {key}: {value if len(value) < 80 else f'{len(value)} characters'}")
    rows: list[list[Any]] = [["input", a.name, a.type, _shape(a.shape)] for a in inputs]
    rows += [["output", a.name, a.type, _shape(a.shape)] for a in outputs]
    print(table(rows, ("", "NAME", "TYPE", "SHAPE")))
    print()
    print(table([[n, op, get_op(op).op_class.value, get_op(op).family] for op, n in ops.most_common()],
                ("COUNT", "OP", "CLASS", "FAMILY")))  # fmt: skip
    return 0


def _shape(shape: tuple[int | str, ...] | None) -> str:
    return "unknown rank" if shape is None else "×".join(map(str, shape)) or "scalar"


def _count(graph: Any, ops: Counter[str]) -> None:
    for node in graph.nodes:
        ops[node.op] += 1
        for _, body in node.subgraphs():
            _count(body, ops)
