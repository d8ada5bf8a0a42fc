"""Masks over a picture: the colours of categories, and the drawing on pixels.

A category has the same colour on every page, in every image and every run: it follows from its id alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageChops, ImageDraw, ImageFilter, ImageFont

from raymask.masks import decode
from raymask.progress import harmless

Colour = tuple[int, int, int]  # RGB, 0 to 255
Rectangle = tuple[int, int, int, int]  # x_min, y_min, x_max, y_max in pixels

# Okabe and Ito 2008, without black: colours that people with any kind of colour vision tell apart. For more categories
# the same ones darker, then lighter; `tests/test_drawing.py` holds how far apart all of them are.
OKABE_ITO: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(c + share * (o - c)) for c, o in zip(colour, other, strict=True))
    return red, green, blue


BLACK, WHITE = (0, 0, 0), (255, 255, 255)
PALETTE = (
    *OKABE_ITO,
    *(_mixed(c, BLACK, 0.55) for c in OKABE_ITO),
    *(_mixed(c, WHITE, 0.5) for c in OKABE_ITO),
)

LAYERS = ("masks", "boxes", "labels")
FILL, HALO = 0.38, 0.55  # opacity
LONGEST_NAME = 40  # characters of a category that a label shows


def colour_of(category_id: int) -> Colour:
    """The colour of a category; ids that differ by less than the 21 of `PALETTE` have different ones."""
    return PALETTE[(category_id - 1) % len(PALETTE)]


def css(colour: Colour) -> str:
    """A colour as style sheets and SVG write it: `#0072b2`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on a colour."""
    light = _luminance(colour)
    return BLACK if (light + 0.05) / 0.05 > 1.05 / (light + 0.05) else WHITE


def _luminance(colour: Colour) -> float:
    """Relative luminance, 0 to 1 (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def draw_instances(
    pixels: NDArray[np.uint8],
    instances: Sequence[Mapping[str, Any]],
    *,
    longest_side: int | None = None,
    layers: Collection[str] = LAYERS,
) -> PIL.Image.Image:
    """The picture with its instances over it.

    pixels: H x W x 3 uint8 RGB. instances: rows of the table `instances` of this picture, with category, category_id,
    score, x_min, y_min, x_max, y_max and mask; none gives the picture alone. longest_side: of the result in pixels;
    None for that of the picture. layers: which of `LAYERS` to draw.
    Raises ValueError if a mask is malformed or not of the picture's size.
    """
    picture = PIL.Image.fromarray(pixels)
    scale = 1.0 if longest_side is None else longest_side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if size != picture.size:
        picture = picture.resize(size, PIL.Image.Resampling.LANCZOS)
    line = max(1, round(max(size) / 350))
    boxes = [_box_on(size, instance, scale) for instance in instances]
    if "masks" in layers:
        # The small ones last, so that none lies hidden under a large one.
        for instance in sorted(instances, key=lambda i: -_box_area(i)):
            _draw_mask(picture, _mask_of(instance, pixels), colour_of(instance["category_id"]), line)
    draw = ImageDraw.Draw(picture)
    if "boxes" in layers:
        for instance, box in zip(instances, boxes, strict=True):
            draw.rectangle(box, outline=colour_of(instance["category_id"]), width=max(1, line // 2))
    if "labels" in layers:
        _draw_labels(draw, size, instances, boxes)
    return picture


def _mask_of(instance: Mapping[str, Any], pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The mask of an instance, H x W; ValueError unless it has the size of the picture."""
    mask = decode(instance["mask"])
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"the mask is of {mask.shape} pixels, its picture of {pixels.shape[:2]} (height, width)")
    return mask


def _box_area(instance: Mapping[str, Any]) -> float:
    return float((instance["x_max"] - instance["x_min"]) * (instance["y_max"] - instance["y_min"]))


def _box_on(size: tuple[int, int], instance: Mapping[str, Any], scale: float) -> Rectangle:
    """The pixels of the scaled picture that a box reaches from and to, at least one."""
    width, height = size
    x_min = min(max(round(instance["x_min"] * scale), 0), width - 1)
    y_min = min(max(round(instance["y_min"] * scale), 0), height - 1)
    x_max = min(max(round(instance["x_max"] * scale) - 1, x_min), width - 1)
    y_max = min(max(round(instance["y_max"] * scale) - 1, y_min), height - 1)
    return x_min, y_min, x_max, y_max


def _draw_mask(picture: PIL.Image.Image, mask: NDArray[np.bool_], colour: Colour, line: int) -> None:
    """Fill softly, with a crisp line inside the edge and a thin halo outside, which shows the line on any ground."""
    found = _coverage(mask, picture.size, margin=line + 1)
    if found is None:
        return
    place, coverage = found
    inner = coverage.filter(ImageFilter.MinFilter(2 * line + 1))
    halo = ImageChops.subtract(coverage.filter(ImageFilter.MaxFilter(3)), coverage)
    picture.paste(ink_on(colour), place, halo.point([round(HALO * v) for v in range(256)]))
    picture.paste(colour, place, coverage.point([round(FILL * v) for v in range(256)]))
    picture.paste(colour, place, ImageChops.subtract(coverage, inner))


def _coverage(
    mask: NDArray[np.bool_], size: tuple[int, int], margin: int
) -> tuple[tuple[int, int], PIL.Image.Image] | None:
    """How much of each pixel of the scaled picture a mask covers, 0 to 255, around the mask and a margin of zeros.

    With the place of its corner, which may lie outside the picture. None for a mask without pixels.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    height, width = mask.shape
    scale_x, scale_y = size[0] / width, size[1] / height
    left, right = int(columns[0] * scale_x), min(-int(-(columns[-1] + 1) * scale_x // 1), size[0])
    top, bottom = int(rows[0] * scale_y), min(-int(-(rows[-1] + 1) * scale_y // 1), size[1])
    source = (left / scale_x, top / scale_y, min(right / scale_x, width), min(bottom / scale_y, height))
    how = PIL.Image.Resampling.BOX if scale_x < 1 else PIL.Image.Resampling.BICUBIC
    inside = PIL.Image.fromarray(mask.astype(np.uint8) * 255).resize((right - left, bottom - top), how, source)
    coverage = PIL.Image.new("L", (right - left + 2 * margin, bottom - top + 2 * margin))
    coverage.paste(inside, (margin, margin))
    return (left - margin, top - margin), coverage


@dataclass(frozen=True)
class _Chip:
    """A label with its place."""

    text: str
    place: Rectangle
    colour: Colour


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    instances: Sequence[Mapping[str, Any]],
    boxes: Sequence[Rectangle],
) -> None:
    font = ImageFont.load_default(min(max(max(size) / 48, 12), 40))
    height = round(font.getbbox("Ág")[3]) + 4
    chips: list[_Chip] = []
    for instance, box in zip(instances, boxes, strict=True):  # the best first: they choose their places first
        text = _fitting(label_of(instance), font, size[0] - 8)
        width = int(font.getlength(text)) + 8
        place = _free_place(list(_places(box, width, height, size)), [c.place for c in chips])
        chips.append(_Chip(text, place, colour_of(instance["category_id"])))
    for chip in reversed(chips):
        draw.rounded_rectangle(chip.place, radius=max(2, height // 5), fill=chip.colour)
        draw.text((chip.place[0] + 4, chip.place[1] + 1), chip.text, fill=ink_on(chip.colour), font=font)


def label_of(instance: Mapping[str, Any]) -> str:
    """`dog 0.98`: a category in a line of limited length, and its score."""
    name = harmless(instance["category"])
    name = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return f"{name} {instance['score']:.2f}"


def _fitting(text: str, font: Any, width: float) -> str:
    """A text, cut off where it would be wider than a picture."""
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text


def _places(box: Rectangle, width: int, height: int, size: tuple[int, int]) -> Iterator[Rectangle]:
    """Where a label may stand, the most natural first: above its box, in it, below it, then further up and down."""
    x_min, y_min, x_max, y_max = box
    lines = [y_min - height, y_min, y_max - height, y_max, *(y_min + n * height for n in (1, -2, 2, -3, 3))]
    for y in lines:
        for x in (x_min, x_max - width, (x_min + x_max - width) // 2):
            left, top = max(min(x, size[0] - 1 - width), 0), max(min(y, size[1] - 1 - height), 0)
            yield left, top, left + width, top + height


def _free_place(places: Sequence[Rectangle], taken: Sequence[Rectangle]) -> Rectangle:
    """The first place that covers no other label, or the one that covers the least of them."""
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(one: Rectangle, other: Rectangle) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)
