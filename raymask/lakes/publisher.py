"""From the published tables of an output to the tables of a lake.

A lake's table is brought to what `raymask.json` says: keys that it lacks are appended, keys that it has too much are
removed, in one commit, which fails if somebody else did the same meanwhile. So whatever was killed before, and whoever
else publishes, every row is there exactly once in the end. Nothing is remembered anywhere but in the rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import pyarrow as pa

from raymask.errors import ConfigError, OutputError, RaymaskError
from raymask.lakes.config import PublishConfig
from raymask.lakes.rows import TABLES, keyed_files, lake_schema, output_id, read_rows, shard_of
from raymask.progress import Reporter, Silent
from raymask.published import Published, PublishedFile, read_published
from raymask.state import status
from raymask.storage import absolute, join, said, used_plainly

MAX_RIVALS = 10  # how often another publisher may come between


@dataclass(frozen=True)
class TableChange:
    """What became of one table. rows: of this output, now; added: those of them that were not there before.

    replaced: how many of the output's files had other rows there before.
    """

    table: str
    location: str
    rows: int
    added: int
    replaced: int


class LakeTable(Protocol):
    """A table of a lake in the state in which it was opened."""

    @property
    def location(self) -> str: ...
    def keys(self, output: str) -> set[str]:
        """The keys of an output that are in it."""
        ...

    def commit(
        self,
        output: str,
        out: str,
        old: Sequence[str],
        new: Sequence[str],
        rows: Callable[[str], Iterator[pa.RecordBatch]],
    ) -> bool:
        """Remove the rows of the keys `old` and append those of `new`, in one commit; whether that was done.

        It is not, and nothing is, where another publisher has changed rows of these files meanwhile. old, new: all
        keys of the files concerned, those that were there and those that are wanted. out: noted beside the commit.
        """
        ...


Opener = Callable[[PublishConfig, str, pa.Schema], LakeTable]


def publish(config: PublishConfig, report: Reporter | None = None) -> list[TableChange]:
    """Publish an output as the options say; what became of both tables.

    OutputError if not all of its images are done (parquet), if nothing is published (delta, iceberg), or if the output
    or the lake cannot be used.
    """
    report = report or Silent()
    with used_plainly(config.out):
        if config.format == "parquet":
            return _finish(config, report)
        published = read_published(config.out)
        if published is None:
            raise OutputError(f"{config.out!r} has no published tables; `raymask publish {config.out}` makes them")
        output = output_id(config.out)
    opened = _opener(config.format)
    return [_bring_up_to_date(config, output, published, table, opened, report) for table in TABLES]


def _finish(config: PublishConfig, report: Reporter) -> list[TableChange]:
    """Publish what the journal has; Ray is started only if there is something to do."""
    state = status(config.out)
    if state.pending:
        raise OutputError(
            f"{state.pending:,} of {state.images:,} images of {config.out} are not done; run the segment command again"
        )
    before = after = read_published(config.out) or Published("", ())
    if not state.published:
        from raymask.publishing import finish

        on_progress = partial(_say_shards, report, "tables")
        after = finish(config.out, config.allow_open_cluster, on_progress)
    return [
        _change(
            table,
            join(config.out, f"{table}/*.parquet"),
            set(keyed_files("", before, table)),
            keyed_files("", after, table),
        )
        for table in TABLES
    ]


def _opener(format: str) -> Opener:
    try:
        if format == "delta":
            from raymask.lakes import delta

            return delta.open_table
        from raymask.lakes import iceberg

        return iceberg.open_table
    except ImportError as error:
        raise ConfigError(
            f"--format {format} needs a package ({error}): python -m pip install 'raymask[{format}]'"
        ) from error


def _bring_up_to_date(
    config: PublishConfig, output: str, published: Published, name: str, opened: Opener, report: Reporter
) -> TableChange:
    """Make one table hold the published rows of this output, once each."""
    with _lake_used_plainly(config):
        schema = lake_schema(config.out, name)
        wanted = keyed_files(output, published, name)
        for _ in range(MAX_RIVALS):
            table = opened(config, name, schema)
            there = table.keys(output)
            # Read now, for what is there may be newer than what was published when this began.
            if read_published(config.out) != published:
                raise OutputError(f"{config.out} was published anew meanwhile; run the same command again")
            touched = {shard_of(key) for key in there ^ wanted.keys()}
            old, new = ([key for key in sorted(keys) if shard_of(key) in touched] for keys in (there, wanted))
            if not touched:
                return _change(name, table.location, there, wanted)
            files = _Files(config.out, wanted, schema, partial(_say_shards, report, name), len(new))
            if table.commit(output, absolute(config.out), old, new, files.rows):
                return _change(name, table.location, there, wanted)
    raise OutputError(f"others change {table.location} all the time; stop them, then run the same command again")


@dataclass
class _Files:
    """The files to append, of which it is said how many were read."""

    out: str
    by_key: Mapping[str, PublishedFile]
    schema: pa.Schema
    on_progress: Callable[[int, int], None]
    count: int
    read: int = 0

    def rows(self, key: str) -> Iterator[pa.RecordBatch]:
        yield from read_rows(self.out, self.by_key[key], key, self.schema)
        self.read += 1
        self.on_progress(self.read, self.count)


def _say_shards(report: Reporter, table: str, done: int, of: int) -> None:
    report.live(f"{table}: {done:,} of {of:,} files", done, of)


def _change(table: str, location: str, there: set[str], wanted: Mapping[str, PublishedFile]) -> TableChange:
    return TableChange(
        table=table,
        location=location,
        rows=sum(file.rows for file in wanted.values()),
        added=sum(file.rows for key, file in wanted.items() if key not in there),
        replaced=len(there - wanted.keys()),
    )


@contextlib.contextmanager
def _lake_used_plainly(config: PublishConfig) -> Iterator[None]:
    """Turn whatever a lake's library raises into an OutputError that says what to do."""
    try:
        yield
    except RaymaskError:
        raise
    except Exception as error:  # the libraries have no exception of their own in common
        raise OutputError(
            f"cannot publish {config.out} to {config.to} ({said(error)}); mend that, then run the same command again, "
            f"which goes on from what is there"
        ) from error
