"""An output beside another one, or beside the truth: which objects belong to each other, by COCO's rules.

An object and its partner are of one category and overlap with an IoU of at least 0.5. By falling score each object
chooses the one that it overlaps most of those that are still free. What lies in a crowd is neither right nor wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from raymask.config import EvaluateConfig
from raymask.errors import RaymaskError
from raymask.evaluation import match_images, read_annotations
from raymask.gallery.collection import Collection, Cursor, ImageRow, ask
from raymask.gallery.filters import Filter, joined
from raymask.masks import validate_rle
from raymask.output import Masks
from raymask.schema import INSTANCES, image_id

MIN_IOU = 0.5
IMAGES_AT_ONCE = 1024
SHOWN, BESIDE = "shown", "beside"

# An object of either side with the score of its partner, null where it has none. What a crowd excuses is not in it.
PAIRS = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("side", pa.string(), nullable=False),
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("partner", pa.float32()),
    ]
)

Objects = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Match:
    """For each object of a side its partner's place on the other side, None where it has none.

    excused: places of those shown that lie in a crowd.
    """

    shown: list[int | None]
    beside: list[int | None]
    excused: frozenset[int]


@dataclass
class Comparison:
    """Two sides of the same images. is_truth: whether the other side says what is right.

    crowds: (image id, instance) of objects beside that stand for many. done: images compared by now. problem: why no
    more of them are.
    """

    shown: Collection
    beside: Collection
    name: str
    is_truth: bool
    crowds: frozenset[tuple[int, int]] = frozenset()
    done: int = 0
    is_done: bool = False
    problem: str | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        columns = "image_id BIGINT, side VARCHAR, category_id INTEGER, score FLOAT, partner FLOAT"
        self.shown.cursor().execute(f"CREATE TABLE pairs ({columns})")

    def matched(self, image: ImageRow, shown: Objects, beside: Objects) -> Match:
        return match(shown, beside, [(image.image_id, o["instance"]) in self.crowds for o in beside])

    def compare(self) -> None:
        """Compare all images, some at a time; what is known by then can be asked for in the meantime."""
        try:
            self._compare()
        except (duckdb.Error, RaymaskError) as error:
            self.problem = f"the comparison has ended: {error}"

    def _compare(self) -> None:
        cursor, other = self.shown.cursor(), self.beside.cursor()
        ids = self.shown.find(cursor, Filter(), "input").ids.tolist()
        for start in range(0, len(ids), IMAGES_AT_ONCE):
            if self._stopped.is_set():
                return
            images = self.shown.images(cursor, ids[start : start + IMAGES_AT_ONCE])
            shown, beside = self.shown.objects(cursor, images), self.beside.objects(other, images)
            rows = [row for i in images for row in self._pairs_of(i, shown[i.image_id], beside[i.image_id])]
            cursor.register("found", pa.Table.from_pylist(rows, schema=PAIRS))
            cursor.execute("INSERT INTO pairs SELECT * FROM found")
            self.done += len(images)
            self.shown.forget()
        self.is_done = True

    def stop(self) -> None:
        """Let `compare` end soon."""
        self._stopped.set()

    def counts(self, cursor: Cursor, chosen: Filter) -> dict[str, int]:
        """Matches, misses and false alarms among objects of the chosen categories and at least the least score."""
        categories = joined(Filter(categories=chosen.categories).of_objects())
        least = chosen.scores[0] or 0.0
        sql = f"""
            SELECT side, coalesce(partner >= ?, false) AS matched, count(*)
            FROM pairs WHERE score >= ? AND {categories.sql} GROUP BY ALL"""
        rows = ask(cursor, sql, [least, least, *categories.values]).fetchall()
        by = {(side, matched): count for side, matched, count in rows}
        return {
            "match": by.get((SHOWN, True), 0),
            "miss": by.get((BESIDE, False), 0),
            "false_alarm": by.get((SHOWN, False), 0),
        }

    def _pairs_of(self, image: ImageRow, shown: Objects, beside: Objects) -> list[dict[str, Any]]:
        pairs = self.matched(image, shown, beside)
        rows = []
        for side, objects, others, partners in (
            (SHOWN, shown, beside, pairs.shown),
            (BESIDE, beside, shown, pairs.beside),
        ):
            for place, (one, partner) in enumerate(zip(objects, partners, strict=True)):
                crowd = side == BESIDE and (image.image_id, one["instance"]) in self.crowds
                if not crowd and not (side == SHOWN and place in pairs.excused):
                    score = None if partner is None else others[partner]["score"]
                    kept = {"image_id": image.image_id, "category_id": one["category_id"], "score": one["score"]}
                    rows.append({**kept, "side": side, "partner": score})
        return rows


def match(shown: Objects, beside: Objects, crowd: Sequence[bool]) -> Match:
    """Which of `shown`, by falling score, is which of `beside`; both have `category`, `score` and `mask` (an RLE).

    crowd: for each of `beside` whether it stands for many. A malformed mask, or one of another size, has no partner.
    """
    partners: list[int | None] = [None] * len(shown)
    partners_beside: list[int | None] = [None] * len(beside)
    excused = set()
    usable = [place for place, one in enumerate(beside) if _is_mask(one["mask"])]
    rles = [beside[place]["mask"] for place in usable]
    for place in sorted(range(len(shown)), key=lambda p: -shown[p]["score"]):
        one = shown[place]
        there = [number for number, other in enumerate(usable) if beside[other]["category"] == one["category"]]
        if not there or not _is_mask(one["mask"]):
            continue
        crowds = [int(crowd[usable[number]]) for number in there]
        # Of masks of another size it is -1.
        ious = np.asarray(coco_mask.iou([one["mask"]], [rles[number] for number in there], crowds))[0]
        free = [
            (iou, usable[number])
            for iou, number, many in zip(ious, there, crowds, strict=True)
            if iou >= MIN_IOU and not many and partners_beside[usable[number]] is None
        ]
        if free:
            _, best = max(free)
            partners[place], partners_beside[best] = best, place
        elif any(iou >= MIN_IOU and many for iou, many in zip(ious, crowds, strict=True)):
            excused.add(place)
    return Match(partners, partners_beside, frozenset(excused))


def _is_mask(rle: Any) -> bool:
    try:
        validate_rle(rle["size"], rle["counts"])
    except (TypeError, ValueError):
        return False
    return True


def beside_output(shown: Collection, out: str, is_truth: bool) -> Comparison:
    """The comparison with another output of the same images."""
    return Comparison(shown, Collection.of(out), out, is_truth)


def beside_annotations(shown: Collection, config: EvaluateConfig) -> Comparison:
    """The comparison with a COCO annotation file; ConfigError as `raymask evaluate` raises it."""
    truth = read_annotations(config.annotations)
    uris = {number: uri for uri, number in match_images(Masks(config.out), truth).items()}
    rows: list[dict[str, Any]] = []
    crowds = set()
    seen: dict[int, int] = {}
    for one in truth.objects:
        uri = uris[one["image_id"]]
        number = image_id(uri)
        instance = seen[number] = seen.get(number, -1) + 1
        x, y, width, height = one["bbox"]
        if one["iscrowd"]:
            crowds.add((number, instance))
        rows.append(
            {
                **{"image_id": number, "uri": uri, "instance": instance, "score": 1.0},
                **{"category_id": one["category_id"], "category": truth.categories[one["category_id"]]},
                **{"x_min": x, "y_min": y, "x_max": x + width, "y_max": y + height},
                **{"area": int(one["area"]), "mask": _as_text(one["segmentation"])},
            }
        )
    connection = duckdb.connect()
    connection.register("annotated", pa.Table.from_pylist(rows, schema=INSTANCES))
    connection.execute("CREATE TABLE instances AS SELECT * FROM annotated")
    connection.unregister("annotated")
    return Comparison(shown, Collection(connection), config.annotations, True, frozenset(crowds))


def _as_text(rle: Mapping[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}
