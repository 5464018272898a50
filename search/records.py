"""Tuning records: JSON lines on disk, one measured decision a line, shared by processes.

A line holds the task's key, the fingerprint of device and build, every candidate with its samples, the decision
and the reason. Lines are appended in one write that begins and ends them, so writers never tear each other's, and one
that a full disk cut off spoils no other; corrupt or foreign lines are skipped with one warning; a folder that cannot be
written leaves the records in memory.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnnpy.classes import dataclass, field, field_names
from mnnpy.search.buckets import nearest
from mnnpy.store import cache_folder

if TYPE_CHECKING:
    from mnnpy.search.correct import Corrections

__all__ = ["SCHEMA", "Record", "Records", "peak_records", "plain", "record_of"]

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One decision: *samples* are seconds per run of each candidate, in order of measurement, *predicted* what the cost
    model had said.

    An empty *decision* marks a measurement in which nothing was chosen, such as a calibration. *work*: operations,
    bytes and seconds by the roofline alone of each candidate; *family*: what corrections are fitted to together.
    *kind*: all of the task but its sizes, *sizes*: their buckets (see ``buckets``).
    """

    key: str
    fingerprint: str
    samples: Mapping[str, Sequence[float]]
    decision: str
    reason: str
    predicted: Mapping[str, float] = field(default_factory=dict)
    work: Mapping[str, Sequence[float]] = field(default_factory=dict)
    family: str = ""
    kind: str = ""
    sizes: Sequence[int] = ()


def plain(record: Record) -> dict[str, Any]:
    """A record as plain data."""
    return {name: getattr(record, name) for name in field_names(record)}


def record_of(row: Mapping[str, Any]) -> Record:
    """The record of plain data, without what newer versions add; raises ValueError or TypeError where it is none."""
    known = field_names(Record)
    given = {name: value for name, value in row.items() if name in known}
    record = Record(**{**given, "sizes": tuple(given.get("sizes", ()))})
    texts = (record.key, record.fingerprint, record.decision, record.reason)
    if not all(isinstance(t, str) for t in texts):
        raise ValueError("key, fingerprint, decision and reason are texts")
    if record.decision and not record.samples.get(record.decision):
        raise ValueError("the decision was not measured")
    for times in record.samples.values():
        if not all(isinstance(t, (int, float)) and 0 <= t < inf for t in times):
            raise ValueError("a sample is no number of seconds")
    if not isinstance(record.family, str) or any(len(w) != 3 for w in record.work.values()):
        raise ValueError("work is operations, bytes and seconds")
    if not isinstance(record.kind, str) or not all(isinstance(n, int) for n in record.sizes):
        raise ValueError("sizes are numbers of buckets")
    return record


def peak_records(fingerprint: str) -> Records:
    """What devices were measured to reach; kept apart from decisions, which plans rest on."""
    return Records(fingerprint, cache_folder() / "peaks.jsonl")


class Records:
    """Decisions of one device, by task key. Safe to use from several threads."""

    def __init__(self, fingerprint: str, path: Path | None) -> None:
        self.fingerprint = fingerprint
        self.path = path
        self._found: dict[str, Record] | None = None
        self._corrections: Corrections | None = None
        self._kinds: dict[str, list[Record]] | None = None
        self._lock = threading.Lock()

    def get(self, key: str) -> Record | None:
        """The newest decision for *key* on this device and build."""
        with self._lock:
            return self._all().get(key)

    def all(self) -> list[Record]:
        """All decisions on this device and build, the newest of each key."""
        with self._lock:
            return list(self._all().values())

    def near(self, kind: str, sizes: Sequence[int], reach: int = 0) -> Record | None:
        """The decision for sizes that are nearest to these, within *reach* steps of √2."""
        with self._lock:
            if self._kinds is None:
                self._kinds = {}
                for record in self._all().values():
                    self._kinds.setdefault(record.kind, []).append(record)
            return nearest(self._kinds.get(kind, ()), kind, sizes, reach)

    def corrections(self) -> Corrections:
        """What the measurements so far say about the cost model; fitted again after every new one."""
        with self._lock:
            if self._corrections is None:
                from mnnpy.search.correct import Corrections

                self._corrections = Corrections(list(self._all().values()))
            return self._corrections

    def add(self, record: Record) -> None:
        """Remember a decision; on disk too, where that is possible."""
        with self._lock:
            self._all()[record.key] = record
            self._corrections = self._kinds = None
            if self.path is None:
                return
            row = {"schema": SCHEMA, **plain(record)}
            line = f"\n{json.dumps(row, separators=(',', ':'))}\n".encode()
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    if os.write(handle, line) < len(line):
                        raise OSError(errno.ENOSPC, "only a part was written")
                finally:
                    os.close(handle)
            except OSError as error:
                warnings.warn(f"tuning records cannot be written to {self.path}: {error}", RuntimeWarning, stacklevel=2)
                self.path = None

    def _all(self) -> dict[str, Record]:
        if self._found is None:
            self._found = {}
            for record in self._read():
                if record.fingerprint == self.fingerprint:
                    self._found[record.key] = record
        return self._found

    def _read(self) -> list[Record]:
        if self.path is None:
            return []
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError:
            return []
        records, bad = [], 0
        for line in lines:
            if not line:
                continue
            try:
                row = json.loads(line)
                if row.pop("schema") == SCHEMA:
                    records.append(record_of(row))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                bad += 1
        if bad:
            warnings.warn(f"{bad} unreadable line(s) in {self.path} were skipped", RuntimeWarning, stacklevel=2)
        return records
