"""What an output holds at this moment: the published files, and what is committed beyond them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from raymask.errors import OutputError
from raymask.files import Bytes, Files, Spool, Stored
from raymask.journal import Manifest, Run, fingerprint_of, journal_folder, part_names, read_run, scan_parts
from raymask.protocol import ShardPlan, plan_shards
from raymask.published import Published, PublishedFile, Shard, read_published
from raymask.schema import INSTANCES, images_schema, with_footer
from raymask.shards import parquet_bytes, tables_of_shard
from raymask.storage import join

TABLES = ("images", "instances")


@dataclass(frozen=True)
class Snapshot:
    """The rows of an output as they are committed now: exactly one an image that is done, and that image's instances.

    tables: the files of both, as `raymask.json` would name them if all were published. listed: images of the input.
    unpublished: those of the files that are not published, by path.
    """

    out: str
    tables: Published
    listed: int
    unpublished: Mapping[str, Bytes]

    def files(self) -> Files:
        """The files of both tables, by path."""
        stored = {
            file.path: Stored(join(self.out, file.path), file.bytes)
            for table in TABLES
            for file in self.tables.files(table)
            if file.path not in self.unpublished
        }
        return Files({**stored, **self.unpublished})


def take_snapshot(out: str, on_progress: Callable[[int, int], None] = lambda done, of: None) -> Snapshot:
    """What is committed in an output. OutputError if there is none.

    A published shard is taken as it is, as long as the journal has nothing else for it; of the others the rows are
    read from the journal now. on_progress: called with (such shards read, such shards).
    """
    published = read_published(out)
    run = read_run(out)
    if run is None:
        if published is None:
            raise OutputError(f"{out!r} holds no output of raymask")
        return Snapshot(out, published, published.images, {})
    manifest = Manifest.read(journal_folder(out))
    known = Published("", ()) if published is None else published
    if known.journal == fingerprint_of(part_names(manifest.folder)) and known.images == manifest.rows:
        return Snapshot(out, known, manifest.rows, {})
    index = scan_parts(manifest.folder, manifest.rows)
    plans = [
        plan
        for plan in plan_shards(manifest.rows, run.images_per_file, index.parts)
        if not _is_in(known, plan, int(index.done[plan.first : plan.stop].sum()))
    ]
    spool, unpublished = Spool(), dict[str, Bytes]()
    shards = dict(enumerate(known.shards))
    for done, plan in enumerate(plans, 1):
        if plan.parts:
            tables = tables_of_shard(run, manifest, plan)
            shards[plan.number] = _spooled(tables, plan.number, plan.source, spool, unpublished)
        on_progress(done, len(plans))
    if not shards:
        shards[0] = _spooled(_empty_tables(run, manifest), 0, "", spool, unpublished)
    ordered = tuple(shards[number] for number in sorted(shards))
    return Snapshot(out, Published(index.fingerprint(), ordered), manifest.rows, unpublished)


def _is_in(known: Published, plan: ShardPlan, done: int) -> bool:
    """Whether a published shard holds all that the journal has for it; the journal may be gone, its rows are not."""
    if plan.number >= len(known.shards):
        return False
    shard = known.shards[plan.number]
    return shard.source == plan.source or done < shard.rows


def _empty_tables(run: Run, manifest: Manifest) -> dict[str, pa.Table]:
    schemas = {"images": images_schema(manifest.user_fields()), "instances": INSTANCES}
    return {table: with_footer(schema, run.footer(table)).empty_table() for table, schema in schemas.items()}


def _spooled(
    tables: Mapping[str, pa.Table], number: int, source: str, spool: Spool, unpublished: dict[str, Bytes]
) -> Shard:
    files = {}
    for table, rows in tables.items():
        data = parquet_bytes(rows)
        path = f"unpublished/{table}-{number:05d}.parquet"
        unpublished[path] = spool.add(data)
        files[table] = PublishedFile(path, rows.num_rows, len(data), hashlib.sha256(data).hexdigest())
    errors = Counter(error for error in tables["images"].column("error").to_pylist() if error is not None)
    ok = files["images"].rows - errors.total()
    return Shard(source, files["images"], files["instances"], ok, dict(sorted(errors.items())))
