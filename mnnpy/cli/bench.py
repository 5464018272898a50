"""``mnnpy bench``: latency of a model, engines side by side."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from mnnpy.cli.common import add_inputs, add_session, feeds_for, options_of
from mnnpy.cli.engines import ORT, Engine, MnnpyEngine, open_engine
from mnnpy.cli.output import emit_json, progress, table
from mnnpy.errors import InputError


def configure(parser: argparse.ArgumentParser) -> None:
    add_session(parser, several=True)
    add_inputs(parser)
    parser.add_argument("-n", "--iters", type=int, default=50, help="timed runs per engine (default 50)")
    parser.add_argument("--warmup", type=int, default=5, help="runs before timing (default 5)")
    parser.epilog = (
        f"'{ORT}' may be named as a backend, to see it beside the others. Runs are interleaved in one process, and "
        f"waiting threads of {ORT} do not spin; benchmarks/peers.py compares engines in separate processes."
    )


def statistics(seconds: list[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile, least and mean, in milliseconds."""
    ms = 1e3 * np.asarray(seconds)
    median, p90, p99 = np.percentile(ms, (50, 90, 99))
    return {
        "median": float(median),
        "p90": float(p90),
        "p99": float(p99),
        "min": float(ms.min()),
        "mean": float(ms.mean()),
    }


def run(args: argparse.Namespace) -> int:
    if args.iters < 1 or args.warmup < 0:
        raise InputError("--iters must be at least 1 and --warmup at least 0")
    options = options_of(args)
    names = list(dict.fromkeys(args.backend)) or ["cpu"]
    inputs = MnnpyEngine(args.model, next((n for n in names if n != ORT), "cpu"), options).session.get_inputs()
    feeds = feeds_for(args, inputs)
    engines: list[Engine] = []
    rows: list[dict[str, Any]] = []
    for name in names:
        start = time.perf_counter()
        engine = open_engine(name, args, options)
        loaded = time.perf_counter()
        engine.run(feeds)
        first = time.perf_counter()
        engines.append(engine)
        rows.append({"engine": name, "load": 1e3 * (loaded - start), "first": 1e3 * (first - loaded)})
    samples = measure(engines, feeds, args)
    for row, seconds in zip(rows, samples, strict=True):
        row.update(statistics(seconds))
    if args.json:
        emit_json({"model": args.model, "threads": options.thread_count, "precision": options.precision,
                   "isa": options.isa, "iterations": args.iters, "unit": "ms", "engines": rows})  # fmt: skip
        return 0
    columns = ("engine", "median", "p90", "p99", "min", "first", "load")
    print(f"{args.model}: ms, {args.iters} runs, {options.thread_count} thread(s), precision {options.precision}")
    print(table([[r[c] for c in columns] for r in rows], tuple(c.upper() for c in columns)))
    return 0


def measure(engines: list[Engine], feeds: dict[str, Any], args: argparse.Namespace) -> list[list[float]]:
    """Seconds per run, one list per engine; one run of each engine in turn, so that noise hits all alike."""
    samples: list[list[float]] = [[] for _ in engines]
    for k in range(-args.warmup, args.iters):
        for engine, seconds in zip(engines, samples, strict=True):
            start = time.perf_counter()
            engine.run(feeds)
            if k >= 0:
                seconds.append(time.perf_counter() - start)
        progress(args, max(0, k + 1), args.iters, "runs")
    return samples
