"""Parts: finished images, a few hundred at a time, each part one immutable object whose existence is its commit.

A part's name says its attempt, first ordinal and number of rows, and ends in a hash of its ordinals. A block that is
tried again overwrites itself, and of a part without gaps the name alone tells which images it holds.
"""

from __future__ import annotations

import hashlib
import io
import re
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
from raymask.storage import Folder, resolve

FOLDER = "parts"
READERS = 16

_PATTERN = re.compile(r"(\d{4})-(\d{12})-(\d{7})-([0-9a-f]{16})\.parquet")


@dataclass(frozen=True, order=True)
class PartName:
    """attempt: 0, and one more for each time that failed images were tried again."""

    attempt: int
    first_ordinal: int
    rows: int
    digest: str

    @staticmethod
    def of(ordinals: NDArray[np.int64], attempt: int) -> PartName:
        """The name of a part that holds these ordinals, ascending and at least one."""
        return PartName(attempt, int(ordinals[0]), len(ordinals), _digest(ordinals))

    @staticmethod
    def parse(name: str) -> PartName | None:
        match = _PATTERN.fullmatch(name)
        return match and PartName(int(match[1]), int(match[2]), int(match[3]), match[4])

    def __str__(self) -> str:
        return f"{self.attempt:04d}-{self.first_ordinal:012d}-{self.rows:07d}-{self.digest}.parquet"

    def ordinals_if_contiguous(self) -> NDArray[np.int64] | None:
        """The ordinals, if they follow each other; None if only the file knows them."""
        ordinals = np.arange(self.first_ordinal, self.first_ordinal + self.rows, dtype=np.int64)
        return ordinals if _digest(ordinals) == self.digest else None


def write_part(folder: Folder, rows: pa.Table, attempt: int) -> PartName:
    """Put rows of schema `PART` into the journal, sorted by ordinal, in one atomic put."""
    rows = rows.sort_by("ordinal")
    name = PartName.of(rows.column("ordinal").to_numpy(), attempt)
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd", write_statistics=False)
    folder.put(f"{FOLDER}/{name}", sink.getvalue())
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

    def overlapping(self, first: int, stop: int) -> list[PartName]:
        """Parts that may hold ordinals first .. stop - 1, by precedence."""
        return by_precedence(name for name, last in self.parts if name.first_ordinal < stop and last >= first)

    def fingerprint(self) -> str:
        """Equal for equal sets of parts."""
        return hashlib.sha256("\n".join(sorted(str(name) for name, _ in self.parts)).encode()).hexdigest()


def by_precedence(names: Iterable[PartName]) -> list[PartName]:
    """Parts in the order in which they count: the latest attempt first, then by name.

    Where several parts hold an image (a retry of failed images, a part of a dead run that arrived late), its first row
    that is ok counts, or its first row if none is: the same row whatever the order in which the parts arrived.
    """
    return sorted(names, key=lambda name: (-name.attempt, name))


def scan_parts(folder: Folder, total: int) -> PartIndex:
    """The parts there are, and which of the ordinals 0 .. total - 1 they hold. Mostly from names alone."""
    names = [parsed for name, _ in folder.list(FOLDER) if (parsed := PartName.parse(name.rsplit("/", 1)[-1]))]
    done = np.zeros(total, bool)
    parts = []
    with ThreadPoolExecutor(READERS) as pool:
        for name, ordinals in ahead(pool, lambda n: _ordinals(folder, n), names, 2 * READERS):
            # Ordinals beyond the manifest cannot be: a part is written of manifest rows only.
            done[ordinals] = True
            parts.append((name, int(ordinals[-1])))
    return PartIndex(tuple(parts), done)


def read_parts(folder: Folder, names: Iterable[PartName], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of each part, in the order of `names`."""
    with ThreadPoolExecutor(READERS) as pool:
        for _, table in ahead(pool, lambda n: _open(folder, n).read(columns), names, READERS):
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
        found = np.array([_CODES[error] for error in table.column("error").to_pylist()], np.int8)
        better = (code[ordinals] == NOT_DONE) | ((code[ordinals] > OK) & (found == OK))
        part[ordinals[better]] = place
        code[ordinals[better]] = found[better]
    return Outcomes(tuple(names), part, code)


def _ordinals(folder: Folder, name: PartName) -> NDArray[np.int64]:
    ordinals = name.ordinals_if_contiguous()
    if ordinals is None:
        ordinals = _open(folder, name).read(["ordinal"]).column(0).to_numpy()
    return ordinals


def _open(folder: Folder, name: PartName) -> pq.ParquetFile:
    fs, path = resolve(folder.url_of(f"{FOLDER}/{name}"))
    return pq.ParquetFile(fs.open(path, "rb"))


def _digest(ordinals: NDArray[np.int64]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(ordinals, "<i8").data, digest_size=8).hexdigest()
