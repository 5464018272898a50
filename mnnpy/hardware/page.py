"""A hardware report as one HTML file without links to anything, and the overview of all that came in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mnnpy.conformance.targets import LABELS

__all__ = ["html_page", "overview"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #3b82c4; --bad: #c0392b; --good: #2e8b57; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
.label { display: inline-block; padding: 0 .5em; border-radius: .3em; background: var(--bar); color: #fff; }
.label.H { background: var(--good); } .label.E, .label.C { background: #a66a00; }
table { border-collapse: collapse; width: 100%; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.bar { width: 12rem; } .bar div { height: .8em; margin-top: .35em; background: var(--bar); border-radius: 2px; }
.bad { color: var(--bad); } .note { opacity: .75; } code { font-size: .9em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { opacity: .7; } dd { margin: 0; }
"""


def html_page(report: Mapping[str, Any]) -> str:
    """The report for people; the data are in the page as well, in the element ``data``."""
    machine = report["machine"]
    title = f"mnnpy on {machine['processor'] or machine['machine']}"
    made = (
        f"mnnpy {machine['mnnpy']}, {report['made']}, {machine['system']}, {machine['cores']} cores, "
        f"Python {machine['python']}"
    )
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(made)}</p>',
        _facts(machine["packages"]),
        _summary(report["devices"]),
        *(_device(d) for d in report["devices"]),
    ]
    # A script element ends at the first "</", wherever it stands.
    data = json.dumps(report, ensure_ascii=False).replace("</", "<\\/")
    parts.append(f'<script type="application/json" id="data">{data}</script></body></html>\n')
    return "\n".join(parts)


def _label(text: str) -> str:
    return f'<span class="label {escape(text)}" title="{escape(LABELS.get(text, ""))}">{escape(text)}</span>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def cell(k: int, text: str, tag: str) -> str:
        kind = ' class="n"' if k in numbers else ' class="bar"' if text.startswith('<div style="width') else ""
        return f"<{tag}{kind}>{text}</{tag}>"

    lines = ["<tr>" + "".join(cell(k, h, "th") for k, h in enumerate(head)) + "</tr>"]
    lines += ["<tr>" + "".join(cell(k, c, "td") for k, c in enumerate(row)) + "</tr>" for row in rows]
    return '<div class="wide"><table>' + "".join(lines) + "</table></div>"


def _summary(devices: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for d in devices:
        if "unavailable" in d:
            rows.append([escape(d["target"]), "", f'<span class="note">{escape(d["unavailable"])}</span>', "", "", ""])
            continue
        counts, best = (
            d["conformance"]["statuses"],
            max((t["gflops"] for t in d["timings"] if t["op"] == "MatMul"), default=0),
        )
        failed = counts.get("failed", 0) + counts.get("xpassed", 0)
        rows.append([
            escape(d["target"]), _label(d["label"]), escape(str(d["facts"]["device"])),
            f"{counts.get('passed', 0)} of {d['conformance']['cases']}",
            f'<span class="bad">{failed}</span>' if failed else "0", f"{best:.1f}" if best else "",
        ])  # fmt: skip
    head = ("Backend", "Label", "Device", "Cases passed", "Failed", "GEMM, GFLOP/s")
    used = [d["label"] for d in devices if "label" in d]
    legend = "; ".join(f"{k}: {escape(v)}" for k, v in LABELS.items() if k in used)
    return "<h2>Summary</h2>" + _table(head, rows, (3, 4, 5)) + f'<p class="note">{legend}</p>'


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(str(k))}</dt><dd>{escape(', '.join(map(str, v)) if isinstance(v, list) else str(v))}</dd>"
        for k, v in facts.items()
    )
    return f"<dl>{rows}</dl>"


def _device(d: Mapping[str, Any]) -> str:
    if "unavailable" in d:
        return f"<h2>{escape(d['target'])}</h2><p>Cannot be used: {escape(d['unavailable'])}</p>"
    parts = [
        f"<h2>{escape(d['target'])} {_label(d['label'])}</h2>",
        f"<p>{escape(d['meaning'])}</p>",
        _facts(d["facts"]),
    ]
    parts += [
        _conformance(d["conformance"]),
        "<h3>Micro-benchmarks</h3>",
        _timings(d["timings"]),
        _launches(d["launches"]),
    ]
    if d["models"]:
        parts += ["<h3>Models</h3>", _models(d["models"])]
    return "\n".join(parts)


