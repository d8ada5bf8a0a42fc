"""The encoded bytes of images: whole objects, members of tar shards, cells of Parquet tables, many at a time.

A failure is a value: every row that goes in comes out, as bytes or as the reason why not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from raymask.errors import ErrorKind, Failure
from raymask.storage import is_local, resolve, retried

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


def fetch(places: Iterable[Place], *, max_bytes: int) -> Iterator[Fetched | Failure]:
    """The bytes of each place, in order. At most `REQUESTS_AT_ONCE` images are held ahead of the reader."""
    places = list(places)
    if all(is_local(resolve(p.container or p.uri)[0]) for p in places):
        # A local read is faster than the thread that would do it.
        return (fetch_one(place, max_bytes=max_bytes) for place in places)
    return _fetch_ahead(places, max_bytes)


def _fetch_ahead(places: list[Place], max_bytes: int) -> Iterator[Fetched | Failure]:
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for _, result in ahead(pool, lambda p: fetch_one(p, max_bytes=max_bytes), places, REQUESTS_AT_ONCE):
            yield result


def fetch_one(place: Place, *, max_bytes: int) -> Fetched | Failure:
    """The bytes of one image, or why they cannot be had. Overload and broken connections are retried with back-off."""
    try:
        if place.container_column is not None:
            return _limited(Fetched(_cell(place), place.etag), max_bytes)
        if place.container is not None:
            return _read_range(place, max_bytes)
        return _read_object(place, max_bytes)
    except FileNotFoundError:
        return Failure(ErrorKind.NOT_FOUND, "no such object")
    except PermissionError as error:
        return Failure(ErrorKind.FORBIDDEN, _said(error))
    except Exception as error:  # whatever a store's library raises: the reason goes into the row
        return Failure(ErrorKind.FETCH_FAILED, _said(error))


def _read_object(place: Place, max_bytes: int) -> Fetched | Failure:
    fs, path = resolve(place.uri)
    size, etag = place.size, place.etag
    if size is None:
        # Not listed, so the object is asked for its size before any of it is fetched.
        info = retried(lambda: fs.info(path))
        if info.get("type") == "directory":
            return Failure(ErrorKind.NOT_FOUND, "a folder, not a file")
        size = info.get("size")
        etag = str(info["ETag"]).strip('"') if info.get("ETag") else None
    if size is not None and size > max_bytes:
        return Failure(ErrorKind.TOO_MANY_BYTES, f"{size} bytes; the limit is {max_bytes} (--max-bytes)")
    data = _read_file(path) if is_local(fs) else retried(lambda: fs.cat_file(path))
    if size is not None and len(data) != size:
        return Failure(ErrorKind.CHANGED, f"{len(data)} bytes; it had {size} when it was listed")
    return _limited(Fetched(data, etag), max_bytes)


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _read_range(place: Place, max_bytes: int) -> Fetched | Failure:
    assert place.container is not None and place.position is not None and place.size is not None
    if place.size > max_bytes:
        return Failure(ErrorKind.TOO_MANY_BYTES, f"{place.size} bytes; the limit is {max_bytes} (--max-bytes)")
    if place.size == 0:
        return Failure(ErrorKind.EMPTY, "no bytes")
    fs, path = resolve(place.container)
    start, end = place.position, place.position + place.size
    data = retried(lambda: fs.cat_file(path, start=start, end=end))
    if len(data) != place.size:
        return Failure(ErrorKind.CHANGED, f"{len(data)} bytes of {place.size} are there; the shard is shorter now")
    return Fetched(data, place.etag)


def _cell(place: Place) -> bytes:
    assert place.container is not None and place.container_column is not None and place.position is not None
    value = _open_column(place.container, place.container_column).cell(place.position)
    return value or b""


class _ParquetColumn:
    """One column of a Parquet file, read by row number; holds the row group that was read last."""

    def __init__(self, url: str, column: str) -> None:
        fs, path = resolve(url)
        self._parquet = pq.ParquetFile(fs.open(path, "rb"))
        self._column = column
        counts = [self._parquet.metadata.row_group(i).num_rows for i in range(self._parquet.num_row_groups)]
        self._starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
        self._group: int | None = None
        self._values: pa.ChunkedArray | None = None

    def cell(self, row: int) -> bytes | None:
        group = next(i for i in range(len(self._starts) - 1) if self._starts[i] <= row < self._starts[i + 1])
        if group != self._group:
            self._values = None  # two row groups of images at once may not fit
            values = self._parquet.read_row_group(group, columns=[self._column]).column(0)
            if pa.types.is_struct(values.type):
                index = values.type.get_field_index("bytes")
                values = pa.chunked_array([c.field(index) for c in values.chunks])
            self._group, self._values = group, values
        assert self._values is not None
        cell: bytes | None = self._values[row - self._starts[group]].as_py()
        return cell


@lru_cache(maxsize=1)
def _open_column(url: str, column: str) -> _ParquetColumn:
    return _ParquetColumn(url, column)


def _limited(fetched: Fetched, max_bytes: int) -> Fetched | Failure:
    if not fetched.data:
        return Failure(ErrorKind.EMPTY, "no bytes")
    if len(fetched.data) > max_bytes:
        return Failure(ErrorKind.TOO_MANY_BYTES, f"{len(fetched.data)} bytes; the limit is {max_bytes} (--max-bytes)")
    return fetched


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def ahead(pool: ThreadPoolExecutor, call: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[tuple[T, R]]:
    """(item, call(item)) in order, with at most `count` calls running or waiting ahead of the reader."""
    running: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        running.append((item, pool.submit(call, item)))
        if len(running) >= count:
            done, future = running.popleft()
            yield done, future.result()
    for done, future in running:
        yield done, future.result()
