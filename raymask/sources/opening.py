"""What a source is: from its name, and from what is there under it."""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from braceexpand import braceexpand

from raymask.config import SegmentConfig
from raymask.errors import ConfigError
from raymask.fetch import ahead
from raymask.sources.annotations import coco_source
from raymask.sources.listings import glob, is_glob, listing_source, walk
from raymask.sources.manifests import csv_source, json_lines_source, tsv_source
from raymask.sources.parquet import parquet_source
from raymask.sources.shards import packed_tar_source, tar_source
from raymask.sources.stream import Entry, Source, accepted_endings, ending_of, read_plainly, said_plainly
from raymask.storage import Stat, is_local, join, resolve, stat

MAX_EXPANDED = 100_000
REQUESTS_AT_ONCE = 8

# Files that are opened for the images which they hold or name; any other is an image itself.
FILES_OF_IMAGES: dict[str, Callable[[list[Entry], SegmentConfig], Source]] = {
    ".tar": tar_source,
    ".json": coco_source,
    ".parquet": parquet_source,
    ".pq": parquet_source,
    ".csv": csv_source,
    ".tsv": tsv_source,
    ".jsonl": json_lines_source,
    ".ndjson": json_lines_source,
    **dict.fromkeys((".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"), packed_tar_source),
}


def open_source(config: SegmentConfig) -> Source:
    """The source that `config.source` names, ready to stream. ConfigError says what was looked for and not found."""
    for url in filter(None, (config.source, config.images)):
        if not _is_unicode(url):
            raise ConfigError(f"the name {url!a} is not UTF-8; rename the folder, or reach it by a link")
    with said_plainly(config.source):
        source = _open(config)
    source.batches = read_plainly(config.source, source.batches)
    return source


def advice(spec: str, skipped: Mapping[str, int]) -> str:
    """What to do about a source in which no images were found, from what `Source.skipped` says of it."""
    for ending in sorted(skipped, key=lambda ending: -skipped[ending]):
        if ending in FILES_OF_IMAGES and ending != ".json":  # JSON lies beside images for many reasons
            example = f", such as {join(spec, f'**/*{ending}')!r}" if not is_glob(spec) else ""
            return f"{ending} files are read where a pattern names their ending{example}"
    return "--extensions takes other endings"


def _open(config: SegmentConfig) -> Source:
    urls = _expand_braces(config.source)
    if len(urls) > 1:
        return _files_source(urls, _entries_of(urls), config)
    [url] = urls
    found = _stat_or_none(url)
    if found is None and is_glob(url):
        return _files_source(urls, glob(url), config)
    if found is None:
        raise ConfigError(f"source {url!r} does not exist; name a folder, a file, a glob or a URL")
    if found.kind == "directory" or url.endswith("/"):
        return listing_source("folder", walk(*resolve(url)), accepted_endings(config))
    return _files_source(urls, iter([_entry(url, found)]), config)


def _files_source(urls: list[str], entries: Iterator[Entry], config: SegmentConfig) -> Source:
    """The files that the names and patterns in `urls` stand for: opened where they hold or name images."""
    endings = {ending_of(url) for url in urls}
    for ending in endings & FILES_OF_IMAGES.keys():
        if len(endings) > 1:
            raise ConfigError(f"source {config.source!r} mixes {' and '.join(sorted(endings))}; name one kind of files")
        files = list(entries)
        if not files:
            raise ConfigError(f"nothing matches source {config.source!r}; check the pattern")
        return FILES_OF_IMAGES[ending](files, config)
    # Who names files, or in a glob their ending, has chosen; the filter is for patterns that do not.
    chosen = not any(is_glob(url) and (is_glob(ending_of(url)) or not ending_of(url)) for url in urls)
    return listing_source("files", entries, None if chosen else accepted_endings(config))


def _entries_of(urls: list[str]) -> Iterator[Entry]:
    """The files that patterns match, and those that are named, which must be there."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for url, found in ahead(pool, lambda u: None if is_glob(u) else stat(u), urls, REQUESTS_AT_ONCE):
            yield from glob(url) if found is None else [_entry(url, found)]


def _entry(url: str, found: Stat) -> Entry:
    if found.kind != "file":
        raise ConfigError(f"{url} is a {found.kind}, and a file is meant; name files, a folder or a glob")
    fs, path = resolve(url)
    # As a listing names it, so that an image has one uri whichever way it was found.
    return Entry(path if is_local(fs) else fs.unstrip_protocol(path), found.size, found.etag)


def _expand_braces(spec: str) -> list[str]:
    """The names that `data-{000..007}.tar` stands for, in the notation of WebDataset; otherwise [spec]."""
    if "{" not in spec or _stat_or_none(spec) is not None:
        return [spec]
    count = math.prod(abs(int(b) - int(a)) + 1 for a, b in re.findall(r"\{(-?\d+)\.\.(-?\d+)", spec))
    if count > MAX_EXPANDED:
        raise ConfigError(f"source {spec!r} names {count:,} files, {MAX_EXPANDED:,} is the most; use a glob")
    try:
        return list(braceexpand(spec))
    except ValueError:  # unbalanced, so they stand for themselves
        return [spec]


def _stat_or_none(url: str) -> Stat | None:
    try:
        return stat(url)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG or isinstance(error, FileNotFoundError | NotADirectoryError):
            return None  # a pattern may be longer than any name
        raise


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
