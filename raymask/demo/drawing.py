"""A data set of shapes that overlap, on textured and noisy ground, with the masks of what can be seen of them.

Pixels are H x W x 3 uint8 RGB, masks H x W bool, points (x, y) in pixels from the top left corner. The longer side of
every picture is `SIDE`.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from raymask.masks import encode

SIDE = 128
SHORTEST_SIDE = 96
CATEGORIES = ("circle", "square", "star")  # their COCO ids are 1, 2, ...
MOST_OBJECTS = 5
RADII = (12.0, 30.0)
LEAST_VISIBLE = 0.5  # of an object's pixels; where it would be less, the one that covers it is not drawn
LEAST_CONTRAST = 90.0  # between the colours of an object and of the ground: distance in RGB
TURN = 0.35  # radians, at most, either way
START = {"circle": 0.0, "square": math.pi / 4, "star": -math.pi / 2}  # radians, of the first corner
OVERSAMPLING = 4  # edges are drawn finer than the pixels and averaged, as a camera does

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Colour = NDArray[np.float64]  # RGB, 0 to 255


@dataclass(frozen=True)
class Drawing:
    """A picture and its objects: categories are indices in `CATEGORIES`, masks hold what is visible of each."""

    pixels: Pixels
    categories: tuple[int, ...]
    masks: tuple[Mask, ...]


def write_data_set(folder: Path, train: int, held_out: int, seed: int) -> None:
    """Write `train/`, `val/` and their annotations `train.json`, `val.json`; the same files for the same seed.

    train, held_out: how many pictures. Some files in `val/` that are no picture come on top.
    """
    for number, (name, count) in enumerate({"train": train, "val": held_out}.items()):
        (folder / name).mkdir(parents=True)
        drawings = [draw(np.random.default_rng([seed, number, i])) for i in range(count)]
        # Every fifth is a PNG, the others are JPEG.
        file_names = [f"{i:04d}.{'png' if i % 5 == 4 else 'jpg'}" for i in range(count)]
        for drawing, file_name in zip(drawings, file_names, strict=True):
            Image.fromarray(drawing.pixels).save(folder / name / file_name, quality=92)
        (folder / f"{name}.json").write_text(json.dumps(coco_record(drawings, file_names)))
    write_broken_files(folder / "val")


def write_broken_files(folder: Path) -> None:
    """A JPEG cut off in the middle, a text and nothing at all, each named as if it were a picture."""
    whole = io.BytesIO()
    Image.fromarray(draw(np.random.default_rng(0)).pixels).save(whole, "JPEG", quality=92)
    (folder / "broken-cut-off.jpg").write_bytes(whole.getvalue()[: whole.tell() // 2])
    (folder / "broken-text.jpg").write_text("This is not a picture.\n")
    (folder / "broken-empty.jpg").write_bytes(b"")


def draw(rng: np.random.Generator) -> Drawing:
    """A picture with at least one object; the later ones lie over the earlier ones."""
    size_hw = (SIDE, int(rng.integers(SHORTEST_SIDE, SIDE + 1)))
    size_hw = size_hw if rng.random() < 0.5 else size_hw[::-1]
    ground = rng.uniform(30, 225, 3)
    canvas = textured(ground, size_hw, rng)
    categories: list[int] = []
    shapes: list[Mask] = []
    visible: list[Mask] = []
    for _ in range(rng.integers(2, MOST_OBJECTS + 1)):
        category = int(rng.integers(len(CATEGORIES)))
        coverage = rasterise(outline(CATEGORIES[category], size_hw, rng), size_hw)
        shape = coverage >= 0.5
        left = [v & ~shape for v in visible]
        if any(v.sum() < LEAST_VISIBLE * s.sum() for v, s in zip(left, shapes, strict=True)):
            continue
        surface = textured(contrasting(ground, rng), size_hw, rng)
        canvas += coverage[:, :, None] * (surface - canvas)
        categories.append(category)
        shapes.append(shape)
        visible = [*left, shape]
    noisy = canvas + rng.normal(0, rng.uniform(2, 8), canvas.shape)
    return Drawing(noisy.clip(0, 255).astype(np.uint8), tuple(categories), tuple(visible))


def outline(category: str, size_hw: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """The corners of a shape anywhere in the picture, turned at random: N x 2, (x, y)."""
    radius = rng.uniform(*RADII)
    centre = rng.uniform(radius * 0.7, np.array(size_hw[::-1]) - radius * 0.7)
    corners = {"circle": 48, "square": 4, "star": 10}[category]
    angles = START[category] + rng.uniform(-TURN, TURN) + np.arange(corners) * (2 * math.pi / corners)
    radii = np.full(corners, radius)
    if category == "star":
        radii[1::2] *= 0.45
    corners_xy: NDArray[np.float64] = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return corners_xy


def rasterise(corners_xy: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """The part of each pixel that a polygon covers: H x W in [0, 1]."""
    height, width = size_hw
    fine = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING))
    ImageDraw.Draw(fine).polygon([(x, y) for x, y in corners_xy * OVERSAMPLING], fill=255)
    return np.asarray(fine.reduce(OVERSAMPLING), np.float64) / 255


def textured(colour: Colour, size_hw: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """A colour that varies over the picture, with stripes on some: H x W x 3."""
    height, width = size_hw
    cells = rng.normal(0, 1, (int(rng.integers(3, 9)), int(rng.integers(3, 9)))).astype(np.float32)
    clouds = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))
    pattern = rng.uniform(4, 16) * clouds
    if rng.random() < 0.4:
        y, x = np.mgrid[:height, :width]
        angle, period = rng.uniform(0, math.pi), rng.uniform(5, 12)
        pattern = pattern + 14 * np.sin((x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period))
    pixels: NDArray[np.float64] = colour + pattern[:, :, None] * rng.uniform(0.6, 1.2, 3)
    return pixels


def contrasting(ground: Colour, rng: np.random.Generator) -> Colour:
    """A random colour that can be told from that of the ground."""
    while True:
        colour = rng.uniform(20, 235, 3)
        if np.linalg.norm(colour - ground) >= LEAST_CONTRAST:
            return colour


def coco_record(drawings: Sequence[Drawing], file_names: Sequence[str]) -> dict[str, Any]:
    """The content of a COCO annotation file; ids of images and annotations count from 1, segmentations are RLE."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (drawing, file_name) in enumerate(zip(drawings, file_names, strict=True), 1):
        height, width = drawing.pixels.shape[:2]
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for category, mask in zip(drawing.categories, drawing.masks, strict=True):
            x_min, y_min, x_max, y_max = box_xyxy(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category + 1,
                    "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode(mask),
                }
            )
    categories = [{"id": id, "name": name} for id, name in enumerate(CATEGORIES, 1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def box_xyxy(mask: Mask) -> tuple[int, int, int, int]:
    """The edges of the smallest box around a mask, which must not be empty: x_min, y_min, x_max, y_max in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
