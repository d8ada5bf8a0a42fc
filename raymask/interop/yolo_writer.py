"""YOLO's segmentation labels: one text file an image, a line an object, its outline in shares of the image's sides."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from raymask.interop.outlines import joined_rings, outlines_of
from raymask.interop.selection import Picture


def label_file(picture: Picture, classes: dict[int, int]) -> bytes:
    """The lines of one image. classes: category id -> YOLO's class, 0, 1, ...

    A line has room for one polygon, so parts and holes are joined by cuts. An empty mask has no line.
    """
    height, width = picture.size_hw
    lines = []
    for instance, parts in zip(picture.instances, outlines_of(picture), strict=True):
        rings = [ring for polygon in parts for ring in polygon]
        points = " ".join(f"{x / width:.6g} {y / height:.6g}" for x, y in joined_rings(rings))
        if points:
            lines.append(f"{classes[instance.category_id]} {points}\n")
    return "".join(lines).encode()


def data_file(categories: Sequence[tuple[int, str]]) -> bytes:
    """`data.yaml`: where the images are meant to be, and the names of the classes."""
    record = {"train": "images", "val": "images", "names": {n: name for n, (_, name) in enumerate(categories)}}
    return yaml.safe_dump(record, sort_keys=False, allow_unicode=True).encode()
