"""The frozen input: listings of images, each image with an ordinal of its own, in Parquet files of many rows.

A listing is committed by one small JSON object, written after its files. Images that are new in the source are added
by a further listing, whose ordinals go on where the last one ended. Files are named by their content, so that two
runs that list at once cannot mix theirs.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymask.errors import ConfigError, OutputError
from raymask.schema import MANIFEST, image_id
from raymask.storage import Folder, resolve, retried

T = TypeVar("T")

FOLDER = "manifest"
FILE_ROWS = 131_072
CHUNK_ROWS = 2_048  # a row group: what one task reads at the most


@dataclass(frozen=True)
class ManifestFile:
    """One file of a listing; its rows have the ordinals first_ordinal .. first_ordinal + rows - 1."""

    name: str
    first_ordinal: int
    rows: int


@dataclass(frozen=True)
class Listing:
    """One committed listing of a source."""

    number: int
    source: Mapping[str, Any]
    files: tuple[ManifestFile, ...]

    @property
    def rows(self) -> int:
        return sum(f.rows for f in self.files)

    @property
    def name(self) -> str:
        return f"{FOLDER}/{self.number:04d}.json"


@dataclass(frozen=True)
class Manifest:
    """All committed listings of an output, in order."""

    folder: Folder
    listings: tuple[Listing, ...]

    @staticmethod
    def read(folder: Folder) -> Manifest:
        listings: list[Listing] = []
        while (data := folder.read_or_none(f"{FOLDER}/{len(listings):04d}.json")) is not None:
            listings.append(_parse(data, folder))
        return Manifest(folder, tuple(listings))

    @property
    def rows(self) -> int:
        return sum(listing.rows for listing in self.listings)

    @property
    def files(self) -> list[ManifestFile]:
        return [f for listing in self.listings for f in listing.files]

    def has(self, source: Mapping[str, Any]) -> bool:
        return any(listing.source == source for listing in self.listings)

    def user_fields(self) -> list[pa.Field]:
        """The columns of the user's manifest, as the first listing brought them."""
        if not self.files:
            return []
        schema = _read(self.folder, self.files[0].name, lambda parquet: parquet.schema_arrow)
        return [f for f in schema if f.name not in MANIFEST.names]

    def read_rows(self, first: int, stop: int, columns: list[str]) -> pa.Table:
        """Rows of ordinals first .. stop - 1, in order. A column that a listing lacks is null there."""
        tables = []
        for file in self.files:
            start, end = max(first, file.first_ordinal), min(stop, file.first_ordinal + file.rows)
            if start < end:
                read = partial(_rows, start=start - file.first_ordinal, stop=end - file.first_ordinal, columns=columns)
                tables.append(_read(self.folder, file.name, read))
        return pa.concat_tables(tables, promote_options="default").select(columns)

    def contained(self, image_ids: NDArray[np.int64]) -> pa.Table:
        """The rows, in `MANIFEST`, of those of these images that lie in a tar shard or a Parquet table."""
        tables = [_read(self.folder, f.name, partial(_contained_rows, image_ids=image_ids)) for f in self.files]
        return pa.concat_tables([MANIFEST.empty_table(), *tables])

    def seen_ids(self) -> SeenIds:
        """The ids of every listed image."""
        seen = SeenIds()
        for file in self.files:
            ids = _read(self.folder, file.name, lambda parquet: parquet.read(columns=["image_id"]))
            seen.add(ids.column(0).to_numpy())
        return seen

    def append(self, source: Mapping[str, Any], rows: Iterable[pa.RecordBatch]) -> Manifest:
        """Write `rows` (of `NewRows`) as a further listing and commit it; unchanged where there are none."""
        files: list[ManifestFile] = []
        first = self.rows
        for table in _tables_of(rows, FILE_ROWS):
            data = _parquet_bytes(table)
            name = f"{FOLDER}/{len(self.listings):04d}-{len(files):05d}-{hashlib.sha256(data).hexdigest()[:12]}.parquet"
            self.folder.put(name, data)
            files.append(ManifestFile(name, first, table.num_rows))
            first += table.num_rows
        if not files:
            return self
        listing = Listing(len(self.listings), source, tuple(files))
        text = json.dumps(asdict(listing), indent=1, ensure_ascii=False).encode()
        committed = _parse(self.folder.put_if_absent(listing.name, text), self.folder)
        if committed != listing:
            raise OutputError(f"another run added images to {self.folder.url} at the same time; run again")
        return Manifest(self.folder, (*self.listings, committed))


