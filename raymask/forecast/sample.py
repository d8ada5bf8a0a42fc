"""Images from all over a source, chosen by chance while it is listed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

import numpy as np
import pyarrow as pa

from raymask.schema import MANIFEST

STRETCH = 8  # images beside each other in the source, as runs read them: a shard or a row group serves several
MAX_STRETCHES = 2_048


class Sample:
    """Up to `MAX_STRETCHES` stretches of a stream of `MANIFEST` rows, every one with the same chance."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._kept: list[tuple[float, pa.Table]] = []

    def watch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches; what is in the sample is remembered."""
        for batch in batches:
            starts = np.arange(0, batch.num_rows, STRETCH)
            keys = self._random.random(len(starts))
            limit = self._kept[-1][0] if len(self._kept) == MAX_STRETCHES else 1.0
            for place in np.flatnonzero(keys < limit):
                stretch = pa.Table.from_batches([batch.slice(starts[place], STRETCH)]).select(MANIFEST.names)
                # Copied, or the whole batch would be held for it.
                self._kept.append((float(keys[place]), stretch.take(np.arange(stretch.num_rows))))
            self._kept = sorted(self._kept, key=lambda kept: kept[0])[:MAX_STRETCHES]
            yield batch

    def __len__(self) -> int:
        return sum(stretch.num_rows for _, stretch in self._kept)

    def rows(self, count: int) -> pa.Table:
        """Whole stretches with ordinals 0, 1, ... that make up `count` rows or a few more; all if there are fewer."""
        before = accumulate((stretch.num_rows for _, stretch in self._kept), initial=0)
        chosen = [stretch for (_, stretch), passed in zip(self._kept, before, strict=False) if passed < count]
        table = pa.concat_tables(chosen)
        ordinals = pa.array(np.arange(table.num_rows, dtype=np.int64))
        return table.set_column(table.schema.get_field_index("ordinal"), MANIFEST.field("ordinal"), ordinals)
