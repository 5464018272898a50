"""All results of a run: summary, JSON, Markdown; those of several runs side by side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mnnpy.conformance.onnx_nodes import CaseResult, Report, is_host_by_definition
from mnnpy.conformance.run import STATUSES, Result
from mnnpy.conformance.targets import LABELS
from mnnpy.errors import InputError

__all__ = ["FAILING", "TargetReport", "from_onnx", "load_report", "markdown", "save_report"]

#: Statuses that make a run fail.
FAILING = ("failed", "xpassed")


@dataclass(frozen=True, slots=True)
class TargetReport:
    """What came out on one target: facts of the device, results of the atomic table and of ONNX's node cases."""

    facts: Mapping[str, Any]
    results: Sequence[Result]
    host_cases: int = 0  #: ONNX cases with an op that is a host op by definition

    @property
    def title(self) -> str:
        """Backend and label, as every table shows them."""
        return f"{self.facts['target']} [{self.facts['label']}]"

    def of(self, suite: str) -> list[Result]:
        return [r for r in self.results if r.suite == suite]

    def count(self, suite: str, *statuses: str) -> int:
        return sum(r.status in statuses for r in self.of(suite))

    @property
    def failed(self) -> list[Result]:
        return [r for r in self.results if r.status in FAILING]

    @property
    def on_device(self) -> int:
        """ONNX cases that passed wholly on the target."""
        return sum(r.status == "passed" and r.where == "device" for r in self.of("onnx"))

    @property
    def share(self) -> float:
        """Of the ONNX cases without host ops by definition, those that ran wholly on the target."""
        return self.on_device / max(1, len(self.of("onnx")) - self.host_cases)

    def summary(self) -> list[str]:
        """A line per suite."""
        lines = []
        for suite in ("atomic", "onnx"):
            found = self.of(suite)
            if not found:
                continue
            counts = ", ".join(f"{n} {s}" for s in STATUSES if (n := self.count(suite, s)))
            line = f"{self.title} {suite}: {counts} of {len(found)}"
            if suite == "onnx":
                line += (
                    f"; {self.on_device} wholly on '{self.facts['target']}' ({100 * self.share:.1f} % of the "
                    f"{len(found) - self.host_cases} cases without host ops)"
                )
            guards = Counter(r.guards for r in found if r.guards)
            line += f"; guard bytes around {', '.join(guards)}" if guards else ""
            lines.append(line)
        return lines

    def skips(self) -> list[tuple[int, str, str]]:
        """(how many, status, reason) of everything that was not simply passed or failed."""
        kinds = ("unsupported", "xfailed", "skipped")
        return [
            (n, s, why)
            for (s, why), n in Counter((r.status, r.reason) for r in self.results if r.status in kinds).most_common()
        ]


def from_onnx(report: Report) -> tuple[list[Result], int]:
    """Results of ONNX's node cases in the form of the table's, and how many have host ops by definition."""
    return [_result(report, r) for r in report.results], report.host_cases


def _result(report: Report, r: CaseResult) -> Result:
    hosts = [o for o in r.host_ops if not is_host_by_definition(o)]
    reason = r.reason or (f"on the reference: {', '.join(hosts)}" if hosts else "")
    name = f"{r.op}[{r.name}]-{report.backend}"
    return Result(name, r.op, "", "", "onnx", report.backend, report.label, r.status, reason, r.where)


def save_report(reports: Sequence[TargetReport], path: str | Path) -> None:
    """Write JSON that ``load_report`` reads."""
    Path(path).write_text(json.dumps([as_json(r) for r in reports], indent=1, ensure_ascii=False) + "\n")


def as_json(report: TargetReport) -> dict[str, Any]:
    """A report as plain data; every result has its label."""
    return {
        "facts": dict(report.facts), "host_cases": report.host_cases, "summary": report.summary(),
        "results": [r.row() for r in report.results],
    }  # fmt: skip


