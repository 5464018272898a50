"""The numeric parts of the OCR demo, on made-up inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed")

from mnnpy.ocr import components, decode_ctc, min_area_rectangle, text_boxes


def test_components_join_across_rows_and_diagonals() -> None:
    values = np.zeros((8, 10))
    values[1:3, 1:4] = 0.9
    values[3, 4] = 0.8  # touches only diagonally
    values[6, 0:10] = 0.5
    found = components(values, 0.3)
    assert len(found) == 2
    assert sorted(round(score, 3) for _, score in found) == [0.5, round((6 * 0.9 + 0.8) / 7, 3)]


def test_components_of_a_shape_that_closes_late() -> None:
    values = np.zeros((5, 9))
    values[0:4, [1, 4, 7]] = 1  # three bars …
    values[4, 1:8] = 1  # … joined at the bottom
    assert len(components(values, 0.5)) == 1
    assert components(np.zeros((4, 4)), 0.5) == []


@pytest.mark.parametrize("degrees", [0, 7, 30, 44, 60, 89])
def test_min_area_rectangle_of_rotated_points(degrees: float) -> None:
    turn = math.radians(degrees)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    corners = np.array([[-20, -4], [20, -4], [20, 4], [-20, 4], [0, 0], [3, 2]]) @ matrix.T + [50, 40]
    centre, size, _ = min_area_rectangle(corners)
    np.testing.assert_allclose(centre, [50, 40], atol=1e-9)
    np.testing.assert_allclose(np.sort(size), [8, 40], atol=1e-9)


def test_text_boxes_start_at_the_top_left_and_grow() -> None:
    values = np.zeros((100, 200))
    values[40:50, 30:150] = 0.95
    values[80, 80] = 0.95  # too small
    values[5:15, 5:60] = 0.4  # too unsure
    (box,) = text_boxes(values)
    top_left, top_right, bottom_right, bottom_left = box
    assert top_left[0] < 30
    assert top_left[1] < 40
    assert top_right[0] > 150
    assert bottom_right[1] > 50
    assert bottom_left[0] < 30


def test_decode_ctc() -> None:
    path = [0, 1, 1, 0, 1, 2, 2, 3, 0]  # a a b, and the class after the last character: a space
    probabilities = np.full((len(path), 4), 0.1)
    probabilities[np.arange(len(path)), path] = 0.7
    text, score = decode_ctc(probabilities, "ab")
    assert text == "aab "
    assert score == pytest.approx(0.7)
    assert decode_ctc(np.eye(4)[[0, 0]], "ab") == ("", 0.0)
