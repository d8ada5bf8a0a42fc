"""Published outputs for tests of lakes, made without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymask import publishing
from raymask.errors import ErrorKind, Failure
from raymask.journal import Manifest, NewRows, Run, create_run, journal_folder, read_run, write_part
from raymask.masks import EncodedMasks, encode
from raymask.schema import MANIFEST
from raymask.tables import DecodedRow, decoded_table, part_table

CATEGORIES = ((1, "person"), (18, "dog"))
FAILURE = Failure(ErrorKind.TRUNCATED, "because")


@dataclass(frozen=True)
class Found:
    """Objects in an image of 4 x 6 pixels."""

    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: EncodedMasks
    size_hw: tuple[int, int] = (4, 6)


def found(count: int) -> Found:
    """So many objects, another number of pixels each."""
    pixels = [np.arange(24).reshape(4, 6) < number % 25 for number in range(count)]
    return Found(
        boxes_xyxy=(np.arange(4 * count).reshape(count, 4) / 8).astype(np.float32),
        labels=np.arange(count, dtype=np.int64) % 2 + 1,
        scores=np.linspace(0.9, 0.1, count).astype(np.float32),
        masks=EncodedMasks([encode(p)["counts"] for p in pixels], np.array([p.sum() for p in pixels], np.int64)),
    )


def add_images(out: str, counts: list[int | None], user: Mapping[str, pa.Array] | None = None) -> None:
    """List images with so many objects each (None: it failed), with columns of the user's, and segment them."""
    run = Run(
        model="m",
        model_sha256="5c" * 32,
        categories=CATEGORIES,
        thresholds={},
        images_per_file=3,
        raymask_version="0",
    )
    create_run(out, run)
    manifest = Manifest.read(journal_folder(out))
    first = manifest.rows
    user = user or {}
    fields = [f for f in MANIFEST if f.name not in ("ordinal", "image_id")]
    columns = {f.name: pa.nulls(len(counts), f.type) for f in fields} | dict(user)
    columns["uri"] = pa.array([f"s3://bucket/straße/{first + n:03d} 犬.jpg" for n in range(len(counts))])
    rows = NewRows(first, manifest.seen_ids()).of([pa.record_batch(columns)])
    manifest.append({"source": str(first)}, rows)
    segment(out, dict(enumerate(counts, first)), attempt=0)


def segment(out: str, counts: Mapping[int, int | None], attempt: int) -> None:
    """Write a part of the journal: these ordinals, with so many objects each."""
    listed = Manifest.read(journal_folder(out)).read_rows(min(counts), max(counts) + 1, ["uri"]).column(0).to_pylist()
    pixels = np.zeros((4, 6, 3), np.uint8)
    decoded = [
        DecodedRow(
            ordinal, listed[ordinal - min(counts)], FAILURE if count is None else pixels, "png", 7, f"e{ordinal}"
        )
        for ordinal, count in counts.items()
    ]
    results = {row: found(count) for row, count in enumerate(counts.values()) if count is not None}
    write_part(journal_folder(out), part_table(decoded_table(decoded), results, CATEGORIES), attempt)


def publish_output(out: str) -> None:
    """What a run does in the end, with every task in this process."""
    run = read_run(out)
    assert run is not None
    with in_this_process():
        publishing.publish(out, run, Manifest.read(journal_folder(out)))


def in_this_process() -> Any:
    return mock.patch.object(publishing, "_on_the_cluster", lambda call, calls: (call(*each) for each in calls))
