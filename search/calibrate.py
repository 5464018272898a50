"""What a device reaches, measured once through the plugin interface: products, a copy, launches, transfers.

A device that knows better has a method ``peaks() -> Peaks``. What is measured is kept in the records of the device, so
that it costs its half second once per device, driver and version of this package.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from mnnpy.backends.base import Device, NodeView, Program, Segment
from mnnpy.graph.dtypes import DType
from mnnpy.graph.ir import Array, Graph, Node, TensorType, Value
from mnnpy.search.cost import Peaks
from mnnpy.search.records import Record, Records, peak_records

__all__ = ["KEY", "calibrate", "device_fingerprint", "device_kind"]

KEY = "peaks"
BUDGET = 2.0  #: seconds for all probes of a device
SIDE = 512  #: of the products
LARGE = 1 << 22  #: floats that fit no cache
CHAIN = 17  #: launches in a row


def device_fingerprint(device: Device) -> str:
    """The device, its driver and this version: what measurements hold for."""
    import mnnpy

    own: Records | None = getattr(device, "records", None)
    if own is not None:
        return own.fingerprint
    facts = "; ".join(f"{k} {v}" for k, v in sorted(device.info.facts.items()) if isinstance(v, (str, int, float)))
    return f"{device.info.backend}; {device.info.name}; {facts}; mnnpy {mnnpy.__version__}"


def device_kind(device: Device) -> str:
    """What must be equal for records of one device to count on another: device, driver and this version.

    Not the build, the machine around it, or the time of anything.
    """
    import mnnpy

    own = getattr(device, "kind", None)
    return device_fingerprint(device) if own is None else f"{own}; mnnpy {mnnpy.__version__}"


def calibrate(device: Device, shipped: Mapping[str, Record] | None = None) -> Peaks:
    """The peaks of *device*: its own, shipped, from the records, or measured now."""
    own = getattr(device, "peaks", None)
    if own is not None:
        declared: Peaks = own()
        return declared
    records = peak_records(device_fingerprint(device))
    record = (shipped or {}).get(KEY) or records.get(KEY)
    if record is None:
        record = Record(KEY, records.fingerprint, measure_probes(device), "", "calibration")
        records.add(record)
    return _peaks(record.samples)


def _peaks(samples: Mapping[str, Sequence[float]]) -> Peaks:
    seconds = {name: min(times) for name, times in samples.items() if times}
    launch = max(0.0, (seconds["chain"] - seconds["one"]) / (CHAIN - 1))
    rates: dict[str, float] = {n: 2.0 * SIDE**3 / seconds[n] for n in ("f32", "f16", "bf16") if n in seconds}
    memory = 8.0 * LARGE / seconds["copy"]
    if "moved" not in seconds:
        return Peaks(rates, memory, memory, launch, max(0.0, seconds["one"] - launch))
    latency = max(1e-7, median(samples["little"]) / 2)
    link = 8.0 * LARGE / max(1e-9, seconds["moved"])
    return Peaks(rates, memory, memory, launch, max(0.0, seconds["one"] - launch), latency, link)


def measure_probes(device: Device) -> dict[str, list[float]]:
    """Seconds of each probe, as often as the budget allows; probes that the device cannot run are absent."""
    until = time.perf_counter() + BUDGET
    samples: dict[str, list[float]] = {}
    for dtype in (DType.F32, DType.F16, DType.BF16):
        found = _product(device, dtype)
        if found is not None:
            samples[str(dtype)] = _times(found, "time", 8, until)
    for name, count, size, repeat in (("one", 1, 16, 20), ("chain", CHAIN, 16, 20), ("copy", 1, LARGE, 4)):
        found = _chain(device, count, size)
        if found is None:
            continue
        samples[name] = _times(found, "time", repeat, until)
        if name != "chain" and device.info.backend != "reference":
            runs = _times(found, "run", repeat, until)
            moved = [max(0.0, r - min(samples[name])) for r in runs]
            if _has_memory(device):
                samples["little" if name == "one" else "moved"] = moved
    return samples


def _has_memory(device: Device) -> bool:
    """Whether the device has memory of its own: what is uploaded is no array of the host then."""
    return not isinstance(device.upload(np.zeros(4, np.float32)), np.ndarray)


Probe = tuple[Program, list[Array]]


def _product(device: Device, dtype: DType) -> Probe | None:
    shape = (SIDE, SIDE)
    t = TensorType(dtype, shape)
    a = np.linspace(-1, 1, SIDE * SIDE, dtype=np.float32).reshape(shape).astype(dtype.numpy)
    return _compiled(device, [Node("MatMul", ("a", "b"), ("y0",))], {"a": t, "b": t, "y0": t}, {"b": a}, [a])


def _chain(device: Device, count: int, size: int) -> Probe | None:
    t = TensorType(DType.F32, (size,))
    names = ["a", *(f"y{k}" for k in range(count))]
    nodes = [Node("Unary", (names[k],), (names[k + 1],), {"fn": "Neg"}) for k in range(count)]
    return _compiled(device, nodes, dict.fromkeys(names, t), {}, [np.ones(size, np.float32)])


def _compiled(
    device: Device,
    nodes: Sequence[Node],
    types: Mapping[str, TensorType],
    constants: Mapping[str, Array],
    feeds: list[Any],
) -> Probe | None:
    for node in nodes:
        view = NodeView(node, tuple(types[n] for n in node.inputs), tuple(types[n] for n in node.outputs), constants)
        if not device.supports(view):
            return None
    last = nodes[-1].outputs[0]
    graph = Graph(
        "probe", (Value("a", types["a"]),), (Value(last, types[last]),), tuple(nodes), dict(constants), dict(types)
    )
    return device.compile(Segment(graph)), feeds


def _times(probe: Probe, how: str, repeat: int, until: float) -> list[float]:
    """Seconds of runs after one to warm up: by the program's own clock, or with transfers."""
    program, feeds = probe
    program.run(feeds)
    times: list[float] = []
    while len(times) < repeat and (not times or time.perf_counter() < until):
        begin = time.perf_counter()
        if how == "time":
            times.append(program.time(feeds))
        else:
            program.run(feeds)
            times.append(time.perf_counter() - begin)
    return times
