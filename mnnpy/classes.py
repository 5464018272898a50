"""``dataclass`` for modules that every Session imports: the methods of a class are written when they are first needed.

The standard decorator compiles five and more methods per class, about half a millisecond each time a program starts;
a Session imports dozens of classes and uses a few. This one takes the same arguments (of those, what the project uses)
and leaves the same class behind: ``dataclasses.replace``, ``fields`` and ``asdict`` work on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MemberDescriptorType
from typing import Any, TypeVar, dataclass_transform, overload

__all__ = ["dataclass", "field", "field_names", "replace"]

T = TypeVar("T")
_MISSING: Any = object()


class _Field:
    """What ``field()`` says of one field."""

    __slots__ = ("compare", "default", "factory", "init")

    def __init__(self, default: Any, factory: Any, init: bool, compare: bool) -> None:
        self.default, self.factory, self.init, self.compare = default, factory, init, compare


@overload
def field(*, default: T, init: bool = True, compare: bool = True) -> T: ...
@overload
def field(*, default_factory: Callable[[], T], init: bool = True, compare: bool = True) -> T: ...
@overload
def field(*, init: bool = True, compare: bool = True) -> Any: ...
def field(*, default: Any = _MISSING, default_factory: Any = _MISSING, init: bool = True, compare: bool = True) -> Any:
    """As ``dataclasses.field``."""
    return _Field(default, default_factory, init, compare)


def replace(instance: T, **changes: Any) -> T:
    """As ``dataclasses.replace``."""
    made: T = type(instance)(**{**{n: getattr(instance, n) for n in _of(type(instance)).given}, **changes})
    return made


def field_names(owner: Any) -> tuple[str, ...]:
    """Names of the fields of a class, or of an instance of it."""
    return tuple(_of(owner if isinstance(owner, type) else type(owner)).fields)


class _Spec:
    """The fields of a class, and what was asked of the decorator."""

    def __init__(self, cls: type, fields: dict[str, _Field], frozen: bool, eq: bool, kw_only: bool) -> None:
        self.cls, self.fields, self.frozen, self.eq, self.kw_only = cls, fields, frozen, eq, kw_only
        self.given = [n for n, f in fields.items() if f.init]
        self.compared = [n for n, f in fields.items() if f.compare]


_SPECS: dict[type, _Spec] = {}


def _of(cls: type) -> _Spec:
    return next(_SPECS[c] for c in cls.__mro__ if c in _SPECS)


@dataclass_transform(field_specifiers=(field,))
def dataclass(
    cls: Any = None, *, frozen: bool = False, slots: bool = False, eq: bool = True, kw_only: bool = False
) -> Any:
    """As ``dataclasses.dataclass``, for classes that inherit no fields."""

    def decorate(cls: Any) -> Any:
        fields = _fields_of(cls)
        if slots:
            made = dict(cls.__dict__)
            for name in (*fields, "__dict__", "__weakref__"):
                made.pop(name, None)
            cls = type(cls)(cls.__name__, cls.__bases__, {**made, "__slots__": tuple(fields)})
        _SPECS[cls] = spec = _Spec(cls, fields, frozen, eq, kw_only)
        _equip(cls, spec)
        return cls

    return decorate if cls is None else decorate(cls)


def _fields_of(cls: type) -> dict[str, _Field]:
    found: dict[str, _Field] = {}
    for name, kind in getattr(cls, "__annotations__", {}).items():
        if str(kind).startswith(("ClassVar", "typing.ClassVar")):
            continue
        default = cls.__dict__.get(name, _MISSING)
        if isinstance(default, MemberDescriptorType):
            default = _MISSING
        found[name] = default if isinstance(default, _Field) else _Field(default, _MISSING, True, True)
        if isinstance(default, _Field):
            if default.default is _MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, default.default)
    return found


def _equip(cls: Any, spec: _Spec) -> None:
    """Methods that need no compiling, and a constructor that compiles the real one."""

    def init(self: Any, *args: Any, **keywords: Any) -> None:
        cls.__init__ = _compiled(spec)
        self.__init__(*args, **keywords)

    def show(self: Any) -> str:
        shown = ", ".join(f"{n}={getattr(self, n)!r}" for n in spec.fields)
        return f"{type(self).__qualname__}({shown})"

    made: dict[str, Any] = {"__init__": init, "__repr__": show}
    if spec.eq:
        made.update(_comparison(spec))
    if spec.frozen:
        made.update(_guards(spec))
    for name, method in made.items():
        if name not in cls.__dict__ or (name == "__hash__" and cls.__dict__[name] is None):
            setattr(cls, name, method)
    setattr(cls, "__match_args__", () if spec.kw_only else tuple(spec.given))  # noqa: B010 - not for mypy's eyes
    cls.__dataclass_fields__ = _Standard("__dataclass_fields__")
    cls.__dataclass_params__ = _Standard("__dataclass_params__")


def _comparison(spec: _Spec) -> dict[str, Any]:
    if len(spec.compared) > 1:
        values: Callable[[Any], Any] = attrgetter(*spec.compared)
    else:

        def values(self: Any) -> Any:
            return tuple(getattr(self, n) for n in spec.compared)

    def equal(self: Any, other: object) -> Any:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def digest(self: Any) -> int:
        return hash(values(self))

    return {"__eq__": equal, "__hash__": digest if spec.frozen else None}


def _guards(spec: _Spec) -> dict[str, Any]:
    def assign(self: Any, name: str, value: Any) -> None:
        raise _frozen(f"cannot assign to field {name!r}")

    def delete(self: Any, name: str) -> None:
        raise _frozen(f"cannot delete field {name!r}")

    def state(self: Any) -> list[Any]:
        return [getattr(self, n) for n in spec.fields]

    def restore(self: Any, held: list[Any]) -> None:
        for name, value in zip(spec.fields, held, strict=True):
            object.__setattr__(self, name, value)

    guards: dict[str, Any] = {"__setattr__": assign, "__delattr__": delete}
    if "__slots__" in spec.cls.__dict__:
        guards.update(__getstate__=state, __setstate__=restore)
    return guards


def _frozen(text: str) -> AttributeError:
    from dataclasses import FrozenInstanceError

    return FrozenInstanceError(text)


def _compiled(spec: _Spec) -> Any:
    """The constructor, as the standard decorator would write it."""
    names: dict[str, Any] = {"_missing": _MISSING, "_set": object.__setattr__}
    parameters, body = ["self", *(["*"] if spec.kw_only else ())], []
    for name, f in spec.fields.items():
        value = name
        if f.default is not _MISSING:
            names[f"_d_{name}"] = f.default
            parameters += [f"{name}=_d_{name}"] if f.init else []
            value = name if f.init else f"_d_{name}"
        elif f.factory is not _MISSING:
            names[f"_f_{name}"] = f.factory
            parameters += [f"{name}=_missing"] if f.init else []
            value = f"_f_{name}() if {name} is _missing else {name}" if f.init else f"_f_{name}()"
        elif f.init:
            parameters.append(name)
        else:
            continue
        body.append(f" _set(self, {name!r}, {value})" if spec.frozen else f" self.{name} = {value}")
    if hasattr(spec.cls, "__post_init__"):
        body.append(" self.__post_init__()")
    lines = [f"def __init__({', '.join(parameters)}):", *(body or [" pass"])]
    exec("\n".join(lines), names)  # noqa: S102 - of our own field names only
    made = names["__init__"]
    made.__qualname__ = f"{spec.cls.__qualname__}.__init__"
    return made


class _Standard:
    """What ``dataclasses`` keeps about a class, made when it asks."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._made: dict[type, Any] = {}

    def __get__(self, instance: object, owner: type) -> Any:
        found = self._made.get(owner)
        if found is None:
            found = self._made[owner] = getattr(_twin(_of(owner)), self._name)
        return found


def _twin(spec: _Spec) -> Any:
    """A class of the same fields by the standard decorator."""
    import dataclasses

    body: dict[str, Any] = {"__annotations__": {n: spec.cls.__annotations__[n] for n in spec.fields}}
    for name, f in spec.fields.items():
        given: Mapping[str, Any] = {
            **({} if f.default is _MISSING else {"default": f.default}),
            **({} if f.factory is _MISSING else {"default_factory": f.factory}),
        }
        body[name] = dataclasses.field(init=f.init, compare=f.compare, **given)
    made = type(spec.cls.__name__, (), body)
    return dataclasses.dataclass(frozen=spec.frozen, eq=spec.eq, kw_only=spec.kw_only)(made)
