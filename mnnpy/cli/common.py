"""What several subcommands share: model and session arguments, inputs from files or made up."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnnpy.cli.output import note
from mnnpy.errors import InputError
from mnnpy.options import ISAS, PRECISIONS, Options
from mnnpy.session import NodeArg, Session

__all__ = ["add_inputs", "add_session", "feeds_for", "open_session", "options_of", "summary_of"]

Array = NDArray[Any]

_NUMPY = {"float": "float32", "double": "float64", "string": "object"}


def add_session(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """The model and how to run it."""
    parser.add_argument("model", metavar="MODEL", help="an .onnx or .mnnpy file")
    parser.add_argument(
        "-b",
        "--backend",
        "--backends",
        metavar="NAME",
        action=_Names,
        default=[],
        help="backend to use; "
        + ("several (repeated or cpu,opencl) are put side by side" if several else "repeat, or cpu,opencl for several"),
    )
    parser.add_argument("-t", "--threads", type=int, default=0, help="worker threads (0: one per core)")
    parser.add_argument("--precision", choices=PRECISIONS, default="normal", help="default: normal")
    parser.add_argument("--isa", choices=ISAS, help="highest instruction set of CPU kernels (default: the best)")
    parser.add_argument("--fallback", action="store_true", help="let unsupported ops run on the reference backend")


class _Names(argparse.Action):
    """Names one by one or with commas between them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        names = [n.strip() for n in str(values).split(",") if n.strip()]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *names])


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Where inputs come from."""
    parser.add_argument(
        "-i", "--input", metavar="NAME=VALUE", action="append", default=[],
        help="a .npy file, FILE.npz (the array of that name) or a JSON number or list",
    )  # fmt: skip
    parser.add_argument(
        "-s", "--shape", metavar="NAME:1x3x224x224", action="append", default=[],
        help="shape of an input that is made up (default: symbolic sizes are 1)",
    )  # fmt: skip
    parser.add_argument("--shapes", dest="shape", metavar="NAME=1x3x224x224", action="extend", nargs="+",
                        help="the same for several inputs")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of made-up inputs")


def options_of(args: argparse.Namespace) -> Options:
    """Session options of the command line."""
    return Options(threads=args.threads, precision=args.precision, fallback=args.fallback, isa=args.isa)


def open_session(args: argparse.Namespace, backends: str | Sequence[str] | None = None) -> Session:
    """A session on the named backends, or those of ``--backend``."""
    return Session(args.model, backends or args.backend or "auto", options_of(args))


def feeds_for(args: argparse.Namespace, inputs: Sequence[NodeArg]) -> dict[str, Any]:
    """Arrays for all *inputs*: those given, and seeded random ones for the rest."""
    given = dict(_split(text, "=", "--input") for text in args.input)
    shapes = {n: _shape(n, s) for n, s in (_split(text, ":", "--shape") for text in args.shape)}
    known = [a.name for a in inputs]
    for name in (*given, *shapes):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                f"the model has no input '{name}'; "
                + (f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}")
            )
    rng = np.random.default_rng(args.seed)
    feeds: dict[str, Any] = {}
    guessed: list[str] = []
    for arg in inputs:
        if arg.name in given:
            feeds[arg.name] = _load(arg, given[arg.name])
            continue
        shape = shapes.get(arg.name)
        if shape is None:
            shape = tuple(d if isinstance(d, int) else 1 for d in arg.shape or ())
            if any(not isinstance(d, int) for d in arg.shape or ()) or arg.shape is None:
                guessed.append(f"{arg.name}:{'x'.join(map(str, shape)) or 'scalar'}")
        feeds[arg.name] = _made_up(arg, shape, rng)
    if guessed:
        note(args, f"note: sizes not given were taken as 1: {', '.join(guessed)} (set them with --shape)")
    return feeds


def _split(text: str, sign: str, option: str) -> tuple[str, str]:
    if option == "--shape":  # names may have colons themselves
        sign = max(":", "=", key=text.rfind)
        name, found, value = text.rpartition(sign)
    else:
        name, found, value = text.partition(sign)
    if not found or not name:
        raise InputError(f"{option} {text}: write NAME{sign}VALUE")
    return name, value


def _shape(name: str, text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(d) for d in text.replace(",", "x").split("x") if d)
    except ValueError:
        shape = (-1,)
    if any(d < 0 for d in shape):
        raise InputError(f"--shape {name}:{text}: write sizes as in {name}:1x3x224x224")
    return shape


def _dtype(arg: NodeArg) -> np.dtype[Any]:
    if not arg.type.startswith("tensor("):
        raise InputError(f"input '{arg.name}' is {arg.type}: the command line can only give tensors")
    name = arg.type[len("tensor(") : -1]
    if name not in ("float", "double", "string", "bool") and not hasattr(np, name):
        import ml_dtypes

        low: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return low
    return np.dtype(_NUMPY.get(name, name))


def _load(arg: NodeArg, text: str) -> Array:
    path, dtype = Path(text), _dtype(arg)
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            if arg.name not in archive.files:
                raise InputError(f"{path} has no array '{arg.name}'; it has {', '.join(archive.files)}")
            return np.asarray(archive[arg.name])
    try:
        return np.asarray(json.loads(text), dtype)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"--input {arg.name}={text}: neither a .npy or .npz file nor JSON numbers ({error})"
        ) from error


def _made_up(arg: NodeArg, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    dtype = _dtype(arg)
    if dtype.kind == "O":
        return np.full(shape, "text", dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":  # small, so that they are valid indices and flags more often than not
        return rng.integers(0, 2, shape).astype(dtype)
    return np.asarray(rng.standard_normal(shape), dtype)


def summary_of(outputs: Mapping[str, Any]) -> list[list[Any]]:
    """A table row per output: name, dtype, shape, smallest, largest, mean."""
    rows: list[list[Any]] = []
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray):
            rows.append([name, type(value).__name__, len(value) if value is not None else "", "", "", ""])
            continue
        shape = "×".join(map(str, value.shape)) or "scalar"
        if value.dtype.kind in "OUS" or value.size == 0:
            rows.append([name, str(value.dtype), shape, "", "", ""])
            continue
        wide = value.astype(np.complex128 if value.dtype.kind == "c" else np.float64)
        wide = np.abs(wide) if wide.dtype.kind == "c" else wide
        rows.append([name, str(value.dtype), shape, float(wide.min()), float(wide.max()), float(wide.mean())])
    return rows