def load_report(path: str | Path) -> list[TargetReport]:
    """Reports written by ``save_report``; raises InputError for other files."""
    known = {f.name for f in fields(Result)}
    try:
        content = json.loads(Path(path).read_text())
        if not isinstance(content, list):
            raise TypeError("a list was expected")
        return [
            TargetReport(
                entry["facts"], [Result(**{k: v for k, v in r.items() if k in known}) for r in entry["results"]],
                entry["host_cases"],
            )
            for entry in content
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no conformance results ({type(error).__name__}: {error})") from error


def markdown(reports: Sequence[TargetReport], *, details: bool = True) -> str:
    """The matrix: op × target; then what is unsupported, expected to fail, and failed, with reasons."""
    lines = ["| label | meaning |", "|---|---|"]
    used = dict.fromkeys(r.facts["label"] for r in reports)
    lines += [f"| {k} | {v} |" for k, v in LABELS.items() if k in used]
    lines += ["", *(f"* {line}" for r in reports for line in r.summary()), ""]
    for suite, title in (("atomic", "Atomic ops"), ("onnx", "ONNX's node cases")):
        having = [r for r in reports if r.of(suite)]
        if having:
            lines += _matrix(having, suite, title)
    if details:
        for report in reports:
            lines += _reasons(report)
    return "\n".join(lines) + "\n"


def _matrix(reports: Sequence[TargetReport], suite: str, title: str) -> list[str]:
    tables = [_by_op(r.of(suite)) for r in reports]
    legend = {
        "atomic": "`n` cases passed, `−u` unsupported, `~x` expected failures, `✗f` failed.",
        "onnx": "`n` cases passed wholly on the target, `+h` with an op on `reference`, `✗f` failed.",
    }[suite]
    lines = [f"## {title}", "", legend, "", "| op | " + " | ".join(r.title for r in reports) + " |"]
    lines.append("|---|" + "---|" * len(reports))
    names = sorted({op for t in tables for op in t})
    lines += [f"| {op} | " + " | ".join(_cell(t.get(op, Counter())) for t in tables) + " |" for op in names]
    return [*lines, ""]


def _by_op(results: Iterable[Result]) -> dict[str, Counter[str]]:
    table: dict[str, Counter[str]] = {}
    for r in results:
        key = "host" if r.status == "passed" and r.where == "host" else r.status
        table.setdefault(r.op, Counter())[key] += 1
    return table


def _cell(counts: Mapping[str, int]) -> str:
    signs = (("passed", ""), ("supported", ""), ("host", "+"), ("unsupported", "−"), ("xfailed", "~"), ("skipped", "–"))
    parts = [f"{sign}{counts[k]}" + ("h" if k == "host" else "") for k, sign in signs if counts.get(k)]
    bad = sum(counts.get(k, 0) for k in FAILING)
    return " ".join([*parts, *([f"✗{bad}"] if bad else [])])


def _reasons(report: TargetReport) -> list[str]:
    lines = []
    groups = (
        ("unsupported", "Unsupported (for good)"), ("xfailed", "Expected to fail (for now)"), ("skipped", "Skipped"),
        ("host", "On the reference"),
    )  # fmt: skip
    for status, title in groups:
        if status == "host":
            found = Counter(
                (r.op if r.suite == "atomic" else "", r.reason)
                for r in report.of("onnx")
                if r.where == "host" and r.reason
            )
        else:
            found = Counter((r.op, r.reason) for r in report.results if r.status == status)
        if found:
            lines += [f"### {report.title}: {title.lower()}", "", "| cases | op | reason |", "|---|---|---|"]
            lines += [f"| {n} | {op} | {_safe(why)} |" for (op, why), n in found.most_common()]
            lines.append("")
    if report.failed:
        lines += [f"### {report.title}: failed", ""]
        lines += [f"* `{r.name}`: {_safe(r.reason)}" for r in report.failed]
        lines.append("")
    return lines


def _safe(text: str) -> str:
    return text.partition("\n")[0].replace("|", "\\|")[:240]
