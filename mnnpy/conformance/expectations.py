"""What a backend is expected not to do: ``unsupported`` for good, ``xfail`` for now; patterns with reasons."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnnpy.errors import InputError

__all__ = ["Expectation", "Expectations", "load_expectations"]


@dataclass(frozen=True, slots=True)
class Expectation:
    """Cases whose id contains a match of *match*; *reason* is what reports show."""

    match: str
    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise InputError(f"the expectation '{self.match}' has no reason; say why")
        try:
            re.compile(self.match)
        except re.error as error:
            raise InputError(f"the expectation '{self.match}' is no regular expression: {error}") from error

    def fits(self, name: str) -> bool:
        return re.search(self.match, name) is not None


@dataclass(frozen=True, slots=True)
class Expectations:
    """Two lists that are never mixed: *never* (permanent) and *not_yet* (temporary, strict)."""

    never: Sequence[Expectation] = ()
    not_yet: Sequence[Expectation] = ()
    used: set[str] = field(default_factory=set, compare=False)  #: patterns that met a case

    def unsupported(self, name: str) -> str:
        """The reason why a case is not run, or empty."""
        return self._first(self.never, name)

    def expected_failure(self, name: str) -> str:
        """The reason why a case is expected to fail, or empty."""
        return self._first(self.not_yet, name)

    def applied(self, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
        """An outcome with listed failures taken into account: a listed case that passes is ``xpassed``."""
        reason = self.expected_failure(name)
        status = found["status"]
        if not reason or status not in ("passed", "failed"):
            return dict(found)
        if status == "passed":
            return {
                **found,
                "status": "xpassed",
                "reason": f"passes, but is listed as a failure ({reason}); take it off the list",
            }
        return {**found, "status": "xfailed", "reason": reason}

    def stale(self) -> list[str]:
        """Patterns that met no case so far."""
        return [e.match for e in (*self.never, *self.not_yet) if e.match not in self.used]

    def _first(self, items: Sequence[Expectation], name: str) -> str:
        for item in items:
            if item.fits(name):
                self.used.add(item.match)
                return item.reason
        return ""


def load_expectations(*paths: str | Path) -> Expectations:
    """From TOML files of ``[[unsupported]]`` and ``[[xfail]]`` tables with ``match`` and ``reason``.

    Raises InputError for anything else in a file.
    """
    never: list[Expectation] = []
    not_yet: list[Expectation] = []
    for path in paths:
        content = _content(path)
        never += _read(path, content, "unsupported")
        not_yet += _read(path, content, "xfail")
    return Expectations(tuple(never), tuple(not_yet))


def _content(path: str | Path) -> Mapping[str, Any]:
    try:
        with Path(path).open("rb") as file:
            content = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML file: {error}") from error
    unknown = sorted(set(content) - {"unsupported", "xfail"})
    if unknown:
        raise InputError(f"{path}: unknown table '{unknown[0]}'; write [[unsupported]] and [[xfail]]")
    return content


def _read(path: str | Path, content: Mapping[str, Any], table: str) -> tuple[Expectation, ...]:
    rows = content.get(table, [])
    if not isinstance(rows, list) or not all(isinstance(r, dict) and set(r) == {"match", "reason"} for r in rows):
        raise InputError(f"{path}: every [[{table}]] has exactly 'match' and 'reason'")
    return tuple(Expectation(str(r["match"]), str(r["reason"])) for r in rows)
