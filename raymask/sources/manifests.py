"""Manifests: tables with a column `uri`, as CSV, TSV or JSON Lines; `parquet` reads those in Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.csv

from raymask.config import SegmentConfig
from raymask.errors import ConfigError
from raymask.sources.columns import check_no_other, check_unique, user_fields_of, with_user_columns
from raymask.sources.stream import BATCH_ROWS, Entry, Source, anchor, listed_batch, said_plainly, sliced
from raymask.storage import resolve

CSV_BLOCK_BYTES = 16 * 1024 * 1024  # the types of columns are taken from the first block


def csv_source(files: list[Entry], config: SegmentConfig) -> Source:
    return manifest_source(files, config, lambda url: _csv_batches(url, ","))


def tsv_source(files: list[Entry], config: SegmentConfig) -> Source:
    return manifest_source(files, config, lambda url: _csv_batches(url, "\t"))


def json_lines_source(files: list[Entry], config: SegmentConfig) -> Source:
    return manifest_source(files, config, _json_lines_batches)


def manifest_source(
    files: list[Entry], config: SegmentConfig, read: Callable[[str], Iterator[pa.RecordBatch]]
) -> Source:
    """Tables that name images in a column `uri`. The first file, and its first batch, say which columns there are."""
    url = files[0].url
    if config.image_column is not None:
        raise ConfigError(f"--image-column is for Parquet tables, and {url} is none; leave it away")
    batches = chain.from_iterable(read(file.url) for file in files)
    first = next(batches, None)
    if first is None:
        raise ConfigError(f"{url} is empty; a manifest has a column 'uri'")
    names = first.schema.names
    if "uri" not in names:
        raise ConfigError(f"{url} has no column 'uri', but {', '.join(names) or 'none at all'}; name it so")
    check_unique(names)
    carried = [f for f in first.schema if f.name != "uri"]
    user_fields = user_fields_of(carried)
    anchored = anchor(config.images or url.rpartition("/")[0] or "/", config.allow_http)

    def rows() -> Iterator[pa.RecordBatch]:
        count = 0
        for batch in sliced(chain([first], batches)):
            check_no_other(batch.schema.names, names, config.source)
            has_uris = "uri" in batch.schema.names
            uris: list[str] = batch.column("uri").cast(pa.string()).to_pylist() if has_uris else [""]
            if not all(uris):
                missing = count + next(i for i, uri in enumerate(uris) if not uri)
                raise ConfigError(f"{config.source}: row {missing:,} has no uri (counted from 0); every row needs one")
            count += len(uris)
            listed = listed_batch([(anchored(uri), None, None, None, None, None) for uri in uris])
            yield with_user_columns(listed, batch, carried, user_fields)

    return Source("manifest", user_fields, rows())


def _csv_batches(url: str, delimiter: str) -> Iterator[pa.RecordBatch]:
    fs, path = resolve(url)
    with (
        said_plainly(url, "CSV"),
        fs.open(path, "rb") as file,
        pyarrow.csv.open_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types={"uri": pa.string()}),
        ) as reader,
    ):
        yield pa.RecordBatch.from_pylist([], schema=reader.schema)
        yield from reader


def _json_lines_batches(url: str) -> Iterator[pa.RecordBatch]:
    # pyarrow reads these too, but crashes on deep nesting and drops columns that begin late.
    fs, path = resolve(url)
    with said_plainly(url, "JSON Lines"), fs.open(path, "r", encoding="utf-8-sig") as lines:
        rows = (_json_object(line, f"{url}, line {n}") for n, line in enumerate(lines, 1) if not line.isspace())
        while page := list(islice(rows, BATCH_ROWS)):
            columns = {}
            for name in dict.fromkeys(chain.from_iterable(page)):
                with said_plainly(f"column {name!r} of {url}", "values of one type"):
                    columns[name] = pa.array([row.get(name) for row in page])
            yield pa.record_batch(columns)


def _json_object(line: str, where: str) -> dict[str, Any]:
    with said_plainly(where, "JSON"):
        value = json.loads(line)
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {str(value)[:50]!r}; an object with 'uri' is meant")
    return value
