"""Masks over pictures: colours that can be told apart, and pixels that are those of the masks."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageFont

from raymask import drawing
from raymask.drawing import OKABE_ITO, PALETTE, Colour, colour_of, draw_instances, ink_on
from raymask.masks import encode

GREY = 128

# Machado, Oliveira and Fernandes 2009: linear RGB as people see it who lack one kind of cones.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.119192, 0.9503]])


def linear(colour: Colour) -> NDArray[np.float64]:
    share = np.array(colour) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(colour: Colour, vision: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* (D65) of a colour as it is seen."""
    xyz = TO_XYZ @ np.clip(vision @ linear(colour), 0, 1) / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_colours_can_be_told_apart_with_any_vision(vision: str) -> None:
    def nearest(colours: tuple[Colour, ...]) -> float:
        seen = [lab(colour, VISION[vision]) for colour in colours]
        return min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2))

    assert nearest(OKABE_ITO) > 15  # some 2 is what an eye just notices
    assert nearest(PALETTE) > 7


def test_a_category_keeps_its_colour() -> None:
    assert len({colour_of(id) for id in range(1, 22)}) == len(PALETTE) == 21
    assert colour_of(1) == (0, 114, 178)  # other pages and other runs rely on it
    assert colour_of(22) == colour_of(1)


@pytest.mark.parametrize("colour", PALETTE)
def test_labels_can_be_read(colour: Colour) -> None:
    weights = [0.2126, 0.7152, 0.0722]
    light, dark = sorted((float(linear(c) @ weights) for c in (colour, ink_on(colour))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, AA


def found(mask: NDArray[np.bool_], category_id: int = 1, category: str = "kite", score: float = 0.9) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)] if mask.any() else [0.0] * 4
    sides = dict(zip(("x_min", "y_min", "x_max", "y_max"), box, strict=True))
    return {"category": category, "category_id": category_id, "score": score, **sides, "mask": encode(mask)}


def grey(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), GREY, np.uint8)


def disc(height: int = 60, width: int = 80) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    inside: NDArray[np.bool_] = (y - 25) ** 2 + (x - 30) ** 2 < 18**2
    return inside


def test_pixels_of_a_mask_are_tinted_and_no_others() -> None:
    mask = disc()
    shown = np.asarray(draw_instances(grey(60, 80), [found(mask)], layers=["masks"])).astype(int)
    changed = (shown != GREY).any(axis=2)
    assert changed[mask].all()
    grown = np.zeros_like(mask)
    for y, x in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)):
        grown |= np.roll(mask, (y, x), (0, 1))
    np.testing.assert_array_equal(changed, grown)  # with a halo of a pixel
    blue = np.array(colour_of(1))
    assert (shown[25, 30] == np.round(GREY + drawing.FILL * (blue - GREY))).all()
    np.testing.assert_array_equal(shown[25, 30 - 17], blue)  # the line lies inside the edge


def test_a_mask_at_the_edge_has_a_line_there_too() -> None:
    shown = np.asarray(draw_instances(grey(20, 20), [found(np.ones((20, 20), bool))], layers=["masks"]))
    edge = np.ones((20, 20), bool)
    edge[1:-1, 1:-1] = False
    assert (shown[edge] == colour_of(1)).all()
    assert (shown[10, 10] != colour_of(1)).all()


@pytest.mark.parametrize("scale", [0.5, 1, 3])
def test_masks_lie_where_they_were_at_any_scale(scale: float) -> None:
    mask = np.zeros((60, 80), bool)
    mask[12:36, 20:60] = True
    picture = draw_instances(grey(60, 80), [found(mask)], longest_side=round(80 * scale), layers=["masks"])
    assert picture.size == (80 * scale, 60 * scale)
    changed = (np.abs(np.asarray(picture).astype(int) - GREY) > 8).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    # The halo is a pixel of the result.
    assert (rows[0] + 1, rows[-1], columns[0] + 1, columns[-1]) == tuple(v * scale for v in (12, 36, 20, 60))


def test_small_objects_lie_over_large_ones() -> None:
    small = np.zeros((60, 80), bool)
    small[20:30, 20:30] = True
    large = np.ones((60, 80), bool)
    orders = [[found(small, 2), found(large, 1)], [found(large, 1), found(small, 2)]]
    one, other = (np.asarray(draw_instances(grey(60, 80), rows, layers=["masks"])) for rows in orders)
    np.testing.assert_array_equal(one, other)
    assert tuple(one[20, 25]) == colour_of(2)


def test_boxes() -> None:
    mask = disc()
    shown = np.asarray(draw_instances(grey(60, 80), [found(mask)], layers=["boxes"]))
    wanted = np.zeros((60, 80), bool)
    row = found(mask)
    x_min, y_min, x_max, y_max = (int(row[side]) for side in ("x_min", "y_min", "x_max", "y_max"))
    wanted[y_min:y_max, x_min:x_max] = True
    wanted[y_min + 1 : y_max - 1, x_min + 1 : x_max - 1] = False
    np.testing.assert_array_equal((shown != GREY).any(axis=2), wanted)


def chips_of(rows: list[dict[str, Any]], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    chips: list[Any] = []
    make = drawing._Chip

    def kept(*parts: Any) -> Any:
        chips.append(make(*parts))
        return chips[-1]

    monkeypatch.setattr(drawing, "_Chip", kept)
    draw_instances(grey(size[1], size[0]), rows, layers=["labels"])
    return chips


def test_labels_do_not_cover_each_other_and_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((300, 400), bool)
    mask[100:200, 150:250] = True
    corner = np.zeros((300, 400), bool)
    corner[:10, 390:] = True
    chips = chips_of([found(mask, n) for n in range(1, 8)] + [found(corner)] * 2, (400, 300), monkeypatch)
    places = [chip.place for chip in chips]
    assert all(drawing._overlap(a, b) == 0 for a, b in combinations(places, 2))
    assert all(x0 >= 0 and y0 >= 0 and x1 < 400 and y1 < 300 for x0, y0, x1, y1 in places)


def test_hostile_names_become_a_line_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    name = '<script>\n\x1b[2J\u202e"' + "w" * 10_000
    [chip] = chips_of([found(disc(), category=name)], (80, 60), monkeypatch)
    assert chip.text.isprintable()
    assert ImageFont.load_default(12).getlength(chip.text) <= 80
    assert drawing.label_of({"category": name, "score": 0.5}).startswith('<script>\\n\\x1b[2J\\u202e"ww')


def test_nothing_and_next_to_nothing_can_be_drawn() -> None:
    np.testing.assert_array_equal(np.asarray(draw_instances(grey(7, 5), [])), grey(7, 5))
    empty, pixel = np.zeros((7, 5), bool), np.zeros((7, 5), bool)
    pixel[3, 2] = True
    rows = [found(empty), found(pixel)]
    shown = np.asarray(draw_instances(grey(7, 5), rows, layers=["masks"]))
    assert tuple(shown[3, 2]) == colour_of(1)
    assert draw_instances(grey(1, 1), [found(np.ones((1, 1), bool))]).size == (1, 1)
    assert draw_instances(grey(1, 3000), [], longest_side=10).size == (10, 1)


def test_a_mask_of_another_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(60, 80\) pixels, its picture of \(80, 60\)"):
        draw_instances(grey(80, 60), [found(disc())])
