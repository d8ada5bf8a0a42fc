"""The encoded bytes of images: whole objects, members of tar shards, cells of Parquet tables, many at a time.

A failure is a value: every row that goes in comes out, as bytes or as the reason why not.
"""

from __future__ import annotations

import tarfile
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymask.errors import ConfigError, ErrorKind, Failure
from raymask.faults import is_about_credentials, is_refusal
from raymask.storage import local_path, read_version, resolve, retried, said, stat
from raymask.timing import count

T = TypeVar("T")
R = TypeVar("R")

REQUESTS_AT_ONCE = 16


@dataclass(frozen=True)
class Place:
    """Where one image lies. `container` and `position` are None for an object of its own.

    uri: what the tables call it; size: bytes as listed, None when the listing does not say;
    position: byte offset in a tar shard, or row number in column `container_column` of a Parquet table.
    """

    uri: str
    size: int | None = None
    etag: str | None = None
    container: str | None = None
    container_column: str | None = None
    position: int | None = None


@dataclass(frozen=True)
class Fetched:
    """The encoded image. `etag` is the store's word for this version of it, None where it has none."""

    data: bytes
    etag: str | None


class _ImageError(Exception):
    """Ends the reading of an image with the failure that its row becomes."""

    def __init__(self, kind: ErrorKind, detail: str) -> None:
        super().__init__(detail)
        self.failure = Failure(kind, detail)


def fetch(places: Iterable[Place], *, max_bytes: int) -> Iterator[Fetched | Failure]:
    """The bytes of each place, in order. At most `REQUESTS_AT_ONCE` images are held ahead of the reader."""
    places = list(places)
    if all(p.container_column is not None or local_path(p.container or p.uri) is not None for p in places):
        # A local read is faster than the thread that would do it; cells share their row group one after the other.
        return (fetch_one(place, max_bytes=max_bytes) for place in places)
    return _fetch_ahead(places, max_bytes)


def _fetch_ahead(places: list[Place], max_bytes: int) -> Iterator[Fetched | Failure]:
    def answered(place: Place) -> tuple[Fetched | Failure, float]:
        start_s = time.perf_counter()
        return fetch_one(place, max_bytes=max_bytes), time.perf_counter() - start_s

    with ThreadPoolExecutor(REQUESTS_AT_ONCE, "fetch") as pool:
        for _, (result, seconds) in ahead(pool, answered, places, REQUESTS_AT_ONCE):
            count("requests")
            count("request_s", seconds)
            yield result


def fetch_one(place: Place, *, max_bytes: int) -> Fetched | Failure:
    """The bytes of one image, or why they cannot be had. Overload and broken connections are retried with back-off.

    ConfigError where the store does not take the credentials at all, as it would fail every image from now on.
    """
    try:
        if place.container_column is not None:
            return _read_cell(place, max_bytes)
        if place.container is not None:
            return _read_member(place, max_bytes)
        return _read_object(place, max_bytes)
    except _ImageError as error:
        return error.failure
    except (FileNotFoundError, NotADirectoryError):
        return Failure(ErrorKind.NOT_FOUND, "no such object")
    except Exception as error:  # whatever a store's library raises: the reason goes into the row
        if is_about_credentials(error):
            raise ConfigError(
                f"the store of {place.container or place.uri!r} does not take the credentials ({said(error)}); renew "
                f"them, then run the same command again, which goes on from what is done"
            ) from error
        return Failure(ErrorKind.FORBIDDEN if is_refusal(error) else ErrorKind.FETCH_FAILED, said(error)[:200])


def _read_object(place: Place, max_bytes: int) -> Fetched:
    size, etag = place.size, place.etag
    if size is None:
        # Not listed, so the object is asked for its size before any of it is fetched.
        found = stat(place.uri)
        if found.kind != "file" or place.uri.endswith("/"):
            raise _ImageError(ErrorKind.NOT_FOUND, "no file, but a folder or a device")
        size, etag = found.size, found.etag
    if size is None:  # some web servers do not say
        data, _ = read_version(place.uri)
        _check_size(len(data), max_bytes)
        return Fetched(data, etag)
    _check_size(size, max_bytes)
    data, version = read_version(place.uri, 0, size + 1)  # a byte more, to see whether it has grown
    if len(data) != size:
        found_bytes = f"{len(data)} bytes" if len(data) < size else "more bytes"
        raise _ImageError(ErrorKind.CHANGED, f"{found_bytes}; it had {size} when it was listed")
    _check_version(version, place.etag)
    return Fetched(data, version or etag)


