"""Pictures of what was found: masks tinted and outlined over the image, categories and scores beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from raymask.masks import decode
from raymask.output import Masks

# Okabe and Ito 2008: eight colours that people with any kind of colour vision tell apart, without black.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
SCALE = 3  # the demo's images are small
TINT = 0.4
MIN_SCORE = 0.5
RIVAL_IOU = 0.5
COLUMNS = 3


def save_pictures(masks: Masks, folder: Path, count: int) -> list[Path]:
    """Draw the first `count` images that are ok, and a contact sheet of them; returns the files, the sheet first."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [row for row in masks.images.to_arrow(["uri", "status"]).to_pylist() if row["status"] == "ok"][:count]
    instances = masks.instances.to_arrow(["uri", "category", "category_id", "score", "mask"]).to_pylist()
    drawn, files = [], []
    for row in images:
        pixels = np.array(PIL.Image.open(row["uri"]).convert("RGB"))
        found = [i for i in instances if i["uri"] == row["uri"] and i["score"] >= MIN_SCORE]
        drawn.append(draw_instances(pixels, without_rivals(found)))
        files.append(folder / f"{Path(row['uri']).stem}.png")
        drawn[-1].save(files[-1])
    sheet = folder / "all.png"
    contact_sheet(drawn).save(sheet)
    return [sheet, *files]


def without_rivals(instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of instances that mean one object, such as a square that may also be a circle, the best; best first."""
    kept: list[tuple[dict[str, Any], NDArray[np.bool_]]] = []
    for instance in sorted(instances, key=lambda i: -i["score"]):
        mask = decode(instance["mask"])
        if all((mask & other).sum() <= RIVAL_IOU * (mask | other).sum() for _, other in kept):
            kept.append((instance, mask))
    return [instance for instance, _ in kept]


def draw_instances(pixels: NDArray[np.uint8], instances: Sequence[dict[str, Any]]) -> PIL.Image.Image:
    """The image, `SCALE` times as large, with its instances: dicts of category, category_id, score and mask (RLE)."""
    canvas = np.repeat(np.repeat(pixels, SCALE, axis=0), SCALE, axis=1).astype(np.float32)
    placed = [(i, np.repeat(np.repeat(decode(i["mask"]), SCALE, axis=0), SCALE, axis=1)) for i in instances]
    for instance, mask in reversed(placed):  # the best on top
        colour = np.array(colour_of(instance), np.float32)
        canvas[mask] += TINT * (colour - canvas[mask])
        canvas[outline(mask)] = colour
    picture = PIL.Image.fromarray(canvas.astype(np.uint8))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for instance, mask in placed:
        if mask.any():
            write_label(draw, font, f"{instance['category']} {instance['score']:.2f}", mask, colour_of(instance))
    return picture


def colour_of(instance: dict[str, Any]) -> tuple[int, int, int]:
    return COLOURS[instance["category_id"] % len(COLOURS)]


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask that touch one outside, two pixels wide."""
    padded = np.pad(mask, 2)
    height, width = mask.shape
    shifted = [padded[2 + y : 2 + y + height, 2 + x : 2 + x + width] for y, x in ((-2, 0), (2, 0), (0, -2), (0, 2))]
    inner: NDArray[np.bool_] = np.logical_and.reduce(shifted)
    return mask & ~inner


def write_label(
    draw: ImageDraw.ImageDraw, font: Any, text: str, mask: NDArray[np.bool_], colour: tuple[int, int, int]
) -> None:
    """Black on the category's colour, at the top left corner of the mask's box, kept inside the picture."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    _, _, width, height = draw.textbbox((0, 0), text, font=font)
    x = min(int(columns[0]), mask.shape[1] - int(width) - 4)
    y = max(int(rows[0]) - int(height) - 4, 0)
    draw.rectangle((x, y, x + width + 4, y + height + 4), fill=colour)
    draw.text((x + 2, y + 1), text, fill=(0, 0, 0), font=font)


def contact_sheet(pictures: Iterable[PIL.Image.Image]) -> PIL.Image.Image:
    """All pictures on one, `COLUMNS` in a row, on white."""
    pictures = list(pictures)
    width, height = max(p.width for p in pictures) + 8, max(p.height for p in pictures) + 8
    rows = -(-len(pictures) // COLUMNS)
    sheet = PIL.Image.new("RGB", (COLUMNS * width + 8, rows * height + 8), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % COLUMNS * width + 8, number // COLUMNS * height + 8))
    return sheet
