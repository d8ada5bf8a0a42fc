"""Objects of their own, below a folder or matched by a pattern."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import fsspec.utils

from raymask.errors import ConfigError
from raymask.sources.stream import Entry, Source, batched, ending_of, printable
from raymask.storage import Stat, etag_of, is_local, is_s3, local_stat, resolve, s3_pages


def listing_source(kind: str, entries: Iterable[Entry], accepted: frozenset[str] | None) -> Source:
    source = Source(kind, [])

    def rows() -> Iterator[tuple[Any, ...]]:
        for entry in entries:
            ending = ending_of(entry.url)
            if accepted is None or ending in accepted:
                yield entry.url, entry.size, entry.etag, None, None, None
            else:
                source.skip(ending or "no ending")

    source.batches = batched(rows())
    return source


def is_glob(path: str) -> bool:
    return any(c in path for c in "*?[")


def glob(pattern: str) -> Iterator[Entry]:
    """The files that `pattern` matches; `**` stands for any number of folders."""
    fs, path = resolve(pattern)
    matches = re.compile(fsspec.utils.glob_translate(path)).match
    folder, _, start = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")
    below = path.removeprefix(folder).strip("/")
    depth = None if "**" in below else below.count("/") + 1
    entries = walk(fs, folder or fs.root_marker, start, depth)
    return (entry for entry in entries if matches(resolve(entry.url)[1]))


def walk(fs: Any, folder: str, start: str = "", depth: int | None = None) -> Iterator[Entry]:
    """The files below `folder`, in the order of the store, or in a local folder of their names.

    start: how the path below `folder` begins; depth: how many levels to go down. Both may be ignored, as a hint.
    """
    if is_local(fs):
        return _walk_local(folder, depth)
    return _walk_s3(fs, folder, start, depth) if is_s3(fs) else _walk_any(fs, folder, depth)


def _walk_local(folder: str, depth: int | None, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Entry]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return  # a link back to a folder that it lies in
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        try:
            found = local_stat(os.stat(path))
        except OSError:
            found = Stat("file", None, None)  # a broken link, or gone again: a row that will say so
        if found.kind == "file":
            yield Entry(printable(path), found.size, found.etag)
        elif found.kind == "directory" and depth != 1:
            yield from _walk_local(path, depth and depth - 1, (*above, identity))


def _walk_s3(fs: Any, folder: str, start: str, depth: int | None) -> Iterator[Entry]:
    bucket, _, prefix = f"{folder}/{start}".partition("/")
    if not bucket:
        raise ConfigError("the source names no bucket; write it as s3://BUCKET/FOLDER")
    for page in s3_pages(fs, bucket, prefix, delimiter="/" if depth == 1 else ""):
        for item in page:
            if not item["Key"].endswith("/"):  # what consoles make to show a folder
                yield Entry(f"s3://{bucket}/{item['Key']}", item["Size"], etag_of(item))


def _walk_any(fs: Any, folder: str, depth: int | None) -> Iterator[Entry]:
    for _, _, files in fs.walk(folder, maxdepth=depth, detail=True, on_error="raise"):
        for name in sorted(files):
            info = files[name]
            yield Entry(fs.unstrip_protocol(info["name"]), info.get("size"), etag_of(info))
