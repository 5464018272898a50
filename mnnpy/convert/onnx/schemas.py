"""ONNX operator schemas: which version of an op is meant, and whether a node fits it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import onnx
from onnx import AttributeProto, defs

from mnnpy.errors import ModelError

__all__ = ["Schema", "highest_opset", "op_name", "schema_for"]

#: Prefix of our op names per ONNX domain.
_PREFIXES = {"": "", "ai.onnx.ml": "ml.", "ai.onnx.preview": "preview.", "ai.onnx.preview.training": "training."}
#: Attributes that say nothing: a memory hint of opset 1, without meaning since.
_IGNORED = frozenset({"consumed_inputs"})

_A = AttributeProto
_KIND_NAMES = {number: name for name, number in AttributeProto.AttributeType.items()}


@dataclass(frozen=True, slots=True)
class Schema:
    """What the front end needs of an ``onnx.defs.OpSchema``."""

    name: str
    since: int
    attributes: Mapping[str, int]  #: attribute → ``AttributeProto.AttributeType``
    required: frozenset[str]
    min_inputs: int
    max_inputs: int
    max_outputs: int
    variadic: bool

    def check(self, n_inputs: int, n_outputs: int, given: Mapping[str, int], where: str) -> None:
        """Raise ModelError unless arity, attribute names and attribute types fit (ONNX IR, "Nodes")."""
        if not self.min_inputs <= n_inputs <= self.max_inputs:
            most = "" if self.max_inputs > 1 << 30 else f"–{self.max_inputs}"
            raise ModelError(
                f"{where}: {self.name} of opset {self.since} takes {self.min_inputs}{most} inputs, "
                f"the node has {n_inputs}"
            )
        if n_outputs > self.max_outputs:
            raise ModelError(f"{where}: {self.name} has at most {self.max_outputs} outputs, the node has {n_outputs}")
        for key, kind in given.items():
            wanted = self.attributes.get(key)
            if wanted is None:
                raise ModelError(
                    f"{where}: {self.name} of opset {self.since} has no attribute '{key}'{self._near(key)}"
                )
            if wanted != kind:
                raise ModelError(
                    f"{where}: attribute '{key}' of {self.name} is {_KIND_NAMES.get(kind, kind)}, "
                    f"it must be {_KIND_NAMES.get(wanted, wanted)}"
                )
        missing = sorted(self.required - given.keys())
        if missing:
            raise ModelError(f"{where}: {self.name} of opset {self.since} needs attribute '{missing[0]}'")

    def _near(self, key: str) -> str:
        near = difflib.get_close_matches(key, self.attributes, n=1)
        if near:
            return f"; did you mean '{near[0]}'?"
        return f"; known: {', '.join(sorted(self.attributes)) or 'none'}"


@cache
def schema_for(domain: str, name: str, opset: int) -> Schema | None:
    """The schema in force at *opset*, or None where ONNX does not define the op there.

    An op that was withdrawn (``Upsample``, ``Scatter``) keeps its last living version: models in the wild still use it.
    """
    found = _get_schema(domain, name, opset)
    if found is None:
        return None
    living: defs.OpSchema | None = found
    while living is not None and living.deprecated:
        living = _get_schema(domain, name, living.since_version - 1)
    found = living or found  # GroupNormalization-18 was withdrawn as a version, there is none before it
    variadic = bool(found.inputs) and found.inputs[-1].option == defs.OpSchema.FormalParameterOption.Variadic
    # The stub of AttrType hides that it is an enum.
    kinds = {key: int(a.type.value) for key, a in found.attributes.items()}  # type: ignore[attr-defined]
    return Schema(
        name=found.name,
        since=found.since_version,
        attributes=kinds,
        required=frozenset(k for k, a in found.attributes.items() if a.required) - _IGNORED,
        min_inputs=found.min_input,
        max_inputs=found.max_input,
        max_outputs=found.max_output,
        variadic=variadic,
    )


def _get_schema(domain: str, name: str, opset: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(name, opset, domain)
    except defs.SchemaError:
        return None


def op_name(domain: str, op: str) -> str:
    """Our name of an ONNX op; ops of foreign domains keep theirs as a prefix (``com.acme.Foo``)."""
    prefix = _PREFIXES.get(domain)
    return f"{domain}.{op}" if prefix is None else prefix + op


def is_standard(domain: str) -> bool:
    """True for the domains that ONNX itself defines."""
    return domain in _PREFIXES


@cache
def highest_opset(domain: str) -> int | None:
    """The newest opset of a standard domain that the installed onnx defines; None for foreign domains."""
    if domain == "":
        return int(defs.onnx_opset_version())
    if domain == "ai.onnx.ml":
        return int(defs.onnx_ml_opset_version())
    if not is_standard(domain):
        return None
    newest = max((s.since_version for s in defs.get_all_schemas_with_history() if s.domain == domain), default=1)
    return max(newest, 1)


def drop_ignored(attributes: Iterable[AttributeProto]) -> list[AttributeProto]:
    """The attributes that mean something."""
    return [a for a in attributes if a.name not in _IGNORED]


def reader_version() -> str:
    """How errors name the library that defines what can be read."""
    return f"onnx {onnx.__version__}"
