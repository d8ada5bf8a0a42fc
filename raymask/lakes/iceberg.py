"""An Iceberg table as a lake's table. https://iceberg.apache.org/spec/"""

from __future__ import annotations

import contextlib
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError, ValidationException
from pyiceberg.expressions import (
    AlwaysFalse,
    And,
    BooleanExpression,
    GreaterThanOrEqual,
    LessThan,
    Or,
    Reference,
    StartsWith,
)
from pyiceberg.expressions.literals import literal
from pyiceberg.table import Table
from sqlalchemy.exc import DBAPIError

from raymask.errors import ConfigError
from raymask.lakes.config import PublishConfig
from raymask.lakes.rows import KEY, shard_of
from raymask.storage import absolute, local_path

# In full, so that the bounds of a file say its key; by default Iceberg keeps the first 16 characters.
_PROPERTIES = {f"write.metadata.metrics.column.{KEY}": "full"}

MAKERS = 3  # how often another may be faster to make the catalog, the namespace or the table, which SQL refuses then


class IcebergTable:
    """A table in the state in which it was opened."""

    def __init__(self, table: Table, schema: pa.Schema) -> None:
        self.location = ".".join(table.name())
        self._table = table
        self._columns = schema.names

    def keys(self, output: str) -> set[str]:
        """The keys of an output that are in it."""
        scan = self._table.scan(
            row_filter=StartsWith(term=Reference(KEY), value=literal(f"{output}-")), selected_fields=(KEY,)
        )
        field = self._table.schema().find_field(KEY).field_id
        bounds = [(t.file.lower_bounds.get(field), t.file.upper_bounds.get(field)) for t in scan.plan_files()]
        if all(low is not None and low == high for low, high in bounds):
            return {low.decode() for low, _ in bounds if low is not None}
        # Somebody has compacted the table, so that files hold rows of several keys.
        return {key for batch in scan.to_arrow_batch_reader() for key in batch.column(0).unique().to_pylist()}

    def commit(
        self,
        output: str,
        out: str,
        old: Sequence[str],
        new: Sequence[str],
        rows: Callable[[str], Iterator[pa.RecordBatch]],
    ) -> bool:
        """See `publisher.LakeTable`."""
        properties = {"raymask.out": out, "raymask.output-id": output}
        written: list[str] = []
        try:
            written.extend(self._write(key, rows(key)) for key in new)
            with self._table.transaction() as transaction:
                # pyiceberg tries an append again behind whatever was committed meanwhile. A delete is checked first,
                # and fails where rows that it speaks of have come: hence also of files of which nothing is there.
                files = sorted({shard_of(key) for key in (*old, *new)})
                with _nothing_to_delete():
                    transaction.delete(
                        Or(AlwaysFalse(), AlwaysFalse(), *map(_begins_with, files)), snapshot_properties=properties
                    )
                if written:
                    transaction.add_files(written, snapshot_properties=properties, check_duplicate_files=False)
        except (CommitFailedException, ValidationException):
            for path in written:
                self._table.io.delete(path)
            return False
        return True

    def _write(self, key: str, batches: Iterator[pa.RecordBatch]) -> str:
        """Write one data file; returns its location.

        One by one, since `Table.append` would read the whole stream into memory first.
        """
        path = self._table.location_provider().new_data_location(f"{key}-{uuid.uuid4().hex[:8]}.parquet")
        columns = self._table.schema().as_arrow()
        schema = pa.schema([columns.field(name) for name in self._columns])
        with (
            self._table.io.new_output(path).create() as file,
            pq.ParquetWriter(file, schema, compression="zstd", store_schema=False) as writer,
        ):
            for batch in batches:
                writer.write_table(pa.Table.from_batches([batch]).cast(schema))
        return path


def open_table(config: PublishConfig, name: str, schema: pa.Schema) -> IcebergTable:
    """Open the Iceberg table `name` of the namespace `--to`, made with these columns if there is none.

    Columns that it does not have yet are added to it. ConfigError if it is not one of `raymask publish`.
    """
    for _ in range(MAKERS):
        with contextlib.suppress(DBAPIError):
            return _open(config, name, schema)
    return _open(config, name, schema)


def _open(config: PublishConfig, name: str, schema: pa.Schema) -> IcebergTable:
    assert config.to is not None
    catalog = _catalog(config)
    identifier = f"{config.to}.{name}"
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        if not catalog.namespace_exists(config.to):
            catalog.create_namespace_if_not_exists(config.to)
        table = catalog.create_table_if_not_exists(identifier, schema, properties=_PROPERTIES)
    there = table.schema().column_names
    if KEY not in there:
        raise ConfigError(f"{identifier} is an Iceberg table without a column {KEY}; choose another --to")
    missing = [field for field in schema if field.name not in there]
    if missing:
        with table.update_schema() as update:
            update.union_by_name(pa.schema(missing))
    return IcebergTable(table, schema)


def _catalog(config: PublishConfig) -> Catalog:
    if not config.is_sql_catalog:
        return load_catalog(config.catalog)
    assert config.catalog is not None and config.warehouse is not None
    path = local_path(config.warehouse)
    warehouse = absolute(config.warehouse) if path is None else f"file://{path}"
    store: dict[str, str] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:  # which pyiceberg does not look for; and without a region it asks AWS where the bucket is
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        store = {"s3.endpoint": endpoint, "s3.region": region}
    return load_catalog("default", type="sql", uri=config.catalog, warehouse=warehouse, **store)


def _begins_with(prefix: str) -> BooleanExpression:
    """Keys with this prefix, as a range, which the bounds of a file can fulfil so that the file need not be read."""
    behind = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    key = Reference(KEY)
    return And(
        GreaterThanOrEqual(term=key, value=literal(prefix)),
        LessThan(term=key, value=literal(behind)),
    )


@contextlib.contextmanager
def _nothing_to_delete() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Delete operation did not match any records")
        yield
