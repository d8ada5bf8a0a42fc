"""An output of any size without a model: tables as raymask publishes them, filled with made-up images and objects.

    python benchmarks/generated.py OUT [--images 1000000] [--instances 10000000] [--seed 0]

Photos of three sizes, one in a hundred failed; in the others blobs of twenty categories, some of them rare, with masks
that are right: area, box and runs belong to each other. The journal holds the listing but no parts, so that the tables
are not stored twice. Equal arguments give equal bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymask.journal import Manifest, NewRows, Run, create_run, journal_folder, scan_parts
from raymask.masks import encode_soft_masks
from raymask.published import INDEX_FILE, Published, PublishedFile, Shard, plain_path
from raymask.schema import IMAGES, INSTANCES, MANIFEST, MASK, image_id, with_footer
from raymask.shards import parquet_bytes
from raymask.storage import Folder

IMAGES_PER_FILE = 20_000
SIZES_HW = ((480, 640), (640, 480), (1080, 1920))
MASKS_PER_SIZE = 2_000
ERRORS = ("truncated", "not_an_image", "not_found", "too_many_pixels")
FAILED_SHARE = 0.01
CATEGORIES = (
    *("person", "car", "chair", "book", "bottle", "cup", "bowl", "bird", "boat", "dog"),
    *("truck", "bench", "umbrella", "cat", "bicycle", "kite", "clock", "zebra", "bear", "toaster"),
)
RUN = Run(
    model="generated",
    model_sha256=hashlib.sha256(b"generated").hexdigest(),
    categories=tuple(enumerate(CATEGORIES, 1)),
    thresholds={"min_score": 0.05, "mask_threshold": 0.5, "max_detections": 100},
    images_per_file=IMAGES_PER_FILE,
    raymask_version="0.1.0",
)


def write_output(out: str, images: int, instances: int, seed: int = 0, prefix: str = "s3://photos") -> Published:
    """Write an output of so many images and instances, which lie in `prefix` by their names; it must be empty."""
    run, manifest = create_run(out, RUN), _listed(out, images, prefix)
    firsts = range(0, images, IMAGES_PER_FILE)
    bounds = [instances * first // images for first in (*firsts, images)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        shards = pool.map(
            _write_shard,
            [out] * len(firsts),
            [prefix] * len(firsts),
            [seed] * len(firsts),
            range(len(firsts)),
            (range(first, min(first + IMAGES_PER_FILE, images)) for first in firsts),
            np.diff(bounds).tolist(),
        )
        published = Published(scan_parts(manifest.folder, manifest.rows).fingerprint(), tuple(shards))
    Folder(out).put(INDEX_FILE, published.to_json(run))
    return published


def uri_of(number: int, prefix: str) -> str:
    return f"{prefix}/{number // 1000:05d}/{number:09d}.jpg"


def _listed(out: str, images: int, prefix: str) -> Manifest:
    fields = [f for f in MANIFEST if f.name not in ("ordinal", "image_id")]
    empty = Manifest(journal_folder(out), ())

    def batch(first: int) -> pa.RecordBatch:
        uris = pa.array([uri_of(n, prefix) for n in range(first, min(first + 100_000, images))])
        columns = [uris if f.name == "uri" else pa.nulls(len(uris), f.type) for f in fields]
        return pa.record_batch(columns, schema=pa.schema(fields))

    rows = NewRows(0, empty.seen_ids()).of(batch(first) for first in range(0, images, 100_000))
    return empty.append({"source": prefix}, rows)


@dataclass(frozen=True)
class Blobs:
    """Masks of one image size. masks: MASK; areas: N int64; boxes_xyxy: N x 4 float32 around their pixels."""

    masks: pa.Array
    areas: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]


@cache
def blobs(size_hw: tuple[int, int]) -> Blobs:
    """Rounded shapes of a fiftieth of the image's sides to nearly all of them, small ones more often."""
    chance = np.random.default_rng(size_hw)
    height, width = size_hw
    sides = np.exp(chance.uniform(np.log(1 / 50), np.log(0.9), (MASKS_PER_SIZE, 2))) * [width, height]
    corners = chance.uniform(0, 1, (MASKS_PER_SIZE, 2)) * ([width, height] - sides)
    boxes = np.hstack([corners, corners + sides]).astype(np.float32)
    y, x = np.mgrid[0:28, 0:28] / 13.5 - 1
    angle, distance = np.arctan2(y, x), np.hypot(y, x)
    waves, phases = chance.integers(2, 7, (MASKS_PER_SIZE, 1, 1)), chance.uniform(0, 6.3, (MASKS_PER_SIZE, 1, 1))
    rim = 0.8 + 0.15 * np.sin(waves * angle + phases)
    soft_masks = (1 / (1 + np.exp((distance - rim) * 20))).astype(np.float32)
    encoded = encode_soft_masks(soft_masks, boxes, size_hw)
    sizes = pa.array([list(size_hw)] * MASKS_PER_SIZE, MASK.field("size").type)
    masks = pa.StructArray.from_arrays([sizes, pa.array(encoded.counts)], fields=list(MASK))
    return Blobs(masks, encoded.areas, boxes)


