"""Average precision and recall of an output against COCO annotations, by COCO's own rules and code.

Images of the tables are first matched to those of the annotation file. Every mask is checked on its way, because
pycocotools takes the process down on a malformed one. https://cocodataset.org/#detection-eval
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from raymask.errors import ConfigError, OutputError
from raymask.masks import validate_rle
from raymask.output import Masks
from raymask.segmentations import to_rle
from raymask.storage import resolve, retried

BOX_DECIMALS = 3

T = TypeVar("T")
IouType = Literal["segm", "bbox"]

# In the order of `COCOeval.stats`: precision over IoU 0.50 to 0.95, at 0.50 and at 0.75; of objects below 32 x 32
# pixels, below 96 x 96 and above; recall with 1, 10 and 100 detections a category and image; recall by size.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


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


def evaluate(out: str, annotations: str) -> dict[str, dict[str, float]]:
    """COCO's twelve numbers of an output, by the names in `METRICS`, for its masks ("segm") and its boxes ("bbox").

    out: URL of an output with published tables. annotations: URL of a COCO annotation file.
    A number is in [0, 1], or -1 where no annotated object is of that size. An image that failed is one in which
    nothing was found. Raises ConfigError if the two do not belong together or the annotations are malformed,
    OutputError if the tables cannot be read.
    """
    masks, truth = Masks(out), read_annotations(annotations)
    _check_categories(masks, truth)
    results = coco_results(masks, match_images(masks, truth))
    return {"segm": coco_metrics(truth, results, "segm"), "bbox": coco_metrics(truth, results, "bbox")}


def coco_results(masks: Masks, image_ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """The instances of an output as a COCO list of results, in the order of the table; [] where there are none.

    image_ids: uri -> COCO image id of every image with instances. A result has `image_id`, `category_id`, `score`,
    `bbox` ([x, y, width, height] in pixels, origin at the top left) and `segmentation` (compressed RLE).
    Raises OutputError if a mask in the tables is malformed.
    """
    columns = ["uri", "instance", "category_id", "score", "x_min", "y_min", "x_max", "y_max", "mask"]
    return [_result(row, image_ids[row["uri"]]) for row in masks.instances.to_arrow(columns).to_pylist()]


def coco_metrics(truth: Annotations, results: Iterable[Mapping[str, Any]], iou_type: IouType) -> dict[str, float]:
    """The twelve numbers by name; takes what `coco_evaluation` takes."""
    evaluation = coco_evaluation(truth, results, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return dict(zip(METRICS, evaluation.stats.tolist(), strict=True))


def coco_evaluation(truth: Annotations, results: Iterable[Mapping[str, Any]], iou_type: IouType) -> COCOeval:
    """The evaluation of pycocotools, accumulated: `eval["precision"]` is by IoU, recall, category and size of object.

    results: as `coco_results` gives them, of images of `truth`; their `segmentation` must be well-formed. For "bbox"
    the `bbox` alone is read, for "segm" the `segmentation` alone. Categories that `truth` does not list do not count.
    """
    found = [_detection(r, number, iou_type) for number, r in enumerate(results, 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_indexed(truth, truth.objects), _indexed(truth, found), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


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


def read_annotations(url: str) -> Annotations:
    """A COCO annotation file (any fsspec URL); ConfigError says which entry is not as it should be."""
    fs, path = resolve(url)
    try:
        record = json.loads(retried(lambda: fs.cat_file(path)))
    except OSError as error:
        raise ConfigError(f"cannot read annotations {url!r}: {error}") from error
    except ValueError as error:
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


# ------------------------------------------------------------------------------------------------------ the tables


def _result(row: Mapping[str, Any], image_id: int) -> dict[str, Any]:
    mask = row["mask"]
    try:
        validate_rle(mask["size"], mask["counts"])
    except ValueError as error:
        raise OutputError(f"the mask of instance {row['instance']} of {row['uri']!r} is malformed: {error}") from error
    return {
        "image_id": image_id,
        "category_id": row["category_id"],
        "score": row["score"],
        "bbox": _xywh(row["x_min"], row["y_min"], row["x_max"], row["y_max"]),
        "segmentation": mask,
    }


def _xywh(x_min: float, y_min: float, x_max: float, y_max: float) -> list[float]:
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


def _check_categories(masks: Masks, truth: Annotations) -> None:
    pairs = masks.instances.to_arrow(["category_id", "category"]).group_by(["category_id", "category"]).aggregate([])
    for row in pairs.to_pylist():
        number, name = row["category_id"], row["category"]
        if truth.categories.get(number, name) != name:
            raise ConfigError(
                f"category {number} is {name!r} in {masks.out}, but {truth.categories[number]!r} in {truth.url}; "
                f"give annotations with the model's categories"
            )


# ------------------------------------------------------------------------------------------------- the annotations


def _parsed(entry: Any, parse: Callable[[Any], T], where: str) -> T:
    try:
        return parse(entry)
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{where} is malformed: {what}") from error


def _image(entry: Mapping[str, Any]) -> AnnotatedImage:
    return AnnotatedImage(int(entry["id"]), str(entry["file_name"]), (int(entry["height"]), int(entry["width"])))


def _object(
    entry: Mapping[str, Any], images: Mapping[int, AnnotatedImage], categories: Mapping[int, str]
) -> dict[str, Any]:
    image_id, category_id = entry["image_id"], entry["category_id"]
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


# ---------------------------------------------------------------------------------------------------- pycocotools


def _detection(result: Mapping[str, Any], number: int, iou_type: IouType) -> dict[str, Any]:
    """A result as COCOeval takes it: its area is that of what is compared, mask or box."""
    kept = {"id": number, "iscrowd": 0, **{key: result[key] for key in ("image_id", "category_id", "score")}}
    if iou_type == "bbox":
        return {**kept, "bbox": result["bbox"], "area": result["bbox"][2] * result["bbox"][3]}
    rle = result["segmentation"]
    return {**kept, "segmentation": rle, "area": float(coco_mask.area(rle))}


def _indexed(truth: Annotations, objects: Iterable[Mapping[str, Any]]) -> COCO:
    index = COCO()
    index.dataset = {
        "images": [{"id": i.id, "height": i.size_hw[0], "width": i.size_hw[1]} for i in truth.images.values()],
        "categories": [{"id": id, "name": name} for id, name in truth.categories.items()],
        "annotations": [dict(o) for o in objects],  # copies, because COCOeval writes into them
    }
    index.createIndex()
    return index
