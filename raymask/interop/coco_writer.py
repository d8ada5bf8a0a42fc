"""COCO annotation files and COCO results, written as they are made: neither the file nor the tables are held whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from raymask.evaluation.results import box_xywh
from raymask.interop.outlines import Polygon, joined_rings, outlines_of
from raymask.interop.selection import COCO_ANNOTATIONS, COCO_CROWDS, COCO_NAME, Picture, Selection


def write_results(selection: Selection, file: BinaryIO, pictures: Iterable[Picture]) -> None:
    """A list of results: `image_id`, `category_id`, `score`, `bbox` and `segmentation` (compressed RLE)."""
    results = (
        {
            "image_id": picture.number,
            "category_id": instance.category_id,
            "score": instance.score,
            "bbox": box_xywh(*instance.box_xyxy),
            "segmentation": picture.rle(instance),
        }
        for picture in pictures
        for instance in picture.instances
    )
    _write_list(file, results)


def write_annotations(selection: Selection, file: BinaryIO, pictures: Iterable[Picture], polygons: bool) -> None:
    """An annotation file. Ids of annotations and areas are those that an import has kept, else 1, 2, ... and pixels.

    polygons: instead of compressed RLE; crowds are RLE always, as in COCO's own files.
    """
    about = {"description": f"masks of {selection.out}", "version": "1.0"}
    categories = [{"id": id, "name": name, "supercategory": ""} for id, name in selection.categories]
    file.write(f'{{"info": {json.dumps(about)}, "licenses": [],\n"categories": {json.dumps(categories)},\n'.encode())
    file.write(b'"images": ')
    _write_list(file, (_image(picture) for picture in selection.pictures(with_instances=False)))
    file.write(b',\n"annotations": ')
    _write_list(file, _annotations(selection, pictures, polygons))
    file.write(b"}\n")


def _write_list(file: BinaryIO, entries: Iterable[dict[str, Any]]) -> None:
    separator = b"[\n"
    for entry in entries:
        file.write(separator + json.dumps(entry).encode())
        separator = b",\n"
    file.write(b"[]" if separator == b"[\n" else b"\n]")


def _image(picture: Picture) -> dict[str, Any]:
    height, width = picture.size_hw
    name = picture.coco.get(COCO_NAME.name) or picture.name
    return {"id": picture.number, "file_name": name, "height": height, "width": width}


def _annotations(selection: Selection, pictures: Iterable[Picture], polygons: bool) -> Iterator[dict[str, Any]]:
    categories = {id for id, _ in selection.categories}
    number = 0
    for picture in pictures:
        kept = picture.coco.get(COCO_ANNOTATIONS.name)
        outlines = outlines_of(picture) if polygons else [None] * len(picture.instances)
        for instance, parts in zip(picture.instances, outlines, strict=True):
            number += 1
            known = kept[instance.place] if kept else {"id": number, "area": instance.area}
            yield {
                "id": known["id"],
                "image_id": picture.number,
                "category_id": instance.category_id,
                "iscrowd": 0,
                "score": instance.score,
                "area": known["area"],
                "bbox": box_xywh(*instance.box_xyxy),
                "segmentation": picture.rle(instance) if parts is None else _flat(parts),
            }
        for crowd in picture.coco.get(COCO_CROWDS.name) or []:
            if crowd["category_id"] in categories:
                segmentation = {"size": list(picture.size_hw), "counts": crowd["counts"]}
                kept_of_crowd = {key: crowd[key] for key in ("id", "category_id", "area", "bbox")}
                yield {**kept_of_crowd, "image_id": picture.number, "iscrowd": 1, "segmentation": segmentation}


def _flat(parts: list[Polygon]) -> list[list[float]]:
    """One polygon a part; a hole is reached by a cut, which pycocotools gives no pixels."""
    return [[value for point in joined_rings(rings) for value in point] for rings in parts]
