"""Outputs made without a run: what raymask writes, of images and objects that are known beforehand."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymask.errors import ErrorKind, Failure
from raymask.journal import Manifest, NewRows, Run, create_run, journal_folder, scan_parts, write_part
from raymask.masks import EncodedMasks, encode
from raymask.protocol import plan_shards
from raymask.published import INDEX_FILE, Published
from raymask.publishing import publish_shard
from raymask.schema import MANIFEST, image_id
from raymask.storage import Folder
from raymask.tables import DecodedRow, decoded_table, part_table

Row = dict[str, Any]
Mask = NDArray[np.bool_]

CATEGORIES = ((1, "person"), (18, "dog"), (44, "bottle"))
USER_FIELDS = [pa.field("camera", pa.string()), pa.field("source_height", pa.float64())]
RUN = Run(
    model="maskrcnn_resnet50_fpn",
    model_sha256="5c" * 32,
    categories=CATEGORIES,
    thresholds={"min_score": 0.05, "mask_threshold": 0.5, "max_detections": 100},
    images_per_file=4,
    raymask_version="0.1.0",
)


@dataclass(frozen=True)
class Objects:
    """What a model finds in one image."""

    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    pixels: Sequence[Mask]
    size_hw: tuple[int, int]

    @property
    def masks(self) -> EncodedMasks:
        counts = [encode(mask)["counts"] for mask in self.pixels]
        return EncodedMasks(counts, np.array([mask.sum() for mask in self.pixels], np.int64))


@dataclass(frozen=True)
class Truth:
    """An output and what it must say. masks: by uri and number of the instance."""

    out: str
    images: list[Row]
    instances: list[Row]
    masks: dict[tuple[str, int], Mask]

    def rows(self, table: str) -> list[Row]:
        return self.images if table == "images" else self.instances

    def glob(self, table: str) -> str:
        return f"{self.out}/{table}/part-*.parquet"

    def files(self, table: str) -> list[str]:
        return sorted(glob.glob(self.glob(table)))


@dataclass(frozen=True)
class Content:
    """Images and what is found in them. listed: rows of a manifest; part: rows of the journal, one an image."""

    images: list[Row]
    instances: list[Row]
    masks: dict[tuple[str, int], Mask]
    listed: list[Row]
    part: pa.Table


PLAN = (3, "truncated", 0, 12, "out_of_memory", 1, 5, 2, "not_found", 0)


def make_truth(out: str) -> Truth:
    """Ten images in three files: many objects, few, none; failed before the model and in it. The last file has none."""
    content = make_content(PLAN)
    manifest = list_images(out, content.listed)
    # The later images first, and none of the parts as large as a file.
    for first in range(len(content.listed) - 3, -3, -3):
        write_part(manifest.folder, content.part.slice(max(first, 0), 3 + min(first, 0)), attempt=0)
    publish_all(out, manifest)
    return Truth(out, content.images, content.instances, content.masks)


def make_content(plan: Sequence[int | str], seed: int = 7) -> Content:
    """An image for each member of a plan: so many objects, or the kind of an error."""
    rng = np.random.default_rng(seed)
    images, instances, masks = [], [], {}
    decoded, results, listed = [], {}, []
    for ordinal, content in enumerate(plan):
        uri = f"s3://bucket/straße {ordinal % 3}/{ordinal:03d} 犬.jpg"
        height, width = rng.integers(3, 40, 2).tolist()
        failure = Failure(ErrorKind(content), f"because {ordinal}") if isinstance(content, str) else None
        no_pixels = failure is not None and failure.kind != ErrorKind.OUT_OF_MEMORY
        count = content if isinstance(content, int) else 0
        user = {"camera": None if ordinal == 2 else f"c{ordinal % 2}", "source_height": ordinal / 4}
        row: Row = {
            "status": "failed" if failure else "ok",
            "error": failure and failure.kind.value,
            "error_detail": failure and failure.detail,
            "height": None if no_pixels else height,
            "width": None if no_pixels else width,
            "format": None if no_pixels else "jpeg",
            "bytes": None if content == "not_found" else 1000 + ordinal,
            "etag": None if content == "not_found" else f"{ordinal:x}f",
            "instance_count": count,
        }
        key = {"image_id": image_id(uri), "uri": uri}
        images.append({**key, **row, **user})
        listed.append({"uri": uri, "size": row["bytes"], **user})
        pixels = failure if failure and no_pixels else np.zeros((height, width, 3), np.uint8)
        decoded.append(DecodedRow(ordinal, uri, pixels, row["format"], row["bytes"], row["etag"]))
        if no_pixels:
            continue
        found = made_up_objects(rng, count, (height, width))
        results[ordinal] = failure or found
        for number, mask in enumerate(found.pixels):
            masks[uri, number] = mask
            category_id, category = CATEGORIES[found.labels[number] - 1]
            box = dict(zip(("x_min", "y_min", "x_max", "y_max"), found.boxes_xyxy[number].tolist(), strict=True))
            score = float(found.scores[number])
            own = {"instance": number, "category_id": category_id, "category": category, "score": score, **box}
            instances.append({**key, **own, "area": int(mask.sum()), "mask": encode(mask)})
    part = part_table(decoded_table(decoded), results, CATEGORIES)
    return Content(images, instances, masks, listed, part)


def made_up_objects(rng: np.random.Generator, count: int, size_hw: tuple[int, int]) -> Objects:
    height, width = size_hw
    edges = np.sort(rng.random((count, 2, 2)), axis=1) * (width, height)
    return Objects(
        boxes_xyxy=edges.reshape(count, 4).astype(np.float32),
        labels=rng.integers(1, len(CATEGORIES) + 1, count),
        scores=np.sort(rng.uniform(0.05, 1, count).astype(np.float32))[::-1],
        pixels=[rng.random(size_hw) < rng.choice([0, 0.3, 0.9]) for _ in range(count)],
        size_hw=size_hw,
    )


def list_images(out: str, listed: list[Row]) -> Manifest:
    """Begin an output: its run and its manifest."""
    create_run(out, RUN)
    schema = pa.schema([*(f for f in MANIFEST if f.name not in ("ordinal", "image_id")), *USER_FIELDS])
    rows = [pa.RecordBatch.from_pylist(listed, schema=schema)]
    empty = Manifest.read(journal_folder(out))
    return empty.append({"source": "s3://bucket"}, NewRows(empty.rows, empty.seen_ids()).of(rows))


def publish_all(out: str, manifest: Manifest) -> None:
    """What publishing does for the first time, without Ray: shard by shard, then the index."""
    index = scan_parts(manifest.folder, manifest.rows)
    shards = []
    for plan in plan_shards(manifest.rows, RUN.images_per_file, index.parts):
        shards.append(publish_shard(out, RUN, manifest, plan, None)[1])
    Folder(out).put(INDEX_FILE, Published(index.fingerprint(), tuple(shards)).to_json(RUN))
