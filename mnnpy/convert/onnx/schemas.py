"""ONNX operator schemas: which version of an op is meant, and whether a node fits it.

They lie in ``schemas.txt``, one op a line, since importing onnx takes longer than planning a small model.
``python -m mnnpy.convert.onnx.schemas`` writes that file anew from the installed onnx; a test keeps the two equal.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mnnpy.convert.onnx.proto import AttributeKind
from mnnpy.errors import ModelError

if TYPE_CHECKING:
    from onnx import AttributeProto

__all__ = ["Schema", "highest_opset", "op_name", "reader_version", "schema_for", "schema_table"]

#: Prefix of our op names per ONNX domain.
_PREFIXES = {"": "", "ai.onnx.ml": "ml.", "ai.onnx.preview": "preview.", "ai.onnx.preview.training": "training."}
#: Attributes that say nothing: a memory hint of opset 1, without meaning since.
_IGNORED = frozenset({"consumed_inputs"})
_KIND_NAMES = dict(enumerate(AttributeKind.NAMES))
_TABLE = Path(__file__).with_name("schemas.txt")


class Schema(NamedTuple):
    """What the front end needs of an ONNX schema."""

    name: str
    since: int
    attributes: Mapping[str, int]  #: attribute → ``AttributeProto.AttributeType``
    required: frozenset[str]
    min_inputs: int
    max_inputs: int
    max_outputs: int
    variadic: bool
    deprecated: bool = False

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
def _table() -> tuple[str, dict[str, int], dict[tuple[str, str], str]]:
    """Version of onnx that the table was made from, newest opset per domain, (domain, op) → its versions."""
    first, *lines = _TABLE.read_text(encoding="utf-8").splitlines()
    version, *opsets = first.split()
    newest = {_domain(name): int(number) for name, _, number in (entry.partition("=") for entry in opsets)}
    rows = (line.split(" ", 2) for line in lines)
    return version, newest, {(_domain(domain), op): text for domain, op, text in rows}


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


@cache
def _versions(domain: str, name: str) -> tuple[Schema, ...]:
    """All versions of an op, oldest first."""
    text = _table()[2].get((domain, name))
    return tuple(_parse(name, entry) for entry in text.split("; ")) if text else ()


def _parse(name: str, text: str) -> Schema:
    """``since inputs outputs flags attribute:kind …`` (``schema_table`` writes it); ``!`` marks what must be given."""
    since, inputs, outputs, flags, *attributes = text.split(" ")
    low, _, high = inputs.partition("-")
    kinds: dict[str, int] = {}
    required = set()
    for entry in attributes:
        key, _, kind = entry.partition(":")
        kinds[key] = int(kind.rstrip("!"))
        if kind.endswith("!"):
            required.add(key)
    return Schema(
        name=name,
        since=int(since),
        attributes=kinds,
        required=frozenset(required) - _IGNORED,
        min_inputs=int(low),
        max_inputs=int(high),
        max_outputs=int(outputs),
        variadic="v" in flags,
        deprecated="d" in flags,
    )


def schema_table() -> str:
    """The text of ``schemas.txt`` for the installed onnx."""
    import onnx
    from onnx import defs

    newest = {"ai.onnx": defs.onnx_opset_version(), "ai.onnx.ml": defs.onnx_ml_opset_version()}
    rows: dict[tuple[str, str], list[Any]] = {}
    for found in defs.get_all_schemas_with_history():
        domain = found.domain or "ai.onnx"
        if _domain(domain) not in _PREFIXES:
            continue
        if domain not in ("ai.onnx", "ai.onnx.ml"):
            newest[domain] = max(newest.get(domain, 1), found.since_version)
        rows.setdefault((domain, found.name), []).append(found)
    lines = [f"{onnx.__version__} " + " ".join(f"{domain}={number}" for domain, number in newest.items())]
    for (domain, name), versions in sorted(rows.items()):
        texts = (_format(v) for v in sorted(versions, key=lambda v: v.since_version))
        lines.append(f"{domain} {name} " + "; ".join(texts))
    return "\n".join(lines) + "\n"


def _format(found: Any) -> str:
    from onnx import defs

    variadic = bool(found.inputs) and found.inputs[-1].option == defs.OpSchema.FormalParameterOption.Variadic
    flags = ("v" if variadic else "") + ("d" if found.deprecated else "") or "-"
    attributes = (
        f"{key}:{int(a.type.value)}{'!' * bool(a.required)}" for key, a in sorted(found.attributes.items())
    )
    head = f"{found.since_version} {found.min_input}-{found.max_input} {found.max_output} {flags}"
    return " ".join((head, *attributes))


@cache
def schema_for(domain: str, name: str, opset: int) -> Schema | None:
    """The schema in force at *opset*, or None where ONNX does not define the op there.

    An op that was withdrawn (``Upsample``, ``Scatter``) keeps its last living version: models in the wild still use it.
    """
    known = [v for v in _versions(domain, name) if v.since <= opset]
    # GroupNormalization-18 was withdrawn as a version, there is none before it: then the withdrawn one counts.
    return next((v for v in reversed(known) if not v.deprecated), known[-1] if known else None)


def op_name(domain: str, op: str) -> str:
    """Our name of an ONNX op; ops of foreign domains keep theirs as a prefix (``com.acme.Foo``)."""
    prefix = _PREFIXES.get(domain)
    return f"{domain}.{op}" if prefix is None else prefix + op


def is_standard(domain: str) -> bool:
    """True for the domains that ONNX itself defines."""
    return domain in _PREFIXES


def highest_opset(domain: str) -> int | None:
    """The newest opset of a standard domain that mnnpy knows; None for foreign domains."""
    return _table()[1].get(domain, 1) if is_standard(domain) else None


def drop_ignored(attributes: Iterable[AttributeProto]) -> list[AttributeProto]:
    """The attributes that mean something."""
    return [a for a in attributes if a.name not in _IGNORED]


def reader_version() -> str:
    """How errors name the version of ONNX that can be read."""
    return f"ONNX {_table()[0]}"


if __name__ == "__main__":
    _TABLE.write_text(schema_table(), encoding="utf-8")
