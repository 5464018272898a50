"""Reading text in pictures with three PP-OCR networks: detection, direction, recognition.

Only pre- and post-processing live here, in NumPy and Pillow; the networks are callables ``array -> array``, so that
any engine can be put beneath. The method is that of DB text detection (Liao et al., 2019, arXiv 1911.08947) and of CTC
decoding (Graves et al., 2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Line", "Network", "Reader", "components", "decode_ctc", "min_area_rectangle", "text_boxes"]

Array = NDArray[Any]
Points = NDArray[np.float64]
#: A network: float32 input to float32 output.
Network = Callable[[Array], Array]

#: Probability from which a pixel counts as text, and that a whole box must reach on average.
PIXEL_THRESHOLD, BOX_THRESHOLD = 0.3, 0.5
#: Detected cores are grown by area · ratio / perimeter: the network is trained on shrunk boxes.
UNCLIP_RATIO = 1.6
#: Longest side of the picture that detection sees.
MAX_SIDE = 960
#: Height of a line of text as recognition wants it, and the least width (narrower ones are padded).
LINE_HEIGHT, LINE_WIDTH = 48, 320


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text: its corners clockwise from the top left (in the reading direction), and its mean probability."""

    text: str
    score: float
    corners: tuple[tuple[float, float], ...]


class Reader:
    """Detection, direction and recognition in a row.

    *characters* are the recogniser's classes after the blank; classes beyond them are spaces.
    """

    def __init__(self, detect: Network, direction: Network, recognise: Network, characters: Sequence[str]) -> None:
        self._detect, self._direction, self._recognise = detect, direction, recognise
        self._characters = tuple(characters)

    def read(self, picture: Image.Image) -> list[Line]:
        """All lines of text in *picture*, from top to bottom."""
        picture = picture.convert("RGB")
        seen, scale = _detection_input(picture)
        probability = self._detect(seen)[0, 0]
        lines = []
        for corners in text_boxes(probability):
            corners = corners / scale
            crop = _upright(picture, corners)
            if self._upside_down(crop):
                crop, corners = crop.transpose(Image.Transpose.ROTATE_180), np.roll(corners, 2, axis=0)
            text, score = decode_ctc(self._recognise(_line_input(crop))[0], self._characters)
            if text.strip():
                lines.append(Line(text.strip(), score, tuple((float(x), float(y)) for x, y in corners)))
        return sorted(lines, key=lambda line: min(y for _, y in line.corners))

    def _upside_down(self, crop: Image.Image) -> bool:
        scores = self._direction(_fitted(crop, LINE_HEIGHT, 192))[0]
        return bool(scores[1] > 0.9)


def _normalised(picture: Image.Image) -> Array:
    """Pixels as [1, 3, height, width] in −1…1; the networks were trained on blue-green-red order."""
    pixels = np.asarray(picture, np.float32)[:, :, ::-1] / 127.5 - 1.0
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def _detection_input(picture: Image.Image) -> tuple[Array, Points]:
    """The picture for detection, sides multiples of 32, and its scale (x, y) relative to the original."""
    width, height = picture.size
    ratio = min(1.0, MAX_SIDE / max(width, height))
    size = tuple(max(32, round(side * ratio / 32) * 32) for side in (width, height))
    scale = np.array([size[0] / width, size[1] / height])
    return _normalised(picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)), scale


def _fitted(crop: Image.Image, height: int, width: int) -> Array:
    """*crop* scaled to *height*, cut or padded with zeros (mid grey) to *width*."""
    scaled = min(width, max(1, math.ceil(height * crop.width / crop.height)))
    out = np.zeros((1, 3, height, width), np.float32)
    out[..., :scaled] = _normalised(crop.resize((scaled, height), Image.Resampling.BILINEAR))
    return out


def _line_input(crop: Image.Image) -> Array:
    """*crop* for recognition; widths are rounded up to multiples of 32, so that few shapes occur."""
    width = math.ceil(LINE_HEIGHT * crop.width / crop.height / 32) * 32
    return _fitted(crop, LINE_HEIGHT, max(LINE_WIDTH, width))


