"""The op registry: one ``OpDef`` per op, filled by decorators in ``ops/``, ``rules/`` and the reference kernels.

An op is declared by its shape function, whose signature *is* the op's signature: positional parameters are
inputs (``x: Operand | None = None`` for optional ones, ``*xs`` for variadic ones), keyword-only parameters
are attributes with their ONNX defaults::

    @op("Softmax", OpClass.COMPOSITE)
    def softmax(x: Operand, *, axis: int = -1) -> TensorType:
        return x.type

    @rule("Softmax")
    def softmax(g: Builder, x: Var, *, axis: int = -1) -> Var: ...

    @reference("Softmax")
    def softmax(x: Array, *, axis: int = -1) -> Array: ...
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache, cached_property
from typing import Any, TypeVar

from mnnpy.classes import dataclass, field
from mnnpy.decompose.families import FAMILIES, FAMILY_OF, RULE_MODULES
from mnnpy.errors import MnnpyError, ModelError, UnsupportedOpError

__all__ = ["OpClass", "OpDef", "Signature", "find_rule", "get_op", "has_op", "op", "ops", "reference", "rule"]

F = TypeVar("F", bound=Callable[..., Any])


class OpClass(Enum):
    """What kind of op it is (Walle, OSDI 2022, section 4; *alias* and *host* are ours)."""

    ATOMIC = "atomic"  #: what a backend implements
    ALIAS = "alias"  #: a source spelling of exactly one atomic op (``Add`` is ``Binary(fn="Add")``)
    TRANSFORM = "transform"  #: only moves elements: becomes raster regions
    COMPOSITE = "composite"  #: decomposes into atomic ops
    CONTROL = "control flow"  #: keeps sub-graphs
    HOST = "host"  #: data-dependent shapes, strings, sequences, files: runs on the reference backend


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and attributes of an op, read from its shape function."""

    inputs: tuple[str, ...]
    required: int
    variadic: bool
    attrs: Mapping[str, Any]  #: attribute name → default (``inspect.Parameter.empty`` where required)

    @classmethod
    def of(cls, fn: Callable[..., Any]) -> Signature:
        inputs, required, variadic, attrs = [], 0, False, {}
        for p in inspect.signature(fn).parameters.values():
            if p.kind is p.VAR_POSITIONAL:
                variadic = True
            elif p.kind is p.KEYWORD_ONLY:
                attrs[p.name] = p.default
            else:
                inputs.append(p.name)
                required += p.default is p.empty
        return cls(tuple(inputs), required, variadic, attrs)


@dataclass
class OpDef:
    """Everything the project knows of one op. Rules and reference are imported when somebody asks for them."""

    name: str
    op_class: OpClass
    family: str
    shape: Callable[..., Any]
    foldable: bool = True  #: may be evaluated at compile time when all inputs are constants
    reference_options: Mapping[str, Any] = field(default_factory=dict)
    _rules: dict[str | None, Callable[..., Any]] = field(default_factory=dict)
    _reference: Callable[..., Any] | None = None

    @cached_property
    def signature(self) -> Signature:
        return Signature.of(self.shape)

    @property
    def summary(self) -> str:
        """First line of the shape function's docstring."""
        return (inspect.getdoc(self.shape) or "").partition("\n")[0]

    @property
    def rules(self) -> dict[str | None, Callable[..., Any]]:
        """Backend name, or None for all, → rule."""
        if self.name in FAMILY_OF:
            _import("mnnpy.decompose.rules", RULE_MODULES.get(self.family, (self.family,)))
        return self._rules

    @property
    def reference(self) -> Callable[..., Any] | None:
        if self._reference is None and self.name in FAMILY_OF:
            _import("mnnpy.backends.reference.kernels", (self.family,))
        return self._reference


_OPS: dict[str, OpDef] = {}
#: Whether somebody else registered ops, rules or references: plans then depend on more than our own code.
extended = False


@cache
def _import(package: str, modules: tuple[str, ...]) -> None:
    """Import those modules of a package that exist; their decorators fill the registry."""
    for module in modules:
        if importlib.util.find_spec(f"{package}.{module}") is not None:
            importlib.import_module(f"{package}.{module}")


