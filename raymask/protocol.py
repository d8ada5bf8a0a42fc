"""What a run decides while it writes an output, without the writing: values and pure functions.

    listed -> wanted images, in any groups -> parts of the journal -> shards of the tables -> the index

`journal`, `pipeline` and `publishing` do what is decided here, and so do the drivers of `tests/chaos_model.py`, in a
hundred thousand schedules of crashes, lost answers, late writers and second drivers. All of it rests on objects that
are put whole, by three verbs of `storage.Folder`:

put      over whatever is there; only for names under which everybody writes the same
create   only where nothing is; parts, listings and the first files of a shard are made so, hence never change
swap     only where still is what was read; the index moves so, hence never back

An index names files that nobody writes to any more, so whoever reads one, at whatever moment, finds what it says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

# ------------------------------------------------------------------------------------------------------------- parts

_PATTERN = re.compile(r"(\d{4})-(\d{12})-(\d{7})-([0-9a-f]{16})\.parquet")


@dataclass(frozen=True, order=True, slots=True)  # a driver holds a million and more
class PartName:
    """Names a part by its ordinals, so that a block that is tried again gives the same name.

    attempt: 0, and one more for each time that failed images were tried again; digest: of the ordinals.
    """

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

    @property
    def is_contiguous(self) -> bool:
        """Whether the ordinals follow each other from the first on; otherwise only the file knows them."""
        return _digest(np.arange(self.first_ordinal, self.first_ordinal + self.rows, dtype=np.int64)) == self.digest


def _digest(ordinals: NDArray[np.int64]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(ordinals, "<i8").data, digest_size=8).hexdigest()


def by_precedence(names: Iterable[PartName]) -> list[PartName]:
    """Parts in the order in which they count: the latest attempt first, then by name.

    Where several parts hold an image (a retry of failed images, a part of a dead run that arrived late), its first row
    that is ok counts, or its first row if none is: the same row whatever the order in which the parts arrived.
    """
    return sorted(names, key=lambda name: (-name.attempt, name))


def counts_over(found: NDArray[np.bool_], found_ok: NDArray[np.bool_], ok: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the next row of an image, by precedence, counts instead of what was found so far; a flag an image.

    found: whether there is a row so far; found_ok: whether that one is ok; ok: whether the next one is.
    """
    return ~found | (~found_ok & ok)


