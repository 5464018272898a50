"""Records that leave one machine and count on others of the same kind, so that a plan can be tuned once for a fleet.

What must be equal is what ``calibrate.device_kind`` names: backend, device, driver and its facts (of the cpu: the
processor and the instruction set), and the version of this package; for the choice among devices, all devices of the
session in their order. The build, file times and the machine around the device do not matter; the number of threads
is a part of each record's key.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnnpy.backends.base import Device
from mnnpy.classes import dataclass
from mnnpy.errors import InputError
from mnnpy.search.calibrate import KEY, device_fingerprint, device_kind
from mnnpy.search.records import SCHEMA, Record, Records, peak_records, plain, record_of
from mnnpy.store import digest

if TYPE_CHECKING:
    from mnnpy.runtime import Context, Executable, Plan, Step

__all__ = ["Shipment", "results"]


@dataclass(frozen=True, slots=True)
class Shipment:
    """Records from elsewhere that count here: of each device of the session, and of the choice among them; by key."""

    devices: tuple[Mapping[str, Record], ...]
    plans: Mapping[str, Record]
    identity: str  #: of all that counts

    @classmethod
    def of(cls, tuning: Mapping[str, Any] | str | os.PathLike[str], devices: Sequence[Device]) -> Shipment:
        """Of what ``Session.tuning_results()`` gave, or a JSON file of it. Foreign records are left out with a warning.

        Raises InputError for what is no such result at all.
        """
        rows = _rows(tuning)
        kinds = [device_kind(d) for d in devices]
        places: dict[str, dict[str, Record]] = {kind: {} for kind in kinds}
        plans: dict[str, Record] = {}
        foreign: list[str] = []
        broken = 0
        for row in rows:
            try:
                kind = str(row["device"])
                record = record_of({**row, "fingerprint": kind})
            except (ValueError, TypeError, KeyError, AttributeError):
                broken += 1
                continue
            if kind in places:
                places[kind][record.key] = record
            elif kind == _together(kinds):
                plans[record.key] = record
            else:
                foreign.append(kind)
        if foreign or broken:
            warnings.warn(_skipped(len(rows), foreign, broken, kinds), RuntimeWarning, stacklevel=4)
        used = [[sorted(p.items(), key=lambda i: i[0]) for p in places.values()], sorted(plans.items())]
        return cls(tuple(places[k] for k in kinds), plans, digest(repr(used)))


def _rows(tuning: Mapping[str, Any] | str | os.PathLike[str]) -> list[Any]:
    what = "tuning="
    if isinstance(tuning, (str, os.PathLike)):
        what = f"tuning='{os.fspath(tuning)}'"
        try:
            tuning = json.loads(Path(tuning).read_bytes())
        except OSError as error:
            raise InputError(f"{what} cannot be read: {error}") from error
        except ValueError as error:
            raise InputError(f"{what} is no JSON: {error}; give a file of Session.tuning_results()") from error
    rows = tuning.get("records") if isinstance(tuning, Mapping) else None
    if not isinstance(rows, list) or not isinstance(tuning, Mapping):
        raise InputError(f"{what} holds no tuning results; give what Session.tuning_results() returns, or a file of it")
    if tuning.get("schema") != SCHEMA:
        warnings.warn(
            f"{what}: results of schema {tuning.get('schema')!r} are not used, this version has {SCHEMA}; tune again",
            RuntimeWarning,
            stacklevel=5,
        )
        return []
    return rows


def _together(kinds: Sequence[str]) -> str:
    return " | ".join(kinds)


def _skipped(count: int, foreign: Sequence[str], broken: int, kinds: Sequence[str]) -> str:
    parts = [f"{len(foreign) + broken} of {count} tuning record(s) were skipped"]
    if foreign:
        parts.append(f"{len(foreign)} for other devices (such as '{foreign[0]}'; here: {', '.join(map(repr, kinds))})")
    if broken:
        parts.append(f"{broken} unreadable")
    return ": ".join((parts[0], ", ".join(parts[1:])))


# -- results --


def results(executable: Executable) -> dict[str, Any]:
    """All records that the plans made so far rest on, and what the devices were measured to reach; plain data."""
    import mnnpy

    context = executable.context
    kinds = [device_kind(d) for d in context.devices]
    found: dict[tuple[str, str], Record] = {}
    for k, device in enumerate(context.devices):
        record = context.shipped(k).get(KEY) or peak_records(device_fingerprint(device)).get(KEY)
        if record is not None:
            found[kinds[k], KEY] = record
    for plan in _plans(executable):
        if plan.decision is not None and context.chooser is not None:
            key = plan.decision.key
            record = context.chooser.shipped.get(key) or context.chooser.records.get(key)
            if record is not None:
                found[_together(kinds), key] = record
        for step in plan.steps:
            for key, record in _used(context, step):
                found[kinds[step.lane], key] = record
    rows = []
    for (kind, _), record in sorted(found.items()):
        row = plain(record)
        del row["fingerprint"]
        rows.append({"device": kind, **row})
    return {"schema": SCHEMA, "mnnpy": mnnpy.__version__, "devices": kinds, "records": json.loads(json.dumps(rows))}


def _plans(executable: Executable) -> Iterator[Plan]:
    for plan in executable.plans():
        yield plan
        for step in plan.steps:
            for body in step.bodies.values():
                yield from _plans(body)
        if plan.late is not None:
            yield from _plans(plan.late)


def _used(context: Context, step: Step) -> Iterator[tuple[str, Record]]:
    """The records that a program's algorithms rest on."""
    if step.program is None or step.lane < 0:
        return
    own: Records | None = getattr(context.devices[step.lane], "records", None)
    shipped = context.shipped(step.lane)
    for row in step.program.describe():
        key = row.get("record") or ""
        record = shipped.get(key) or (own.get(key) if own is not None and key else None)
        if record is not None:
            yield key, record
