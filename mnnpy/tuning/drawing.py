"""The layers of a plan as a drawing: sections of a few ranks, each an SVG that fits a phone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["drawing", "duration", "layer_tip", "ranks", "sections"]

#: Ranks in a section, and sections that stand open at first.
TALL, OPEN = 14, 6
#: Of a section's drawing: its width, the height of a row and of a box, most boxes in a row, room at the left for skips.
WIDTH, ROW, BOX, LANES, LEFT = 330.0, 50.0, 34.0, 3, 20.0

Layer = Mapping[str, Any]


def duration(microseconds: float | None) -> str:
    """Microseconds for people; empty for None."""
    if microseconds is None:
        return ""
    for limit, factor, unit in ((1e3, 1.0, "µs"), (1e6, 1e-3, "ms")):
        if microseconds < limit:
            return f"{factor * microseconds:.3g} {unit}"
    return f"{1e-6 * microseconds:.3g} s"


def layer_tip(layer: Layer, edges: Mapping[int, Sequence[int]]) -> str:
    """Lines of a title, then of a name and a text with a tab between them."""
    others = [f"{b} {duration(us)}" for b, us in layer["predicted_us"].items() if b != layer["backend"]]
    reads = ", ".join(str(k + 1) for k in edges.get(layer["id"], ()))
    steps = Counter(f"{s['op']} {s['algorithm']}" for s in layer["steps"])
    facts = {
        "node": layer["node"],
        "ops": ", ".join(layer["ops"]),
        "algorithm": layer["algorithm"],
        "shape": layer["shape"],
        "predicted": duration(layer["predicted_us"].get(layer["backend"])),
        "measured": duration(layer["measured_us"]),
        "merged into": str(layer["merged_into"] + 1) if "merged_into" in layer else "",
        "alone": duration(layer["alone_us"]),
        "elsewhere": f"{', '.join(others)} predicted" if others else "",
        "why": layer["why"],
        "device": layer["reason"],
        "kernels": ", ".join(f"{name} ×{n}" if n > 1 else name for name, n in steps.items()),
        "reads from": f"layer {reads}" if reads else "",
    }
    lines = [f"{layer['id'] + 1}. {layer['op']} on {layer['backend']}"]
    return "\n".join([*lines, *(f"{k}\t{_flat(v)}" for k, v in facts.items() if v)])


def _flat(text: str) -> str:
    return " ".join(str(text).split())


def ranks(count: int, edges: Sequence[Sequence[int]]) -> list[int]:
    """The rank of each layer: one below the lowest layer that it reads from. Layers are in topological order."""
    found = [0] * count
    for a, b in sorted(edges, key=lambda e: e[1]):
        if a < b:
            found[b] = max(found[b], found[a] + 1)
    return found


def sections(count: int, edges: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """Sections of rows of layers, no row wider than ``LANES``, no section of more than about ``TALL`` rows."""
    by_rank: dict[int, list[int]] = defaultdict(list)
    for layer, rank in enumerate(ranks(count, edges)):
        by_rank[rank].append(layer)
    rows = [
        by_rank[r][k : k + LANES] for r in sorted(by_rank) for k in range(0, len(by_rank[r]), LANES)
    ]  # fmt: skip
    parts = max(1, -(-len(rows) // TALL))
    size = max(1, -(-len(rows) // parts))
    return [rows[k : k + size] for k in range(0, len(rows), size)]


def drawing(layers: Sequence[Layer], edges: Sequence[Sequence[int]], colours: Mapping[str, int]) -> str:
    """All sections; those beyond the first few are closed."""
    reads: dict[int, list[int]] = defaultdict(list)
    for a, b in edges:
        reads[b].append(a)
    slowest = max((la["measured_us"] or 0.0 for la in layers), default=0.0) or 1.0
    parts = []
    for number, rows in enumerate(sections(len(layers), edges)):
        inside = [k for row in rows for k in row]
        spent = sum(layers[k]["measured_us"] or 0.0 for k in inside)
        counts = Counter(layers[k]["backend"] for k in inside)
        where = ", ".join(f"{n} on {b}" for b, n in counts.most_common())
        head = f"Layers {min(inside) + 1}–{max(inside) + 1}: {where}, {duration(spent)}"
        opened = " open" if number < OPEN else ""
        svg = _section(layers, rows, reads, colours, slowest, head)
        parts.append(f"<details{opened}><summary>{escape(head)}</summary>{svg}</details>")
    return f'<div class="flow">{"".join(parts)}</div>'


def _section(
    layers: Sequence[Layer],
    rows: Sequence[Sequence[int]],
    reads: Mapping[int, Sequence[int]],
    colours: Mapping[str, int],
    slowest: float,
    title: str,
) -> str:
    places = _places(rows, reads)
    lefts = [min(places[k][0] for k in row) for row in rows]
    wires = [_wire(places[s], places[k], lefts) for k in places for s in reads.get(k, ()) if s in places]
    for layer, place in places.items():
        outside = [s for s in reads.get(layer, ()) if s not in places]
        if outside:
            wires.append(_stub(place, outside))
    boxes = [_box(layers[k], places[k], colours, slowest, layer_tip(layers[k], reads)) for k in places]
    height = ROW * len(rows) + 6
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="group" aria-label="{escape(title, quote=True)}">'
        f"{''.join(wires)}{''.join(boxes)}</svg>"
    )


Place = tuple[float, float, float]


def _places(rows: Sequence[Sequence[int]], reads: Mapping[int, Sequence[int]]) -> dict[int, Place]:
    """Left, top and width of each box; in a row by the middle of what they read from, so that wires cross little."""
    places: dict[int, Place] = {}
    for number, row in enumerate(rows):

        def middle(layer: int) -> float:
            above = [places[s][0] + places[s][2] / 2 for s in reads.get(layer, ()) if s in places]
            return sum(above) / len(above) if above else WIDTH / 2

        order = sorted(row, key=lambda k: (middle(k), k))
        room = (WIDTH - LEFT - 4) / len(row)
        width = min(190.0, room - 8)
        for lane, layer in enumerate(order):
            left = LEFT + room * lane + (room - width) / 2
            places[layer] = (left, ROW * number + ROW - BOX, width)
    return places


def _wire(source: Place, target: Place, lefts: Sequence[float]) -> str:
    """From the bottom of a box to the top of another; past the rows between them along their left."""
    x1, y1, x2, y2 = source[0] + source[2] / 2, source[1] + BOX, target[0] + target[2] / 2, target[1]
    between = lefts[int(y1 // ROW) : int(y2 // ROW)]
    if not between:
        return (
            f'<path class="wire" d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + 9:.0f} {x2:.0f} {y2 - 9:.0f} {x2:.0f} {y2:.0f}"/>'
        )
    side = min(between) - 9
    return (
        f'<path class="wire" d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + 12:.0f} {side:.0f} {y1:.0f} {side:.0f} {y1 + 16:.0f}'
        f'V{y2 - 16:.0f}C{side:.0f} {y2:.0f} {x2:.0f} {y2 - 12:.0f} {x2:.0f} {y2:.0f}"/>'
    )


def _stub(place: Place, sources: Sequence[int]) -> str:
    """The end of wires that come from other sections, with the numbers of the layers there."""
    x, y = place[0] + place[2] / 2, place[1]
    numbers = ", ".join(str(s + 1) for s in sources[:3]) + (" …" if len(sources) > 3 else "")
    return (
        f'<path class="wire" d="M{x:.0f} {y - 11:.0f}v11"/>'
        f'<text class="faint" x="{x + 4:.0f}" y="{y - 4:.0f}">{numbers}</text>'
    )


def _box(layer: Layer, place: Place, colours: Mapping[str, int], slowest: float, tip: str) -> str:
    x, y, width = place
    measured = layer["measured_us"]
    share = (width - 4) * min(1.0, (measured or 0.0) / slowest)
    room = int((width - 10) / 6.1)
    second = " ".join(filter(None, (duration(measured), layer["algorithm"]))) if layer["steps"] else "merged"
    name = f"{layer['id'] + 1} {layer['op']}"
    label = f"{layer['op']}, {layer['backend']}, {layer['algorithm']}, {duration(measured) or 'not timed'}"
    kind = "layer" if layer["steps"] else "layer merged"
    return (
        f'<g class="{kind} k{colours.get(layer["backend"], 5)}" tabindex="0" role="button" '
        f'aria-label="{escape(label, quote=True)}" data-tip="{escape(tip, quote=True)}">'
        f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOX:.0f}" rx="4"/>'
        f'<rect class="share" x="{x + 2:.1f}" y="{y + BOX - 5:.1f}" width="{share:.1f}" height="3" rx="1"/>'
        f'<text x="{x + 6:.1f}" y="{y + 13:.1f}">{escape(_cut(name, room))}</text>'
        f'<text class="faint" x="{x + 6:.1f}" y="{y + 25:.1f}">{escape(_cut(second, room))}</text></g>'
    )


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(1, room - 1)] + "…"
