"""Parquet: manifests, and tables that hold the encoded images in a column."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from raymask.config import SegmentConfig
from raymask.errors import ConfigError
from raymask.sources.columns import check_no_other, check_unique, user_fields_of, with_user_columns
from raymask.sources.manifests import manifest_source
from raymask.sources.stream import BATCH_ROWS, Entry, Source, listed_batch, said_plainly, sliced
from raymask.storage import resolve


def parquet_source(files: list[Entry], config: SegmentConfig) -> Source:
    schema = _parquet_schema(files[0].url)
    check_unique(schema.names)
    if "uri" in schema.names and config.image_column is None:
        return manifest_source(files, config, _parquet_batches)
    return _image_table_source(files, schema, config)


def _image_table_source(files: list[Entry], schema: pa.Schema, config: SegmentConfig) -> Source:
    """Parquet tables that hold the encoded images themselves, in a column of bytes."""
    column = _image_column(files[0].url, schema, config.image_column)
    carried = [f for f in schema if f.name != column and not _holds_bytes(f.type)]
    names = [f.name for f in carried]
    user_fields = user_fields_of(carried)

    def rows() -> Iterator[pa.RecordBatch]:
        for file in files:
            schema = _parquet_schema(file.url)
            _image_column(file.url, schema, column)
            check_no_other([f.name for f in schema if not _holds_bytes(f.type)], names, file.url)
            row = 0
            # With no column to carry the batches still have their row counts.
            for batch in sliced(_parquet_batches(file.url, names)):
                places = range(row, row + batch.num_rows)
                listed = listed_batch([(f"{file.url}#{i}", None, file.etag, file.url, column, i) for i in places])
                yield with_user_columns(listed, batch, carried, user_fields)
                row += batch.num_rows

    return Source("table of images", user_fields, rows())


def _image_column(url: str, schema: pa.Schema, wanted: str | None) -> str:
    names = [f.name for f in schema if _holds_bytes(f.type)]
    if wanted is not None:
        if wanted not in names:
            raise ConfigError(f"{url} has no column {wanted!r} of bytes; those are: {', '.join(names) or 'none'}")
        return wanted
    if len(names) != 1:
        found = f"more than one column of bytes ({', '.join(names)})" if names else "no column of bytes"
        raise ConfigError(f"{url} has no column 'uri' and {found}; name it with --image-column")
    [name] = names
    return str(name)


def _holds_bytes(type: pa.DataType) -> bool:
    """Plain binary, or a struct with a binary field `bytes` as the Hugging Face image feature has."""
    if pa.types.is_struct(type):
        index = type.get_field_index("bytes")
        return index >= 0 and _is_binary(type.field(index).type)
    return _is_binary(type)


def _is_binary(type: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_binary_view(type))


def _parquet_schema(url: str) -> pa.Schema:
    with _opened(url) as parquet:
        return parquet.schema_arrow


def _parquet_batches(url: str, names: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file, or only the columns `names` of it; first a batch without rows, for its schema."""
    with _opened(url) as parquet:
        yield pa.RecordBatch.from_pylist([], schema=parquet.schema_arrow)
        yield from parquet.iter_batches(BATCH_ROWS, columns=names)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[pq.ParquetFile]:
    fs, path = resolve(url)
    # Parquet asks for what it needs; a cache between would read ahead, into columns of images.
    with (
        said_plainly(url, "Parquet"),
        fs.open(path, "rb", cache_type="none") as file,
        pq.ParquetFile(file, pre_buffer=True) as parquet,
    ):
        yield parquet
