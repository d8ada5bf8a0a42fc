"""Rows as Arrow tables: decoded images on their way to the model, results on their way to the journal, and the two
published tables made from the journal. No schema is inferred: empty and failed batches have the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymask.errors import Failure
from raymask.schema import IMAGES, INSTANCE_FIELDS, INSTANCES, MASK, OUTCOME_FIELDS, PART, image_id

# An image between decoding and the model: uint8 RGB, row by row, with its height and width beside it. timing: in the
# first row of a table what it took to make it, see `raymask.timing.Taken`.
DECODED = pa.schema(
    [
        *(f for f in PART if f.name not in ("status", "instances")),
        pa.field("pixels", pa.large_binary()),
        pa.field("timing", pa.string()),
    ]
)

INSTANCE_LIST = PART.field("instances").type


class Masks(Protocol):
    """N masks in COCO's compressed RLE, and their areas in pixels (N int64)."""

    @property
    def counts(self) -> Sequence[str]: ...
    @property
    def areas(self) -> NDArray[np.int64]: ...


class Found(Protocol):
    """The objects found in one image; see `raymask.model.Detections`."""

    @property
    def boxes_xyxy(self) -> NDArray[np.float32]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def scores(self) -> NDArray[np.float32]: ...
    @property
    def masks(self) -> Masks: ...
    @property
    def size_hw(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class DecodedRow:
    """One image after decoding. `result` is H x W x 3 uint8 pixels, or the reason why there are none."""

    ordinal: int
    uri: str
    result: NDArray[np.uint8] | Failure
    format: str | None = None
    bytes: int | None = None
    etag: str | None = None


def decoded_table(rows: Sequence[DecodedRow]) -> pa.Table:
    """Rows in `DECODED`; [] gives an empty table."""
    failures = [r.result if isinstance(r.result, Failure) else None for r in rows]
    images = [None if isinstance(r.result, Failure) else r.result for r in rows]
    columns = {
        "ordinal": [r.ordinal for r in rows],
        "uri": [r.uri for r in rows],
        "error": [f and f.kind.value for f in failures],
        "error_detail": [f and f.detail for f in failures],
        "height": [None if i is None else i.shape[0] for i in images],
        "width": [None if i is None else i.shape[1] for i in images],
        "format": [r.format for r in rows],
        "bytes": [r.bytes for r in rows],
        "etag": [r.etag for r in rows],
    }
    arrays = {name: pa.array(values, DECODED.field(name).type) for name, values in columns.items()}
    nothing = pa.nulls(len(rows), pa.string())
    return pa.table({**arrays, "pixels": _pixel_column(images), "timing": nothing}, schema=DECODED)


def timed(decoded: pa.Table, timing: str) -> pa.Table:
    """The same rows, one at least, with the text `timing` in the first."""
    texts = pa.array([timing, *[None] * (decoded.num_rows - 1)], pa.string())
    return decoded.set_column(decoded.schema.get_field_index("timing"), DECODED.field("timing"), texts)


def _pixel_column(images: Sequence[NDArray[np.uint8] | None]) -> pa.LargeBinaryArray:
    """Made of buffers: from a list of memoryviews pyarrow makes the same, but never lets go of them."""
    some = [image.reshape(-1) for image in images if image is not None]
    sizes = [0 if image is None else image.size for image in images]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    values = np.concatenate(some) if some else np.zeros(0, np.uint8)
    _, valid = pa.array([image is not None for image in images], pa.bool_()).buffers()
    buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.large_binary(), len(images), buffers)


def pixels_of(decoded: pa.Table) -> dict[int, NDArray[np.uint8]]:
    """Row number -> H x W x 3 uint8 read-only view into the table, for the rows that have pixels. None is copied."""
    heights, widths = decoded.column("height").to_pylist(), decoded.column("width").to_pylist()
    images: dict[int, NDArray[np.uint8]] = {}
    row = 0
    for chunk in decoded.column("pixels").chunks:
        # Of Arrow's buffers, for its scalars are copies. A slice shares them and starts at `chunk.offset`.
        _, bounds, values = chunk.buffers()
        for place, valid in enumerate(chunk.is_valid().to_pylist(), chunk.offset):
            if valid:
                start, stop = np.frombuffer(bounds, np.int64, 2, 8 * place).tolist()
                flat = np.frombuffer(values, np.uint8, stop - start, start)
                flat.flags.writeable = False  # Arrow shares its buffers on the word that nobody writes
                images[row] = flat.reshape(heights[row], widths[row], 3)
            row += 1
    return images