def _read_member(place: Place, max_bytes: int) -> Fetched:
    assert place.container is not None and place.position is not None and place.size is not None
    _check_size(place.size, max_bytes)
    # With the member's header, which stands in the block before it, to see whether the shard is still the one listed.
    start = place.position - tarfile.BLOCKSIZE
    data, version = read_version(place.container, start, place.position + place.size)
    header, data = data[: tarfile.BLOCKSIZE], data[tarfile.BLOCKSIZE :]
    if len(data) != place.size or not _announces(header, place.size):
        raise _ImageError(
            ErrorKind.CHANGED, f"the shard holds no member of {place.size} bytes at {place.position} any more"
        )
    _check_version(version, place.etag)
    return Fetched(data, place.etag)


def _announces(header: bytes, size: int) -> bool:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size == size
    except tarfile.HeaderError:
        return False


def _check_version(version: str | None, listed: str | None) -> None:
    if None not in (version, listed) and version != listed:
        raise _ImageError(ErrorKind.CHANGED, f"its ETag is {version}; it was {listed} when it was listed")


def _check_size(size: int, max_bytes: int) -> None:
    if not size:
        raise _ImageError(ErrorKind.EMPTY, "no bytes")
    if size > max_bytes:
        raise _ImageError(ErrorKind.TOO_MANY_BYTES, f"{size} bytes; the limit is {max_bytes} (--max-bytes)")


# ------------------------------------------------------------------------------------------ cells of a Parquet table


def _read_cell(place: Place, max_bytes: int) -> Fetched:
    assert place.container is not None and place.container_column is not None and place.position is not None
    data = _open_column(place.container, place.container_column, place.etag).cell(place.position)
    _check_size(len(data), max_bytes)
    return Fetched(data, place.etag)


class _ParquetColumn:
    """One column of a Parquet file, read by row number; holds the row group that was read last, or why it could not.

    Only the leaf with the bytes is read: of a Hugging Face image, a struct of `bytes` and `path`, the field `bytes`.
    """

    def __init__(self, url: str, column: str) -> None:
        self._url = url
        self._column = column
        self._metadata: pq.FileMetaData = retried(lambda: self._read(None, lambda parquet: parquet.metadata))
        groups = range(self._metadata.num_row_groups)
        self._starts = list(accumulate((self._metadata.row_group(i).num_rows for i in groups), initial=0))
        self._lock = threading.Lock()
        self._group: int | None = None
        self._cells: pa.ChunkedArray | Exception | None = None

    def cell(self, row: int) -> bytes:
        group = bisect_right(self._starts, row) - 1
        if group == len(self._starts) - 1:
            raise _ImageError(ErrorKind.CHANGED, f"the table has no row {row} now")
        with self._lock:
            if group != self._group:
                self._cells = None  # two row groups of images at once may not fit
                self._cells, self._group = self._group_or_error(group), group
            if isinstance(self._cells, Exception):
                raise self._cells
            assert self._cells is not None
            cell: bytes | None = self._cells[row - self._starts[group]].as_py()
        return cell or b""

    def _group_or_error(self, group: int) -> pa.ChunkedArray | Exception:
        def cells(parquet: pq.ParquetFile) -> pa.ChunkedArray:
            is_struct = pa.types.is_struct(parquet.schema_arrow.field(self._column).type)
            leaf = f"{self._column}.bytes" if is_struct else self._column
            values = parquet.read_row_group(group, columns=[leaf]).column(self._column)
            return pc.struct_field(values, "bytes") if is_struct else values

        try:
            return retried(lambda: self._read(self._metadata, cells))
        except Exception as error:  # kept, so that the other rows of the group need not wait for it as well
            return error

    def _read(self, metadata: pq.FileMetaData | None, what: Callable[[pq.ParquetFile], R]) -> R:
        fs, path = resolve(self._url)
        # Parquet asks for what it needs; a cache between would read ahead, into the other columns.
        with fs.open(path, "rb", cache_type="none") as file, pq.ParquetFile(file, metadata=metadata) as parquet:
            return what(parquet)


@lru_cache(maxsize=1)
def _open_column(url: str, column: str, etag: str | None) -> _ParquetColumn:
    if etag is not None and stat(url).etag != etag:
        raise _ImageError(ErrorKind.CHANGED, "the table is not the one that was listed")
    return _ParquetColumn(url, column)


# ----------------------------------------------------------------------------------------------------- many at a time


def ahead(pool: ThreadPoolExecutor, call: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[tuple[T, R]]:
    """(item, call(item)) in order, with at most `count` calls running or waiting ahead of the reader.

    What still waits when the reader stops early is not begun any more.
    """
    running: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            running.append((item, pool.submit(call, item)))
            if len(running) >= count:
                done, future = running.popleft()
                yield done, future.result()
        while running:
            done, future = running.popleft()
            yield done, future.result()
    finally:
        for _, future in running:
            future.cancel()