def _upright(picture: Image.Image, corners: Points) -> Image.Image:
    """The content of a rotated rectangle as a picture of its own; tall ones are turned to lie."""
    sides = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    size = (max(1, round(sides[0])), max(1, round(sides[1])))
    top_left, top_right, bottom_right, bottom_left = (tuple(map(float, c)) for c in corners)
    quad = (*top_left, *bottom_left, *bottom_right, *top_right)
    crop = picture.transform(size, Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    return crop.transpose(Image.Transpose.ROTATE_90) if crop.height > 1.5 * crop.width else crop


# -- boxes out of a probability map --


def text_boxes(probability: Array) -> list[Points]:
    """Corners [4, 2] (x, y; clockwise from the top left) of the text areas of a map [height, width]."""
    boxes = []
    for points, score in components(probability, PIXEL_THRESHOLD):
        centre, size, angle = min_area_rectangle(points)
        if score < BOX_THRESHOLD or min(size) < 3:
            continue
        grow = size[0] * size[1] * UNCLIP_RATIO / (2.0 * (size[0] + size[1]))
        boxes.append(_corners(centre, size + 2.0 * grow, angle, probability.shape))
    return boxes


def _corners(centre: Points, size: Points, angle: float, shape: tuple[int, ...]) -> Points:
    """Corners of a rectangle, cut to the picture; the angle is brought to −45°…45° so that the first is top left."""
    while angle > math.pi / 4:
        angle, size = angle - math.pi / 2, size[::-1]
    while angle <= -math.pi / 4:
        angle, size = angle + math.pi / 2, size[::-1]
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    steps = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * size
    corners: Points = centre + steps[:, :1] * along + steps[:, 1:] * across
    return np.clip(corners, 0, [shape[1] - 1, shape[0] - 1])


def components(values: Array, threshold: float) -> list[tuple[Points, float]]:
    """Connected areas (8 neighbours) above *threshold*: their outline's points (x, y) and their mean value.

    Works on runs: a row's runs are joined with those of the row above that they touch.
    """
    runs, parent = _runs(values > threshold)
    groups: dict[int, list[int]] = {}
    for k in range(len(runs)):
        groups.setdefault(_root(parent, k), []).append(k)
    found = []
    for members in groups.values():
        total = sum(float(values[runs[k][0], runs[k][1] : runs[k][2]].sum()) for k in members)
        count = sum(runs[k][2] - runs[k][1] for k in members)
        ends = [(x, runs[k][0] + dy) for k in members for x in (runs[k][1], runs[k][2]) for dy in (0, 1)]
        found.append((np.array(ends, np.float64), total / count))
    return found


def _runs(mask: Array) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Runs (row, first, end) of a mask and the union-find forest that joins touching ones."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    runs = [(int(r), int(s), int(e)) for r, s, e in zip(rows, starts, ends, strict=True)]
    parent = list(range(len(runs)))
    above = 0
    for k, (row, start, end) in enumerate(runs):
        while runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] < start):
            above += 1
        j = above
        while j < k and runs[j][0] == row - 1 and runs[j][1] <= end:
            parent[_root(parent, k)] = _root(parent, j)
            j += 1
    return runs, parent


def _root(parent: list[int], k: int) -> int:
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


def _hull(points: Points) -> Points:
    """Convex hull, counter-clockwise (Andrew's monotone chain)."""
    ordered = sorted({(float(x), float(y)) for x, y in points})

    def chain(sequence: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        out: list[tuple[float, float]] = []
        for p in sequence:
            while len(out) > 1 and (out[-1][0] - out[-2][0]) * (p[1] - out[-2][1]) <= (out[-1][1] - out[-2][1]) * (
                p[0] - out[-2][0]
            ):
                out.pop()
            out.append(p)
        return out[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]))


def min_area_rectangle(points: Points) -> tuple[Points, Points, float]:
    """The smallest rectangle around *points*: centre (x, y), size, and angle of its first side in radians.

    One side of it lies on an edge of the convex hull (Freeman & Shapira, 1975).
    """
    hull = _hull(points)
    edges = np.roll(hull, -1, axis=0) - hull
    angles = np.unique(np.arctan2(edges[:, 1], edges[:, 0]) % (math.pi / 2))
    along = np.stack([np.cos(angles), np.sin(angles)])
    across = np.stack([-along[1], along[0]])
    u, v = hull @ along, hull @ across
    sizes = np.stack([np.ptp(u, axis=0), np.ptp(v, axis=0)])
    best = int(np.argmin(sizes[0] * sizes[1]))
    middle = (u[:, best].min() + u[:, best].max()) / 2, (v[:, best].min() + v[:, best].max()) / 2
    centre: Points = middle[0] * along[:, best] + middle[1] * across[:, best]
    return centre, sizes[:, best], float(angles[best])


def decode_ctc(probabilities: Array, characters: Sequence[str]) -> tuple[str, float]:
    """Greedy decoding of [steps, classes]: repeats joined, blanks (class 0) dropped; text and mean probability."""
    best = probabilities.argmax(axis=1)
    keep = (best != 0) & np.append(True, best[1:] != best[:-1])
    if not keep.any():
        return "", 0.0
    text = "".join(characters[k - 1] if k <= len(characters) else " " for k in best[keep])
    return text, float(probabilities.max(axis=1)[keep].mean())