def rows_that_count(
    first: int, stop: int, parts: Iterable[tuple[NDArray[np.int64], NDArray[np.bool_]]]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Of each image first .. stop - 1: the part whose row counts, as its place in `parts` or -1, and the row in it.

    parts: ordinals and whether they are ok, of each part by precedence.
    """
    size = stop - first
    part_of, row_of, found_ok = np.full(size, -1, np.int32), np.zeros(size, np.int64), np.zeros(size, bool)
    for part, (ordinals, ok) in enumerate(parts):
        rows = np.flatnonzero((ordinals >= first) & (ordinals < stop))
        places = ordinals[rows] - first
        better = counts_over(part_of[places] >= 0, found_ok[places], ok[rows])
        rows, places = rows[better], places[better]
        part_of[places], row_of[places], found_ok[places] = part, rows, ok[rows]
    return part_of, row_of


# ------------------------------------------------------------------------------------------------------------ resume


@dataclass(frozen=True)
class Work:
    """What a run has to do. wanted: one flag an image, by ordinal; attempt: of the parts that it writes."""

    wanted: NDArray[np.bool_]
    attempt: int


def goes_on(listed_before: bool, done: NDArray[np.bool_]) -> bool:
    """Whether a run finishes what was listed instead of listing its source: it was, and not all of it is done."""
    return listed_before and not bool(done.all())


def work_to_do(done: NDArray[np.bool_], attempt: int, again: NDArray[np.bool_] | None) -> Work:
    """What is not done, and what is to be done again (None: nothing), after parts of up to `attempt`."""
    return Work(~done, 0) if again is None else Work(~done | again, attempt + 1)


# ----------------------------------------------------------------------------------------------------------- publish


@dataclass(frozen=True)
class ShardPlan:
    """Ordinals first .. stop - 1, and the parts that may hold them, by precedence."""

    number: int
    first: int
    stop: int
    parts: tuple[PartName, ...]

    @property
    def source(self) -> str:
        """Equal for equal plans. Parts never change, so the rows of the shard follow from it."""
        text = f"{self.first}-{self.stop}\n" + "\n".join(str(p) for p in self.parts)
        return hashlib.sha256(text.encode()).hexdigest()


def plan_shards(rows: int, images_per_file: int, parts: Iterable[tuple[PartName, int]]) -> list[ShardPlan]:
    """The shards of `rows` listed images, in order. parts: in any order, with the last ordinal of each."""
    starts = range(0, rows, images_per_file)
    within: list[list[PartName]] = [[] for _ in starts]
    for name, last in parts:  # once each: there may be millions, and ten thousand shards
        for number in range(name.first_ordinal // images_per_file, min(last // images_per_file + 1, len(within))):
            within[number].append(name)
    return [
        ShardPlan(number, first, min(first + images_per_file, rows), tuple(by_precedence(names)))
        for number, (first, names) in enumerate(zip(starts, within, strict=True))
    ]


class PublishedShard(Protocol):
    """A shard as an index names it.

    rows: images in it. source: of the plan it was made by. is_aside: its files are not those under the plain names
    `part-N.parquet`, which were taken. is_copied: what lies under the plain names is a copy of them.
    """

    @property
    def rows(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def is_aside(self) -> bool: ...
    @property
    def is_copied(self) -> bool: ...
    def copied(self) -> Self:
        """The same with `is_copied`."""


S = TypeVar("S", bound=PublishedShard)
D = TypeVar("D")  # what a file holds: bytes


@dataclass(frozen=True)
class Write:
    """Write the files of these shards, see `files_of_shard`, or keep those of the index where they hold the same."""

    plans: tuple[ShardPlan, ...]


@dataclass(frozen=True)
class Commit(Generic[S]):
    """Swap the index that was read for one of these shards. Where another run was faster: read all anew."""

    shards: tuple[S, ...]


@dataclass(frozen=True)
class Copy:
    """Put the files of these shards (by number) under their plain names too, for readers that go by names."""

    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Done:
    """The index names all rows, and a reader that goes by names finds them too."""


@dataclass(frozen=True)
class Put(Generic[D]):
    """Put an object, over whatever is there."""

    name: str
    data: D


@dataclass(frozen=True)
class Create(Generic[D]):
    """Create an object; the answer is whether it holds just `data` now."""

    name: str
    data: D


def files_of_shard(
    plain: Mapping[str, str], aside: Mapping[str, str], data: Mapping[str, D], known: bool
) -> Generator[Put[D] | Create[D], bool, Mapping[str, str]]:
    """The writes for the files of one shard, each answered by `send`; returns the names under which they lie.

    plain, aside: names by table; those aside follow from the data. Plain names are good for a shard that no index
    knows, as long as they hold just this: once made, they stay, until an index names others for the shard.
    """
    if not known:
        created = True
        for table, name in plain.items():
            created = (yield Create(name, data[table])) and created
        if created:
            return plain
    for table, name in aside.items():
        yield Put(name, data[table])
    return aside


def next_step(
    plans: Sequence[ShardPlan], index: Sequence[S], written: Mapping[int, S], copied: Collection[int]
) -> Write | Commit[S] | Copy | Done:
    """What a publisher does next. Data first, then the index that names them, then whatever it no longer names.

    plans: of all shards, from the manifest and the parts; index: as it was read, [] where there is none. written and
    copied: what this publisher has done since, by number.

    A plan for fewer images than the index has, by a driver that read an old manifest, changes nothing.
    """
    changed = [
        p
        for p in plans
        if p.number >= len(index) or (index[p.number].source != p.source and index[p.number].rows <= p.stop - p.first)
    ]
    left = tuple(p for p in changed if p.number not in written)
    if left:
        return Write(left)
    if changed:
        return Commit((*(written.get(n, shard) for n, shard in enumerate(index)), *_beyond(index, written)))
    waiting = [n for n, shard in enumerate(index) if shard.is_aside and not shard.is_copied]
    if not waiting:
        return Done()
    uncopied = tuple(n for n in waiting if n not in copied)
    return Copy(uncopied) if uncopied else Commit(tuple(s.copied() if n in waiting else s for n, s in enumerate(index)))


def _beyond(index: Sequence[S], written: Mapping[int, S]) -> Iterator[S]:
    return (written[n] for n in sorted(written) if n >= len(index))
