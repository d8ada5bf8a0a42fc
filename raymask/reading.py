"""Decoded images out of a manifest: it is cut into tasks, each of which fetches and decodes, for Ray Data to run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from raymask.decode import Image, keep_freed_memory
from raymask.errors import Failure
from raymask.fetch import Fetched, Place, fetch
from raymask.journal import Manifest, read_chunk
from raymask.journal.manifest import CHUNK_ROWS
from raymask.pools import Pool
from raymask.sandbox import borrowed_sandbox
from raymask.storage import Folder, used_plainly
from raymask.tables import DecodedRow, decoded_table, timed
from raymask.timing import count, each, stage, stopwatch

SHARES_OF_CALL = 16  # how many shares of a small run are made for each call that workers handle at once
TASK_ROWS = 512  # images of one fetch-and-decode task in a run of many; Ray Data takes 0.2 s to follow one by another
MAX_TASKS = 4_000  # of one run; Ray Data puts each into its store before the first begins, 4 ms each


def share_of(pending: int, pool: Pool) -> int:
    """Images that a worker is handed at once: as many as the pool says, but so few that there are many shares and no
    core or GPU ends long after the others. A power of two, so that whole shares make up a task.
    """
    return floor_power_of_two(min(pool.images_per_part, pending // (SHARES_OF_CALL * pool.calls)))


def floor_power_of_two(number: int) -> int:
    """The largest power of two up to `number`, and at least 1."""
    return 1 << max(0, number.bit_length() - 1)


CHUNK = np.dtype([("file", np.int32), ("start", np.int64), ("rows", np.int32), ("first_ordinal", np.int64)])


def plan_chunks(manifest: Manifest, wanted: NDArray[np.bool_], calls: int, images_per_part: int) -> NDArray[np.void]:
    """The manifest cut into tasks, those left out that have nothing to do. A record an item, of dtype `CHUNK`.

    Small enough that every worker gets many (so that none ends long after the others), large enough that a task is
    worth its start; each within one row group of the manifest.
    """
    pending = int(wanted.sum())
    rows = min(floor_power_of_two(images_per_part), CHUNK_ROWS)
    while rows < CHUNK_ROWS and (
        (rows < TASK_ROWS and pending > 2 * SHARES_OF_CALL * calls * rows) or pending > MAX_TASKS * rows
    ):
        rows *= 2
    chunks = []
    for number, file in enumerate(manifest.files):
        starts = np.arange(0, file.rows, rows)
        counts = np.add.reduceat(wanted[file.first_ordinal : file.first_ordinal + file.rows].astype(np.int32), starts)
        chosen = starts[counts > 0]
        records = np.zeros(len(chosen), CHUNK)
        records["file"] = number
        records["start"] = chosen
        records["rows"] = np.minimum(rows, file.rows - chosen)
        records["first_ordinal"] = file.first_ordinal + chosen
        chunks.append(records)
    return np.concatenate(chunks)


@dataclass(frozen=True)
class Reading:
    """How tasks read images.

    folder: the journal. wanted: reference to one bit an image, by ordinal. as_listed: whether an object must still be
    the one that was listed, as it need not where a failed image is tried again. rows_per_block: how many images travel
    together; room_bytes: unless their pixels are more, see `Sandbox.blocks`. decoder: see `Sandbox`.
    """

    folder: Folder
    wanted: ray.ObjectRef[NDArray[np.uint8]]
    as_listed: bool
    max_bytes: int
    max_pixels: int
    rows_per_block: int
    room_bytes: int
    decoder: str


class ImageSource(Datasource):
    """The wanted images of a manifest, fetched and decoded: a Ray Data source with a read task for each chunk.

    files: the names of the manifest's; chunks: of dtype `CHUNK`.
    """

    def __init__(self, reading: Reading, files: list[str], chunks: NDArray[np.void]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reading = reading
        self.files = files
        self.chunks = chunks

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One task a chunk, whatever parallelism Ray proposes: the chunks were made to fit."""
        return [
            ReadTask(
                partial(
                    read_images,
                    self.reading,
                    file=self.files[int(chunk["file"])],
                    start=int(chunk["start"]),
                    rows=int(chunk["rows"]),
                    first_ordinal=int(chunk["first_ordinal"]),
                ),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
            )
            for chunk in self.chunks
        ]


def read_images(reading: Reading, *, file: str, start: int, rows: int, first_ordinal: int) -> Iterator[pa.Table]:
    """Fetch and decode the wanted images of one chunk of a manifest file; yields tables in `DECODED`."""
    keep_freed_memory()
    first_bit = first_ordinal % 8
    bits = np.unpackbits(ray.get(reading.wanted)[first_ordinal // 8 : (first_ordinal + rows + 7) // 8])
    flags = bits[first_bit : first_bit + rows].astype(bool)
    with stopwatch("read") as watch:
        with used_plainly(reading.folder.url), stage("fetch"):
            listed = read_chunk(reading.folder, file, start, rows).filter(pa.array(flags)).to_pylist()
        places = [
            Place(r["uri"], r["size"], r["etag"], r["container"], r["container_column"], r["position"])
            if reading.as_listed or r["container"]
            else Place(r["uri"])
            for r in listed
        ]
        with borrowed_sandbox(
            max_bytes=reading.max_bytes,
            max_pixels=reading.max_pixels,
            room_bytes=reading.room_bytes,
            decoder=reading.decoder,
        ) as sandbox:
            fetched = each("fetch", fetch(places, max_bytes=reading.max_bytes))
            files = (_without_data(row, file) for row, file in zip(listed, fetched, strict=True))
            for block in each("decode", sandbox.blocks(files, reading.rows_per_block)):
                with stage("pack"):
                    table = decoded_table(
                        [decoded_row(r["ordinal"], r["uri"], image, size, etag) for (r, size, etag), image in block]
                    )
                count("read", table.num_rows)
                yield timed(table, watch.take().to_json())


def _without_data(
    row: dict[str, Any], fetched: Fetched | Failure
) -> tuple[tuple[dict[str, Any], int | None, str | None], bytes | Failure]:
    """What a row of the tables says of a file, and beside it the file, which need not be held as long."""
    if isinstance(fetched, Failure):
        return (row, None, None), fetched
    count("bytes", len(fetched.data))
    return (row, len(fetched.data), fetched.etag), fetched.data


def decoded_row(ordinal: int, uri: str, image: Image | Failure, size: int | None, etag: str | None) -> DecodedRow:
    """One image decoded, or the reason why not: fetching and decoding fail alike, into the row."""
    if isinstance(image, Failure):
        return DecodedRow(ordinal, uri, image, bytes=size, etag=etag)
    return DecodedRow(ordinal, uri, image.pixels, image.format, size, etag)