def _conformance(found: Mapping[str, Any]) -> str:
    rows = []
    worst = {w["op"]: w for w in found["worst"]}
    for op, counts in sorted(found["by_op"].items()):
        bad = counts.get("failed", 0) + counts.get("xpassed", 0)
        error = worst.get(op)
        rows.append([
            escape(op), str(counts.get("passed", 0)), str(counts.get("unsupported", 0) or ""),
            f'<span class="bad">{bad}</span>' if bad else "", f"{error['error']:.1e}" if error else "",
        ])  # fmt: skip
    head = ("Op", "Passed", "Unsupported", "Failed", "Largest error")
    text = "<h3>Conformance</h3>" + _table(head, rows, (1, 2, 3, 4))
    text += '<p class="note">The error is that of a passed case, over the largest value of its output.</p>'
    if found["unsupported"]:
        why = [[str(n), escape(reason[:300])] for reason, n in found["unsupported"].items()]
        text += "<h3>Unsupported</h3>" + _table(("Cases", "Reason"), why, (0,))
    if found["failed"]:
        failed = [[f"<code>{escape(f['case'])}</code>", escape(f["reason"][:400])] for f in found["failed"]]
        text += '<h3 class="bad">Failed</h3>' + _table(("Case", "Reason"), failed)
    return text


def _timings(timings: Sequence[Mapping[str, Any]]) -> str:
    top = max((t["gbytes"] for t in timings), default=0) or 1
    rows = []
    for t in timings:
        if t["reason"]:
            rows.append(
                [f"<code>{escape(t['name'])}</code>", "", "", "", f'<span class="note">{escape(t["reason"])}</span>']
            )
            continue
        rows.append([
            f"<code>{escape(t['name'])}</code>", _time(t["best"]), f"{t['gflops']:.1f}" if t["gflops"] else "",
            f"{t['gbytes']:.1f}", f'<div style="width:{100 * t["gbytes"] / top:.0f}%"></div>',
        ])  # fmt: skip
    return _table(("Case", "Best run", "GFLOP/s", "GB/s", ""), rows, (1, 2, 3))


def _launches(found: Mapping[str, Any]) -> str:
    if "reason" in found:
        return f'<p class="note">Launch cost: {escape(found["reason"])}</p>'
    return (
        f"<p>A run of one tiny kernel with its transfers takes {_time(found['run_of_one'])}; each further launch adds "
        f"{_time(found['each_further_launch'])}.</p>"
    )


def _models(models: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for m in models:
        if "reason" in m:
            rows.append([escape(m["model"]), "", "", "", "", f'<span class="note">{escape(m["reason"])}</span>'])
            continue
        error = f"{m['error']:.1e}" if m["error"] else "0"
        rows.append([
            escape(m["model"]), _time(m["best"]), _time(m["median"]), _time(m["first"]),
            f'<span class="bad">{error}</span>' if not m["error"] <= 1e-4 else error, escape(", ".join(m["elsewhere"])),
        ])  # fmt: skip
    head = ("Model", "Best", "Median", "First run", "Error against cpu", "Ops on the reference")
    return _table(head, rows, (1, 2, 3, 4))


def _time(seconds: float) -> str:
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{factor * seconds:.3g} {unit}"
    return f"{seconds:.3g} s"


def overview(reports: Sequence[Mapping[str, Any]]) -> str:
    """docs/hardware.md: one row per device of every report that came in."""
    lines = [
        "# Hardware",
        "",
        "Reports that owners of hardware sent: run `mnnpy report`, then attach both files to an issue. The JSON files",
        "lie in `docs/hardware/`, and `python docs/generate.py` writes this page from them.",
        "",
    ]
    real = [(r, d) for r in reports for d in r["devices"] if d.get("label") == "H"]
    if not real:
        lines += [
            "**Nothing came in yet.** No result of this project was obtained on a GPU: what tests and other pages show",
            "of `opencl` and `vulkan` ran on a processor (label R: PoCL, lavapipe), of `cuda` and `metal` in an",
            "emulator (label E).",
        ]
        return "\n".join(lines) + "\n"
    lines += [
        "| date | device | backend | label | mnnpy | cases passed | failed | GEMM, GFLOP/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for report, d in real:
        counts = d["conformance"]["statuses"]
        best = max((t["gflops"] for t in d["timings"] if t["op"] == "MatMul"), default=0.0)
        failed = counts.get("failed", 0) + counts.get("xpassed", 0)
        lines.append(
            f"| {report['made']} | {d['facts']['device']} | {d['target']} | {d['label']} | "
            f"{report['machine']['mnnpy']} | {counts.get('passed', 0)} of {d['conformance']['cases']} | {failed} | "
            f"{best:.1f} |"
        )
    return "\n".join(lines) + "\n"
