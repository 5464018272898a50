"""Symbolic dimensions: integer expressions over named sizes, enough for shape functions.

A ``Dim`` is a plain ``int`` where the size is known, else a ``SymDim``: a linear combination of atoms
(names, or opaque floor-divisions and products printed as text). Two dims that normalise to the same
combination are equal; anything else is *not known to be equal*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, Union

__all__ = ["Dim", "Shape", "SymDim", "dim_max", "evaluate", "is_static", "numel", "sym"]


class SymDim:
    """``constant + sum(coefficient * atom)``; immutable and hashable."""

    __slots__ = ("constant", "terms")

    def __init__(self, terms: Mapping[str, int], constant: int = 0) -> None:
        self.terms: tuple[tuple[str, int], ...] = tuple(sorted((a, c) for a, c in terms.items() if c))
        self.constant = constant

    @staticmethod
    def _make(terms: dict[str, int], constant: int) -> Dim:
        out = SymDim(terms, constant)
        return out if out.terms else constant

    def _combine(self, other: Dim, sign: int) -> Dim:
        terms = dict(self.terms)
        if isinstance(other, SymDim):
            for atom, c in other.terms:
                terms[atom] = terms.get(atom, 0) + sign * c
            return self._make(terms, self.constant + sign * other.constant)
        return self._make(terms, self.constant + sign * int(other))

    def __add__(self, other: Dim) -> Dim:
        return self._combine(other, 1)

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return self._combine(other, -1)

    def __rsub__(self, other: int) -> Dim:
        return (self * -1) + other

    def __mul__(self, other: Dim) -> Dim:
        if isinstance(other, SymDim):
            a, b = sorted((self._atom(), other._atom()))
            return SymDim({f"({a}*{b})": 1})
        k = int(other)
        return self._make({a: c * k for a, c in self.terms}, self.constant * k)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        if not isinstance(other, SymDim):
            k = int(other)
            if k == 0:
                raise ZeroDivisionError("a dimension was divided by zero")
            if all(c % k == 0 for _, c in self.terms):
                return self._make({a: c // k for a, c in self.terms}, self.constant // k)
        elif other == self:
            return 1
        return SymDim({f"({self._atom()}//{other._atom() if isinstance(other, SymDim) else other})": 1})

    def __rfloordiv__(self, other: int) -> Dim:
        return SymDim({f"({other}//{self._atom()})": 1})

    def _atom(self) -> str:
        """The text of this expression as an operand: sums and multiples in parentheses."""
        single = len(self.terms) == 1 and self.terms[0][1] == 1 and not self.constant
        return str(self) if single else f"({self})"

    def __mod__(self, other: Dim) -> Dim:
        return self - (self // other) * other

    def __neg__(self) -> Dim:
        return self * -1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymDim) and (self.terms, self.constant) == (other.terms, other.constant)

    def __hash__(self) -> int:
        return hash((self.terms, self.constant))

    def __str__(self) -> str:
        parts: list[str] = []
        for atom, c in self.terms:
            text = atom if abs(c) == 1 else f"{abs(c)}*{atom}"
            parts.append(("-" if c < 0 else "+" if parts else "") + text)
        if self.constant:
            parts.append(f"{self.constant:+d}")
        return "".join(parts)

    __repr__ = __str__


Dim: TypeAlias = Union[int, SymDim]
Shape: TypeAlias = tuple[Dim, ...]


def sym(name: str) -> SymDim:
    """The symbolic dimension called *name*."""
    return SymDim({name: 1})


def is_static(shape: Sequence[Dim] | None) -> bool:
    """True where rank and every size are known."""
    return shape is not None and all(not isinstance(d, SymDim) for d in shape)


def numel(shape: Sequence[Dim]) -> Dim:
    """Product of all sizes (1 for a scalar)."""
    total: Dim = 1
    for d in shape:
        total = total * d
    return total


def dim_max(a: Dim, b: Dim) -> Dim:
    """The larger of two sizes; symbolic where that is not known."""
    if a == b:
        return a
    if isinstance(a, SymDim) or isinstance(b, SymDim):
        x, y = sorted((str(a), str(b)))
        return SymDim({f"max({x},{y})": 1})
    return max(a, b)


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> Dim:
    """Replace plain named atoms by *sizes*; opaque atoms stay."""
    if not isinstance(dim, SymDim):
        return dim
    total: Dim = dim.constant
    for atom, c in dim.terms:
        total = total + (sizes[atom] * c if atom in sizes else SymDim({atom: c}))
    return total
