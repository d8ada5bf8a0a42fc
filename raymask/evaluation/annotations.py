"""COCO annotation files to evaluate against, every entry checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from raymask.errors import ConfigError
from raymask.segmentations import to_rle
from raymask.storage import resolve, retried

T = TypeVar("T")


@dataclass(frozen=True)
class AnnotatedImage:
    """An entry of `images` in a COCO file."""

    id: int
    file_name: str
    size_hw: tuple[int, int]


@dataclass(frozen=True)
class Annotations:
    """A COCO annotation file that can be evaluated against.

    images: by id. categories: id -> name. objects: as pycocotools takes them, their ids 1, 2, ..., each segmentation
    as compressed RLE of its image's size.
    """

    url: str
    images: Mapping[int, AnnotatedImage]
    categories: Mapping[int, str]
    objects: Sequence[Mapping[str, Any]]


def read_annotations(url: str) -> Annotations:
    """A COCO annotation file (any fsspec URL); ConfigError says which entry is not as it should be."""
    fs, path = resolve(url)
    try:
        record = json.loads(retried(lambda: fs.cat_file(path)))
    except OSError as error:
        raise ConfigError(f"cannot read annotations {url!r}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"annotations {url!r} are not JSON: {error}") from error

    def entries(key: str, parse: Callable[[Any], T]) -> list[T]:
        if not isinstance(record, dict) or not isinstance(record.get(key), list):
            raise ConfigError(f"annotations {url!r} have no list {key!r}; a COCO annotation file is meant")
        return [_parsed(entry, parse, f"{url}: {key}[{index}]") for index, entry in enumerate(record[key])]

    images = {image.id: image for image in entries("images", _image)}
    categories = dict(entries("categories", lambda c: (int(c["id"]), str(c["name"]))))
    if len(images) < len(record["images"]) or len(categories) < len(record["categories"]):
        raise ConfigError(f"annotations {url!r} have an image id or a category id twice")
    objects = entries("annotations", lambda a: _object(a, images, categories))
    # COCOeval says "no match" by id 0, so that an annotation of that id would never count as found.
    return Annotations(url, images, categories, [{**o, "id": number} for number, o in enumerate(objects, 1)])


def _parsed(entry: Any, parse: Callable[[Any], T], where: str) -> T:
    try:
        return parse(entry)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{where} is malformed: {what}") from error


def _image(entry: Mapping[str, Any]) -> AnnotatedImage:
    return AnnotatedImage(int(entry["id"]), str(entry["file_name"]), (int(entry["height"]), int(entry["width"])))


def _object(
    entry: Mapping[str, Any], images: Mapping[int, AnnotatedImage], categories: Mapping[int, str]
) -> dict[str, Any]:
    image_id, category_id = int(entry["image_id"]), int(entry["category_id"])
    if image_id not in images or category_id not in categories:
        raise ValueError(f"image {image_id} or category {category_id} is not listed")
    x, y, width, height = (float(value) for value in entry["bbox"])
    return {
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": int(entry.get("iscrowd", 0)),
        "area": float(entry["area"]),
        "bbox": [x, y, width, height],
        "segmentation": to_rle(entry["segmentation"], images[image_id].size_hw),
    }
