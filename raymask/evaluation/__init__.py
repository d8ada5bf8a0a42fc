"""How good the masks of an output are, against COCO annotations, by COCO's own rules and code.

`results` matches the tables to the annotations, `metrics` computes, `report` writes what people read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raymask.config import EvaluateConfig
from raymask.errors import OutputError
from raymask.evaluation.annotations import Annotations, read_annotations
from raymask.evaluation.metrics import (
    METRICS,
    IouType,
    coco_evaluation,
    coco_metrics,
    confusion_of,
    curves_of,
    numbers_of,
    threshold_table,
)
from raymask.evaluation.results import check_categories, coco_results, match_images
from raymask.output import Masks

__all__ = [
    "METRICS",
    "Evaluation",
    "IouType",
    "coco_evaluation",
    "coco_metrics",
    "coco_results",
    "evaluate",
    "evaluate_fully",
    "match_images",
    "read_annotations",
]

Scores = dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """What is known of an output.

    scores: COCO's numbers of masks ("segm") and boxes ("bbox"). categories: the same of each, with its id, name and
    number of objects. thresholds: precision, recall and F1 of the masks by least score. confusion: see `confusion_of`,
    at the score of the best F1. curves: precision by recall.
    """

    out: str
    annotations: str
    images: int
    objects: int
    instances: int
    max_detections: int
    scores: dict[str, Scores]
    categories: list[dict[str, Any]]
    thresholds: list[dict[str, float]]
    confusion: dict[str, Any]
    curves: dict[str, dict[str, list[float]]]

    def to_json(self) -> dict[str, Any]:
        return {
            **self.scores,
            "categories": self.categories,
            "thresholds": self.thresholds,
            "confusion": self.confusion,
            "images": self.images,
            "objects": self.objects,
            "instances": self.instances,
            "max_detections": self.max_detections,
        }


def evaluate(out: str, annotations: str) -> dict[str, Scores]:
    """COCO's twelve numbers of an output, by the names in `METRICS`, for its masks ("segm") and its boxes ("bbox").

    out: URL of an output with published tables. annotations: URL of a COCO annotation file.
    A number is in [0, 1], or -1 where no annotated object is of that size. An image that failed is one in which
    nothing was found. Raises ConfigError if the two do not belong together or the annotations are malformed,
    OutputError if the tables cannot be read.
    """
    _, truth, results = _read(out, annotations)
    return {"segm": coco_metrics(truth, results, "segm"), "bbox": coco_metrics(truth, results, "bbox")}


def evaluate_fully(config: EvaluateConfig) -> Evaluation:
    """All there is to say of an output; raises what `evaluate` raises."""
    masks, truth, results = _read(config.out, config.annotations)
    kinds: tuple[IouType, ...] = ("segm", "bbox")
    by_kind = {kind: coco_evaluation(truth, results, kind, config.max_detections) for kind in kinds}
    thresholds = threshold_table(by_kind["segm"])
    best = max(thresholds, key=lambda row: row["f1"])
    order = [int(id) for id in by_kind["segm"].params.catIds]
    objects = {id: sum(o["category_id"] == id and not o["iscrowd"] for o in truth.objects) for id in order}
    return Evaluation(
        out=config.out,
        annotations=config.annotations,
        images=len(truth.images),
        objects=sum(objects.values()),
        instances=len(masks.instances),
        max_detections=config.max_detections,
        scores={kind: numbers_of(evaluation) for kind, evaluation in by_kind.items()},
        categories=[
            {
                "id": id,
                "name": truth.categories[id],
                "objects": objects[id],
                **{kind: numbers_of(evaluation, place) for kind, evaluation in by_kind.items()},
            }
            for place, id in enumerate(order)
        ],
        thresholds=thresholds,
        confusion={
            "score": best["score"],
            "categories": list(truth.categories.values()),
            "counts": confusion_of(truth, results, best["score"]).tolist(),
        },
        curves={kind: curves_of(evaluation) for kind, evaluation in by_kind.items()},
    )


def _read(out: str, annotations: str) -> tuple[Masks, Annotations, list[dict[str, Any]]]:
    masks = Masks(out)
    if not masks.is_whole:
        raise OutputError(
            f"{out!r} is not done: {masks.published.images:,} of {masks.listed:,} images so far, and in the others all "
            f"would be missed; run its segment command again"
        )
    truth = read_annotations(annotations)
    check_categories(masks, truth)
    return masks, truth, coco_results(masks, match_images(masks, truth))
