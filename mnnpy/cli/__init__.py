"""The ``mnnpy`` command. Each subcommand is a module of this package, imported only when it is used.

A subcommand module has ``configure(parser)`` and ``run(args) -> int``; with ``JSON_FILE = True`` its ``--json`` takes a
file name. Results go to stdout, logs to stderr.
Exit codes: 0 fine, 1 a check failed, 2 wrong usage or an error.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import mnnpy

__all__ = ["COMMANDS", "main"]

#: Subcommand → what it does; the module has the same name.
COMMANDS = {
    "backends": "list backends and their devices, with the reason where one cannot be used",
    "info": "inputs, outputs, ops and weights of a model",
    "ops": "list known ops, and the work that decomposition saves",
    "convert": "convert an ONNX model to a .mnnpy file",
    "run": "run a model on given or random inputs",
    "compare": "compare outputs of two backends, or with onnxruntime, op by op",
    "bench": "measure latency on one or more backends",
    "profile": "time op by op and write a Chrome trace",
    "tune": "search for the fastest algorithms and devices, and report what was found",
    "explain": "say what runs where, by which algorithm and why",
    "graph": "show a model as text, DOT or ONNX with the backend of each node",
    "conformance": "test a backend: atomic ops and ONNX's node cases, with labels and reasons",
    "report": "write a report of this machine's devices: conformance and speed, as JSON and HTML",
    "demo": "read text in a picture with trained OCR models",
}


def _common(json_file: bool = False) -> argparse.ArgumentParser:
    """Options of every command; *json_file*: ``--json`` may name a file to write."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("common options")
    if json_file:
        text = "write the result as JSON to FILE, or print it"
        group.add_argument("--json", nargs="?", const=True, metavar="FILE", help=text)
    else:
        group.add_argument("--json", action="store_true", help="print the result as JSON")
    group.add_argument("-v", "--verbose", action="store_true", help="show tracebacks and more detail")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress and no notes on stderr")
    return common


def _parser(selected: str | None) -> argparse.ArgumentParser:
    """The parser with all subcommands named, and the selected one configured."""
    common = _common()
    parser = argparse.ArgumentParser(
        prog="mnnpy", description="Run, inspect, compare and measure neural networks.", parents=[common]
    )
    parser.add_argument("--version", action="version", version=f"mnnpy {mnnpy.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"mnnpy.cli.{name}") if name == selected else None
        parents = [_common(json_file=True)] if getattr(module, "JSON_FILE", False) else [common]
        text = summary[0].upper() + summary[1:] + "."
        sub = commands.add_parser(name, help=summary, description=text, parents=parents)
        if module is not None:
            module.configure(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script and of ``python -m mnnpy``."""
    words = list(sys.argv[1:] if argv is None else argv)
    selected = next((w for w in words if not w.startswith("-")), None)
    args = argparse.Namespace(json=False, verbose=False, quiet=False)
    try:
        _parser(selected if selected in COMMANDS else None).parse_args(words, args)
        return _run(args)
    except SystemExit as stop:  # argparse: 0 for --help, 2 for usage
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:  # the reader (head, less) has gone: nobody wants more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    from mnnpy.errors import MnnpyError

    module = importlib.import_module(f"mnnpy.cli.{args.command}")
    try:
        code: int = module.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (MnnpyError, OSError, ImportError, TypeError, ValueError, MemoryError) as error:
        if args.verbose:
            raise
        if not isinstance(error, (MnnpyError, OSError)):
            error = type(error)(f"{type(error).__name__}: {error} (-v shows the traceback)")
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code
