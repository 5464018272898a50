"""Kernel backends beside our own cpu backend: ``python benchmarks/kernels.py [--backends …] [--models …]``.

Both devices run on this processor here (OpenCL on PoCL, Vulkan on lavapipe), so ratios to the cpu backend at two
threads say what is lost by going through a driver's compiler. Runs are interleaved after warm-ups; times are medians,
ratios are medians of the ratios within rounds, inputs are uploaded and outputs downloaded in every run. Prints
Markdown, ``--json FILE`` keeps the numbers; exits with 1 where a goal is missed.

What a launch costs the host: a program of many launches of one work group each is submitted to an idle queue. *submit*
is the wall time until ``submit`` returns, which is our loop and pyopencl's enqueue of every launch, then the flush
(threads of the driver start on the first launches meanwhile, and share the cores with it); *until done* goes on until
the last launch has ended. Calls of Python are counted by ``sys.setprofile`` in runs of two programs that differ only
in their number of launches, submissions by a wrapper around ``vkQueueSubmit``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from benchmarks.peers import machine  # noqa: E402
from benchmarks.zoo import ZOO  # noqa: E402
from mnnpy import Session  # noqa: E402
from mnnpy.backends.registry import open_device  # noqa: E402
from mnnpy.errors import BackendUnavailableError  # noqa: E402
from mnnpy.options import OPTIMIZATIONS  # noqa: E402

MODELS = ("resnet18", "mobilenet_v2", "minilm_l6", "din")
SIZE = 768  #: of the matrix product
THREADS = 2  #: of the cpu backend
SHORT, LONG = 20, 220  #: launches of the two programs that tell what a launch costs
#: Seconds that the runs of one comparison may take.
PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Row:
    """One number, and its goal where there is one (``at least`` or ``at most``)."""

    backend: str
    what: str
    value: float
    unit: str
    goal: float | None = None
    least: bool = False  #: the goal is a lower bound
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the goal is reached; true where there is none."""
        return self.goal is None or (self.value >= self.goal if self.least else self.value <= self.goal)


def product(constant: bool) -> onnx.ModelProto:
    """768 × 768 × 768; the right operand a weight or an input."""
    shape = [SIZE, SIZE]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "aby"]
    weight = numpy_helper.from_array(_normal(2, shape), "b")
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "g", values[: 1 if constant else 2], values[2:], [weight] * constant)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def chain(length: int) -> onnx.ModelProto:
    """*length* element-wise operations on four numbers, one after the other."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("v0", f"v{length}")]
    nodes = [helper.make_node("Abs" if k % 2 else "Neg", [f"v{k}"], [f"v{k + 1}"]) for k in range(length)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def _normal(seed: int, shape: Sequence[int]) -> Any:
    return np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)


def compare(runs: Sequence[Callable[[], Any]], rounds: int) -> tuple[float, float, float]:
    """Median seconds of both *runs*, ours and the cpu's, and the median of their ratio in a round; warmed up."""
    ours, cpu = runs
    begin = time.perf_counter()
    for _ in range(2):
        ours(), cpu()
    rounds = max(3, min(rounds, int(PATIENCE / (time.perf_counter() - begin) * 2)))
    found = []
    for k in range(rounds):
        pair = [_seconds(ours), _seconds(cpu)] if k % 2 else [_seconds(cpu), _seconds(ours)][::-1]
        found.append(pair)
    mine, other = zip(*found, strict=True)
    return statistics.median(mine), statistics.median(other), statistics.median(a / c for a, c in found)


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _runs(model: Any, feeds: Any, backend: str, precision: str = "normal") -> list[Callable[[], Any]]:
    """Inference on *backend* and on the cpu."""
    found: list[Callable[[], Any]] = []
    for name in (backend, "cpu"):
        session = Session(model, name, threads=THREADS, precision=precision)
        found.append(partial(session.run, None, feeds))
    return found


def products(backend: str, rounds: int) -> list[Row]:
    """Speed of the matrix product over the cpu backend's."""
    rows = []
    for constant in (True, False):
        model, shape = product(constant), (SIZE, SIZE)
        feeds = {n: _normal(k, shape) for k, n in enumerate("a" if constant else "ab")}
        for precision in ("normal", "high"):
            runs = _runs(model, feeds, backend, precision)
            mine, other, ratio = compare(runs, rounds)
            operand = "weight" if constant else "input"
            speeds = [2e-9 * SIZE**3 / t for t in (mine, other)]
            note = f"{speeds[0]:.0f} beside {speeds[1]:.0f} GFLOP/s"
            title = f"product of {SIZE}³ f32, right operand {operand}, {precision}: speed ÷ cpu"
            rows.append(Row(backend, title, 1 / ratio, "", 0.4 if backend == "opencl" else None, True, note))
    return rows


