"""``mnnpy run``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from mnnpy.cli.common import add_inputs, add_session, feeds_for, open_session, summary_of
from mnnpy.cli.output import emit_json, note, table
from mnnpy.errors import InputError


def configure(parser: argparse.ArgumentParser) -> None:
    add_session(parser)
    add_inputs(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="save all outputs (.npz), or the only one (.npy)"
    )
    parser.add_argument("--explain", action="store_true", help="also say what ran where")


def run(args: argparse.Namespace) -> int:
    if args.output and args.output.suffix not in (".npy", ".npz"):
        raise InputError(f"--output {args.output}: the name must end in .npy or .npz")
    session = open_session(args)
    feeds = feeds_for(args, session.get_inputs())
    start = time.perf_counter()
    results = session.run(None, feeds)
    seconds = time.perf_counter() - start
    outputs = {a.name: r for a, r in zip(session.get_outputs(), results, strict=True)}
    if args.output:
        _save(args.output, outputs)
        note(args, f"saved {', '.join(outputs)} to {args.output}")
    rows = summary_of(outputs)
    if args.json:
        head = ("name", "dtype", "shape", "min", "max", "mean")
        payload: dict[str, Any] = {"ms": 1e3 * seconds, "outputs": [dict(zip(head, r, strict=True)) for r in rows]}
        if args.explain:
            payload["explain"] = list(session.explain().rows)
        emit_json(payload)
        return 0
    print(table(rows, ("OUTPUT", "DTYPE", "SHAPE", "MIN", "MAX", "MEAN")))
    note(args, f"first run, planning included: {1e3 * seconds:.2f} ms on {', '.join(session.backends)}")
    if args.explain:
        print(session.explain())
    return 0


def _save(path: Path, outputs: dict[str, Any]) -> None:
    arrays = {n: v for n, v in outputs.items() if isinstance(v, np.ndarray)}
    if len(arrays) != len(outputs):
        raise InputError(f"outputs {sorted(set(outputs) - set(arrays))} are no tensors and cannot be saved as arrays")
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
    elif len(arrays) == 1:
        np.save(path, next(iter(arrays.values())))
    else:
        raise InputError(f"--output {path}: the model has {len(arrays)} outputs; use a name ending in .npz")
