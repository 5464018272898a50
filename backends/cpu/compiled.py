"""Programs on the CPU, made of their description; a plan that was kept on disk needs no more than this module."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mnnpy.backends.cpu import _native
from mnnpy.backends.cpu.mapped import map_of
from mnnpy.errors import BackendError
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array

if TYPE_CHECKING:
    from mnnpy.backends.base import Recipe

__all__ = ["CpuProgram", "restore_program"]

#: Bytes from which on a transposed matrix is copied in blocks of this many columns.
BLOCKED, BLOCK = 1 << 16, 8


def restore_program(
    build: Mapping[str, Any], facts: Callable[[], list[Any]], isa: str | None, name: str = ""
) -> CpuProgram:
    """The native program that *build* describes; *facts* tells about its steps when somebody asks."""
    tensors = [_placed(*row) for row in build["tensors"]]
    try:
        native = _native.Program(tensors, build["steps"], build["arena"], build["threads"], isa)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BackendError(f"backend 'cpu' cannot compile segment '{name}': {error}") from error
    native.set_output_types([DType(dtype).numpy for dtype, _ in build["outputs"]])
    return CpuProgram(native, facts, [tuple(shape) for _, shape in build["outputs"]], build["arena"])


def _placed(dtype: str, shape: tuple[int, ...], kind: str, where: Any) -> tuple[str, tuple[int, ...], str, Any]:
    """A row of the tensor table; constants contiguous, and apart where their pages may be given back."""
    if kind != "constant":
        return dtype, shape, kind, where
    array = where if where.flags.c_contiguous else _contiguous(where)
    return dtype, shape, kind if map_of(array) is None else "mapped", array


def _contiguous(array: Array) -> Array:
    """``np.ascontiguousarray``; large transposed matrices in blocks, so that each line of the cache is met once."""
    if array.ndim != 2 or array.strides[0] != array.itemsize or array.nbytes < BLOCKED:
        return np.ascontiguousarray(array)
    made = np.empty(array.shape, array.dtype)
    for k in range(0, array.shape[1], BLOCK):
        made[:, k : k + BLOCK] = array[:, k : k + BLOCK]
    return made


#: What a program tells of a choice.
_CHOICE = ("reason", "predicted", "measured", "record", "open")


class CpuProgram:
    """A compiled segment on the CPU: one native call per run."""

    def __init__(
        self, native: Any, facts: Callable[[], list[Any]], shapes: Sequence[tuple[Any, ...]], arena: int
    ) -> None:
        self._native = native
        self._run = native.run
        self._tell = facts
        self._shapes = shapes
        self._arena = arena
        self.recipe: Recipe | None = None

    @cached_property
    def _facts(self) -> list[Any]:
        return self._tell()

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run on arrays; raises BackendError naming the node, its operands and what they did wrong."""
        try:
            return self._run(inputs)  # type: ignore[no-any-return]
        except (RuntimeError, ValueError, MemoryError) as error:
            raise self._explained(error) from error

    def run_into(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """As ``run``, into C-contiguous arrays of the outputs' types."""
        try:
            self._run(inputs, outputs)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> BackendError:
        """A native error with the shapes of the node's operands."""
        if isinstance(error, MemoryError):
            return BackendError(
                f"backend 'cpu' cannot allocate {self._arena / 2**20:.0f} MiB for intermediate values and "
                f"outputs {list(self._shapes)}; use smaller inputs or free memory"
            )
        text = str(error)
        for op, name, _, operands, *_ in self._facts:
            prefix = f"{op} '{name}': "
            if text.startswith(prefix):
                text = text.replace(prefix, "")
                return BackendError(f"node '{name}' ({op}) with ({operands}): {text}; check the values that are fed")
        return BackendError(f"backend 'cpu': {text}")

    def time(self, inputs: Sequence[Any]) -> float:
        """Wall seconds of one run."""
        begin = time.perf_counter()
        self._native.run(list(inputs))
        return time.perf_counter() - begin

    def profile(self, inputs: Sequence[Any]) -> list[tuple[str, str, str, float, float]]:
        """One run, step by step."""
        timed = self._native.profile(list(inputs))
        algorithms = [d["algorithm"] for d in self._native.describe()]
        return [
            (self._facts[k][0], self._facts[k][1], algorithms[k], start * 1e-9, duration * 1e-9)
            for k, start, duration in timed
        ]

    def describe(self) -> list[dict[str, Any]]:
        """One row per kernel call; where an algorithm was chosen also *reason*, *predicted* and *measured* seconds, and
        the key of the *record* that it rests on, and whether it is *open* to be measured.
        """
        rows: list[dict[str, Any]] = []
        for (op, name, shape, _, flops, moved, choice), native in zip(
            self._facts, self._native.describe(), strict=True
        ):
            row = {"op": op, "node": name, "algorithm": native["algorithm"], "shape": shape}
            rows.append({**row, "flops": flops, "bytes": moved})
            if choice is not None:
                rows[-1].update(zip(_CHOICE, choice, strict=True))
        return rows

    @property
    def memory(self) -> Mapping[str, int]:
        return dict(self._native.memory)
