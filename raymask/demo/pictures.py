"""Pictures of what was found, each by itself and all on one sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from raymask.drawing import draw_instances
from raymask.masks import decode
from raymask.output import DRAWN_COLUMNS, MIN_SCORE, Masks

SCALE = 3  # the demo's images are small
RIVAL_IOU = 0.5
COLUMNS = 3


def save_pictures(masks: Masks, folder: Path, count: int) -> list[Path]:
    """Draw the first `count` images that are ok, and a contact sheet of them; returns the files, the sheet first."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [row for row in masks.images.to_arrow(["uri", "status"]).to_pylist() if row["status"] == "ok"][:count]
    instances = masks.instances.to_arrow(["uri", *DRAWN_COLUMNS]).to_pylist()
    drawn, files = [], []
    for row in images:
        pixels = np.array(PIL.Image.open(row["uri"]).convert("RGB"))
        found = [i for i in instances if i["uri"] == row["uri"] and i["score"] >= MIN_SCORE]
        drawn.append(draw_instances(pixels, without_rivals(found), longest_side=SCALE * max(pixels.shape)))
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


def contact_sheet(pictures: Iterable[PIL.Image.Image]) -> PIL.Image.Image:
    """All pictures on one, `COLUMNS` in a row, on white."""
    pictures = list(pictures)
    width, height = max(p.width for p in pictures) + 8, max(p.height for p in pictures) + 8
    rows = -(-len(pictures) // COLUMNS)
    sheet = PIL.Image.new("RGB", (COLUMNS * width + 8, rows * height + 8), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % COLUMNS * width + 8, number // COLUMNS * height + 8))
    return sheet
