"""From a ModelProto to a Graph: names, order, functions, bodies, and the conversion of every node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mnnpy.convert.onnx.attributes import attribute_type, attribute_value, resolved_attributes
from mnnpy.convert.onnx.conversions import find_conversion
from mnnpy.convert.onnx.emitter import Body, Emitter, GraphArgument
from mnnpy.convert.onnx.order import graphs_of, topological
from mnnpy.convert.onnx.schemas import highest_opset, is_standard, op_name, reader_version, schema_for
from mnnpy.convert.onnx.scope import Frame, Names, Scope
from mnnpy.convert.onnx.tensors import ExternalData, read_sparse, read_tensor, read_type
from mnnpy.decompose.registry import has_op
from mnnpy.errors import ModelError, UnsupportedOpError
from mnnpy.graph.ir import Graph, Type, Value

if TYPE_CHECKING:
    import onnx

__all__ = ["Reader"]

#: Bodies and function calls nested deeper than this are refused.
_MAX_DEPTH = 64
#: Functions that call functions can grow exponentially; no real model has this many nodes.
_MAX_NODES = 4_000_000
_FunctionKey = tuple[str, str, str]


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


class Reader:
    """Reads one model. Not reusable."""

    def __init__(self, model: onnx.ModelProto, external: ExternalData, source: str) -> None:
        self._model = model
        self._external = external
        self._source = source
        self._names = Names()
        self._symbols = Names()
        self._functions: dict[_FunctionKey, onnx.FunctionProto] = {
            (_domain(f.domain), f.name, f.overload): f for f in model.functions
        }
        self._used: dict[str, list[str]] = {}  #: our op name → labels of its nodes
        self._undefined: dict[str, list[str]] = {}  #: ops that no ONNX schema defines, in words → labels
        self._sizes: dict[_FunctionKey, int] = {}  #: function → nodes after inlining what it calls

    # -- the model --

    def read(self, check_ops: bool) -> Graph:
        model = self._model
        opsets = self._opsets(model.opset_import, f"model '{self._source}'")
        if not opsets and model.ir_version < 3:
            opsets = {"": 1}  # ONNX IR: before version 3 a model imports opset 1
        proto = model.graph
        if self._inlined_size(proto.node, ()) > _MAX_NODES:
            raise ModelError(f"model '{self._source}' has more than {_MAX_NODES} nodes after inlining its functions")
        frame = Frame(self._names)
        scope = Scope(frame, opsets)
        for value in (*proto.input, *proto.output):  # the caller's names come first: no body may take them
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    self._symbols.claim(dim.dim_param)
        # Before IR version 4 every initialiser had to be listed as an input, to say nothing by it.
        inputs, outputs = self._fill(proto, scope, defaults=model.ir_version >= 4, where=self._source)
        graph = Graph(
            name=proto.name or "model",
            inputs=inputs,
            outputs=outputs,
            nodes=tuple(frame.nodes),
            constants=frame.constants,
            types=frame.types,
            metadata=self._metadata(opsets),
        )
        if check_ops:
            self._check_ops()
        return graph

    def _opsets(self, imports: Iterable[onnx.OperatorSetIdProto], where: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in imports:
            domain = _domain(entry.domain)
            newest = highest_opset(domain)
            if newest is not None and entry.version > newest:
                raise ModelError(
                    f"{where} uses opset {entry.version} of '{domain or 'ai.onnx'}', {reader_version()} "
                    f"knows up to {newest}; update mnnpy-engine, or export the model for opset {newest}"
                )
            if entry.version < 1:
                raise ModelError(f"{where} imports opset {entry.version} of '{domain or 'ai.onnx'}'; opsets start at 1")
            found[domain] = int(entry.version)
        return found

    def _metadata(self, opsets: Mapping[str, int]) -> dict[str, str]:
        model = self._model
        found = {
            "onnx.producer": " ".join(p for p in (model.producer_name, model.producer_version) if p),
            "onnx.opset": ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(opsets.items())),
            "onnx.ir_version": str(model.ir_version),
            "onnx.domain": model.domain,
            "onnx.model_version": str(model.model_version) if model.model_version else "",
            "onnx.doc": model.doc_string,
        }
        found = {key: text for key, text in found.items() if text}
        found.update((p.key, p.value) for p in model.metadata_props)
        return found

    def _check_ops(self) -> None:
        missing = dict(self._undefined)
        unnamed = {op.partition(" of domain ")[0] for op in missing}  # listed with their domain already
        missing.update((op, labels) for op, labels in self._used.items() if not has_op(op) and op not in unnamed)
        if not missing:
            return
        lines = []
        for op, labels in sorted(missing.items()):
            shown = ", ".join(f"'{label}'" for label in labels[:5])
            more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
            lines.append(f"  {op}: {len(labels)} node{'s' if len(labels) > 1 else ''}: {shown}{more}")
        raise UnsupportedOpError(
            f"model '{self._source}' uses {len(missing)} op{'s' * (len(missing) > 1)} that mnnpy does not know:\n"
            + "\n".join(lines)
            + "\ndeclare them with @op, @reference and @rule, or export the model without them"
        )

    # -- graphs --

    def _fill(
        self, proto: onnx.GraphProto, scope: Scope, defaults: bool, where: str
    ) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """Read a whole GraphProto into *scope*'s frame; returns its inputs and outputs."""
        frame = scope.frame
        arrays = {t.name: t for t in proto.initializer}
        sparse = {t.values.name: t for t in proto.sparse_initializer}
        if "" in arrays or "" in sparse:
            raise ModelError(f"{where}: an initializer has no name")
        inputs: list[Value] = []
        for info in proto.input:
            if not info.name:
                raise ModelError(f"{where}: a graph input has no name")
            if info.name in scope.values:
                raise ModelError(f"{where}: graph input '{info.name}' is listed twice")
            default = info.name in arrays or info.name in sparse
            name = self._define(info.name, scope, where)
            if default and not defaults:
                continue
            if default:
                frame.overridable.add(name)
            known = self._type(info, name, where)
            inputs.append(Value(name, known))
            if known is not None:
                frame.types[name] = known
        for key, tensor in arrays.items():
            name = scope.values[key][0] if key in scope.values else self._define(key, scope, where)
            frame.constants[name] = read_tensor(tensor, self._external, f"{where}, initializer '{key}'")
        for key, pattern in sparse.items():
            name = scope.values[key][0] if key in scope.values else self._define(key, scope, where)
            frame.constants[name] = read_sparse(pattern, self._external, f"{where}, sparse initializer '{key}'")
        self._declare(proto.node, scope, where)
        self._value_info((*proto.value_info, *proto.output), scope, where)
        self._nodes(proto.node, scope, where)
        outputs = []
        for info in proto.output:
            found = scope.find(info.name)
            if not found:
                raise ModelError(f"{where}: graph output '{info.name}' is produced by no node, input or initializer")
            outputs.append(Value(found, frame.types.get(found) or self._type(info, found, where)))
        return tuple(inputs), tuple(outputs)

    def _define(self, name: str, scope: Scope, where: str) -> str:
        if name in scope.values and scope.values[name][1] is scope.frame:
            raise ModelError(f"{where}: value '{name}' is defined twice; every name may be written once")
        value = self._names.claim(name)
        scope.bind(name, value)
        return value

    def _declare(
        self, nodes: Iterable[onnx.NodeProto], scope: Scope, where: str, given: frozenset[str] = frozenset()
    ) -> None:
        """Name all results before any body is read, so that names of outer values stay as they are."""
        pending = set(given)
        for node in nodes:
            for name in node.output:
                if not name:
                    continue
                if name in pending:  # a function's formal output: it has its name from the call
                    pending.discard(name)
                    continue
                self._define(name, scope, f"{where}, {_label(node)}")

    def _value_info(self, infos: Iterable[onnx.ValueInfoProto], scope: Scope, where: str) -> None:
        types = scope.frame.types
        for info in infos:
            found = scope.values.get(info.name)
            if found is None or found[1] is not scope.frame or found[0] in types or found[0] in scope.frame.constants:
                continue
            known = self._type(info, found[0], where)
            if known is not None:
                types[found[0]] = known

    def _type(self, info: onnx.ValueInfoProto, name: str, where: str) -> Type | None:
        if not info.HasField("type"):
            return None
        return read_type(info.type, name, self._symbols.claim, f"{where}, value '{info.name}'")

    def _body(self, argument: GraphArgument, parent: Frame) -> Body:
        """Read the body of a control-flow node whose node lies in *parent*."""
        proto = argument.proto
        name = proto.name or "body"
        if parent.depth >= _MAX_DEPTH:
            raise ModelError(f"graph '{name}' is nested more than {_MAX_DEPTH} levels deep")
        frame = Frame(self._names, parent, parent.depth + 1)
        outer = argument.scope
        scope = Scope(frame, outer.opsets, outer, outer.prefix, outer.arguments)
        inputs, outputs = self._fill(proto, scope, defaults=False, where=f"graph '{name}'")
        return Body(name, frame, inputs, outputs)

    # -- nodes --

    def _nodes(self, nodes: Any, scope: Scope, where: str) -> None:
        for node in topological(nodes, where):
            self._node(node, scope, where)

    def _node(self, node: onnx.NodeProto, scope: Scope, where: str) -> None:
        domain, op = _domain(node.domain), node.op_type
        label = node.name or next((o for o in node.output if o), op)
        where = f"node '{scope.prefix}{label}' ({op})"
        inputs = [self._operand(name, scope, where) for name in node.input]
        while inputs and not inputs[-1]:
            inputs.pop()
        outputs = [scope.values[name][0] if name else "" for name in node.output]
        function = self._functions.get((domain, op, node.overload))
        if function is not None:
            self._inline(function, node, inputs, outputs, scope, where)
            return
        opset = scope.opsets.get(domain)
        standard = is_standard(domain)
        if opset is None and standard:
            raise ModelError(
                f"{where}: the model does not say which opset of '{domain or 'ai.onnx'}' it means (opset_import)"
            )
        schema = schema_for(domain, op, opset) if standard and opset is not None else None
        attrs: dict[str, Any] = {}
        kinds: dict[str, int] = {}
        if node.attribute:
            for a, key, home in resolved_attributes(node, scope, where):
                kinds[key] = attribute_type(a)
                attrs[key] = attribute_value(a, key, home, self._external, standard, where)
        emitter = Emitter(scope.frame, label, outputs, scope.prefix + node.name, self._body)
        if schema is None:
            self._unknown(domain, op, opset, scope.prefix + label)
        else:
            schema.check(len(node.input), len(outputs), kinds, where)
            rewrite = find_conversion(domain, op, opset or 1)
            if rewrite is not None:
                operands = [i or None for i in inputs]
                emitter.finish(self._located(rewrite, emitter, operands, attrs, where))
                self._note(scope.frame, emitter, scope.prefix + label)
                return
        emitter.emit(op_name(domain, op), inputs, tuple(outputs), attrs)
        emitter.finish(())
        self._note(scope.frame, emitter, scope.prefix + label)

    @staticmethod
    def _located(
        rewrite: Any, emitter: Emitter, operands: list[str | None], attrs: Mapping[str, Any], where: str
    ) -> Any:
        try:
            return rewrite(emitter, *operands, **attrs)
        except ModelError as error:
            raise type(error)(f"{where}: {error}") from error

    def _note(self, frame: Frame, emitter: Emitter, label: str) -> None:
        for node in frame.nodes[len(frame.nodes) - emitter.emitted :]:
            self._used.setdefault(node.op, []).append(label)

    def _unknown(self, domain: str, op: str, opset: int | None, label: str) -> None:
        name = op_name(domain, op)
        if has_op(name) and not is_standard(domain):
            return  # somebody's own op, registered with @op
        version = f" (opset {opset})" if opset is not None else ""
        self._undefined.setdefault(f"{op} of domain '{domain or 'ai.onnx'}'{version}", []).append(label)

    def _operand(self, name: str, scope: Scope, where: str) -> str:
        if not name:
            return ""
        found = scope.find(name)
        if found is None:
            raise ModelError(
                f"{where}: input '{name}' is produced by no node, input or initializer; "
                "the model is truncated or damaged"
            )
        return found

    # -- functions --

    def _inlined_size(self, nodes: Iterable[onnx.NodeProto], calls: tuple[_FunctionKey, ...]) -> int:
        """Number of nodes once all calls are inlined; refuses recursion, of which there would be no end."""
        size = 0
        for node in nodes:
            size += 1
            if node.attribute:
                size += sum(self._inlined_size(body.node, calls) for body in graphs_of(node))
            key = (_domain(node.domain), node.op_type, node.overload)
            if key not in self._functions:
                continue
            if key not in self._sizes:
                if key in calls or len(calls) >= _MAX_DEPTH:
                    path = " → ".join(name for _, name, _ in (*calls, key))
                    raise ModelError(f"functions call each other without end or too deeply: {path}")
                self._sizes[key] = self._inlined_size(self._functions[key].node, (*calls, key))
            size += self._sizes[key]
        return size

    def _inline(
        self,
        function: onnx.FunctionProto,
        node: onnx.NodeProto,
        inputs: list[str],
        outputs: list[str],
        scope: Scope,
        where: str,
    ) -> None:
        """Put the body of a model-local function in place of its call (ONNX IR, "Functions")."""
        if len(inputs) > len(function.input) or len(outputs) > len(function.output):
            raise ModelError(
                f"{where}: function '{function.name}' has {len(function.input)} inputs and "
                f"{len(function.output)} outputs, the call has {len(inputs)} and {len(outputs)}"
            )
        opsets = {**self._opsets(function.opset_import, f"function '{function.name}'")} or dict(scope.opsets)
        label = node.name or next((o for o in outputs if o), function.name)
        inner = Scope(
            frame=scope.frame,
            opsets=opsets,
            prefix=f"{scope.prefix}{label}/",
            arguments=self._arguments(function, node, scope, where),
        )
        for k, name in enumerate(function.input):
            inner.bind(name, inputs[k] if k < len(inputs) else "")
        produced = {o for n in function.node for o in n.output if o}
        given: set[str] = set()
        through: list[tuple[str, str]] = []
        for name, wanted in zip(function.output, outputs, strict=False):
            if not wanted:
                continue
            if name in produced and name not in given:
                given.add(name)
                inner.bind(name, wanted)
            else:
                through.append((name, wanted))
        self._declare(function.node, inner, where, frozenset(given))
        self._value_info(function.value_info, inner, where)
        self._nodes(function.node, inner, where)
        for name, wanted in through:  # an input handed through, or one result returned twice
            emitter = Emitter(scope.frame, label, (wanted,), scope.prefix + node.name)
            found = inner.find(name)
            if not found:
                raise ModelError(f"{where}: output '{name}' of function '{function.name}' is produced by no node")
            emitter.finish(found)
            self._note(scope.frame, emitter, scope.prefix + label)

    def _arguments(
        self, function: onnx.FunctionProto, node: onnx.NodeProto, scope: Scope, where: str
    ) -> dict[str, tuple[onnx.AttributeProto, Scope]]:
        known = {*function.attribute, *(a.name for a in function.attribute_proto)}
        found = {a.name: (a, scope) for a in function.attribute_proto}
        for a, key, home in resolved_attributes(node, scope, where):
            if key not in known:
                listed = ", ".join(sorted(known)) or "none"
                raise ModelError(f"{where}: function '{function.name}' has no attribute '{key}'; known: {listed}")
            found[key] = (a, home)
        return found


def _label(node: onnx.NodeProto) -> str:
    return f"node '{node.name or next((o for o in node.output if o), node.op_type)}' ({node.op_type})"
