"""Charts of a search: predictions against measurements, and bars of times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from statistics import median
from typing import Any

from mnnpy.tuning.drawing import duration

__all__ = ["BAND", "errors", "legend", "op_rows", "scatter"]

#: Predictions within this share of what was measured are within the band.
BAND = 0.25
#: Size of the chart, and margins: left, top, right, bottom.
SIDE, LEFT, TOP, RIGHT, BOTTOM = 360.0, 46.0, 8.0, 20.0, 40.0

_MARKS = (
    '<circle class="mark" cx="{x}" cy="{y}" r="3.6"/>',
    '<path class="mark" d="M{x} {y}m-3.4-3.4h6.8v6.8h-6.8z"/>',
    '<path class="mark" d="M{x} {y}m0-4.4l4.2 7.4h-8.4z"/>',
    '<path class="mark" d="M{x} {y}m0-4.8l4.8 4.8-4.8 4.8-4.8-4.8z"/>',
)


def mark(kind: int, x: float, y: float) -> str:
    """A point, of another form for each backend: colours alone do not reach everybody."""
    return _MARKS[kind % len(_MARKS)].format(x=f"{x:.1f}", y=f"{y:.1f}")


def legend(colours: Mapping[str, int]) -> str:
    """Names with their colours and forms."""
    items = [
        f'<li class="k{k}"><svg viewBox="-6 -6 12 12" style="display:inline-block" aria-hidden="true">{mark(k, 0, 0)}'
        f"</svg>{escape(name)}</li>"
        for name, k in colours.items()
    ]
    return f'<ul class="legend" aria-label="Backends">{"".join(items)}</ul>'


def errors(points: Sequence[Mapping[str, Any]]) -> list[float]:
    """Relative errors of predictions, sorted."""
    return sorted(abs(p["predicted_us"] / p["measured_us"] - 1) for p in points)


def scatter(points: Sequence[Mapping[str, Any]], colours: Mapping[str, int]) -> str:
    """Predicted over measured microseconds, both axes logarithmic and alike."""
    values = [v for p in points for v in (p["predicted_us"], p["measured_us"])]
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    high = max(high, low + 1)
    inner = SIDE - LEFT - RIGHT

    def x(us: float) -> float:
        return LEFT + inner * (log10(us) - low) / (high - low)

    def y(us: float) -> float:
        return TOP + inner - (x(us) - LEFT)

    parts = [_band(low, high, x, y)]
    for decade in range(low, high + 1):
        at, name = 10.0**decade, duration(10.0**decade)
        parts.append(f'<path class="grid" d="M{x(at):.1f} {TOP}v{inner}M{LEFT} {y(at):.1f}h{inner}"/>')
        parts.append(f'<text class="faint" x="{x(at):.1f}" y="{TOP + inner + 14}" text-anchor="middle">{name}</text>')
        parts.append(f'<text class="faint" x="{LEFT - 5}" y="{y(at) + 3.5:.1f}" text-anchor="end">{name}</text>')
    parts.append(
        f'<path class="same" d="M{x(10.0**low):.1f} {y(10.0**low):.1f}L{x(10.0**high):.1f} {y(10.0**high):.1f}"/>'
    )
    parts += [_point(p, x(p["measured_us"]), y(p["predicted_us"]), colours) for p in points]
    middle, bottom = LEFT + inner / 2, TOP + inner + BOTTOM - 8
    parts.append(f'<text x="{middle}" y="{bottom}" text-anchor="middle">measured</text>')
    parts.append(f'<text transform="translate(11 {TOP + inner / 2}) rotate(-90)" text-anchor="middle">predicted</text>')
    found = errors(points)
    inside = sum(e <= BAND for e in found)
    label = (
        f"Predicted against measured time of {len(points)} layers, both axes logarithmic; {inside} lie within "
        f"{100 * BAND:.0f} %, the median error is {100 * median(found):.0f} %"
    )
    size = f"{SIDE:.0f} {TOP + inner + BOTTOM:.0f}"
    return f'<svg class="chart" viewBox="0 0 {size}" role="group" aria-label="{label}">{"".join(parts)}</svg>'


def _band(low: int, high: int, x: Any, y: Any) -> str:
    """What lies within the band, cut at the chart's edges."""
    a, b = 10.0**low, 10.0**high
    up, down = 1 + BAND, 1 - BAND
    corners = [(a, a), (a, a * up), (b / up, b), (b, b), (b, b * down), (a / down, a)]
    return f'<polygon class="band" points="{" ".join(f"{x(p):.1f},{y(q):.1f}" for p, q in corners)}"/>'


def _point(p: Mapping[str, Any], x: float, y: float, colours: Mapping[str, int]) -> str:
    kind = colours.get(p["backend"], 5)
    predicted, measured = duration(p["predicted_us"]), duration(p["measured_us"])
    tip = (
        f"{p['op']} on {p['backend']}\nnode\t{p['node']}\nway\t{p['way']}\npredicted\t{predicted}\nmeasured\t{measured}"
    )
    label = f"{p['op']} on {p['backend']}: predicted {predicted}, measured {measured}"
    return (
        f'<g class="point k{kind}" tabindex="-1" role="img" aria-label="{escape(label, quote=True)}" '
        f'data-tip="{escape(tip, quote=True)}">{mark(kind, x, y)}</g>'
    )


def op_rows(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, float, dict[str, float]]]:
    """Op, number of steps, microseconds and these by backend, the most expensive first."""
    counts: dict[str, int] = defaultdict(int)
    times: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for layer in layers:
        for step in layer["steps"]:
            if step["measured_us"] is not None:
                counts[step["op"]] += 1
                times[step["op"]][layer["backend"]] += step["measured_us"]
    rows = [(op, counts[op], sum(by.values()), dict(by)) for op, by in times.items()]
    return sorted(rows, key=lambda r: -r[2])
