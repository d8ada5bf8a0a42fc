"""What an import has read, whatever it was: images, their instances, and what had to be left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymask.masks import area
from raymask.schema import INSTANCE_FIELDS, MASK, PART

BATCH_ROWS = 10_000
MAX_CATEGORY_ID = 2**31 - 1

# An instance as it is read; large, for all masks together may be more text than one string array holds.
READ = pa.schema(
    [
        pa.field("category_id", pa.int32()),
        pa.field("score", pa.float32()),
        pa.field("x_min", pa.float32()),
        pa.field("y_min", pa.float32()),
        pa.field("x_max", pa.float32()),
        pa.field("y_max", pa.float32()),
        pa.field("area", pa.int64()),
        pa.field("counts", pa.large_string()),
        pa.field("own_id", pa.int64()),  # what the file calls it, and says of its area, where it does
        pa.field("own_area", pa.float64()),
    ]
)


@dataclass
class Problems:
    """What was left out or mended, in words: how often, and where first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, where: str) -> None:
        self.counts[what] += 1
        self.first.setdefault(what, where)

    def lines(self) -> list[str]:
        """One line a problem, the most frequent first."""
        return [f"  {count:>9,} {what}, such as {self.first[what]}" for what, count in self.counts.most_common()]


def number_of(value: Any) -> float | None:
    """A finite number as it is; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def score_of(value: Any, problems: Problems, where: str) -> float | None:
    """A score from 0 to 1; None, counted, for anything else."""
    score = number_of(value)
    if score is None or not 0 <= score <= 1:
        problems.add("objects whose score is no number from 0 to 1, left out", where)
        return None
    return score


class Instances:
    """Instances of images as they come, in Arrow but for the last few thousand."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._values: list[tuple[Any, ...]] = []
        self._done_rows: list[NDArray[np.int64]] = []
        self._done: list[pa.RecordBatch] = []

    def add(
        self,
        row: int,
        category_id: int,
        score: float,
        box_xyxy: Sequence[float],
        rle: Mapping[str, Any],
        own_id: int | None = None,
        own_area: float | None = None,
    ) -> None:
        """One instance of image `row`; rle: well-formed, of the image's size. The box is cut to the image."""
        height, width = rle["size"]
        box = np.clip(np.asarray(box_xyxy, np.float32), 0, np.array([width, height, width, height], np.float32))
        counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode()
        self._rows.append(row)
        self._values.append((category_id, score, *box.tolist(), area(rle), counts, own_id, own_area))
        if len(self._rows) == BATCH_ROWS:
            self._flush()

    def by_image(self) -> tuple[NDArray[np.int64], pa.Table]:
        """Image rows, and beside them the instances in `READ`: by image and falling score, equal ones as they came."""
        self._flush()
        rows = np.concatenate([np.empty(0, np.int64), *self._done_rows])
        table = pa.Table.from_batches(self._done, READ)
        order = np.lexsort((np.arange(len(rows)), -table.column("score").to_numpy(), rows))
        return rows[order], table.take(pa.array(order))

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._values, strict=True)
            arrays = [pa.array(column, f.type) for column, f in zip(columns, READ, strict=True)]
            self._done_rows.append(np.array(self._rows, np.int64))
            self._done.append(pa.record_batch(arrays, schema=READ))
            self._rows, self._values = [], []


@dataclass(frozen=True)
class Annotated:
    """All that an import has read.

    sha256: of what was read and of the options that decide what it means: equal for equal tables.
    uris, sizes_hw: of each image. carried: columns for `images` beside them.
    rows, instances: as `Instances.by_image` gives them.
    """

    sha256: str
    categories: tuple[tuple[int, str], ...]
    uris: Sequence[str]
    sizes_hw: NDArray[np.int32]
    carried: pa.Table
    rows: NDArray[np.int64]
    instances: pa.Table
    problems: Problems

    def part(self, start: int, stop: int) -> pa.Table:
        """Rows of the journal for images start .. stop - 1."""
        first, last = np.searchsorted(self.rows, [start, stop])
        counts = np.bincount(self.rows[first:last] - start, minlength=stop - start)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        found = self.instances.slice(first, last - first).combine_chunks()
        sizes = self.sizes_hw[self.rows[first:last]]
        names = dict(self.categories)
        columns = {name: found.column(name).combine_chunks() for name in READ.names}
        columns["instance"] = pa.array(np.arange(last - first) - np.repeat(offsets[:-1], counts), pa.int32())
        columns["category"] = pa.array([names[id] for id in columns["category_id"].to_pylist()], pa.string())
        ends = pa.array(np.arange(0, 2 * len(sizes) + 1, 2, dtype=np.int32))
        size_lists = pa.ListArray.from_arrays(ends, pa.array(sizes.reshape(-1), pa.int32()))
        columns["mask"] = pa.StructArray.from_arrays(
            [size_lists, columns["counts"].cast(pa.string())], fields=list(MASK)
        )
        structs = pa.StructArray.from_arrays([columns[f.name] for f in INSTANCE_FIELDS], fields=INSTANCE_FIELDS)
        values = {
            "ordinal": pa.array(np.arange(start, stop), pa.int64()),
            "uri": pa.array(self.uris[start:stop], pa.string()),
            "status": pa.array(["ok"] * (stop - start), pa.string()),
            "height": pa.array(self.sizes_hw[start:stop, 0], pa.int32()),
            "width": pa.array(self.sizes_hw[start:stop, 1], pa.int32()),
            "instances": pa.ListArray.from_arrays(pa.array(offsets), structs, type=PART.field("instances").type),
        }
        return pa.table([values.get(f.name, pa.nulls(stop - start, f.type)) for f in PART], schema=PART)
