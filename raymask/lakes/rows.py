"""The rows of a lake's tables: those of the published tables, each with the key of the file that it came from.

The key says which output, which shard of it, and which content: rows with the same key are the same rows, whoever
appended them. What a table has of an output, and what it lacks, follows from the keys in it alone.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from raymask.errors import ConfigError, OutputError
from raymask.journal import Manifest, journal_folder
from raymask.published import Published, PublishedFile
from raymask.schema import INSTANCES, images_schema
from raymask.storage import Folder

TABLES = ("instances", "images")  # in this order: an image is there once its instances are
KEY = "raymask_shard"

_ID_FILE = "id"
_ID = re.compile(r"[0-9a-f]{12}")
_DIGEST_CHARACTERS = 12


def output_id(out: str) -> str:
    """What tells this output from all others, 12 hexadecimal digits: drawn once, and kept in the output."""
    folder = journal_folder(out)
    there = folder.read_or_none(_ID_FILE) or folder.put_if_absent(_ID_FILE, uuid.uuid4().hex[:12].encode())
    text = there.decode(errors="replace")
    if not _ID.fullmatch(text):
        raise OutputError(f"{folder.url_of(_ID_FILE)} is damaged; put the id of the output there again, or delete it")
    return text


def keyed_files(output: str, published: Published, table: str) -> dict[str, PublishedFile]:
    """The files of a published table that have rows, by key."""
    return {
        f"{output}-{number:05d}-{file.sha256[:_DIGEST_CHARACTERS]}": file
        for number, file in enumerate(published.files(table))
        if file.rows
    }


def shard_of(key: str) -> str:
    """What the keys of one file have in common, whatever its content; no other key begins so."""
    return key[:-_DIGEST_CHARACTERS]


def lake_schema(out: str, table: str) -> pa.Schema:
    """The columns of a published table behind the key, in types that Delta and Iceberg have alike."""
    fields = INSTANCES if table == "instances" else images_schema(Manifest.read(journal_folder(out)).user_fields())
    if KEY in fields.names:
        raise ConfigError(f"{out} has a column {KEY} of its own, which lakes need for raymask's; leave it out")
    return pa.schema([pa.field(KEY, pa.string(), nullable=False), *(f.with_type(lake_type(f.type)) for f in fields)])


def lake_type(type: pa.DataType) -> pa.DataType:
    """The narrowest type with all values of `type` that Delta and Iceberg have alike.

    Both take unsigned numbers for signed ones of the same width, where they do not fit. Timestamps become
    microseconds; one that is not whole in them cannot be cast. A type that is not known here stays as it is.
    """
    if pa.types.is_int8(type) or pa.types.is_int16(type) or pa.types.is_uint8(type) or pa.types.is_uint16(type):
        return pa.int32()
    if pa.types.is_uint32(type):
        return pa.int64()
    if pa.types.is_uint64(type):
        return pa.decimal128(20, 0)
    if pa.types.is_float16(type):
        return pa.float32()
    if pa.types.is_timestamp(type):
        return pa.timestamp("us", "UTC" if type.tz else None)
    if pa.types.is_date64(type):
        return pa.date32()
    if pa.types.is_large_string(type) or pa.types.is_string_view(type):
        return pa.string()
    if pa.types.is_large_binary(type) or pa.types.is_binary_view(type) or pa.types.is_fixed_size_binary(type):
        return pa.binary()
    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        return pa.list_(lake_type(type.value_type))
    if pa.types.is_struct(type):
        return pa.struct([f.with_type(lake_type(f.type)) for f in type])
    return type


def read_rows(out: str, file: PublishedFile, key: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of one published file in `lake_schema`, a row group at a time.

    OutputError if the file is not the one that the index names, as where another run has replaced it meanwhile.
    """
    data = Folder(out).read(file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise OutputError(f"{out}/{file.path} is not what raymask.json says; run again once nobody publishes {out}")
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches():
        keys = pa.repeat(pa.scalar(key), batch.num_rows)
        named = dict(zip(batch.schema.names, batch.columns, strict=True)) | {KEY: keys}
        yield pa.record_batch([named[f.name].cast(f.type) for f in schema], schema=schema)
