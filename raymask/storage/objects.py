"""What is known of single objects, their bytes with the version they are of, and listings of many."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from stat import S_ISDIR, S_ISREG
from typing import Any, NamedTuple

from raymask.faults import is_absence, is_beyond_end, s3_code
from raymask.storage.resolving import is_local, is_s3, resolve
from raymask.storage.retries import retried


@dataclass(frozen=True)
class Stat:
    """What is known of a file or an object without reading it.

    kind: "file", "directory", or "other" for what only pretends to be a file: a pipe, a socket, a device.
    etag: the store's word for this version; of a local file its modification time and size, as web servers do it.
    """

    kind: str
    size: int | None
    etag: str | None


def stat(url: str) -> Stat:
    """What `url` is; FileNotFoundError where there is nothing."""
    fs, path = resolve(url)
    if is_local(fs):
        return local_stat(os.stat(path))
    info = retried(lambda: _info(fs, path))
    return Stat(info["type"], info.get("size"), etag_of(info))


def _info(fs: Any, path: str) -> dict[str, Any]:
    """What the store says of an object; where it cannot, the reason in full."""
    try:
        info: dict[str, Any] = fs.info(path)
    except OSError as error:
        cause = error.__cause__
        if cause is not None and type(cause).__module__.startswith("aiohttp") and not is_absence(cause):
            raise cause from None  # of web servers fsspec says "not found", whatever happened
        if is_s3(fs) and s3_code(error) in ("400", "403"):
            fs.read_version(path, 0, 1)  # the answer to a HEAD has no room for the reason
        raise
    return info


def etag_of(info: Mapping[str, Any]) -> str | None:
    """The ETag in what a store says of an object, under the names that stores have for it."""
    return str(info.get("ETag") or info.get("etag") or "").strip('"') or None


def read_version(url: str, start: int | None = None, stop: int | None = None) -> tuple[bytes, str | None]:
    """Bytes start .. stop - 1, fewer where there are not so many, and the ETag of the version that they are of.

    The whole object without `start`. None for an ETag where the store does not say it together with the bytes.
    """
    fs, path = resolve(url)
    try:
        if is_local(fs):
            return retried(lambda: _read_file(path, start, stop))
        if is_s3(fs):
            data, etag = retried(lambda: fs.read_version(path, start, stop))
            return data, etag_of({"ETag": etag})
        return retried(lambda: fs.cat_file(path, start=start, end=stop)), None
    except Exception as error:
        if is_beyond_end(error):
            return b"", None
        raise


def _read_file(path: str, start: int | None, stop: int | None) -> tuple[bytes, str | None]:
    with open(path, "rb") as file:
        file.seek(start or 0)
        data = file.read() if stop is None else file.read(stop - (start or 0))
        return data, local_stat(os.fstat(file.fileno())).etag


def local_stat(status: os.stat_result) -> Stat:
    mode = status.st_mode
    kind = "file" if S_ISREG(mode) else "directory" if S_ISDIR(mode) else "other"
    return Stat(kind, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


def s3_pages(fs: Any, bucket: str, prefix: str, delimiter: str = "") -> Iterator[list[dict[str, Any]]]:
    """The objects whose keys begin with `prefix`, by key, a page at a time; the next is asked for when it is wanted.

    fs.ls would gather all of them in one list first. With a `delimiter` only keys without another one are listed.
    """
    request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter}
    while True:
        page = retried(lambda: fs.call_s3("list_objects_v2", **request))
        yield page.get("Contents", [])
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


class StoredObject(NamedTuple):
    """What a store lists of an object. put_s: Unix time at which it was put; None where the store does not say."""

    name: str
    size: int
    put_s: float | None


def objects_in(fs: Any, folder: str) -> Iterator[StoredObject]:
    if is_s3(fs):
        bucket, _, prefix = f"{folder}/".partition("/")
        for page in s3_pages(fs, bucket, prefix, delimiter="/"):
            objects = (StoredObject(o["Key"].removeprefix(prefix), o["Size"], _put_s(o)) for o in page)
            yield from (o for o in objects if o.name)
    elif is_local(fs):
        yield from sorted(_files_in(folder))
    else:
        entries = retried(lambda: fs.ls(folder, detail=True))
        files = (e for e in entries if e["type"] == "file")
        yield from sorted(StoredObject(e["name"].rsplit("/", 1)[-1], int(e["size"] or 0), _put_s(e)) for e in files)


def _put_s(info: Mapping[str, Any]) -> float | None:
    """The time in what a store says of an object, under the names that stores have for it."""
    names = ("LastModified", "last_modified", "updated", "mtime", "created")
    time = next((info[name] for name in names if info.get(name)), None)
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return time.timestamp() if isinstance(time, datetime) else time


def _files_in(folder: str) -> Iterator[StoredObject]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # the temporary name of a put that ended just now
                if entry.is_file():
                    status = entry.stat()
                    yield StoredObject(entry.name, status.st_size, status.st_mtime)