def _find(name: str) -> OpDef | None:
    """The op, its family imported where it is one of ours."""
    found = _OPS.get(name)
    if found is None and name in FAMILY_OF:
        importlib.import_module(f"mnnpy.decompose.ops.{FAMILY_OF[name]}")
        found = _OPS.get(name)
    return found


def op(name: str, op_class: OpClass, *, foldable: bool = True) -> Callable[[F], F]:
    """Declare op *name*; the decorated function is its shape function."""

    def declare(fn: F) -> F:
        module, _, family = fn.__module__.rpartition(".")
        ours = module == "mnnpy.decompose.ops"
        first = _OPS[name].family if name in _OPS else FAMILY_OF.get(name)
        if name in _OPS or not (ours or first is None):
            raise MnnpyError(f"op '{name}' is declared twice ({first} and {fn.__module__})")
        _OPS[name] = OpDef(name, op_class, family, fn, foldable)
        _note()
        return fn

    return declare


def rule(name: str, backend: str | None = None) -> Callable[[F], F]:
    """Register how *name* decomposes, for one backend or (``None``) for all."""

    def declare(fn: F) -> F:
        rules = _declared(name)._rules
        if backend in rules:
            raise MnnpyError(f"op '{name}' has two rules for backend {backend!r}")
        rules[backend] = fn
        _note()
        return fn

    return declare


def reference(name: str, **options: Any) -> Callable[[F], F]:
    """Register the NumPy reference of *name* (options: ``evaluate=True`` hands sub-graph evaluation in)."""

    def declare(fn: F) -> F:
        found = _declared(name)
        if found._reference is not None:
            raise MnnpyError(f"op '{name}' has two references")
        found._reference, found.reference_options = fn, options
        _note()
        return fn

    return declare


def _note() -> None:
    """Look who registers: the module that a decorator of this module was used in."""
    global extended
    extended = extended or not str(sys._getframe(2).f_globals["__name__"]).startswith("mnnpy.")


def _declared(name: str) -> OpDef:
    found = _find(name)
    if found is None:
        raise MnnpyError(f"op '{name}' is not declared; add @op({name!r}, …) to mnnpy/decompose/ops first")
    return found


def ops() -> dict[str, OpDef]:
    """All ops by name, sorted."""
    for family in FAMILIES:
        importlib.import_module(f"mnnpy.decompose.ops.{family}")
    return dict(sorted(_OPS.items()))


def has_op(name: str) -> bool:
    return name in _OPS or name in FAMILY_OF


def get_op(name: str) -> OpDef:
    """The definition of *name*; raises UnsupportedOpError with a near match."""
    found = _OPS.get(name) or _find(name)
    if found is None:
        near = difflib.get_close_matches(name, [*FAMILY_OF, *_OPS], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "; `mnnpy ops` lists the known ones"
        raise UnsupportedOpError(f"op '{name}' is not known{hint}")
    return found


def find_rule(name: str, backend: str | None = None) -> Callable[..., Any] | None:
    """The backend's own rule for *name*, else the generic one, else None."""
    rules = get_op(name).rules
    return rules.get(backend) or rules.get(None)


def check_node(op_def: OpDef, n_inputs: int, attrs: Mapping[str, Any], where: str) -> None:
    """Raise ModelError unless arity and attribute names fit the op's signature."""
    sig = op_def.signature
    if n_inputs < sig.required or (n_inputs > len(sig.inputs) and not sig.variadic):
        want = f"{sig.required}" if sig.required == len(sig.inputs) else f"{sig.required}–{len(sig.inputs)}"
        raise ModelError(f"{where}: {op_def.name} takes {want} inputs ({', '.join(sig.inputs)}), got {n_inputs}")
    for key in attrs:
        if key not in sig.attrs:
            near = difflib.get_close_matches(key, sig.attrs, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sig.attrs) or 'none'}"
            raise ModelError(f"{where}: {op_def.name} has no attribute '{key}'{hint}")
    for key, default in sig.attrs.items():
        if default is inspect.Parameter.empty and key not in attrs:
            raise ModelError(f"{where}: {op_def.name} needs attribute '{key}'")
