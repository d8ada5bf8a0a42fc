"""What all sources have in common: the stream they become, the names of files, and how errors are said."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from raymask.config import SegmentConfig
from raymask.errors import ConfigError, RaymaskError
from raymask.faults import is_refusal, is_transient
from raymask.schema import MANIFEST
from raymask.storage import absolute, check_no_credentials, join, local_path, said
from raymask.urls import is_web

BATCH_ROWS = 10_000

LISTED = pa.schema([f for f in MANIFEST if f.name not in ("ordinal", "image_id")])


class Entry(NamedTuple):
    """One object of a listing; `etag` changes when the object does."""

    url: str
    size: int | None
    etag: str | None


@dataclass
class Source:
    """A stream of listed images. `batches` can be read once; `skipped` counts what the filter left out so far.

    batches: record batches of `LISTED` columns, then `user_fields`.
    """

    kind: str
    user_fields: list[pa.Field]
    batches: Iterator[pa.RecordBatch] = field(default_factory=lambda: iter(()))
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, ending: str, count: int = 1) -> None:
        """Count files that are left out. Endings are the user's data: their number has to be bounded too."""
        key = ending if ending in self.skipped or len(self.skipped) < 20 else "other"
        self.skipped[key] = self.skipped.get(key, 0) + count


def batched(rows: Iterable[tuple[Any, ...]], user_fields: Iterable[pa.Field] = ()) -> Iterator[pa.RecordBatch]:
    """Batches of rows that hold the values of `LISTED` and then of `user_fields`."""
    rows = iter(rows)
    while page := list(islice(rows, BATCH_ROWS)):
        yield listed_batch(page, user_fields)


def listed_batch(rows: list[tuple[Any, ...]], user_fields: Iterable[pa.Field] = ()) -> pa.RecordBatch:
    schema = pa.schema([*LISTED, *user_fields])
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def sliced(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `BATCH_ROWS` at the most, and none without rows."""
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def accepted_endings(config: SegmentConfig) -> frozenset[str] | None:
    """Endings of the files to take from folders and tar shards; None takes every file."""
    endings = frozenset("." + e.strip().lower().lstrip(".") for e in config.extensions)
    return None if endings == {".all"} else endings


def ending_of(url: str) -> str:
    """What follows the last dot of a name, in lower case and with the dot; of packed tars what follows the last two."""
    stem, ending = os.path.splitext(url.rsplit("/", 1)[-1].lower())
    return f".tar{ending}" if stem.endswith(".tar") else ending


def anchor(root: str, allow_http: bool = False) -> Callable[[str], str]:
    """What makes of a uri in a manifest one that stands alone: relative ones are below `root`.

    ConfigError for a uri with credentials, and for one of a web server unless `allow_http`.
    """
    root = absolute(root)

    def anchored(uri: str) -> str:
        stands_alone = uri.startswith(("/", "file://")) or local_path(uri) is None
        uri = absolute(uri if stands_alone else join(root, uri))
        check_no_credentials(uri)
        if is_web(uri) and not allow_http:
            raise ConfigError(f"{uri} is to be read from a web server, which only `raymask segment --allow-http` does")
        return uri

    return anchored


def printable(path: str) -> str:
    """A file name may be any bytes; what is not UTF-8 is escaped (and a file will not be found under that name)."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_plainly(what: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    with said_plainly(what):
        yield from batches


@contextlib.contextmanager
def said_plainly(what: str, format: str | None = None) -> Iterator[None]:
    """Turn what is raised inside into a ConfigError that names the source and says what to do."""
    try:
        yield
    except RaymaskError:
        raise
    except Exception as error:  # of any store's library, or of a parser on any input
        why = said(error)
        if isinstance(error, FileNotFoundError):
            raise ConfigError(f"{what} does not exist ({error}); check the name") from error
        if is_refusal(error):
            raise ConfigError(f"no permission to read {what} ({why}); check its permissions and your keys") from error
        if is_transient(error):
            raise ConfigError(f"cannot reach {what} ({why}); check endpoint and network, and run again") from error
        as_format = f" as {format}" if format else ""
        raise ConfigError(f"cannot read {what}{as_format} ({why}); repair it or leave it out") from error