@dataclass
class NewRows:
    """The rows of a source that an output does not have yet: the same stream with ordinals, ids and counts.

    Counts are right once the stream is read: listed = new + known + duplicates; bytes of the new ones, None where
    the source does not say sizes.
    """

    first_ordinal: int
    seen: SeenIds
    listed: int = 0
    new: int = 0
    known: int = 0
    duplicates: int = 0
    bytes: int | None = 0
    _known_before: SeenIds = field(init=False)

    def __post_init__(self) -> None:
        self._known_before = self.seen.copy()

    def of(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            uris = batch.column("uri").to_pylist()
            ids = np.fromiter((image_id(uri) for uri in uris), np.int64, len(uris))
            known = self._known_before.contains(ids)
            fresh = self.seen.add(ids)
            self.listed += len(ids)
            self.known += int(known.sum())
            self.duplicates += int((~fresh & ~known).sum())
            batch, ids = batch.filter(pa.array(fresh)), ids[fresh]
            ordinals = np.arange(len(ids), dtype=np.int64) + self.first_ordinal + self.new
            self.new += len(ids)
            sizes = batch.column("size")
            total = pc.sum(sizes).as_py()
            self.bytes = None if self.bytes is None or sizes.null_count else self.bytes + (total or 0)
            columns = {"ordinal": pa.array(ordinals), "image_id": pa.array(ids)}
            columns |= dict(zip(batch.schema.names, batch.columns, strict=True))
            user_fields = [f for f in batch.schema if f.name not in MANIFEST.names]
            schema = pa.schema([*MANIFEST, *user_fields])
            if len(ids):
                yield pa.record_batch([columns[f.name] for f in schema], schema=schema)


class SeenIds:
    """A growing set of 63-bit ids, 8 bytes each: sorted runs, merged when two are of like size."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.int64]] = []

    def copy(self) -> SeenIds:
        other = SeenIds()
        other._runs = list(self._runs)
        return other

    def contains(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each id whether it is in the set."""
        found = np.zeros(len(ids), bool)
        for run in self._runs:
            places = np.searchsorted(run, ids)
            found |= run[np.minimum(places, len(run) - 1)] == ids
        return found

    def add(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Add ids; for each whether it was new, the first of equals counting as new."""
        unique, first = np.unique(ids, return_index=True)
        new = np.zeros(len(ids), bool)
        new[first[~self.contains(unique)]] = True
        run = np.sort(ids[new])
        while self._runs and len(run) and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)
        return new


def check_user_columns(manifest: Manifest, user_fields: list[pa.Field]) -> None:
    """ConfigError if a further listing brings columns that the published tables cannot take."""
    if not manifest.listings:
        return
    there = {f.name: f.type for f in manifest.user_fields()}
    for f in user_fields:
        if there.get(f.name) != f.type:
            had = f"{f.name} as {there[f.name]}" if f.name in there else f"no column {f.name}"
            raise ConfigError(
                f"this source has column {f.name} ({f.type}), but the output was begun with {had}; "
                f"bring the columns into line, or choose another --out"
            )


def read_chunk(folder: Folder, name: str, start: int, rows: int) -> pa.Table:
    """Rows start .. start + rows - 1 of a manifest file, all within one row group."""
    group, offset = divmod(start, CHUNK_ROWS)
    return _read(folder, name, lambda p: p.read_row_group(group, columns=MANIFEST.names)).slice(offset, rows)


def _read(folder: Folder, name: str, what: Callable[[pq.ParquetFile], T]) -> T:
    """`what` of a file of the manifest, asked for again where the store does not answer."""
    fs, path = resolve(folder.url_of(name))

    def read() -> T:
        with fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            return what(parquet)

    return retried(read)


def _rows(parquet: pq.ParquetFile, start: int, stop: int, columns: list[str]) -> pa.Table:
    """Rows start .. stop - 1 of a file of the manifest, in those of the columns that it has."""
    there = [c for c in columns if c in parquet.schema_arrow.names]
    first, beyond = start // CHUNK_ROWS, -(-stop // CHUNK_ROWS)
    return parquet.read_row_groups(range(first, beyond), columns=there).slice(start - first * CHUNK_ROWS, stop - start)


def _contained_rows(parquet: pq.ParquetFile, image_ids: NDArray[np.int64]) -> pa.Table:
    """Of one file of the manifest, `Manifest.contained`: ids first, then no more than the row groups that have them."""
    container = MANIFEST.names.index("container")
    groups = (parquet.metadata.row_group(n) for n in range(parquet.num_row_groups))
    if all(g.column(container).statistics.null_count == g.num_rows for g in groups):
        return MANIFEST.empty_table()
    there = np.isin(parquet.read(columns=["image_id"]).column(0).to_numpy(), image_ids)
    wanted = np.unique(np.flatnonzero(there) // CHUNK_ROWS).tolist()
    rows = parquet.read_row_groups(wanted, columns=MANIFEST.names) if wanted else MANIFEST.empty_table()
    return rows.filter(
        pc.and_(pc.is_in(rows.column("image_id"), pa.array(image_ids)), pc.is_valid(rows.column("container")))
    )


def _tables_of(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Tables of `rows` rows each, the last one shorter."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while count + batch.num_rows >= rows:
            yield pa.Table.from_batches([*waiting, batch.slice(0, rows - count)])
            batch, waiting, count = batch.slice(rows - count), [], 0
        if batch.num_rows:
            waiting.append(batch)
            count += batch.num_rows
    if waiting:
        yield pa.Table.from_batches(waiting)


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=CHUNK_ROWS, compression="zstd")
    return sink.getvalue()


def _parse(data: bytes, folder: Folder) -> Listing:
    try:
        record = json.loads(data)
        files = tuple(ManifestFile(**f) for f in record["files"])
        return Listing(int(record["number"]), record["source"], files)
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise OutputError(f"a listing in {folder.url}/{FOLDER} is damaged ({error}); choose another --out") from error