def _write_shard(out: str, prefix: str, seed: int, number: int, ordinals: range, objects: int) -> Shard:
    chance = np.random.default_rng((seed, number))
    count = len(ordinals)
    uris = pa.array([uri_of(n, prefix) for n in ordinals])
    ids = pa.array([image_id(uri) for uri in uris.to_pylist()])
    failed = chance.random(count) < FAILED_SHARE
    failed[0] = False  # somebody has to have the objects
    errors = pa.array(np.array(ERRORS)[chance.integers(0, len(ERRORS), count)], mask=~failed)
    size = chance.choice(len(SIZES_HW), count, p=[0.5, 0.3, 0.2])
    heights, widths = np.array(SIZES_HW, np.int32)[size].T
    # Of each object its image, in order; then of each image how many.
    ok = np.flatnonzero(~failed)
    parents = np.sort(ok[chance.integers(0, len(ok), objects)])
    counts = np.bincount(parents, minlength=count).astype(np.int32)
    starts = np.cumsum(counts) - counts
    images = pa.table(
        {
            "image_id": ids,
            "uri": uris,
            "status": pa.array(np.where(failed, "failed", "ok")),
            "error": errors,
            "error_detail": pa.array(["generated"] * count, mask=~failed),
            "height": pa.array(heights, mask=failed),
            "width": pa.array(widths, mask=failed),
            "format": pa.array(["jpeg"] * count, mask=failed),
            "bytes": pa.array(chance.integers(20_000, 400_000, count)),
            "etag": pa.nulls(count, pa.string()),
            "instance_count": counts,
        },
        schema=IMAGES,
    )
    scores = chance.beta(2, 1.5, objects) * 0.95 + 0.05
    scores = scores[np.lexsort((-scores, parents))].astype(np.float32)
    rarity = 1 / np.arange(1, len(CATEGORIES) + 1)
    categories = chance.choice(len(CATEGORIES), objects, p=rarity / rarity.sum()).astype(np.int32)
    kinds = [blobs(size_hw) for size_hw in SIZES_HW]
    shapes = size[parents] * MASKS_PER_SIZE + chance.integers(0, MASKS_PER_SIZE, objects)
    boxes = np.concatenate([kind.boxes_xyxy for kind in kinds])[shapes]
    instances = pa.table(
        {
            "image_id": ids.take(pa.array(parents)),
            "uri": uris.take(pa.array(parents)),
            "instance": (np.arange(objects) - starts[parents]).astype(np.int32),
            "category_id": categories + 1,
            "category": pa.array(CATEGORIES).take(pa.array(categories)),
            "score": scores,
            **{name: boxes[:, side] for side, name in enumerate(("x_min", "y_min", "x_max", "y_max"))},
            "area": np.concatenate([kind.areas for kind in kinds])[shapes],
            "mask": pa.concat_arrays([kind.masks for kind in kinds]).take(pa.array(shapes)),
        },
        schema=INSTANCES,
    )
    files = {}
    for name, table in (("images", images), ("instances", instances)):
        data = parquet_bytes(table.cast(with_footer(table.schema, RUN.footer(name))))
        Folder(out).put(plain_path(name, number), data)
        entry = PublishedFile(plain_path(name, number), table.num_rows, len(data), hashlib.sha256(data).hexdigest())
        files[name] = entry
    kinds_of_error = Counter(error for error in errors.to_pylist() if error is not None)
    return Shard("generated", files["images"], files["instances"], len(ok), dict(sorted(kinds_of_error.items())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--instances", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.perf_counter()
    published = write_output(given.out, given.images, given.instances, given.seed)
    size = sum(file.bytes for table in ("images", "instances") for file in published.files(table))
    seconds = time.perf_counter() - start
    print(f"{published.images:,} images, {published.instances:,} instances, {size / 1e6:,.0f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    main()
