"""The report of a search as one HTML file that loads nothing: style, script and drawings are in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from statistics import median
from typing import Any

from mnnpy.tuning.charts import BAND, errors, legend, op_rows, scatter
from mnnpy.tuning.drawing import drawing, duration

__all__ = ["html_page"]

#: Backends whose colours are always the same; others get what is left.
_USUAL = ("cpu", "opencl", "vulkan", "cuda", "metal")
_TIP = (
    '<aside id="tip" role="status" aria-live="polite" aria-label="Details" hidden>'
    '<button id="tip-close" type="button" aria-label="Close details">×</button><div id="tip-text"></div></aside>'
)
#: Tables with more rows than this are closed at first.
LONG = 40


def html_page(found: Mapping[str, Any]) -> str:
    """The page of what ``tune`` found."""
    model = found["model"]
    title = f"Tuning of {model.get('file') or model['name']}"
    colours = _colours(found)
    here = files("mnnpy.tuning")
    style, script = (here.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        f"<header><h1>{escape(title)}</h1>",
        f'<p class="note">mnnpy {escape(found["mnnpy"])}, {escape(found["made"])}</p></header><main>',
        _cards(found),
        _facts(found),
        _section("ways", "Ways to run it", _ways(found, colours)),
        _section("plan", "The plan, layer by layer", _plan(found, colours)),
        _section("ops", "Time by op", _ops(found, colours)),
        _section("scatter", "Predicted against measured", _scatter(found, colours)),
        _section("layers", "Layers", _layers(found, colours)),
        _section("decisions", "What was decided, and on what grounds", _tasks(found)),
        "</main>",
        _TIP,
        f"<script>{script}</script></body></html>\n",
    ]
    return "\n".join(parts)


def _colours(found: Mapping[str, Any]) -> dict[str, int]:
    """A colour number for each backend in the report."""
    layers = [layer["backend"] for layer in found["layers"]]
    names = dict.fromkeys(
        [*(d["backend"] for d in found["devices"]), *layers, *(p["backend"] for p in found["points"])]
    )
    fixed = {n: k for k, n in enumerate(_USUAL) if n in names}
    free = iter(k for k in range(len(_USUAL)) if k not in fixed.values())
    return {n: fixed[n] if n in fixed else 5 if n in ("control", "reference") else next(free, 5) for n in names}


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{escape(title)}</h2>{body}</section>'


def _cards(found: Mapping[str, Any]) -> str:
    ways, search = found["ways"], found["search"]
    taken = next(w for w in ways if w["chosen"])
    best = taken["measured"] or taken["now"] or taken["predicted"]
    cards = [(duration(1e6 * best), f"a run of the chosen plan: {taken['way']}, {taken['reason']}")]
    others = [w["measured"] for w in ways if not w["chosen"] and w["measured"]]
    if others:
        cards.append((f"{min(others) / best:.2f}×", "as fast as the next best way"))
    count = search["decided"]
    made = f"{count} decision{'' if count == 1 else 's'} made"
    known = f", {search['recalled']} known from earlier" if search["recalled"] else ""
    cards.append((duration(1e6 * search["seconds"]), f"of search, with all that was compiled; {made}{known}"))
    found_errors = errors(found["points"])
    if found_errors:
        cards.append(
            (f"{100 * median(found_errors):.0f} %", f"median error of predictions, of {len(found_errors)} layers")
        )
    if search["banned"]:
        cards.append((str(search["banned"]), "candidates banned for wrong results"))
    return (
        '<ul class="cards">'
        + "".join(f"<li><b>{escape(a)}</b><span>{escape(b)}</span></li>" for a, b in cards)
        + "</ul>"
    )


def _facts(found: Mapping[str, Any]) -> str:
    model, options = found["model"], found["options"]
    facts = {
        "graph": f"{model['name']}, {model['nodes']} nodes",
        "weights": f"{model['parameters']:,} numbers, {model['weight_bytes'] / 1e6:.1f} MB",
        "inputs": ", ".join(f"{n}: {t}" for n, t in model["inputs"].items()),
        "outputs": ", ".join(model["outputs"]),
        "devices": "; ".join(f"{d['backend']}: {d['name']}" for d in found["devices"]),
        "options": f"{options['threads']} thread(s), precision {options['precision']}, "
        f"budget {duration(1e6 * options['budget'])} for measuring",
    }
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f'<dl class="facts">{rows}</dl>'


Cell = str | tuple[str, str]  #: HTML, or HTML with attributes


def _table(
    caption: str, head: Sequence[tuple[str, str]], rows: Iterable[tuple[str, Sequence[Cell]]], sortable: bool = False
) -> str:
    """A table in a region that scrolls by itself; *head*: (text, class); *rows*: (class, cells)."""
    kind = ' class="sortable"' if sortable else ""

    def title(text: str, name: str) -> str:
        inner = f'<button type="button">{escape(text)}</button>' if sortable else escape(text)
        return f'<th scope="col" class="{name}">{inner}</th>'

    def cell(value: Cell, name: str) -> str:
        text, more = value if isinstance(value, tuple) else (value, "")
        return f'<td class="{name}"{more}>{text}</td>'

    lines = []
    for group, cells in rows:
        made = "".join(cell(c, name) for c, (_, name) in zip(cells, head, strict=True))
        lines.append(f'<tr class="{group}">{made}</tr>' if group else f"<tr>{made}</tr>")
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption, quote=True)}"><table{kind}>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{''.join(title(*h) for h in head)}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _time(microseconds: float | None) -> Cell:
    return duration(microseconds), f' data-v="{microseconds or 0}"'


def _bar(share: float, colour: int, kind: str = "") -> str:
    kind = f"{kind} cut" if share > 1 else kind
    return f'<div class="bar {kind}"><i class="k{colour}" style="width:{100 * min(1.0, share):.1f}%"></i></div>'


def _ways(found: Mapping[str, Any], colours: Mapping[str, int]) -> str:
    ways = found["ways"]
    measured = [w["measured"] for w in ways if w["measured"]]
    longest = 1.25 * max(measured or [w["predicted"] or 0.0 for w in ways]) or 1.0
    rows = []
    for w in ways:
        colour = colours.get(w["way"].rstrip("+"), 5)
        bars = [_bar(w[k] / longest, colour, kind) for k, kind in (("measured", ""), ("predicted", "hollow")) if w[k]]
        times = [_time(None if w[k] is None else 1e6 * w[k]) for k in ("predicted", "measured", "now")]
        rows.append(("taken" if w["chosen"] else "", [escape(w["way"]), *times, "".join(bars), escape(w["reason"])]))
    head = [("Way", "way"), ("Predicted", "n"), ("Measured", "n"), ("Now", "n opt"), ("Bars", "bars"), ("Why", "opt")]
    text = (
        "<p>A way named after a backend stays there; with a plus it begins there and goes wherever it is predicted to "
        "pay. Solid bars are measured, hollow ones predicted; those with a double edge go on.</p>"
    )
    caption = "Seconds of a run: as predicted, the best during the search, and of the chosen plan after it"
    return text + _table(caption, head, rows)


def _plan(found: Mapping[str, Any], colours: Mapping[str, int]) -> str:
    used = {n: k for n, k in colours.items() if any(la["backend"] == n for la in found["layers"])}
    return (
        "<p>A box is a product or convolution with the light ops behind it; its colour is the backend, the bar in it "
        "its time beside that of the slowest layer. Point at it, tap it, or reach it with the tab key for more.</p>"
        + legend(used)
        + '<div class="tools"><button type="button" data-open="1">Open all</button> '
        '<button type="button" data-open="0">Close all</button></div>'
        + drawing(found["layers"], found["edges"], colours)
    )


def _ops(found: Mapping[str, Any], colours: Mapping[str, int]) -> str:
    rows = op_rows(found["layers"])
    total = sum(r[2] for r in rows) or 1.0
    longest = max((r[2] for r in rows), default=1.0) or 1.0
    lines: list[tuple[str, Sequence[Cell]]] = []
    for op, count, spent, by in rows:
        pieces = "".join(
            f'<i class="k{colours.get(b, 5)}" style="width:{100 * us / longest:.1f}%" title="{escape(b)}"></i>'
            for b, us in by.items()
        )
        bar = f'<div class="bar">{pieces}</div>'
        lines.append(("", [escape(op), str(count), _time(spent), f"{100 * spent / total:.1f} %", bar]))
    head = [("Op", "name"), ("Kernels", "n opt"), ("Time", "n"), ("Share", "n"), ("Bars", "bars")]
    return _table("Profiled time of the chosen plan by op, coloured by backend", head, lines)


def _scatter(found: Mapping[str, Any], colours: Mapping[str, int]) -> str:
    points = found["points"]
    if not points:
        return "<p>No layer was both predicted and measured.</p>"
    inside = sum(e <= BAND for e in errors(points))
    text = (
        f"<p>{inside} of {len(points)} layers lie within {100 * BAND:.0f} % (the band) of what was measured, "
        f"{100 * inside / len(points):.0f} %. Ways that were measured and not taken are among them.</p>"
    )
    by_backend: dict[str, list[Any]] = {}
    for p in points:
        by_backend.setdefault(p["backend"], []).append(p)
    used = {n: k for n, k in colours.items() if n in by_backend}
    rows: list[tuple[str, Sequence[Cell]]] = []
    for name, group in by_backend.items():
        found_errors = errors(group)
        over = sum(p["predicted_us"] > p["measured_us"] for p in group)
        near = sum(e <= BAND for e in found_errors)
        rows.append(("", [escape(name), str(len(group)), f"{100 * median(found_errors):.0f} %", str(near), str(over)]))
    head = [
        ("Backend", "name"),
        ("Layers", "n"),
        ("Error", "n"),
        ("Within band", "n"),
        ("Predicted slower", "n opt"),
    ]
    table = _table("Median errors of predictions by backend", head, rows)
    return f'{text}{legend(used)}<div class="pair">{scatter(points, colours)}{table}</div>'


def _layers(found: Mapping[str, Any], colours: Mapping[str, int]) -> str:
    rows: list[tuple[str, Sequence[Cell]]] = []
    for la in found["layers"]:
        tag = f'<span class="tag k{colours.get(la["backend"], 5)}">{escape(la["backend"])}</span>'
        why = "; ".join(filter(None, (la["why"], _elsewhere(la))))
        measured: Cell = _time(la["measured_us"]) if la["steps"] else (_merged(la), ' data-v="0"')
        number = (str(la["id"] + 1), f' data-v="{la["id"]}"')
        predicted = _time(la["predicted_us"].get(la["backend"]))
        cells: list[Cell] = [number, escape(la["op"]), escape(la["algorithm"]), tag, predicted, measured]
        cells += [escape(why), escape(la["shape"]), f"<code>{escape(la['node'])}</code>"]
        rows.append(("", cells))
    head = [("#", "n"), ("Op", "opt"), ("Algorithm", "name"), ("Backend", ""), ("Predicted", "n"), ("Measured", "n"),
            ("Why", "opt"), ("Shape", "opt"), ("Node", "opt name")]  # fmt: skip
    table = _table("Layers of the chosen plan; press a heading to sort", head, rows, sortable=True)
    opened = "" if len(rows) > LONG else " open"
    return f"<details{opened}><summary>{len(rows)} layers</summary>{table}</details>"


def _merged(layer: Mapping[str, Any]) -> str:
    return f"in {layer['merged_into'] + 1}" if "merged_into" in layer else "merged"


def _elsewhere(layer: Mapping[str, Any]) -> str:
    others = [f"{b} {duration(us)}" for b, us in layer["predicted_us"].items() if b != layer["backend"]]
    return f"{', '.join(others)} predicted" if others else ""


def _tasks(found: Mapping[str, Any]) -> str:
    if not found["tasks"]:
        return "<p>Nothing was measured: there was no choice that mattered, or no time for it.</p>"
    rows = []
    for task in found["tasks"]:
        times = [
            f"<b>{text}</b>" if c["name"] == task["decision"] else text
            for c in task["candidates"]
            for text in [escape(_candidate(c))]
        ]
        when = "earlier" if task["earlier"] else "now"
        taken = f"<b>{escape(task['decision'])}</b>"
        cells: list[Cell] = [escape(task["task"]), escape(task["device"]), taken, "<br>".join(times)]
        cells += [escape(task["reason"]), when]
        rows.append(("", cells))
    head = [
        ("Task", "task"),
        ("Device", "opt"),
        ("Taken", ""),
        ("Candidates", "lines"),
        ("Why", "opt"),
        ("Measured", "opt"),
    ]
    caption = "Records of the search: candidates with the best run, the number of runs, and the prediction"
    opened = "" if len(rows) > LONG else " open"
    return f"<details{opened}><summary>{len(rows)} records</summary>{_table(caption, head, rows)}</details>"


def _candidate(c: Mapping[str, Any]) -> str:
    predicted = f"predicted {duration(1e6 * c['predicted'])}" if c["predicted"] else ""
    if c["measured"] is None:
        return f"{c['name']}: not measured, {predicted}".rstrip(", ")
    return f"{c['name']}: {duration(1e6 * c['measured'])} of {c['runs']}" + (f" ({predicted})" if predicted else "")
