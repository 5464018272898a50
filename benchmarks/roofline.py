"""Achieved speed against the machine's limits by layer: ``python benchmarks/roofline.py [MODEL …] [--threads N]``.

The limits are measured first: peak by a large matrix product's kernel, bandwidth by an addition of arrays that fit no
cache. Each dot is one kernel call: operations per byte against operations per second; area is its share of the time.
Writes docs/benchmarks/roofline-MODEL.png (needs the extra ``plot``) and prints the layers that take most time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.zoo import ZOO  # noqa: E402
from mnnpy.backends.cpu import _native  # noqa: E402
from mnnpy.session import Session  # noqa: E402

Row = dict[str, Any]


def _best(steps: list[Any], tensors: list[Any], inputs: list[Any], threads: int, repeat: int) -> float:
    program = _native.Program(tensors, steps, 0, threads)
    outputs = [np.empty(t[1], np.float32) for t in tensors if t[2] == "output"]
    times = []
    for _ in range(repeat):
        times += [duration for _, _, duration in program.profile(inputs, outputs)]
    return min(times) * 1e-9


def limits(threads: int) -> tuple[float, float]:
    """(operations per second, bytes per second) that kernels of this project reach at best."""
    n = 768
    a, b = (np.random.default_rng(k).standard_normal((n, n), dtype=np.float32) for k in (0, 1))
    tensors = [("f32", (n, n), "input", 0), ("f32", (n, n), "constant", b), ("f32", (n, n), "output", 0)]
    peak = 2 * n**3 / _best([("MatMul", "peak", {}, [0, 1], [2])], tensors, [a], threads, 20)
    size = 1 << 24
    x = np.ones(size, np.float32)
    plane = ("f32", (size,), "input", 0)
    add = [("Unary", "copy", {"fn": "Neg"}, [0], [1])]
    return peak, 8 * size / _best(add, [plane, ("f32", (size,), "output", 0)], [x], threads, 10)


def measure(name: str, threads: int, repeat: int = 15) -> list[Row]:
    """One row per kernel call of the model: work, median seconds, algorithm."""
    model = ZOO[name]
    session = Session(model.build(), threads=threads, tune=0.5)
    feeds = model.inputs(0, 0)
    session.run(None, feeds)
    programs = _programs(session, feeds)
    rows = [dict(r) for program, _ in programs for r in program.describe()]
    samples = [[d for program, args in programs for *_, d in program.profile(args)] for _ in range(repeat)]
    for k, row in enumerate(rows):
        row["seconds"] = median(s[k] for s in samples)
    return rows


def _programs(session: Session, feeds: dict[str, Any]) -> list[tuple[Any, list[Any]]]:
    """Every native program of the plan with its inputs, those of the late parts too."""
    plan, found = session._executable.plan(args := session._feeds(feeds)), []
    while True:
        values = {**plan.constants, **dict(zip(plan.inputs, args, strict=True))}
        for step in plan.steps:
            if step.program is None:
                raise SystemExit(f"control flow ({step.node and step.node.op}) has no roofline")
            inputs = [values[n] for n in step.inputs]
            values |= zip(step.outputs, step.program.run(inputs), strict=True)
            if step.device == "cpu":
                found.append((step.program, inputs))
        if plan.late is None:
            return found
        args = [values[n] for n in plan.late.graph.input_names]
        plan = plan.late.plan(args)


def draw(name: str, rows: list[Row], peak: float, bandwidth: float, threads: int, path: Path) -> None:
    """The roofline picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    total = sum(r["seconds"] for r in rows)
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    intensity = np.logspace(-2, 3, 200)
    axes.plot(intensity, np.minimum(peak, bandwidth * intensity) / 1e9, color="black", linewidth=1.2)
    for op in sorted({r["op"] for r in rows}):
        found = [r for r in rows if r["op"] == op and r["flops"] and r["seconds"] > 0]
        x = [r["flops"] / r["bytes"] for r in found]
        y = [r["flops"] / r["seconds"] / 1e9 for r in found]
        area = [20 + 3000 * r["seconds"] / total for r in found]
        share = sum(r["seconds"] for r in rows if r["op"] == op) / total
        axes.scatter(x, y, area, alpha=0.55, label=f"{op} {share:.0%}")
    reached = sum(r["flops"] for r in rows) / total
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s")
    axes.set_title(
        f"{name}, {threads} thread(s): {total * 1e3:.2f} ms, {reached / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s "
        f"({reached / peak:.0%}); memory {bandwidth / 1e9:.0f} GB/s"
    )
    axes.grid(visible=True, which="both", alpha=0.2)
    legend = axes.legend(loc="lower right", fontsize=8)
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["resnet50", "mobilenet_v2", "bert_base"], metavar="MODEL")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    peak, bandwidth = limits(args.threads)
    print(f"peak {peak / 1e9:.0f} GFLOP/s, memory {bandwidth / 1e9:.1f} GB/s, {args.threads} thread(s)")
    for name in args.models:
        rows = measure(name, args.threads)
        total = sum(r["seconds"] for r in rows)
        print(f"\n{name}: {total * 1e3:.2f} ms in {len(rows)} calls")
        for r in sorted(rows, key=lambda r: -r["seconds"])[:10]:
            speed = r["flops"] / r["seconds"] / 1e9
            print(f"  {r['seconds'] / total:5.1%}  {speed:7.1f} GFLOP/s  {r['op']:16} {r['algorithm']:24} {r['node']}")
        draw(name, rows, peak, bandwidth, args.threads, args.out / f"roofline-{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
