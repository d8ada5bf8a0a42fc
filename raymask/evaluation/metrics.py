"""COCO's average precision and recall, and what people ask beside them, by pycocotools' own matching.

https://cocodataset.org/#detection-eval
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from raymask.evaluation.annotations import Annotations

IouType = Literal["segm", "bbox"]

MAX_DETECTIONS = 100
# Precision over IoU 0.50 to 0.95, at 0.50 and at 0.75; of objects below 32 x 32 pixels, below 96 x 96 and above; recall
# with 1, 10 and 100 detections a category and image; recall by size.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZES = {"s": 1, "m": 2, "l": 3}  # the size of an object -> its place among pycocotools' areas; 0 is any
AT_50, AT_75 = 0, 5  # places among its IoU thresholds
SCORE_THRESHOLDS = tuple(round(0.05 * n, 2) for n in range(1, 20))


def coco_metrics(
    truth: Annotations,
    results: Iterable[Mapping[str, Any]],
    iou_type: IouType,
    max_detections: int = MAX_DETECTIONS,
) -> dict[str, float]:
    """COCO's numbers by name; takes what `coco_evaluation` takes."""
    return numbers_of(coco_evaluation(truth, results, iou_type, max_detections))


def coco_evaluation(
    truth: Annotations,
    results: Iterable[Mapping[str, Any]],
    iou_type: IouType,
    max_detections: int = MAX_DETECTIONS,
) -> COCOeval:
    """The evaluation of pycocotools, accumulated: `eval["precision"]` is by IoU, recall, category and size of object.

    results: as `coco_results` gives them, of images of `truth`; their `segmentation` must be well-formed. For "bbox"
    the `bbox` alone is read, for "segm" the `segmentation` alone. Categories that `truth` does not list do not count.
    max_detections: the best that count, of a category in an image.
    """
    found = [_detection(r, number, iou_type) for number, r in enumerate(results, 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_indexed(truth, truth.objects), _indexed(truth, found), iou_type)
        evaluation.params.maxDets = sorted({1, min(10, max_detections), max_detections})
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def numbers_of(evaluation: COCOeval, category: int | None = None) -> dict[str, float]:
    """COCO's numbers, in [0, 1] or -1 where there is no such object; of one category by its place, or of all.

    pycocotools' own `summarize` wants a maximum of 100 detections.
    """
    chosen = slice(None) if category is None else [category]
    precision, recall = evaluation.eval["precision"][:, :, chosen], evaluation.eval["recall"][:, chosen]
    numbers = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[AT_50, ..., 0, -1]),
        "AP75": _mean(precision[AT_75, ..., 0, -1]),
        **{f"AP{size}": _mean(precision[..., place, -1]) for size, place in SIZES.items()},
    }
    for place, most in enumerate(evaluation.params.maxDets):
        numbers[f"AR{most}"] = _mean(recall[..., 0, place])
    return numbers | {f"AR{size}": _mean(recall[..., place, -1]) for size, place in SIZES.items()}


def curves_of(evaluation: COCOeval) -> dict[str, list[float]]:
    """Precision at recall 0.00, 0.01, ... 1.00, the mean of the categories: at both IoUs, and over all of them."""
    precision = evaluation.eval["precision"][..., 0, -1]

    def curve(values: NDArray[np.float64]) -> list[float]:
        kept = np.where(values > -1, values, np.nan).reshape(values.shape[0], -1)
        return [float(np.nanmean(row)) if np.isfinite(row).any() else 0.0 for row in kept]

    return {
        "IoU 0.50": curve(precision[AT_50]),
        "IoU 0.75": curve(precision[AT_75]),
        "IoU 0.50 to 0.95": curve(np.moveaxis(precision, 1, 0)),
    }


def threshold_table(evaluation: COCOeval) -> list[dict[str, float]]:
    """Precision, recall and F1 at IoU 0.50 of the detections that score at least so much, over all categories.

    Without detections precision is 1, without objects recall is 1.
    """
    scores, right, objects = [np.empty(0)], [np.empty(0, bool)], 0
    areas, images = len(evaluation.params.areaRng), len(evaluation.params.imgIds)
    for number, image in enumerate(evaluation.evalImgs):
        if image is not None and number // images % areas == 0:
            counts = ~image["dtIgnore"][AT_50].astype(bool)
            scores.append(np.asarray(image["dtScores"])[counts])
            right.append(image["dtMatches"][AT_50][counts] > 0)
            objects += int((np.asarray(image["gtIgnore"]) == 0).sum())
    score, is_right = np.concatenate(scores), np.concatenate(right)
    rows = []
    for threshold in SCORE_THRESHOLDS:
        kept = score >= np.float32(threshold)
        found, true = int(kept.sum()), int(is_right[kept].sum())
        precision, recall = true / found if found else 1.0, true / objects if objects else 1.0
        f1 = 2 * true / (found + objects) if found + objects else 1.0
        rows.append({"score": threshold, "precision": precision, "recall": recall, "f1": f1, "found": found})
    return rows


def confusion_of(
    truth: Annotations, results: Sequence[Mapping[str, Any]], min_score: float, min_iou: float = 0.5
) -> NDArray[np.int64]:
    """How often an object of one category (row) was found as one of another (column), masks compared.

    The last column counts objects that were not found, the last row what was found where no object is. Categories in
    the order of `truth.categories`. Detections choose objects by falling score; a crowd excuses those inside it.
    """
    place = {category: number for number, category in enumerate(truth.categories)}
    nothing = len(place)
    counts = np.zeros((nothing + 1, nothing + 1), np.int64)
    objects: dict[int, list[Mapping[str, Any]]] = {number: [] for number in truth.images}
    found: dict[int, list[Mapping[str, Any]]] = {number: [] for number in truth.images}
    for entry in truth.objects:
        objects[entry["image_id"]].append(entry)
    for result in results:
        if result["score"] >= min_score and result["category_id"] in place:
            found[result["image_id"]].append(result)
    for image in truth.images:
        there, seen = objects[image], sorted(found[image], key=lambda r: -r["score"])
        crowd = [int(o["iscrowd"]) for o in there]
        free = np.array(crowd) == 0
        ious = coco_mask.iou([r["segmentation"] for r in seen], [o["segmentation"] for o in there], crowd)
        for number, result in enumerate(seen):
            iou = np.asarray(ious[number]) if there else np.empty(0)
            best = int(np.argmax(np.where(free, iou, -1))) if free.any() else -1
            if best >= 0 and iou[best] >= min_iou:
                free[best] = False
                counts[place[there[best]["category_id"]], place[result["category_id"]]] += 1
            elif not any(c and i >= min_iou for c, i in zip(crowd, iou, strict=True)):
                counts[nothing, place[result["category_id"]]] += 1
        for missed in np.flatnonzero(free):
            counts[place[there[missed]["category_id"]], nothing] += 1
    return counts


def _mean(values: NDArray[np.float64]) -> float:
    kept = values[values > -1]
    return float(kept.mean()) if kept.size else -1.0


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
