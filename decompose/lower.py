"""Decomposition: rewrite a specialised graph until a device supports every node, then tidy up.

Look-up order for a node that the device does not take whole: the backend's own rule, else the generic rule.
A node without a rule (or whose rule declines) stays: it is a host op and runs on ``reference``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mnnpy.backends.base import NodeView
from mnnpy.classes import dataclass, field
from mnnpy.decompose.builder import Builder, Var
from mnnpy.decompose.infer import NeedsValueError
from mnnpy.decompose.registry import OpClass, find_rule, get_op
from mnnpy.errors import MnnpyError, ModelError, ShapeError
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Type, Value

__all__ = ["decompose", "eliminate_common", "prune", "view_of"]

#: Rules may emit composites; this bounds how deep that may go before a rule is called circular.
MAX_DEPTH = 32

Claims = Callable[[NodeView], bool]


def view_of(node: Node, types: Mapping[str, Type], constants: Mapping[str, Array]) -> NodeView:
    """A node with its operands' types and known values."""

    def tensor(name: str) -> TensorType | None:
        t = types.get(name) if name else None
        return t if isinstance(t, TensorType) else None

    known = {n: constants[n] for n in node.inputs if n in constants}
    return NodeView(node, tuple(map(tensor, node.inputs)), tuple(map(tensor, node.outputs)), known)


@dataclass(slots=True)
class _Lowering:
    claims: Claims
    backend: str | None
    builder: Builder
    constants: dict[str, Array]
    types: dict[str, Type]
    alias: dict[str, str] = field(default_factory=dict)
    out: list[Node] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)

    def resolve(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def var(self, name: str) -> Var:
        return Var(name, self.types.get(name), self.constants.get(name))

    def lower(self, node: Node, depth: int = 0) -> None:
        inputs = tuple(self.resolve(n) if n else "" for n in node.inputs)
        if inputs != node.inputs:
            node = node.replace(inputs=inputs)
        rule = find_rule(node.op, self.backend)
        # What has no rule stays anyway: nobody is asked, as answers can be dear.
        stays = rule is None or get_op(node.op).op_class is OpClass.CONTROL
        if stays or self.claims(view_of(node, self.types, self.constants)):
            self.out.append(node)
            return
        assert rule is not None
        if depth > MAX_DEPTH:
            raise ModelError(f"the rule of '{node.op}' (node '{node.label}') expands to itself")
        self._expand(node, rule, depth)

    def _expand(self, node: Node, rule: Callable[..., Any], depth: int) -> None:
        builder = self.builder
        start = builder.nodes
        builder.nodes, builder.origin = [], node.name or node.label
        try:
            result = rule(builder, *(self.var(n) if n else None for n in node.inputs), **node.attrs)
        except NeedsValueError as error:
            self.needs.append(error.operand)
            result = None
        except MnnpyError as error:
            if getattr(error, "located", False):
                raise
            raise self._located(node, error, type(error)) from error
        except Exception as error:  # a rule meets operands that its shape function let pass
            raise self._located(node, error, ShapeError) from error
        finally:
            made, builder.nodes = builder.nodes, start
        if result is None:
            self.out.append(node)
            return
        self.constants.update(builder.constants)
        self.types.update(builder.types)
        builder.constants, builder.types = {}, {}
        results = result if isinstance(result, tuple) else (result,)
        live = {v.name for v in results[: len(node.outputs)] if v is not None}
        for child in _live(made, live):
            self.lower(child, depth + 1)
        for name, var in zip(node.outputs, results, strict=False):
            if name and var is not None:
                self.alias[name] = var.name

    def _located(self, node: Node, error: Exception, kind: type[MnnpyError]) -> MnnpyError:
        operands = ", ".join(str(self.types.get(n, "?")) if n else "absent" for n in node.inputs)
        detail = str(error) if isinstance(error, MnnpyError) else f"{type(error).__name__}: {error}"
        where = f"node '{node.label}' ({node.op}) with ({operands})"
        located = kind(f"{where}: {detail}; check its operands and attributes")
        located.located = True  # type: ignore[attr-defined]
        return located


def _live(nodes: list[Node], live: set[str]) -> list[Node]:
    kept = []
    for node in reversed(nodes):
        if any(o in live for o in node.outputs):
            kept.append(node)
            live.update(node.inputs)
    return kept[::-1]


@dataclass(frozen=True, slots=True)
class Decomposed:
    """The rewritten graph, where each old name lives now, and operands whose values rules asked for in vain."""

    graph: Graph
    names: Mapping[str, str]
    needs: tuple[str, ...]


def decompose(
    graph: Graph, claims: Claims, backend: str | None = None, *, optimize: frozenset[str] = frozenset()
) -> Decomposed:
    """Lower every node of *graph* (static types) to what *claims* accepts.

    Outputs of the result are in the order of the source graph's outputs, under their new names.
    """
    work = _Lowering(claims, backend, Builder(f"{graph.name}/"), dict(graph.constants), dict(graph.types))
    for value in graph.inputs:
        if value.type is not None:
            work.types[value.name] = value.type
    for node in graph.nodes:
        work.lower(node)
    names = {n: work.resolve(n) for n in graph.output_names}
    outputs = tuple(Value(m, work.types.get(m)) for m in dict.fromkeys(names.values()))
    lowered = prune(graph.replace(nodes=tuple(work.out), constants=work.constants, types=work.types, outputs=outputs))
    return Decomposed(tidy(lowered, optimize), names, tuple(work.needs))


def tidy(graph: Graph, optimize: frozenset[str]) -> Graph:
    """CSE, raster merging and dead-code removal, each by its switch. Output names do not change."""
    if "cse" in optimize:
        graph = eliminate_common(graph)
    if "merge_vertical" in optimize:
        from mnnpy.decompose.merge import drop_identity, merge_vertical

        graph = drop_identity(merge_vertical(graph))
    if "merge_horizontal" in optimize:
        from mnnpy.decompose.merge import merge_horizontal

        graph = merge_horizontal(graph)
    return prune(graph)


def eliminate_common(graph: Graph) -> Graph:
    """Keep one of several nodes that compute the same thing from the same values."""
    seen: dict[Any, tuple[str, ...]] = {}
    alias: dict[str, str] = {}
    nodes: list[Node] = []
    outputs = set(graph.output_names)
    for node in graph.nodes:
        if alias:
            inputs = tuple(alias.get(n, n) for n in node.inputs)
            if inputs != node.inputs:
                node = node.replace(inputs=inputs)
        key = _key(node)
        if key is not None and get_op(node.op).foldable:
            first = seen.setdefault((key, len(node.outputs)), node.outputs)
            if first is not node.outputs and not outputs.intersection(node.outputs):
                alias.update(zip(node.outputs, first, strict=True))
                continue
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes)) if alias else graph


def _key(node: Node) -> Any:
    try:
        key = (node.op, node.inputs, tuple(sorted(node.attrs.items())))
        hash(key)
    except TypeError:  # arrays and graphs among the attributes
        return None
    return key


def prune(graph: Graph) -> Graph:
    """Drop nodes, constants and types that no output depends on."""
    live = set(graph.output_names)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(o in live for o in node.outputs):
            kept.append(node)
            live.update(node.inputs)
    names = live.union(*(n.outputs for n in kept)) if kept else live
    return graph.replace(
        nodes=tuple(reversed(kept)),
        constants={n: a for n, a in graph.constants.items() if n in live},
        types={n: t for n, t in graph.types.items() if n in names},
    )
