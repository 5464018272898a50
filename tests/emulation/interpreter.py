"""Runs kernels in Python, item by item, and checks what devices leave undefined.

A launch fails where an index is out of range, where two items write one element of a buffer, where items race in
local memory between two barriers, or where only some of a group reach a barrier. Made for sizes of a few hundred
items: there it is faster than any compiler. Vectors are scalarised first; numbers are Python's, rounded by stores.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np

from mnnpy.backends.base import DeviceInfo
from mnnpy.backends.kernels.device import KernelDevice
from mnnpy.backends.kernels.driver import Binding, Caps, Launch
from mnnpy.backends.kernels.ir import (
    ArrayStore,
    Assign,
    Barrier,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Mutable,
    Stmt,
    Store,
    While,
    walk,
)
from mnnpy.backends.kernels.scalarize import scalarize
from mnnpy.backends.kernels.tensor import DeviceTensor
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

__all__ = ["KernelError", "interpreted"]

_WORDS = {"&&": "and", "||": "or"}
_INFIX = frozenset(["+", "-", "*", "&", "|", "^", "<<", ">>", "<", "<=", ">", ">=", "==", "!=", "&&", "||"])
_INTEGERS = frozenset({DType.I32, DType.U32, DType.I64, DType.U64})


class KernelError(AssertionError):
    """A kernel did what a device leaves undefined."""


@dataclass(slots=True)
class _Memory:
    """A buffer or local array of one launch: who wrote what since the last barrier (local) or at all (global)."""

    name: str
    values: list[Any]
    local: bool = False
    writers: dict[int, int] = field(default_factory=dict)
    readers: dict[int, set[int]] = field(default_factory=dict)

    def get(self, at: int, item: int) -> Any:
        if not 0 <= at < len(self.values):
            raise KernelError(f"{self.name}[{at}] is read, it has {len(self.values)} elements")
        if self.local:
            if self.writers.get(at, item) != item:
                raise KernelError(f"{self.name}[{at}] is written and read by two items between barriers")
            self.readers.setdefault(at, set()).add(item)
        return self.values[at]

    def put(self, at: int, value: Any, item: int) -> None:
        if not 0 <= at < len(self.values):
            raise KernelError(f"{self.name}[{at}] is written, it has {len(self.values)} elements")
        if self.writers.setdefault(at, item) != item or self.readers.get(at, set()) - {item}:
            raise KernelError(f"{self.name}[{at}] is used by two items between barriers and written by one of them")
        self.values[at] = value


class _Printer:
    """A kernel as the Python source of a generator that yields at barriers."""

    def __init__(self, kernel: Kernel) -> None:
        self.lines = [f"def run(item, {', '.join(_parameters(kernel))}):", "  if False: yield"]
        self.lines += [f"  {a.name} = [None] * {a.size}" for a in kernel.arrays if a.space == "private"]
        self.local = {a.name for a in kernel.arrays if a.space == "local"}
        self.block(kernel.body, 1)

    def block(self, body: Sequence[Stmt], depth: int) -> None:
        for s in body:
            self.statement(s, depth)
        if not body:
            self.lines.append("  " * depth + "pass")

    def statement(self, s: Stmt, depth: int) -> None:
        pad = "  " * depth
        if isinstance(s, (Let, Mutable, Assign)):
            self.lines.append(f"{pad}{s.name} = {self.expr(s.value)}")
        elif isinstance(s, Store):
            self.lines.append(f"{pad}{s.buffer.name}.put({self.expr(s.index)}, {self.expr(s.value)}, item)")
        elif isinstance(s, ArrayStore):
            at, value = self.expr(s.index), self.expr(s.value)
            local = s.array.name in self.local
            self.lines.append(f"{pad}{s.array.name}" + (f".put({at}, {value}, item)" if local else f"[{at}] = {value}"))
        elif isinstance(s, Barrier):
            self.lines.append(f"{pad}yield")
        elif isinstance(s, For):
            self.lines.append(f"{pad}for {s.name} in range({self.expr(s.start)}, {self.expr(s.stop)}, {s.step}):")
            self.block(s.body, depth + 1)
        elif isinstance(s, While):
            self.lines.append(f"{pad}while {self.expr(s.condition)}:")
            self.block(s.body, depth + 1)
        elif isinstance(s, If):
            self.lines.append(f"{pad}if {self.expr(s.condition)}:")
            self.block(s.then, depth + 1)
            if s.otherwise:
                self.lines.append(f"{pad}else:")
                self.block(s.otherwise, depth + 1)
        else:
            raise NotImplementedError(f"{type(s).__name__} is not interpreted")

    def expr(self, e: Expr) -> str:
        a = [self.expr(x) for x in e.args]
        if e.op == "const":
            return f"float('{e.value}')" if isinstance(e.value, float) else repr(e.value)
        if e.op == "var":
            return str(e.value)
        if e.op == "id":
            return "{}_{}".format(*e.value)
        if e.op == "load" or (e.op == "aload" and e.value.name in self.local):
            return f"{e.value.name}.get({a[0]}, item)"
        if e.op == "aload":
            return f"{e.value.name}[{a[0]}]"
        if e.op == "select":
            return f"choose({a[0]}, {a[1]}, {a[2]})"  # both sides are evaluated, as on a device
        if e.op in _INFIX:
            return f"({a[0]} {_WORDS.get(e.op, e.op)} {a[1]})"
        if e.op in ("/", "%"):
            return f"{'quotient' if e.op == '/' else 'rest'}({a[0]}, {a[1]})"
        if e.op == "cast":
            whole = e.dtype in _INTEGERS
            return f"{'int' if whole else 'bool' if e.dtype is DType.BOOL else 'float'}({a[0]})"
        if e.op in ("neg", "not", "~"):
            return f"({ {'neg': '-', 'not': 'not ', '~': '~'}[e.op] }{a[0]})"
        return f"{e.op}({', '.join(a)})"


def _parameters(kernel: Kernel) -> list[str]:
    ids = [f"{kind}_{axis}" for kind in ("global", "local", "group") for axis in range(3)]
    local = [a.name for a in kernel.arrays if a.space == "local"]
    return [*(b.name for b in kernel.buffers), *(n for n, _ in kernel.scalars), *local, *ids]


def _quotient(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a / b


_NAMES: dict[str, Any] = {
    **{n: getattr(math, n) for n in ("sqrt", "exp", "log", "sin", "cos", "tanh", "floor", "ceil", "isnan", "isinf")},
    "abs": abs, "min": min, "max": max, "pow": pow, "rint": round, "trunc": math.trunc,
    "fma": lambda a, b, c: a * b + c, "choose": lambda c, a, b: a if c else b, "quotient": _quotient,
    "rest": lambda a, b: a - b * _quotient(a, b),
}  # fmt: skip


class InterpretedDriver:
    """``Driver`` that interprets; *caps* may be those of any device."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.building = Lock()
        self.turn: AbstractContextManager[None] = nullcontext()
        self._allocated = 0

    def allocate(self, size: int) -> Any:
        self._allocated += size
        return np.full(size, 0xA5, np.uint8)

    def free(self, memory: Any) -> None:
        self._allocated -= memory.size

    @property
    def allocated(self) -> int:
        return self._allocated

    def upload(self, target: Binding, array: Array) -> None:
        target.memory[target.offset : target.offset + array.nbytes] = array.reshape(-1).view(np.uint8)

    def download(self, source: Binding, array: Array) -> None:
        array.reshape(-1).view(np.uint8)[:] = source.memory[source.offset : source.offset + array.nbytes]

    def compile(self, kernels: Sequence[Kernel]) -> list[Any]:
        built: list[tuple[Kernel, Callable[..., Any]]] = []
        for given in kernels:
            kernel = scalarize(given)
            space = dict(_NAMES)
            exec(compile("\n".join(_Printer(kernel).lines), kernel.name, "exec"), space)
            built.append((kernel, space["run"]))
        return built

    def record(self, launches: Sequence[Launch]) -> Any:
        return list(launches)

    def submit(self, recording: Any) -> None:
        for launch in recording:
            _run(launch)

    def synchronize(self) -> None:
        """Nothing is pending."""

    def time(self, recording: Any) -> list[float]:
        self.submit(recording)
        return [0.0] * len(recording)

    def release(self, recording: Any) -> None:
        recording.clear()

    def retire(self, discard: Callable[[], None]) -> None:
        discard()

    def copy(self, source: Binding, target: Binding) -> None:
        data = source.memory[source.offset : source.offset + source.size]
        target.memory[target.offset : target.offset + source.size] = data

    def adopt(self, value: Any) -> Binding | None:
        return value.binding if isinstance(value, DeviceTensor) and value.driver is self else None

    def address(self, at: Binding) -> int | None:
        return None

    def export(self, tensor: Any) -> Any:
        return None


