"""How subcommands print: aligned tables, JSON, and progress on terminals."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["emit_json", "note", "number", "progress", "table"]


def table(rows: Iterable[Sequence[Any]], head: Sequence[str]) -> str:
    """Rows as aligned columns; columns of numbers are aligned to the right."""
    body = [[number(c) if isinstance(c, float) else str(c) for c in row] for row in rows]
    kinds = [list(column) for column in zip(*rows, strict=True)] if isinstance(rows, list) and rows else []
    right = [all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in column) for column in kinds]
    widths = [max(len(r[k]) for r in [list(head), *body]) for k in range(len(head))]
    lines = []
    for line in [list(head), *body]:
        cells = [
            c.rjust(w) if k < len(right) and right[k] else c.ljust(w)
            for k, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float) -> str:
    """Four significant digits, without an exponent where that stays short."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        digits = f"{value:.4g}"
        return f"{value:.0f}" if "e" in digits else digits
    return f"{value:.2e}"


def emit_json(payload: Any) -> None:
    """*payload* as JSON on stdout; NumPy scalars become numbers, other objects text."""
    json.dump(payload, sys.stdout, indent=2, ensure_ascii=False, default=_plain)
    print()


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value.tolist() if hasattr(value, "tolist") else str(value)


def note(args: argparse.Namespace, text: str) -> None:
    """A remark for people, on stderr."""
    if not args.quiet:
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)


def progress(args: argparse.Namespace, done: int, total: int, what: str = "") -> None:
    """One line that overwrites itself, only on a terminal."""
    if args.quiet or not sys.stderr.isatty():
        return
    end = "\n" if done == total else ""
    print(f"\r{done}/{total} {what}\033[K", end=end, file=sys.stderr, flush=True)