def part_table(
    decoded: pa.Table, results: Mapping[int, Found | Failure], categories: Sequence[tuple[int, str]]
) -> pa.Table:
    """Rows of the journal: each row of `decoded` with what the model made of it, in the schema `PART`.

    results: row number -> detections, or why the model could not; for every row but those that failed before it.
    categories: (id, name) of label 1, 2, ...
    """
    errors = decoded.column("error").to_pylist()
    details = decoded.column("error_detail").to_pylist()
    # An image that nobody looked at must not pass for one without objects.
    assert set(results) == {row for row, error in enumerate(errors) if error is None}
    found: list[Found | None] = [None] * len(errors)
    for row, result in results.items():
        if isinstance(result, Failure):
            errors[row], details[row] = result.kind.value, result.detail
        else:
            found[row] = result
    columns = {name: decoded.column(name).combine_chunks() for name in decoded.column_names if name in PART.names}
    columns |= {
        "status": pa.array(["ok" if e is None else "failed" for e in errors], pa.string()),
        "error": pa.array(errors, pa.string()),
        "error_detail": pa.array(details, pa.string()),
        "instances": _instance_lists(found, categories),
    }
    return pa.table([columns[f.name] for f in PART], schema=PART)


def _instance_lists(found: Sequence[Found | None], categories: Sequence[tuple[int, str]]) -> pa.ListArray:
    counts = [0 if f is None else len(f.scores) for f in found]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    some = [f for f in found if f is not None and len(f.scores)]
    if not some:
        return pa.ListArray.from_arrays(offsets, pa.array([], INSTANCE_LIST.value_type), type=INSTANCE_LIST)
    boxes = np.concatenate([f.boxes_xyxy for f in some]).astype(np.float32)
    labels = np.concatenate([f.labels for f in some]) - 1
    sizes = np.concatenate([np.tile(np.array(f.size_hw, np.int32), (len(f.scores), 1)) for f in some])
    size_lists = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 2 * len(sizes) + 1, 2, dtype=np.int32)), pa.array(sizes.reshape(-1), pa.int32())
    )
    counts_column = pa.array([text for f in some for text in f.masks.counts], pa.string())
    ids = pa.array([c[0] for c in categories], pa.int32())
    names = pa.array([c[1] for c in categories], pa.string())
    columns = {
        "instance": pa.array(np.concatenate([np.arange(len(f.scores)) for f in some]), pa.int32()),
        "category_id": ids.take(pa.array(labels)),
        "category": names.take(pa.array(labels)),
        "score": pa.array(np.concatenate([f.scores for f in some]), pa.float32()),
        "x_min": pa.array(boxes[:, 0]),
        "y_min": pa.array(boxes[:, 1]),
        "x_max": pa.array(boxes[:, 2]),
        "y_max": pa.array(boxes[:, 3]),
        "area": pa.array(np.concatenate([f.masks.areas for f in some]), pa.int64()),
        "mask": pa.StructArray.from_arrays([size_lists, counts_column], fields=list(MASK)),
    }
    structs = pa.StructArray.from_arrays([columns[f.name] for f in INSTANCE_FIELDS], fields=INSTANCE_FIELDS)
    return pa.ListArray.from_arrays(offsets, structs, type=INSTANCE_LIST)


def published_tables(part: pa.Table, manifest: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The `images` and `instances` rows of journal rows; one row of `part` for each row of `manifest`, in its order.

    manifest: columns uri and those of the user's manifest, which are carried behind raymask's own.
    """
    columns = {
        "image_id": pa.array([image_id(uri) for uri in part.column("uri").to_pylist()], pa.int64()),
        "uri": part.column("uri"),
        **{f.name: part.column(f.name) for f in OUTCOME_FIELDS},
        "instance_count": pc.list_value_length(part.column("instances")),
    }
    user_fields = [f for f in manifest.schema if f.name != "uri"]
    images = pa.table(
        [columns[f.name] for f in IMAGES] + [manifest.column(f.name) for f in user_fields],
        schema=pa.schema([*IMAGES, *user_fields]),
    )
    # Chunk by chunk: the masks of all rows may be more than the 2 GiB of text that one array can hold.
    return images, pa.Table.from_batches([_instances_of(batch) for batch in part.to_batches()], INSTANCES)


def _instances_of(part: pa.RecordBatch) -> pa.RecordBatch:
    lists, uris = part.column("instances"), part.column("uri")
    ids = pa.array([image_id(uri) for uri in uris.to_pylist()], pa.int64())
    parents = pc.list_parent_indices(lists)
    instances = lists.flatten()
    columns = [ids.take(parents), uris.take(parents), *(instances.field(f.name) for f in INSTANCE_FIELDS)]
    return pa.record_batch(columns, schema=INSTANCES)
