"""LabelMe: one JSON file an image, a polygon a part, the parts of an object in one group."""

from __future__ import annotations

import json
import os.path
import posixpath
from typing import Any

from raymask.interop.outlines import Polygon, joined_rings, outlines_of
from raymask.interop.selection import Instance, Picture
from raymask.storage import local_path

VERSION = "5.5.0"  # of LabelMe, whose readers want one


def labelme_file(picture: Picture, url: str) -> bytes:
    """The JSON file of an image, to be written to `url`, from where it names the image."""
    height, width = picture.size_hw
    drawn = zip(picture.instances, outlines_of(picture), strict=True)
    record: dict[str, Any] = {
        "version": VERSION,
        "flags": {},
        "shapes": [shape for instance, parts in drawn for shape in _shapes(instance, parts)],
        "imagePath": image_path(picture.uri, url),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    return (json.dumps(record, indent=1) + "\n").encode()


def image_path(uri: str, url: str) -> str:
    """How the file at `url` names its image: from there where both are on this machine, else as if it lay beside."""
    image, file = local_path(uri), local_path(url)
    if image is None or file is None:
        return posixpath.basename(uri)
    return os.path.relpath(image, os.path.dirname(file))


def _shapes(instance: Instance, parts: list[Polygon]) -> list[dict[str, Any]]:
    return [
        {
            "label": instance.category,
            "points": joined_rings(rings),
            "group_id": instance.place if len(parts) > 1 else None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
            "score": instance.score,
        }
        for rings in parts
    ]
