"""COCO annotation files and COCO results, as an import takes them: ids are kept, crowds stand apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from raymask.errors import ConfigError
from raymask.interop.annotated import MAX_CATEGORY_ID, Annotated, Instances, Problems, number_of, score_of
from raymask.interop.config import ImportConfig
from raymask.interop.identity import content_of, identity_of
from raymask.interop.selection import COCO_ANNOTATIONS, COCO_CROWDS, COCO_ID, COCO_NAME
from raymask.masks import area, checked_size
from raymask.segmentations import to_rle
from raymask.sources.json_entries import json_entries
from raymask.sources.stream import anchor
from raymask.storage import absolute


def read_coco(config: ImportConfig) -> Annotated:
    """An annotation file: instances have score 1, or the `score` of their annotation."""
    problems = Problems()
    listed = _read_listed(config.file, config.images, problems)
    instances = Instances()
    crowds: dict[int, list[dict[str, Any]]] = {}
    ids: set[int] = set()
    for number, entry in enumerate(json_entries(config.file, "annotations")):
        where = f"annotations[{number}]"
        found = _object(entry, listed, problems, where)
        if found is None:
            continue
        row, category_id, rle = found
        own_id, own_area = entry.get("id"), number_of(entry.get("area"))
        if type(own_id) is not int or own_id in ids:
            problems.add("annotations without an id or with one used before, given a free one", where)
            own_id = None
        else:
            ids.add(own_id)
        own_area = float(area(rle)) if own_area is None else own_area
        if entry.get("iscrowd"):
            crowd = {"id": own_id, "category_id": category_id, "area": own_area, "counts": _text(rle["counts"])}
            crowds.setdefault(row, []).append({**crowd, "bbox": _bbox(entry, rle)})
        else:
            score = score_of(entry.get("score", 1.0), problems, where)
            if score is not None:
                instances.add(row, category_id, score, _box_xyxy(entry, rle), rle, own_id, own_area)
    rows, table = instances.by_image()
    free = count(max(ids, default=0) + 1)
    own_ids = [next(free) if id is None else id for id in table.column("own_id").to_pylist()]
    for crowd in chain.from_iterable(crowds.values()):
        crowd["id"] = next(free) if crowd["id"] is None else crowd["id"]
    offsets = pa.array(np.searchsorted(rows, np.arange(len(listed.uris) + 1)), pa.int32())
    kept = pa.StructArray.from_arrays(
        [pa.array(own_ids, pa.int64()), table.column("own_area").combine_chunks()],
        fields=list(COCO_ANNOTATIONS.type.value_type),
    )
    carried = {
        COCO_ANNOTATIONS: pa.ListArray.from_arrays(offsets, kept, type=COCO_ANNOTATIONS.type),
        COCO_CROWDS: pa.array([crowds.get(row, []) for row in range(len(listed.uris))], COCO_CROWDS.type),
    }
    return _annotated(config, listed, rows, table, carried, problems, [config.file])


def read_results(config: ImportConfig) -> Annotated:
    """A list of results, of the images and categories of an annotation file."""
    assert config.annotations is not None  # the config class asks for it
    problems = Problems()
    listed = _read_listed(config.annotations, config.images, problems)
    instances, number = Instances(), None
    for number, entry in enumerate(json_entries(config.file, "")):
        where = f"result [{number}]"
        found = _object(entry, listed, problems, where)
        if found is None:
            continue
        row, category_id, rle = found
        score = score_of(entry.get("score"), problems, where)
        if score is not None:
            instances.add(row, category_id, score, _box_xyxy(entry, rle), rle)
    rows, table = instances.by_image()
    if not len(rows):
        first = "it has none" if number is None else "; ".join(problems.lines()).strip()
        raise ConfigError(f"no result in {config.file} can be taken ({first}); a list of COCO results is meant")
    return _annotated(config, listed, rows, table, {}, problems, [config.file, config.annotations])


@dataclass(frozen=True)
class _Listed:
    """The images and categories of an annotation file. row_of: place of an image by its id."""

    uris: list[str]
    names: list[str]
    sizes_hw: list[tuple[int, int]]
    row_of: dict[int, int]
    categories: dict[int, str]
    root: str


def _read_listed(url: str, images: str | None, problems: Problems) -> _Listed:
    root = absolute(images or url.rpartition("/")[0] or ".")
    anchored = anchor(root)
    listed = _Listed([], [], [], {}, {}, root)
    for number, entry in enumerate(json_entries(url, "categories")):
        id, name = entry.get("id"), entry.get("name")
        if type(id) is not int or abs(id) > MAX_CATEGORY_ID or not isinstance(name, str):
            problems.add("categories without id or name, left out", f"categories[{number}]")
        elif listed.categories.setdefault(id, name) != name:
            problems.add("categories with an id used before, left out", f"categories[{number}]")
    known: set[str] = set()
    for number, entry in enumerate(json_entries(url, "images")):
        where, id, name = f"images[{number}]", entry.get("id"), entry.get("file_name")
        if type(id) is not int or not isinstance(name, str) or not name:
            problems.add("images without id or file_name, left out", where)
            continue
        try:
            size_hw = checked_size((entry.get("height"), entry.get("width")))
        except ValueError:
            problems.add("images without height and width, left out", where)
            continue
        uri = anchored(name)
        if id in listed.row_of or uri in known:
            problems.add("images with an id or a file_name used before, left out", where)
            continue
        known.add(uri)
        listed.row_of[id] = len(listed.uris)
        listed.uris.append(uri)
        listed.names.append(name)
        listed.sizes_hw.append(size_hw)
    if not listed.uris or not listed.categories:
        what = "images" if not listed.uris else "categories"
        raise ConfigError(f"{url} has no list {what!r} with {what} in it; a COCO annotation file is meant")
    return listed


def _object(
    entry: Mapping[str, Any], listed: _Listed, problems: Problems, where: str
) -> tuple[int, int, dict[str, Any]] | None:
    """Row of the image, category and mask; None, counted, where something is wrong with one of them."""
    image_id, category_id = entry.get("image_id"), entry.get("category_id")
    row = listed.row_of.get(image_id) if type(image_id) is int else None
    if row is None:
        problems.add("objects of images that are not listed, left out", where)
        return None
    if type(category_id) is not int or category_id not in listed.categories:
        problems.add("objects of categories that are not listed, left out", where)
        return None
    if not entry.get("segmentation"):
        problems.add("objects without a mask, left out", where)
        return None
    try:
        return row, category_id, to_rle(entry["segmentation"], listed.sizes_hw[row])
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):  # of a parser on any value
        problems.add("objects with a malformed mask, left out", where)
        return None


def _bbox(entry: Mapping[str, Any], rle: Mapping[str, Any]) -> list[float]:
    """[x, y, width, height] of an entry, or of its mask where it has none."""
    bbox = entry.get("bbox")
    numbers = [number_of(value) for value in bbox] if isinstance(bbox, list) else []
    given = [n for n in numbers if n is not None]
    return given if len(given) == len(numbers) == 4 and min(given[2:]) >= 0 else coco_mask.toBbox(dict(rle)).tolist()


def _box_xyxy(entry: Mapping[str, Any], rle: Mapping[str, Any]) -> list[float]:
    x, y, width, height = _bbox(entry, rle)
    return [x, y, x + width, y + height]


def _text(counts: str | bytes) -> str:
    return counts if isinstance(counts, str) else counts.decode()


def _annotated(
    config: ImportConfig,
    listed: _Listed,
    rows: Any,
    table: pa.Table,
    carried: Mapping[pa.Field, pa.Array],
    problems: Problems,
    files: list[str],
) -> Annotated:
    ids = {COCO_ID: pa.array(list(listed.row_of), pa.int64()), COCO_NAME: pa.array(listed.names, pa.string())}
    columns = {**ids, **carried}
    return Annotated(
        sha256=identity_of([config.format, listed.root], [content_of(file) for file in files]),
        categories=tuple(sorted(listed.categories.items())),
        uris=listed.uris,
        sizes_hw=np.array(listed.sizes_hw, np.int32).reshape(-1, 2),
        carried=pa.table(list(columns.values()), schema=pa.schema(list(columns))),
        rows=rows,
        instances=table,
        problems=problems,
    )
