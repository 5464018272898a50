"""What a search tells whoever watches it. A session without an observer pays nothing for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from mnnpy.classes import dataclass, field

if TYPE_CHECKING:
    from mnnpy.search.records import Record

__all__ = ["Event", "Kind", "Observer", "Task", "Tell", "silent", "teller"]

#: ``begun``: a candidate is prepared; ``measured``: one run of it; ``dropped``: too slow to be measured further;
#: ``banned``: it computed something else than the others; ``decided``: by what was measured now; ``recalled``: by what
#: was measured earlier.
Kind = Literal["begun", "measured", "dropped", "banned", "decided", "recalled"]


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be decided: a layer's algorithm on a device, or (*device* empty) the way of a whole graph."""

    key: str  #: of its record
    label: str  #: for people, such as ``Convolution f32[1,64,55,55]``
    device: str = ""
    predicted: Mapping[str, float] = field(default_factory=dict)  #: seconds of each candidate


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; *seconds* of the run, of the best one where something was dropped or decided."""

    kind: Kind
    task: Task
    candidate: str
    seconds: float | None = None
    record: Record | None = None  #: of a decision


class Observer(Protocol):
    """Called on the thread that searches; what it raises ends the search."""

    def __call__(self, event: Event, /) -> None: ...


class Tell(Protocol):
    """What measuring reports to: kind, candidate, seconds, and the record of a decision."""

    def __call__(
        self, kind: Kind, candidate: str, seconds: float | None = None, record: Record | None = None, /
    ) -> None: ...


def silent(kind: Kind, candidate: str, seconds: float | None = None, record: Record | None = None, /) -> None:
    """Nobody watches."""


def teller(observer: Observer | None, task: Task) -> Tell:
    """Reports about *task* to an observer, if there is one."""
    if observer is None:
        return silent

    def tell(kind: Kind, candidate: str, seconds: float | None = None, record: Record | None = None, /) -> None:
        observer(Event(kind, task, candidate, seconds, record))

    return tell
