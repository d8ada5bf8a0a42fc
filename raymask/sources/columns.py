"""The user's own columns, on their way from a table to the published one."""

from __future__ import annotations

import pyarrow as pa

from raymask.errors import ConfigError
from raymask.schema import user_column_name
from raymask.sources.stream import LISTED

MAX_LEVELS = 30


def user_fields_of(fields: list[pa.Field]) -> list[pa.Field]:
    """What the columns of a table are called, and of which type they are, behind raymask's own."""
    carried = [pa.field(user_column_name(f.name) or "unnamed", _plain(f.type)) for f in fields]
    check_unique([f.name.lower() for f in carried])
    return carried


def check_unique(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"the source has a column twice: {', '.join(twice)}; rename one (case tells none apart)")


def _plain(type: pa.DataType, levels: int = MAX_LEVELS) -> pa.DataType:
    """The type that a published table has for a column: encodings and extensions are the file's business."""
    if not levels:
        raise ConfigError(f"a column is nested more than {MAX_LEVELS} deep, which Parquet cannot hold; leave it out")
    if pa.types.is_null(type):
        return pa.string()
    if pa.types.is_dictionary(type):
        return _plain(type.value_type, levels)
    if isinstance(type, pa.BaseExtensionType):
        return _plain(type.storage_type, levels)
    if pa.types.is_struct(type):
        return pa.struct([pa.field(f.name, _plain(f.type, levels - 1)) for f in type])
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        make = pa.list_ if pa.types.is_list(type) else pa.large_list
        return make(_plain(type.value_type, levels - 1))
    return type


def with_user_columns(
    listed: pa.RecordBatch, batch: pa.RecordBatch, carried: list[pa.Field], user_fields: list[pa.Field]
) -> pa.RecordBatch:
    """Listed images with the columns `carried` of `batch` behind, as `user_fields`; null where it lacks one."""
    columns = [
        (batch.column(c.name) if c.name in batch.schema.names else pa.nulls(batch.num_rows)).cast(f.type)
        for c, f in zip(carried, user_fields, strict=True)
    ]
    joined = pa.record_batch([*listed.columns, *columns], schema=pa.schema([*LISTED, *user_fields]))
    joined.validate(full=True)  # Parquet takes any bytes for a string
    return joined


def check_no_other(found: list[str], known: list[str], url: str) -> None:
    others = [name for name in found if name not in known]
    if others:
        raise ConfigError(f"{url}: column {others[0]!r} comes up after rows without it; give every row and file one")
