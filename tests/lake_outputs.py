"""Published outputs for tests of lakes, made without Ray, and publishers that are killed. Light to import: see `kill`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from raymask import publishing
from raymask.errors import ErrorKind, Failure
from raymask.journal import Manifest, NewRows, Run, create_run, journal_folder, write_part
from raymask.lakes import publisher
from raymask.lakes.config import PublishConfig
from raymask.masks import EncodedMasks, encode
from raymask.schema import MANIFEST
from raymask.tables import DecodedRow, decoded_table, part_table

CATEGORIES = ((1, "person"), (18, "dog"))
FAILURE = Failure(ErrorKind.TRUNCATED, "because")


class Found:
    """Objects in an image of 4 x 6 pixels, another number of pixels each."""

    size_hw = (4, 6)

    def __init__(self, count: int) -> None:
        self.boxes_xyxy = np.arange(4 * count, dtype=np.float32).reshape(count, 4) / 8
        self.labels = np.arange(count, dtype=np.int64) % 2 + 1
        self.scores = np.linspace(0.9, 0.1, count, dtype=np.float32)
        pixels = [np.arange(24).reshape(4, 6) < number % 25 for number in range(count)]
        self.masks = EncodedMasks([encode(p)["counts"] for p in pixels], np.array([p.sum() for p in pixels], np.int64))


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
    results = {row: Found(count) for row, count in enumerate(counts.values()) if count is not None}
    write_part(journal_folder(out), part_table(decoded_table(decoded), results, CATEGORIES), attempt)


def publish_output(out: str) -> None:
    """What a run does in the end, with every task in this process."""
    run = publishing.read_run(out)
    assert run is not None
    with in_this_process():
        publishing.publish(out, run, Manifest.read(journal_folder(out)))


def in_this_process() -> Any:
    return mock.patch.object(publishing, "_on_the_cluster", lambda call, calls: (call(*each) for each in calls))


class Points:
    """Counts how often a publisher comes by a place at which it may be killed, and kills it at the wanted one."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.passed = wanted, 0

    def reach(self) -> None:
        self.passed += 1
        if self.passed == self.wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def with_points(*arguments: Any, **options: Any) -> Any:
            self.reach()
            answer = plain(*arguments, **options)
            self.reach()
            return answer

        setattr(owner, name, with_points)


def publish_until_killed(options: dict[str, Any], point: int) -> None:
    """Publish in this process, which dies at the point of this number, or ends if there are not so many."""
    points = Points(point)
    plain = publisher.read_rows

    def read_rows(*arguments: Any) -> Iterator[pa.RecordBatch]:
        for batch in plain(*arguments):
            points.reach()
            yield batch

    publisher.read_rows = read_rows  # in the middle of the data
    if options["format"] == "delta":
        import deltalake

        points.around(deltalake.DeltaTable, "create")
        points.around(deltalake, "write_deltalake")
    else:
        from pyiceberg.catalog.sql import SqlCatalog

        points.around(SqlCatalog, "create_table")
        points.around(SqlCatalog, "commit_table")
        points.around(SqlCatalog, "_write_metadata")  # in the middle of a commit
    publisher.publish(PublishConfig(**options))
