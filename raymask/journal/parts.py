"""Parts: finished images, a few hundred at a time, each part one immutable object whose existence is its commit.

A part's name says its attempt, first ordinal and number of rows, and ends in a hash of its ordinals. A block that is
tried again finds itself there, and of a part without gaps the name alone tells which images it holds.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymask.errors import ErrorKind
from raymask.fetch import ahead
from raymask.protocol import PartName, by_precedence, counts_over
from raymask.storage import Folder, resolve, retried

FOLDER = "parts"
READERS = 16


def write_part(folder: Folder, rows: pa.Table, attempt: int) -> PartName:
    """Add rows of schema `PART` to the journal, sorted by ordinal, as one object.

    Where a part of these ordinals and this attempt is there already, it stays: what was done once stays done, even if
    a worker that was thought dead comes by later and could not read its images.
    """
    rows = rows.sort_by("ordinal")
    name = PartName.of(rows.column("ordinal").to_numpy(), attempt)
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd", write_statistics=False)
    folder.create(f"{FOLDER}/{name}", sink.getvalue())
    return name


@dataclass(frozen=True)
class PartIndex:
    """What the journal holds.

    parts: with the last ordinal of each. done: one flag an image, by ordinal.
    """

    parts: tuple[tuple[PartName, int], ...]
    done: NDArray[np.bool_]

    @property
    def attempt(self) -> int:
        """The latest attempt; 0 where there is none."""
        return max((name.attempt for name, _ in self.parts), default=0)

    def fingerprint(self) -> str:
        """Equal for equal sets of parts."""
        return fingerprint_of(name for name, _ in self.parts)


def part_names(folder: Folder) -> list[PartName]:
    """The parts there are, by name; one listing, whatever is in them."""
    return [parsed for name, _ in folder.list(FOLDER) if (parsed := PartName.parse(name.rsplit("/", 1)[-1]))]


def fingerprint_of(names: Iterable[PartName]) -> str:
    """Equal for equal sets of parts, see `PartIndex.fingerprint`."""
    return hashlib.sha256("\n".join(sorted(map(str, names))).encode()).hexdigest()


def scan_parts(folder: Folder, total: int) -> PartIndex:
    """The parts there are, and which of the ordinals 0 .. total - 1 they hold. Mostly from names alone."""
    done = np.zeros(total, bool)
    parts, with_gaps = [], []
    for name in part_names(folder):
        if name.is_contiguous:
            stop = name.first_ordinal + name.rows
            done[name.first_ordinal : stop] = True
            parts.append((name, stop - 1))
        else:
            with_gaps.append(name)
    with ThreadPoolExecutor(READERS) as pool:
        for name, rows in ahead(pool, lambda n: _read(folder, n, ["ordinal"]), with_gaps, 2 * READERS):
            ordinals = rows.column(0).to_numpy()
            # Another run may have listed more since the manifest was read.
            done[ordinals[: np.searchsorted(ordinals, total)]] = True
            parts.append((name, int(ordinals[-1])))
    return PartIndex(tuple(parts), done)


def read_parts(folder: Folder, names: Iterable[PartName], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of each part, in the order of `names`."""
    with ThreadPoolExecutor(READERS) as pool:
        for _, table in ahead(pool, lambda n: _read(folder, n, columns), names, READERS):
            yield table


OK = 0  # codes of `Outcomes.code`; a failure has 1 + the place of its kind in `ErrorKind`
NOT_DONE = -1
_CODES: dict[str | None, int] = {None: OK, **{kind.value: 1 + place for place, kind in enumerate(ErrorKind)}}


@dataclass(frozen=True)
class Outcomes:
    """Of each image, by ordinal, the row that counts. part: place of its part in `names`; code: what became of it."""

    names: tuple[PartName, ...]
    part: NDArray[np.int32]
    code: NDArray[np.int8]

    @property
    def ok(self) -> int:
        return int((self.code == OK).sum())

    @property
    def failed(self) -> NDArray[np.bool_]:
        """One flag an image: done, but failed."""
        flags: NDArray[np.bool_] = self.code > OK
        return flags

    @property
    def errors(self) -> dict[str, int]:
        """Failed images by kind, the most frequent first."""
        counts = Counter({kind: int((self.code == code).sum()) for kind, code in _CODES.items() if kind is not None})
        return {kind: count for kind, count in counts.most_common() if count}


def read_outcomes(folder: Folder, index: PartIndex) -> Outcomes:
    """The row that counts of every image in the journal, by the rule of `by_precedence`."""
    names = by_precedence(name for name, _ in index.parts)
    part = np.full(len(index.done), -1, np.int32)
    code = np.full(len(index.done), NOT_DONE, np.int8)
    for place, table in enumerate(read_parts(folder, names, ["ordinal", "error"])):
        ordinals = table.column("ordinal").to_numpy()
        ordinals = ordinals[: np.searchsorted(ordinals, len(code))]  # as in `scan_parts`
        found = np.array([_CODES[error] for error in table.column("error").to_pylist()[: len(ordinals)]], np.int8)
        before = code[ordinals]
        better = counts_over(before != NOT_DONE, before == OK, found == OK)
        part[ordinals[better]] = place
        code[ordinals[better]] = found[better]
    return Outcomes(tuple(names), part, code)


def _read(folder: Folder, name: PartName, columns: list[str] | None) -> pa.Table:
    fs, path = resolve(folder.url_of(f"{FOLDER}/{name}"))

    def read() -> pa.Table:
        with fs.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            return parquet.read(columns)

    return retried(read)