def _run(launch: Launch) -> None:
    kernel, function = launch.kernel
    memories = []
    for buffer, place in zip(kernel.buffers, launch.buffers, strict=True):
        raw = place.memory[place.offset : place.offset + place.size].view(buffer.dtype.numpy)
        values = raw.astype(np.float32) if buffer.dtype in (DType.F16, DType.BF16) else raw
        memories.append(_Memory(buffer.name, values.tolist()))
    barriers = any(isinstance(s, Barrier) for s in walk(kernel.body))
    local_arrays = [a for a in kernel.arrays if a.space == "local"]
    items = list(itertools.product(*map(range, kernel.local[::-1])))
    for number, group in enumerate(itertools.product(*map(range, launch.groups))):
        shared = [_Memory(a.name, [None] * a.size, local=True) for a in local_arrays]
        running = []
        for k, (z, y, x) in enumerate(items):
            at = (x, y, z)
            whole = [g * n + i for g, n, i in zip(group, kernel.local, at, strict=True)]
            running.append(
                function(number * len(items) + k, *memories, *launch.scalars, *shared, *whole, *at, *group)
            )  # fmt: skip
        _lockstep(kernel.name, running, shared, barriers)
    for buffer, place, memory in zip(kernel.buffers, launch.buffers, memories, strict=True):
        if "w" in buffer.access:
            raw = place.memory[place.offset : place.offset + place.size].view(buffer.dtype.numpy)
            with np.errstate(over="ignore"):
                raw[:] = np.array(memory.values).astype(buffer.dtype.numpy)


def _lockstep(name: str, running: list[Any], shared: list[_Memory], barriers: bool) -> None:
    """All items of a group from barrier to barrier."""
    try:
        while True:
            arrived = [next(r, running) is not running for r in running]
            if not any(arrived):
                return
            if not all(arrived) or not barriers:
                raise KernelError("only some items of a group reach a barrier")
            for memory in shared:
                memory.writers.clear()
                memory.readers.clear()
    except KernelError as error:
        raise KernelError(f"kernel '{name}': {error}") from None


def interpreted(caps: Caps) -> KernelDevice:
    """A device with the capabilities *caps* behind the interpreter."""
    return KernelDevice(DeviceInfo("interpreter", "interpreted", facts={"label": "I"}), InterpretedDriver(caps))
