"""``mnnpy graph``: a model to look at."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnnpy.cli.common import add_inputs, add_session, feeds_for, open_session
from mnnpy.cli.output import note
from mnnpy.errors import InputError
from mnnpy.graph.ir import Graph, Node, Value
from mnnpy.session import Session, load_graph

_SUFFIXES = {".txt": "text", ".dot": "dot", ".gv": "dot", ".onnx": "onnx"}
_COLOURS = ("#cfe8ff", "#ffe3c2", "#d8f5d0", "#f5d0e6", "#e6e0ff", "#fff5b8")


def configure(parser: argparse.ArgumentParser) -> None:
    add_session(parser)
    add_inputs(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to FILE (.txt, .dot or .onnx)")
    parser.add_argument(
        "-f", "--format", choices=("text", "dot", "onnx"), help="default: by the file's ending, else text"
    )
    parser.add_argument(
        "--stage", choices=("source", "planned"), default="source",
        help="source: the ops of the model; planned: what is compiled for these input shapes",
    )  # fmt: skip
    parser.add_argument("--no-backends", action="store_true", help="do not plan the model to tell each node's backend")


def run(args: argparse.Namespace) -> int:
    form = args.format or (_SUFFIXES.get(args.output.suffix) if args.output else "text")
    if form is None:
        raise InputError(f"--output {args.output}: give --format, or a name ending in .txt, .dot or .onnx")
    if form == "onnx" and not args.output:
        raise InputError("--format onnx needs --output FILE.onnx")
    if args.no_backends and args.stage == "source":
        graph, where = load_graph(args.model), {}
    else:
        session = open_session(args)
        feeds = feeds_for(args, session.get_inputs())
        if args.stage == "source":
            graph, where = session.graph, assignment(session, feeds)
        else:
            graph, where = planned(session, feeds)
    if form == "onnx":
        from mnnpy.convert import to_onnx

        args.output.write_bytes(to_onnx(graph, backends=where).SerializeToString())
        note(args, f"wrote {args.output}; each node's metadata says its backend (open it in Netron)")
        return 0
    text = str(graph) if form == "text" else to_dot(graph, where)
    if form == "text" and where:
        counts = Counter(where.values())
        text += "\n# nodes: " + ", ".join(f"{n} {b}" for b, n in counts.most_common())
    if args.output:
        args.output.write_text(text + "\n")
        note(args, f"wrote {args.output}")
    else:
        sys.stdout.write(text + "\n")
    return 0


def assignment(session: Session, feeds: Mapping[str, Any]) -> dict[str, str]:
    """Source node label → the backend that runs it (``cpu+reference`` where its parts run on several).

    ``absorbed`` where nothing of the node is left: folded into a constant, or part of another node's op.
    """
    ran: dict[str, dict[str, None]] = defaultdict(dict)
    for backend, part in session.parts(feeds):
        for node in part.nodes:
            for key in (node.name, *node.outputs):
                ran[key][backend] = None
    found = {}
    for node in session.graph.nodes:
        keys = [k for k in (node.name, *node.outputs) if k]
        found[node.label] = "+".join(next((ran[k] for k in keys if k in ran), {})) or "absorbed"
    return found


def planned(session: Session, feeds: Mapping[str, Any]) -> tuple[Graph, dict[str, str]]:
    """The graph that is compiled for *feeds*, all parts in one, and the backend of each of its values."""
    nodes: list[Node] = []
    constants: dict[str, Any] = {}
    types: dict[str, Any] = {}
    where: dict[str, str] = {}
    outputs: dict[str, Value] = {}
    for backend, part in session.parts(feeds):
        nodes.extend(part.nodes)
        constants.update(part.constants)
        types.update(part.types)
        where.update({o: backend for n in part.nodes for o in n.outputs})
        outputs.update({v.name: v for v in part.outputs})
    read = {name for n in nodes for name in n.inputs}
    ends = tuple(v for v in outputs.values() if v.name not in read)
    source = session.graph
    return Graph(source.name, source.inputs, ends, tuple(nodes), constants, types, source.metadata), where


def to_dot(graph: Graph, where: Mapping[str, str]) -> str:
    """The graph in the DOT language of Graphviz, nodes coloured by backend."""
    colours = dict(zip(dict.fromkeys(where.values()), _COLOURS, strict=False))
    lines = [
        f"digraph {_quoted(graph.name or 'model')} {{",
        '  node [shape=box, style="rounded,filled", fontname=Helvetica];',
    ]
    lines += [_end("in", value) for value in graph.inputs]
    made = {v.name: f"in:{v.name}" for v in graph.inputs}
    for k, node in enumerate(graph.nodes):
        backend = where.get(node.label) or next((where[o] for o in node.outputs if o in where), "")
        label = "\n".join(filter(None, (node.op, node.name, backend)))
        lines.append(f"  n{k} [label={_quoted(label)}, fillcolor={_quoted(colours.get(backend, 'white'))}];")
        for name in dict.fromkeys(node.inputs):
            if name in made:
                kind = graph.types.get(name)
                shown = f" [label={_quoted(str(kind))}, fontsize=9]" if kind is not None else ""
                lines.append(f"  {_quoted(made[name])} -> n{k}{shown};")
        made.update({o: f"n{k}" for o in node.outputs if o})
    for value in graph.outputs:
        lines.append(_end("out", value))
        if value.name in made:
            lines.append(f"  {_quoted(made[value.name])} -> {_quoted('out:' + value.name)};")
    return "\n".join([*lines, "}"])


def _end(side: str, value: Value) -> str:
    return f"  {_quoted(f'{side}:{value.name}')} [label={_quoted(str(value))}, shape=ellipse, fillcolor=white];"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
