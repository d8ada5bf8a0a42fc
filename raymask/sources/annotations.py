"""COCO annotation files: the list `images` names the images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import ijson
import pyarrow as pa

from raymask.config import SegmentConfig
from raymask.errors import ConfigError
from raymask.sources.stream import Entry, Source, anchor, batched, said_plainly
from raymask.storage import resolve

MAX_JSON_DEPTH = 100


def coco_source(files: list[Entry], config: SegmentConfig) -> Source:
    [file, *more] = files
    if more:
        raise ConfigError(f"source {config.source!r} names {len(files)} JSON files; name one COCO annotation file")
    anchored = anchor(config.images or file.url.rpartition("/")[0] or "/", config.allow_http)

    def rows() -> Iterator[tuple[Any, ...]]:
        for image in chain(first, images):
            if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
                raise ConfigError(f"{file.url}: an entry of 'images' has no 'file_name': {str(image)[:100]}")
            number = image.get("id")
            yield anchored(image["file_name"]), *[None] * 5, number if type(number) is int else None

    with said_plainly(file.url, "a COCO annotation file"):
        images = _coco_images(file.url)
        first = list(islice(images, 1))
    if not first:
        raise ConfigError(f"{file.url} has no list 'images'; a COCO annotation file, or a manifest as .jsonl, is meant")
    user_fields = [pa.field("coco_image_id", pa.int64())]
    return Source("COCO annotations", user_fields, batched(rows(), user_fields))


def _coco_images(url: str) -> Iterator[Any]:
    """The entries of the list `images` of a COCO file, one at a time; what comes after the list is not read."""
    fs, path = resolve(url)
    depth, key, inside, image = 0, None, False, ijson.ObjectBuilder()
    with fs.open(path, "rb") as file:
        for event, value in ijson.basic_parse(file, use_float=True):
            depth += event.startswith("start_") - event.startswith("end_")
            if depth > MAX_JSON_DEPTH:
                raise ConfigError(f"{url} is nested more than {MAX_JSON_DEPTH} deep, so it is no COCO annotation file")
            if inside and depth == 1:
                return
            if inside:
                image.event(event, value)
                if depth == 2:
                    yield image.value
                    image = ijson.ObjectBuilder()
            elif depth == 1 and event == "map_key":
                key = value
            elif depth == 2 and event == "start_array":
                inside = key == "images"
