"""What a conformance case is: one atomic op with operands, attributes, a layout and a rule of comparison."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Any

import numpy as np

from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["LAYOUTS", "Case", "Operand", "all_cases", "family", "fill", "select"]

#: ``dense``: operands are fed; ``constant``: all but the first are weights; ``behind``: the first comes out of a raster
#: that transposes it; ``before``: the first result goes into a raster that transposes it.
LAYOUTS = ("dense", "constant", "behind", "before")


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand and how it is filled: see ``fill``."""

    dtype: DType
    shape: tuple[int, ...]
    values: str = "normal"

    def __str__(self) -> str:
        return "x".join(map(str, self.shape)) or "scalar"


@dataclass(frozen=True, slots=True)
class Case:
    """One case. *rule*: ``exact``, ``element`` (error of each element), ``max`` (error over the largest), ``shape``."""

    op: str
    operands: tuple[Operand | None, ...]
    attrs: Mapping[str, Any]
    shown: str  #: what tells this case from others of its op
    rule: str = "exact"
    layout: str = "dense"
    sample: bool = False  #: part of the short run
    perf: bool = field(default=False, compare=False)

    @property
    def dtype(self) -> DType:
        """Of the first operand, else of the result."""
        first = next((o for o in self.operands if o is not None), None)
        return first.dtype if first is not None else self.attrs["dtype"]

    @property
    def params(self) -> str:
        """The text between the brackets of the id."""
        shapes = ",".join(str(o) for o in self.operands if o is not None)
        parts = [self.shown, str(self.dtype), shapes, "" if self.layout == "dense" else f"layout={self.layout}"]
        return ",".join(p for p in parts if p)

    @property
    def name(self) -> str:
        return f"{self.op}[{self.params}]"

    def feeds(self) -> list[Array | None]:
        """Operands, the same in every run: seeded by the case's name."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        return [None if o is None else fill(o, rng) for o in self.operands]


def _special(dtype: DType) -> list[float]:
    tiny = {DType.F16: 2.0**-10, DType.BF16: 2.0**-20}.get(dtype, 2.0**-30)
    return [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, -2.5, 3.5, tiny, -tiny, np.inf, -np.inf, np.nan, 65.0]


def fill(operand: Operand, rng: np.random.Generator) -> Array:
    """Values of an operand.

    ``normal``; ``positive`` (0.1 … 4); ``unit`` (−0.95 … 0.95); ``above1``; ``wide`` (−100 … 100); ``special`` (zeros,
    infinities, NaN, halves); ``ties`` (few distinct values); ``nan`` (ties with NaN); ``index:N`` (−N … N−1);
    ``below:N`` (0 … N−1); ``repeat:N`` (0 … N−1, most of them equal); ``bits`` (any bit pattern); ``small`` (−2 … 2 in
    quarters: exact in every float type); ``signs`` (−4 … 5 without 0, in order).
    """
    kind, _, limit = operand.values.partition(":")
    dtype, shape, n = operand.dtype, operand.shape, prod(operand.shape)
    if kind in ("index", "below", "repeat"):
        size = int(limit)
        low = -size if kind == "index" else 0
        found = rng.integers(low, max(size, 1), n)
        if kind == "repeat":
            found = np.where(rng.random(n) < 0.7, size // 2, found)
        return found.astype(dtype.numpy).reshape(shape)
    if kind == "signs":
        return np.resize([-4, -3, -2, -1, 1, 2, 3, 4, 5], n).astype(dtype.numpy).reshape(shape)
    if dtype is DType.BOOL:
        return (rng.random(n) < 0.5).reshape(shape)
    if kind == "bits":
        return rng.integers(0, 256, n * dtype.itemsize, np.uint8).view(dtype.numpy).reshape(shape)
    if dtype.is_int:
        return _integers(dtype, kind, n, rng).reshape(shape)
    makers: dict[str, Callable[[], Any]] = {
        "normal": lambda: rng.standard_normal(n),
        "positive": lambda: rng.uniform(0.1, 4, n),
        "unit": lambda: rng.uniform(-0.95, 0.95, n),
        "above1": lambda: rng.uniform(1.01, 5, n),
        "wide": lambda: rng.uniform(-100, 100, n),
        "special": lambda: np.resize(_special(dtype), n),
        "ties": lambda: rng.integers(-3, 4, n) / 2,
        "nan": lambda: np.where(rng.random(n) < 0.1, np.nan, rng.integers(-6, 7, n) / 2),
        "small": lambda: rng.integers(-8, 9, n) / 4,
    }
    with np.errstate(all="ignore"):
        return (
            np.asarray(makers[kind]())
            .astype(np.float32 if dtype.itemsize < 4 else dtype.numpy)
            .astype(dtype.numpy)
            .reshape(shape)
        )


def _integers(dtype: DType, kind: str, n: int, rng: np.random.Generator) -> Array:
    """The whole range for ``wide``, small numbers else (products of a few of them stay in range)."""
    if dtype in (DType.I2, DType.U2, DType.I4, DType.U4):
        bits = 2 if dtype in (DType.I2, DType.U2) else 4
        low = -(2 ** (bits - 1)) if dtype.is_signed else 0
        return rng.integers(low, low + 2**bits, n).astype(np.int8).astype(dtype.numpy)
    info = np.iinfo(dtype.numpy)
    if kind == "wide":
        return rng.integers(info.min, info.max, n, dtype.numpy, endpoint=True)
    low, high = (1, 5) if kind in ("positive", "above1") else (-4, 5) if kind == "ties" else (-9, 10)
    return rng.integers(max(low, info.min), high, n).astype(dtype.numpy)


Family = Callable[[], Iterator[Case]]
_FAMILIES: dict[str, Family] = {}


def family(op: str) -> Callable[[Family], Family]:
    """Register the generator of an op's cases."""

    def register(made: Family) -> Family:
        _FAMILIES[op] = made
        return made

    return register


@cache
def all_cases() -> tuple[Case, ...]:
    """The whole table, layouts included; ids are unique."""
    from mnnpy.conformance import table_compute, table_element, table_move

    found: dict[str, Case] = {}
    for module in (table_element, table_move, table_compute):
        for op in module.OPS:
            for case in _FAMILIES[op]():
                known = found.setdefault(case.name, case)
                if known is not case and (known.operands, known.attrs) != (case.operands, case.attrs):
                    raise ValueError(f"two cases are called {case.name}")
                if case.sample:
                    found[case.name] = case
    return tuple(found.values())


def with_layouts(case: Case, layouts: Sequence[str] = LAYOUTS) -> Iterator[Case]:
    """The case in several layouts."""
    for layout in layouts:
        yield replace(case, layout=layout)


def select(
    ops: Sequence[str] = (), pattern: str = "", *, sample: bool = False, cases: Sequence[Case] | None = None
) -> list[Case]:
    """Cases of *ops* whose id contains a match of *pattern*; with *sample* only the short run's."""
    import re

    found = all_cases() if cases is None else cases
    return [
        c for c in found
        if (not ops or c.op in ops) and (not sample or c.sample) and re.search(pattern, c.name)
    ]  # fmt: skip