def models(backend: str, names: Sequence[str], rounds: int) -> list[Row]:
    """Whole inferences over the cpu backend's time."""
    rows = []
    for name in names:
        mine, other, ratio = compare(_runs(ZOO[name].build(), ZOO[name].inputs(), backend), rounds)
        goal = 4.0 if (backend, name) == ("opencl", "resnet18") else None
        note = f"{1e3 * mine:.3g} beside {1e3 * other:.3g} ms"
        rows.append(Row(backend, f"{name}: time ÷ cpu", ratio, "", goal, note=note))
    return rows


def _chains(backend: str) -> list[tuple[Session, Any, int]]:
    """Sessions of both chains, their programs, and how many launches these have."""
    found = []
    for length in (SHORT, LONG):
        session = Session(chain(length), backend, optimize=OPTIMIZATIONS - {"fuse_elementwise"})
        feeds = {"v0": np.ones(4, np.float32)}
        for _ in range(3):
            session.run(None, feeds)
        program: Any = session._executable.plan([feeds["v0"]]).direct
        launches = len(program.describe())
        assert launches == length, "one launch for each operation"
        found.append((session, program, launches))
    return found


def launches(backend: str, rounds: int) -> list[Row]:
    """Host microseconds of a launch."""
    _, program, count = _chains(backend)[1]
    driver, recording = program._driver, program._recording
    submitted, done = [], []
    for _ in range(max(50, rounds)):
        driver.synchronize()
        begin = time.perf_counter()
        driver.submit(recording)
        submitted.append(time.perf_counter() - begin)
        driver.synchronize()
        done.append(time.perf_counter() - begin)
    host, whole = (1e6 * statistics.median(t) / count for t in (submitted, done))
    goal = 10.0 if backend == "opencl" else None
    return [
        Row(backend, f"host time of a launch, of {count} (submit)", host, "µs", goal),
        Row(backend, "the same until done", whole, "µs"),
    ]


def calls(session: Session) -> int:
    """Calls of Python and of C functions from Python in one run."""
    feeds, seen = {"v0": np.ones(4, np.float32)}, [0]

    def count(_: Any, event: str, __: Any) -> None:
        seen[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        session.run(None, feeds)
    finally:
        sys.setprofile(None)
    return seen[0]


def replays(rounds: int) -> list[Row]:
    """What a run on Vulkan does besides the device's work."""
    import vulkan as vk

    (short, _, few), (long, _, many) = _chains("vulkan")
    submits, real = [0], vk.vkQueueSubmit

    def counted(*args: Any) -> Any:
        submits[0] += 1
        return real(*args)

    vk.vkQueueSubmit = counted
    try:
        for _ in range(rounds):
            long.run(None, {"v0": np.ones(4, np.float32)})
    finally:
        vk.vkQueueSubmit = real
    per_launch = (calls(long) - calls(short)) / (many - few)
    return [
        Row("vulkan", f"submissions of a run of {many} launches", submits[0] / rounds, "", 1.0),
        Row("vulkan", "calls in Python for one more launch", per_launch, "", 0.0),
    ]


def measure(backends: Sequence[str], names: Sequence[str], rounds: int) -> list[Row]:
    """All rows of the backends that can be opened."""
    rows: list[Row] = []
    for backend in backends:
        try:
            open_device(backend)
        except BackendUnavailableError as error:
            print(f"{backend}: {error}", file=sys.stderr)
            continue
        rows += launches(backend, rounds)
        rows += replays(rounds) if backend == "vulkan" else []
        rows += products(backend, rounds) + models(backend, names, rounds)
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [f"{machine()}.", "", "| backend | what | measured | goal | met | |", "|---|---|--:|---|---|---|"]
    for r in rows:
        goal = "" if r.goal is None else f"{'≥' if r.least else '≤'} {r.goal:g} {r.unit}".strip()
        met = "" if r.goal is None else "yes" if r.met else "no"
        value = f"{r.value:.3g} {r.unit}".strip()
        lines.append(f"| {r.backend} | {r.what} | {value} | {goal} | {met} | {r.note} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["opencl", "vulkan"], choices=["opencl", "vulkan"])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=sorted(ZOO), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=25, help="interleaved rounds at most (default 25)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    options = parser.parse_args(argv)
    rows = measure(options.backends, options.models, options.rounds)
    print(markdown(rows))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": [asdict(r) for r in rows]}))
    return 0 if rows and all(r.met for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
