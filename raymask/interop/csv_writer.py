"""CSV: a row an instance, its mask as the text of its RLE."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from raymask.schema import INSTANCES

SCHEMA = pa.schema(
    [
        *(f for f in INSTANCES if f.name != "mask"),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("rle", pa.string()),
    ]
)


def write_csv(batches: Iterable[pa.RecordBatch], file: BinaryIO) -> None:
    """The rows of `instances`; instead of `mask` its size, `height` and `width`, and its text, `rle`."""
    with pyarrow.csv.CSVWriter(file, SCHEMA) as writer:
        for batch in batches:
            sizes = pc.struct_field(batch.column("mask"), "size")
            columns = {name: batch.column(name) for name in batch.schema.names}
            columns |= {"height": pc.list_element(sizes, 0), "width": pc.list_element(sizes, 1)}
            columns["rle"] = pc.struct_field(batch.column("mask"), "counts")
            writer.write_batch(pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA))
