"""A Delta table as a lake's table. https://github.com/delta-io/delta/blob/master/PROTOCOL.md"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import deltalake
import pyarrow as pa
from deltalake.exceptions import CommitFailedError, DeltaError

from raymask.errors import ConfigError
from raymask.lakes.config import PublishConfig
from raymask.lakes.rows import KEY
from raymask.storage import absolute, join


class DeltaTable:
    """A table in the state in which it was opened."""

    def __init__(self, table: deltalake.DeltaTable, location: str, schema: pa.Schema) -> None:
        self.location = location
        self._table = table
        self._version = table.version()
        self._schema = schema

    def keys(self, output: str) -> set[str]:
        """The keys of an output that are in it."""
        query = f"SELECT DISTINCT {KEY} FROM rows WHERE {KEY} LIKE '{output}-%'"
        found = deltalake.QueryBuilder().register("rows", self._table).execute(query)
        return set(pa.table(found).column(KEY).to_pylist())

    def commit(
        self,
        output: str,
        out: str,
        old: Sequence[str],
        new: Sequence[str],
        rows: Callable[[str], Iterator[pa.RecordBatch]],
    ) -> bool:
        """See `publisher.LakeTable`."""
        application = f"raymask-{output}"
        version = self._table.transaction_version(application) or 0
        failures: list[Exception] = []
        batches = _noting(failures, itertools.chain.from_iterable(map(rows, new)))
        keys = ", ".join(f"'{key}'" for key in (*old, *new))
        mode: dict[str, Any] = {"mode": "overwrite", "predicate": f"{KEY} IN ({keys})"} if old else {"mode": "append"}
        try:
            deltalake.write_deltalake(
                self._table,
                pa.RecordBatchReader.from_batches(self._schema, batches),
                **mode,
                schema_mode="merge",
                writer_properties=deltalake.WriterProperties(compression="ZSTD", compression_level=1),
                # Of two commits that say the same application one fails, also where the other is its own first try.
                commit_properties=deltalake.CommitProperties(
                    custom_metadata={"raymask": out},
                    app_transactions=[deltalake.Transaction(application, version + 1)],
                ),
            )
        except CommitFailedError:
            if deltalake.DeltaTable(self._table.table_uri, storage_options=_options()).version() == self._version:
                raise  # nobody else has done anything
            return False
        except DeltaError as error:
            if failures:
                raise failures[0] from error  # of which deltalake makes a text
            raise
        return True


def open_table(config: PublishConfig, name: str, schema: pa.Schema) -> DeltaTable:
    """Open the Delta table `name` below `--to`, made with these columns if there is none.

    ConfigError if there is one that is not of `raymask publish`.
    """
    assert config.to is not None
    location = join(absolute(config.to), name)
    make = partial(
        deltalake.DeltaTable.create,
        location,
        deltalake.Schema.from_arrow(schema),
        mode="ignore",
        storage_options=_options(),
        # A second try would be written as version 1, over the columns of the table that another has made as version 0.
        commit_properties=deltalake.CommitProperties(max_commit_retries=0),
    )
    try:
        table = make()
    except CommitFailedError:
        table = make()  # which another has made meanwhile, or the first try, whose answer was lost
    if KEY not in [field.name for field in table.schema().fields]:
        raise ConfigError(f"{location} is a Delta table without a column {KEY}; choose another --to")
    return DeltaTable(table, location, schema)


def _noting(failures: list[Exception], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except Exception as error:
        failures.append(error)
        raise


def _options() -> dict[str, str]:
    """What deltalake does not find in the environment by itself."""
    return {"allow_http": "true"} if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://") else {}
