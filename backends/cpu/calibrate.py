"""The peaks that the kernels reach on this machine: measured once per build and thread count, kept with the records.

The cost model divides work by these peaks. What is measured are this backend's own kernels on small fixed problems,
some milliseconds together: a product per kind of arithmetic, copies that fit no cache and L2, a step with no work.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from mnnpy.backends.cpu import _native
from mnnpy.backends.cpu.algorithms import TABLE
from mnnpy.search.cost import Peaks
from mnnpy.search.records import Record, peak_records

__all__ = ["calibrated", "peaks"]

SIDE = 384  #: of the products
LARGE = 6 << 20  #: floats that fit no cache
SMALL = 1 << 15  #: floats per operand that fit L2 beside each other, per thread
LAUNCH = "launch"

_known: dict[tuple[str, str], Peaks] = {}
_lock = threading.Lock()


def peaks(fingerprint: str, threads: int, isa: str) -> Peaks:
    """The peaks of programs for *isa* with *threads* threads: from memory, from the records, or measured now."""
    records = peak_records(fingerprint)
    key = _key(threads, isa)
    with _lock:
        found = _known.get((records.fingerprint, key))
        if found is None:
            record = records.get(key)
            if record is None:
                record = Record(key, records.fingerprint, _measure(threads, isa), "", "calibration")
                records.add(record)
            found = _known[records.fingerprint, key] = _peaks(record, threads)
    return found


def calibrated(fingerprint: str, threads: int, isa: str) -> bool:
    """Whether ``peaks`` would measure nothing."""
    key = _key(threads, isa)
    return (fingerprint, key) in _known or peak_records(fingerprint).get(key) is not None


def _key(threads: int, isa: str) -> str:
    return f"peaks; {isa}; {threads} threads"


def _peaks(record: Record, threads: int) -> Peaks:
    seconds = {name: min(times) for name, times in record.samples.items() if times}
    work = 2.0 * SIDE**3
    rates = {name: work / s for name, s in seconds.items() if name not in ("memory", "cache", LAUNCH)}
    launch = seconds[LAUNCH]
    return Peaks(
        rates,
        memory=2 * 4.0 * LARGE / max(1e-9, seconds["memory"] - launch),
        cache=2 * 4.0 * SMALL * threads / max(1e-9, seconds["cache"] - launch),
        launch=launch,
    )


def _measure(threads: int, isa: str) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {}
    for rate in dict.fromkeys(a.rate for entries in TABLE.values() for a in entries):
        program = _product(rate, threads, isa)
        if program is not None:
            samples[rate] = _times(*program, 4)
    for name, size in (("memory", LARGE), ("cache", SMALL * threads), (LAUNCH, 1)):
        samples[name] = _times(*_copy(size, threads, isa), 2 if name == "memory" else 12)
    return samples


def _times(program: Any, inputs: list[Any], outputs: list[Any], repeat: int) -> list[float]:
    program.run(inputs, outputs)
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        program.run(inputs, outputs)
        times.append(time.perf_counter() - begin)
    return times


def _product(rate: str, threads: int, isa: str) -> tuple[Any, list[Any], list[Any]] | None:
    """A product by the algorithm of this kind of arithmetic, or None where the native side has no kernel for it."""
    shape = (SIDE, SIDE)
    a = np.linspace(-1, 1, SIDE * SIDE, dtype=np.float32).reshape(shape)
    attrs = {"algorithm": "direct" if rate == "f32" else rate, "precision": "low" if rate == "bf16" else "normal"}
    tensors = [("f32", shape, "input", 0), ("f32", shape, "constant", a), ("f32", shape, "output", 0)]
    try:
        program = _native.Program(tensors, [("MatMul", "peak", attrs, [0, 1], [2])], 0, threads, isa)
    except (ValueError, RuntimeError):
        return None
    return program, [a], [np.empty(shape, np.float32)]


def _copy(size: int, threads: int, isa: str) -> tuple[Any, list[Any], list[Any]]:
    tensors = [("f32", (size,), "input", 0), ("f32", (size,), "output", 0)]
    program = _native.Program(tensors, [("Unary", "copy", {"fn": "Neg"}, [0], [1])], 0, threads, isa)
    return program, [np.zeros(size, np.float32)], [np.zeros(size, np.float32)]
