"""The tables of an output as COCO results, their images matched to those of an annotation file.

Every mask is checked on its way, because pycocotools takes the process down on a malformed one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from raymask.errors import ConfigError, OutputError
from raymask.evaluation.annotations import AnnotatedImage, Annotations
from raymask.masks import validate_rle
from raymask.output import Masks

BOX_DECIMALS = 3


def coco_results(masks: Masks, image_ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """The instances of an output as a COCO list of results, in the order of the table; [] where there are none.

    image_ids: uri -> COCO image id of every image with instances. A result has `image_id`, `category_id`, `score`,
    `bbox` ([x, y, width, height] in pixels, origin at the top left) and `segmentation` (compressed RLE).
    Raises OutputError if a mask in the tables is malformed.
    """
    columns = ["uri", "instance", "category_id", "score", "x_min", "y_min", "x_max", "y_max", "mask"]
    return [_result(row, image_ids[row["uri"]]) for row in masks.instances.to_arrow(columns).to_pylist()]


def match_images(masks: Masks, truth: Annotations) -> dict[str, int]:
    """The COCO image ids of the images of an output, by uri; without those that failed and are not annotated.

    An image is matched by the column `coco_image_id`, which an output has whose source was a COCO file, else by the
    last components of its uri, which must be a `file_name`. Raises ConfigError if an image that is ok is not listed
    or has another size, if a listed one is not in the output, or if two images are matched to the same one.
    """
    columns = ["uri", "status", "height", "width"]
    numbered = "coco_image_id" in masks.images.schema.names
    by_name = _images_by_name(truth)
    uris: dict[int, str] = {}
    unlisted = []
    for row in masks.images.to_arrow([*columns, "coco_image_id"] if numbered else columns).to_pylist():
        uri, number = row["uri"], row.get("coco_image_id")
        image = _named(uri, by_name) if number is None else truth.images.get(number)
        if image is None:
            # What failed has no instances, so it may stay out of the annotations: often it is no image at all.
            if row["status"] == "ok":
                unlisted.append(uri)
            continue
        if image.id in uris:
            raise ConfigError(f"{uris[image.id]!r} and {uri!r} both match image {image.id} of {truth.url}")
        if row["status"] == "ok" and (size_hw := (row["height"], row["width"])) != image.size_hw:
            raise ConfigError(
                f"{uri!r} is {size_hw[0]} x {size_hw[1]} pixels (height x width), but image {image.id} of {truth.url} "
                f"is {image.size_hw[0]} x {image.size_hw[1]}; give the annotations of these very files"
            )
        uris[image.id] = uri
    _check_complete(masks.out, truth, unlisted, [i.file_name for i in truth.images.values() if i.id not in uris])
    return {uri: number for number, uri in uris.items()}


def _result(row: Mapping[str, Any], image_id: int) -> dict[str, Any]:
    mask = row["mask"]
    try:
        validate_rle(mask["size"], mask["counts"])
    except (TypeError, ValueError) as error:  # also where the mask is null
        raise OutputError(f"the mask of instance {row['instance']} of {row['uri']!r} is malformed: {error}") from error
    return {
        "image_id": image_id,
        "category_id": row["category_id"],
        "score": row["score"],
        "bbox": box_xywh(row["x_min"], row["y_min"], row["x_max"], row["y_max"]),
        "segmentation": mask,
    }


def box_xywh(x_min: float, y_min: float, x_max: float, y_max: float) -> list[float]:
    """COCO's box of float32 edges, to a thousandth of a pixel, which float32 resolves in images up to 8192 pixels.

    Decimal coordinates, as annotations and published results have them, come back exactly; unrounded, what float32
    makes of them lies on the other side of an IoU threshold that the box was on.
    """
    left, top, right, bottom = (round(edge, BOX_DECIMALS) for edge in (x_min, y_min, x_max, y_max))
    return [left, top, round(right - left, BOX_DECIMALS), round(bottom - top, BOX_DECIMALS)]


def _images_by_name(truth: Annotations) -> dict[str, AnnotatedImage]:
    by_name: dict[str, AnnotatedImage] = {}
    for image in truth.images.values():
        if image.file_name in by_name:
            raise ConfigError(f"{truth.url} has two images named {image.file_name!r}, so names do not tell them apart")
        by_name[image.file_name] = image
    return by_name


def _named(uri: str, by_name: Mapping[str, AnnotatedImage]) -> AnnotatedImage | None:
    """The image whose name is `uri` or its end behind a "/" (or "#", in an archive); of more than one, the longest."""
    starts = [0, *(m.end() for m in re.finditer("[/#]", uri))]
    return next((by_name[uri[start:]] for start in starts if uri[start:] in by_name), None)


def _check_complete(out: str, truth: Annotations, unlisted: Sequence[str], absent: Sequence[str]) -> None:
    if unlisted:
        raise ConfigError(
            f"{len(unlisted):,} images of {out} are not in {truth.url}, such as {unlisted[0]!r}; evaluate an output of "
            f"annotated images (`raymask segment {truth.url}` takes exactly these)"
        )
    if absent:
        raise ConfigError(
            f"{len(absent):,} images of {truth.url} are not in {out}, such as {absent[0]!r}; segment them too, or give "
            f"annotations of fewer images"
        )


def check_categories(masks: Masks, truth: Annotations) -> None:
    pairs = masks.instances.to_arrow(["category_id", "category"]).group_by(["category_id", "category"]).aggregate([])
    for row in pairs.to_pylist():
        number, name = row["category_id"], row["category"]
        if truth.categories.get(number, name) != name:
            raise ConfigError(
                f"category {number} is {name!r} in {masks.out}, but {truth.categories[number]!r} in {truth.url}; "
                f"give annotations with the model's categories"
            )
