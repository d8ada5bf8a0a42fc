"""Where the images are: folders, globs, manifests, COCO files, Parquet tables of images, tar shards, as one stream.

Every source becomes Arrow batches of (uri, size, etag, container, container_column, position) and the user's own
columns. Nothing here holds more than a page of a listing, so a bucket of a hundred million keys costs no more memory
than one of a thousand.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import fsspec.utils
import ijson
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq
from braceexpand import braceexpand

from raymask.config import SegmentConfig
from raymask.errors import ConfigError
from raymask.fetch import ahead
from raymask.schema import MANIFEST, user_column_name
from raymask.storage import absolute, is_local, join, resolve, retried

BATCH_ROWS = 10_000
TABLE_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
}
PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
TAR_READERS = 8
TAR_BLOCK_BYTES = 4 * 1024 * 1024

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

    def skip(self, url: str) -> None:
        ending = _ending(url) or "no ending"
        # Endings are the user's data: their number has to be bounded too.
        key = ending if ending in self.skipped or len(self.skipped) < 20 else "other"
        self.skipped[key] = self.skipped.get(key, 0) + 1


def open_source(config: SegmentConfig) -> Source:
    """The source that `config.source` names, ready to stream. ConfigError says what was looked for and not found."""
    spec = config.source
    urls = _expand_braces(spec)
    if urls:
        return _objects_source([_entry(url) for url in urls], config)
    fs, path = resolve(spec)
    if not _is_glob(path) or _exists(fs, path):
        if _is_file(fs, path):
            return _objects_source([_entry(spec)], config)
        return _listing_source("folder", _walk(spec), config)
    ending = _ending(path)
    if ending == ".tar" or ending in TABLE_FORMATS:
        return _objects_source(list(_glob(spec)), config)
    # A glob that names an ending has chosen; the filter is for those that do not.
    return _listing_source("glob", _glob(spec), config, every=bool(ending) and not _is_glob(ending))


# ---------------------------------------------------------------------------------------------- objects of their own


def _listing_source(kind: str, entries: Iterable[Entry], config: SegmentConfig, every: bool = False) -> Source:
    source = Source(kind, [])
    accept = None if every else _accepted_endings(config)

    def rows() -> Iterator[tuple[Any, ...]]:
        for entry in entries:
            if accept is None or _ending(entry.url) in accept:
                yield entry.url, entry.size, entry.etag, None, None, None
            else:
                source.skip(entry.url)

    source.batches = _batched(rows())
    return source


def _walk(url: str) -> Iterator[Entry]:
    """Every object below `url`, in the order of the store; a local folder is read in order of names."""
    fs, path = resolve(url)
    if is_local(fs):
        if not os.path.isdir(path):
            raise ConfigError(f"source {url!r} does not exist; name a folder, a file, a glob or a URL")
        return _walk_local(path)
    return _walk_s3(fs, path) if "s3" in _protocols(fs) else _walk_any(fs, path)


def _walk_local(folder: str) -> Iterator[Entry]:
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda e: e.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_local(entry.path)
        elif entry.is_file():
            stat = entry.stat()
            yield Entry(_printable(entry.path), stat.st_size, local_etag(stat))


def _walk_s3(fs: Any, path: str) -> Iterator[Entry]:
    # s3fs lists a folder into one Python list; the pages of the API keep a flat bucket of any size streaming.
    bucket, _, prefix = path.partition("/")
    request = {"Bucket": bucket, "Prefix": f"{prefix.rstrip('/')}/" if prefix else ""}
    while True:
        page = _said_plainly(f"s3://{path}", lambda: fs.call_s3("list_objects_v2", **request))
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                yield Entry(f"s3://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _walk_any(fs: Any, path: str) -> Iterator[Entry]:
    for _, _, files in fs.walk(path, detail=True, on_error="raise"):
        for name in sorted(files):
            info = files[name]
            yield Entry(fs.unstrip_protocol(info["name"]), info.get("size"), _etag(info))


def _glob(spec: str) -> Iterator[Entry]:
    fs, path = resolve(spec)
    matches = re.compile(fsspec.utils.glob_translate(path)).match
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
    base = fixed or "/" if is_local(fs) else fs.unstrip_protocol(fixed)
    return (entry for entry in _walk(base) if matches(resolve(entry.url)[1]))


# ------------------------------------------------------------------------------------- files that hold or name images


def _objects_source(entries: list[Entry], config: SegmentConfig) -> Source:
    """One file or a few that were named: tables, COCO files and tar shards are opened, anything else is an image."""
    if not entries:
        raise ConfigError(f"nothing matches {config.source!r}; check the pattern")
    first = entries[0].url
    ending = _ending(first)
    if first.lower().endswith(PACKED_TARS):
        raise ConfigError(f"{first} is a compressed tar, which cannot be read in the middle; unpack it to .tar")
    if ending == ".tar":
        return _tar_source(entries, config)
    if ending in TABLE_FORMATS:
        return _table_source([e.url for e in entries], TABLE_FORMATS[ending], config)
    if ending == ".json":
        return _coco_source(first, config)
    return _listing_source("file", entries, config, every=True)


def _tar_source(shards: list[Entry], config: SegmentConfig) -> Source:
    source = Source("tar shards", [])
    accept = _accepted_endings(config)

    def members(shard: Entry) -> list[tuple[str, int, int]]:
        fs, path = resolve(shard.url)
        try:
            with (
                fs.open(path, "rb", block_size=TAR_BLOCK_BYTES) as file,
                tarfile.open(fileobj=file, mode="r:") as tar,
            ):
                return [(m.name, m.size, m.offset_data) for m in tar if m.isfile()]
        except (tarfile.TarError, OSError) as error:
            raise ConfigError(f"cannot read tar shard {shard.url}: {error}") from error

    def rows() -> Iterator[tuple[Any, ...]]:
        with ThreadPoolExecutor(TAR_READERS) as pool:
            for shard, found in ahead(pool, members, shards, TAR_READERS):
                for name, size, offset in found:
                    uri = f"{shard.url}#{name}"
                    if accept is None or _ending(name) in accept:
                        yield uri, size, shard.etag, shard.url, None, offset
                    else:
                        source.skip(uri)

    source.batches = _batched(rows())
    return source


def _coco_source(url: str, config: SegmentConfig) -> Source:
    fs, path = resolve(url)
    root = config.images or url.rpartition("/")[0] or "."

    def images() -> Iterator[dict[str, Any]]:
        try:
            with fs.open(path, "rb") as file:
                yield from ijson.items(file, "images.item", use_float=True)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise ConfigError(f"{url} is not JSON: {error}") from error

    def named(image: Any) -> tuple[Any, ...]:
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
            raise ConfigError(f"{url}: an entry of 'images' has no 'file_name': {str(image)[:100]}")
        number = image.get("id")
        uri = _anchored(image["file_name"], root)
        return uri, None, None, None, None, None, number if isinstance(number, int) else None

    stream = images()
    first = next(stream, None)
    if first is None:
        raise ConfigError(f"{url} has no list 'images'; a COCO annotation file, or a manifest as .jsonl, is meant")
    user_fields = [pa.field("coco_image_id", pa.int64())]
    rows = (named(image) for image in _chain(first, stream))
    return Source("COCO annotations", user_fields, _batched(rows, user_fields))


def _table_source(urls: list[str], format: str, config: SegmentConfig) -> Source:
    """A manifest with a `uri` column, or a Parquet table with the encoded images in a column."""
    fs, _ = resolve(urls[0])
    paths = [resolve(url)[1] for url in urls]
    reader: Any = format
    if format == "csv":
        delimiter = "\t" if _ending(urls[0]) == ".tsv" else ","
        reader = pyarrow.dataset.CsvFileFormat(
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types={"uri": pa.string()}),
        )
    try:
        table = pyarrow.dataset.dataset(paths, format=reader, filesystem=fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"cannot read {urls[0]} as {format}: {error}") from error
    if "uri" in table.schema.names and config.image_column is None:
        return _manifest_source(urls[0], table, config)
    if format != "parquet":
        raise ConfigError(f"{urls[0]} has no column 'uri' (it has {', '.join(table.schema.names)}); name it so")
    return _image_table_source(urls, table.schema, config)


def _manifest_source(url: str, table: pyarrow.dataset.Dataset, config: SegmentConfig) -> Source:
    root = config.images or absolute(url).rpartition("/")[0]
    user_fields = _user_fields([f for f in table.schema if f.name != "uri"])

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for batch in table.to_batches(batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1):
                uris = batch.column("uri").cast(pa.string()).to_pylist()
                if not all(uris):
                    raise ConfigError(f"{url}: a row has no uri; every row must name an image")
                located = _located([(_anchored(uri, root), None, None, None, None, None) for uri in uris])
                yield _with_user_columns(located, batch.drop_columns(["uri"]), user_fields)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise ConfigError(f"{url} is malformed: {error}") from error

    return Source("manifest", user_fields, batches())


def _image_table_source(urls: list[str], schema: pa.Schema, config: SegmentConfig) -> Source:
    column = _image_column(urls[0], schema, config.image_column)
    carried = [f for f in schema if f.name != column and not _holds_bytes(f.type)]
    user_fields = _user_fields(carried)

    def batches() -> Iterator[pa.RecordBatch]:
        for url in urls:
            fs, path = resolve(url)
            url, row = absolute(url), 0
            with fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
                etag = _etag(fs.info(path))
                # With no column to carry the batches still have their row counts.
                for batch in parquet.iter_batches(BATCH_ROWS, columns=[f.name for f in carried]):
                    places = range(row, row + batch.num_rows)
                    located = _located([(f"{url}#{i}", None, etag, url, column, i) for i in places])
                    yield _with_user_columns(located, batch, user_fields)
                    row += batch.num_rows

    return Source("table of images", user_fields, batches())


def _image_column(url: str, schema: pa.Schema, wanted: str | None) -> str:
    names = [f.name for f in schema if _holds_bytes(f.type)]
    if wanted is not None:
        if wanted not in names:
            raise ConfigError(f"{url} has no column {wanted!r} of bytes; those are: {', '.join(names) or 'none'}")
        return wanted
    if len(names) != 1:
        found = f"more than one column of bytes ({', '.join(names)})" if names else "no column of bytes"
        raise ConfigError(f"{url} has no column 'uri' and {found}; name it with --image-column")
    [name] = names
    return str(name)


def _holds_bytes(type: pa.DataType) -> bool:
    """Plain binary, or a struct with a binary field `bytes` as the Hugging Face image feature has."""
    if pa.types.is_struct(type):
        index = type.get_field_index("bytes")
        return index >= 0 and _holds_bytes(type.field(index).type)
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type))


# ------------------------------------------------------------------------------------------------------- small pieces


def _batched(rows: Iterable[tuple[Any, ...]], user_fields: Iterable[pa.Field] = ()) -> Iterator[pa.RecordBatch]:
    rows = iter(rows)
    while page := list(islice(rows, BATCH_ROWS)):
        yield _located(page, user_fields)


def _located(rows: list[tuple[Any, ...]], user_fields: Iterable[pa.Field] = ()) -> pa.RecordBatch:
    schema = pa.schema([*LISTED, *user_fields])
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _user_fields(fields: list[pa.Field]) -> list[pa.Field]:
    carried = [pa.field(user_column_name(f.name), _plain(f.type)) for f in fields]
    names = [f.name for f in carried]
    if len(set(names)) != len(names):
        raise ConfigError(f"the source has a column twice: {', '.join(sorted(n for n in names if names.count(n) > 1))}")
    return carried


def _plain(type: pa.DataType) -> pa.DataType:
    # Encodings are the file's business; a published table says what a value is.
    return type.value_type if pa.types.is_dictionary(type) else pa.string() if pa.types.is_null(type) else type


def _with_user_columns(located: pa.RecordBatch, user: pa.RecordBatch, user_fields: list[pa.Field]) -> pa.RecordBatch:
    columns = [column.cast(f.type) for column, f in zip(user.columns, user_fields, strict=True)]
    return pa.record_batch([*located.columns, *columns], schema=pa.schema([*LISTED, *user_fields]))


def _accepted_endings(config: SegmentConfig) -> frozenset[str] | None:
    if tuple(config.extensions) == ("all",):
        return None
    return frozenset("." + e.strip().lower().lstrip(".") for e in config.extensions)


def _ending(url: str) -> str:
    return os.path.splitext(url.rsplit("/", 1)[-1])[1].lower()


def _anchored(uri: str, root: str) -> str:
    """`uri` itself if it is absolute or has a scheme, else below `root`."""
    return absolute(uri) if "://" in uri or uri.startswith("/") else join(absolute(root), uri)


def _entry(url: str) -> Entry:
    fs, path = resolve(url)
    info = _said_plainly(url, lambda: fs.info(path))
    return Entry(absolute(url), info.get("size"), _etag(info))


def _etag(info: dict[str, Any]) -> str | None:
    tag = info.get("ETag") or info.get("etag")
    if tag is None and "mtime" in info and "ino" in info:
        return local_etag(os.stat(info["name"]))
    return str(tag).strip('"') if tag else None


def local_etag(stat: os.stat_result) -> str:
    """Modification time and size, as web servers make an ETag for a file."""
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"


def _printable(path: str) -> str:
    # A file name may be any bytes; what is not UTF-8 is shown escaped (and will not be found under that name).
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _is_glob(path: str) -> bool:
    return any(c in path for c in "*?[")


def _expand_braces(spec: str) -> list[str]:
    """The shards of `data-{000..007}.tar`, the notation of WebDataset; [] when there are no braces to expand."""
    if "{" not in spec or _exists(*resolve(spec)):
        return []
    try:
        urls = list(braceexpand(spec))
    except ValueError as error:
        raise ConfigError(f"source {spec!r} has unbalanced braces") from error
    return urls if len(urls) > 1 else []


def _exists(fs: Any, path: str) -> bool:
    return bool(_said_plainly(path, lambda: fs.exists(path)))


def _is_file(fs: Any, path: str) -> bool:
    return bool(_said_plainly(path, lambda: fs.isfile(path)))


def _said_plainly(url: str, call: Any) -> Any:
    """`call()` with retries; what a store refuses becomes a ConfigError that names the source."""
    try:
        return retried(call)
    except FileNotFoundError as error:
        raise ConfigError(f"source {url!r} does not exist ({error})") from error
    except PermissionError as error:
        raise ConfigError(f"no permission to read source {url!r} ({error}); check the credentials") from error
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"cannot read source {url!r}: {error}") from error
    except Exception as error:  # botocore's own classes do not derive from OSError (no credentials, bad endpoint)
        raise ConfigError(f"cannot read source {url!r}: {type(error).__name__}: {error}") from error


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
