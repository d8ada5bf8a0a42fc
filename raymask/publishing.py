"""From the journal to the two published tables.

Ordinals are cut into shards of `images_per_file`; shard k becomes `images/part-k.parquet` and
`instances/part-k.parquet`, and `raymask.json`, written last, says which files with which checksums make up the tables.
Every name and every byte follows from the journal, so publishing can be killed and repeated, and a shard whose parts
have not changed is not written again.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from raymask.errors import OutputError
from raymask.journal import Manifest, PartIndex, PartName, Run, journal_folder, read_parts, scan_parts
from raymask.published import INDEX_FILE, Published, PublishedFile, Shard, read_published
from raymask.schema import images_schema, with_footer
from raymask.storage import Folder
from raymask.tables import published_tables

ROW_GROUP_ROWS = 65_536
MAX_SHARDS_AT_ONCE = 64


def publish(
    out: str, run: Run, manifest: Manifest, on_progress: Callable[[int, int], None] = lambda done, of: None
) -> Published:
    """Write the tables of everything in the journal; OutputError if an image of the manifest is not in it.

    on_progress: called with (shards written, shards to write).
    """
    index = scan_parts(manifest.folder, manifest.rows)
    missing = int((~index.done).sum())
    if missing:
        first = int(np.flatnonzero(~index.done)[0])
        raise OutputError(
            f"{missing} of {manifest.rows} images of {out} are not done (the first is number {first}); run again"
        )
    before = read_published(out)
    fingerprint = index.fingerprint()
    if before is not None and before.journal == fingerprint and before.images == manifest.rows:
        return before
    shards: dict[int, Shard] = dict(enumerate(before.shards if before else ()))
    plans = [p for p in _plans(run, manifest, index) if p.number not in shards or shards[p.number].source != p.source]
    write = ray.remote(publish_shard).options(num_cpus=0.5)
    waiting: list[Any] = []
    queue = iter(plans)
    written = 0
    on_progress(0, len(plans))
    while True:
        # A bounded number of tasks in flight: neither the driver nor the store sees a million at once.
        while len(waiting) < MAX_SHARDS_AT_ONCE and (plan := next(queue, None)) is not None:
            waiting.append(write.remote(out, run, manifest, plan))
        if not waiting:
            break
        ready, waiting = ray.wait(waiting)
        for number, shard in ray.get(ready):
            shards[number] = shard
            written += 1
            on_progress(written, len(plans))
    published = Published(fingerprint, tuple(shards[k] for k in sorted(shards)))
    Folder(out).put(INDEX_FILE, published.to_json(run))
    return published


@dataclass(frozen=True)
class ShardPlan:
    """Ordinals first .. stop - 1, and the parts that may hold them."""

    number: int
    first: int
    stop: int
    parts: tuple[PartName, ...]

    @property
    def source(self) -> str:
        text = f"{self.first}-{self.stop}\n" + "\n".join(str(p) for p in self.parts)
        return hashlib.sha256(text.encode()).hexdigest()


def _plans(run: Run, manifest: Manifest, index: PartIndex) -> Iterator[ShardPlan]:
    for number, first in enumerate(range(0, manifest.rows, run.images_per_file)):
        stop = min(first + run.images_per_file, manifest.rows)
        yield ShardPlan(number, first, stop, tuple(index.overlapping(first, stop)))


def publish_shard(out: str, run: Run, manifest: Manifest, plan: ShardPlan) -> tuple[int, Shard]:
    """Write the two files of one shard."""
    rows = resolve_overlaps(journal_folder(out), plan)
    if rows.num_rows != plan.stop - plan.first:
        raise OutputError(f"shard {plan.number} of {out} has {rows.num_rows} rows, {plan.stop - plan.first} are meant")
    user_fields = manifest.user_fields()
    listed = manifest.read_rows(plan.first, plan.stop, ["uri", *(f.name for f in user_fields)])
    if listed.column("uri") != rows.column("uri"):
        raise OutputError(
            f"shard {plan.number} of {out}: the journal's uris are not the manifest's; choose another --out"
        )
    images, instances = published_tables(rows, listed)
    counts = Counter(e for e in rows.column("error").to_pylist() if e is not None)
    name = f"part-{plan.number:05d}.parquet"
    images = images.cast(with_footer(images_schema(user_fields), run.footer("images")))
    instances = instances.cast(with_footer(instances.schema, run.footer("instances")))
    return plan.number, Shard(
        source=plan.source,
        images=_put(out, f"images/{name}", images),
        instances=_put(out, f"instances/{name}", instances),
        ok=rows.num_rows - counts.total(),
        errors=dict(sorted(counts.items())),
    )


def resolve_overlaps(folder: Folder, plan: ShardPlan) -> pa.Table:
    """One journal row for each ordinal of the shard, by ordinal: the one that counts, see `by_precedence`."""
    tables = list(read_parts(folder, plan.parts))
    rows = pa.concat_tables([t.select(["ordinal", "error"]) for t in tables])
    ordinals = rows.column("ordinal").to_numpy()
    rank = np.repeat(np.arange(len(tables)), [t.num_rows for t in tables])
    failed = rows.column("error").is_valid().to_numpy()
    order = np.lexsort((rank, failed, ordinals))
    ascending = ordinals[order]
    first = np.concatenate([[True], ascending[1:] != ascending[:-1]])
    inside = (ascending >= plan.first) & (ascending < plan.stop)
    chosen = order[first & inside]
    starts = np.cumsum([0, *(t.num_rows for t in tables)])
    # Part by part, for the masks of all rows may be more text than one Arrow array can hold.
    runs = np.split(chosen, np.flatnonzero(np.diff(rank[chosen])) + 1) if len(chosen) else []
    taken = [tables[rank[run[0]]].take(pa.array(run - starts[rank[run[0]]])) for run in runs]
    return pa.concat_tables([tables[0].slice(0, 0), *taken])


def _put(out: str, path: str, table: pa.Table) -> PublishedFile:
    sink = io.BytesIO()
    # Statistics serve to skip row groups; of an RLE they would only cost.
    columns = [p for p in _leaf_paths(table.schema) if not p.startswith("mask.")]
    pq.write_table(
        table,
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        use_dictionary=[c for c in columns if c in ("uri", "status", "error", "format", "category")],
        write_statistics=columns,
        write_page_index=True,
    )
    data = sink.getvalue()
    Folder(out).put(path, data)
    return PublishedFile(path, table.num_rows, len(data), hashlib.sha256(data).hexdigest())


def _leaf_paths(schema: pa.Schema) -> list[str]:
    empty = schema.empty_table()
    sink = io.BytesIO()
    pq.write_table(empty, sink)
    parquet = pq.ParquetFile(sink).schema
    return [parquet.column(i).path for i in range(len(parquet))]
