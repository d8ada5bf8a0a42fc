"""From the journal to the two published tables.

Ordinals are cut into shards of `images_per_file`; shard k becomes `images/part-k.parquet` and
`instances/part-k.parquet`, and `raymask.json` says which files with which checksums make up the tables. Every name and
every byte follows from the journal, so publishing can be killed and repeated, and a shard whose parts have not changed
is not written again. One that has changed is first written aside and named in `raymask.json` there; only then are the
files under the plain names replaced, for readers that go by names. `protocol.next_step` decides what comes when.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from raymask.errors import OutputError
from raymask.journal import Lease, Manifest, Run, journal_folder, read_run, scan_parts
from raymask.protocol import (
    Commit,
    Copy,
    Create,
    Done,
    Put,
    ShardPlan,
    Write,
    files_of_shard,
    next_step,
    plan_shards,
)
from raymask.published import ASIDE, INDEX_FILE, Published, PublishedFile, Shard, parse_published, plain_path
from raymask.shards import parquet_bytes, tables_of_shard
from raymask.storage import Folder, absolute, used_plainly

MAX_SHARDS_AT_ONCE = 64
MAX_RIVALS = 10  # how often another run may publish in between

T = TypeVar("T")


def finish(out: str, allow_open_cluster: bool, on_progress: Callable[[int, int], None]) -> Published:
    """Publish an output whose run was cut off, without its source and its model; see `publish`."""
    from raymask.cluster import ray_session  # Ray takes a second, for those who publish with it

    run = read_run(out)
    if run is None:
        raise OutputError(f"{out!r} holds no output of raymask")
    folder = journal_folder(out)
    with ray_session(allow_open_cluster), Lease(folder):
        return publish(out, run, Manifest.read(folder), on_progress)


def publish(
    out: str,
    run: Run,
    manifest: Manifest,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
    on_cluster: bool = True,
) -> Published:
    """Write the tables of everything in the journal; OutputError if an image of the manifest is not in it.

    on_progress: called with (shards written, shards to write). on_cluster: as tasks of Ray, else one by one, here.
    """
    out = absolute(out)  # it travels to tasks, which Ray starts in folders of their own
    for _ in range(MAX_RIVALS):
        published = _publish_unless_overtaken(out, run, manifest, on_progress, on_cluster)
        if published is not None:
            return published
    raise OutputError(f"other runs publish to {out} all the time; stop them, then run again")


def _publish_unless_overtaken(
    out: str, run: Run, manifest: Manifest, on_progress: Callable[[int, int], None], on_cluster: bool
) -> Published | None:
    """The same; None if another run has changed the index meanwhile, so that all has to be looked at anew."""
    each = _on_the_cluster if on_cluster else _one_by_one
    there, published = _read_index(out)
    index = scan_parts(manifest.folder, manifest.rows)
    missing = int((~index.done).sum())
    if missing:
        first = int(np.flatnonzero(~index.done)[0])
        raise OutputError(
            f"{missing} of {manifest.rows} images of {out} are not done (the first is number {first}); run again"
        )
    fingerprint = index.fingerprint()
    unchanged = published.journal == fingerprint and published.images == manifest.rows
    plans = [] if unchanged else plan_shards(manifest.rows, run.images_per_file, index.parts)
    written: dict[int, Shard] = {}
    copied: set[int] = set()
    while True:
        match next_step(plans, published.shards, written, copied):
            case Write() as step:
                known = published.shards
                calls = (
                    (out, run, manifest, plan, known[plan.number] if plan.number < len(known) else None)
                    for plan in step.plans
                )
                for done, (number, shard) in enumerate(each(publish_shard, calls), 1):
                    written[number] = shard
                    on_progress(done, len(step.plans))
            case Commit(shards):
                published = Published(fingerprint, shards)
                data = published.to_json(run)
                if not Folder(out).swap(INDEX_FILE, there, data):
                    return None
                there = data
            case Copy(numbers):
                copied.update(each(copy_shard, ((out, n, published.shards[n]) for n in numbers)))
            case Done():
                return published


def _read_index(out: str) -> tuple[bytes | None, Published]:
    """`raymask.json` as it is and as it is understood; a damaged one holds nothing, and is written anew."""
    there = Folder(out).read_or_none(INDEX_FILE)
    nothing = Published("", ())
    try:
        return there, nothing if there is None else parse_published(there, out)
    except OutputError:
        return there, nothing


def _on_the_cluster(call: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """call(*each) as Ray tasks, as they end. Few at a time: neither the driver nor the store sees a million at once."""
    import ray  # takes a second, for those who publish with it

    task = ray.remote(_said_plainly).options(num_cpus=0.5)
    waiting: list[Any] = []
    queue = iter(arguments)
    while True:
        while len(waiting) < MAX_SHARDS_AT_ONCE and (each := next(queue, None)) is not None:
            waiting.append(task.remote(call, *each))
        if not waiting:
            return
        ready, waiting = ray.wait(waiting)
        yield from ray.get(ready)


def _one_by_one(call: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    return (_said_plainly(call, *each) for each in arguments)


def _said_plainly(call: Callable[..., T], out: str, *more: Any) -> T:
    with used_plainly(out):
        return call(out, *more)


def publish_shard(out: str, run: Run, manifest: Manifest, plan: ShardPlan, before: Shard | None) -> tuple[int, Shard]:
    """Write the two files of one shard. before: the shard of this number in the index, None if there is none."""
    tables = tables_of_shard(run, manifest, plan)
    images = tables["images"]
    if images.num_rows != plan.stop - plan.first:
        raise OutputError(
            f"shard {plan.number} of {out} has {images.num_rows} rows, {plan.stop - plan.first} are meant"
        )
    counts = Counter(e for e in images.column("error").to_pylist() if e is not None)
    files = {table: parquet_bytes(rows) for table, rows in tables.items()}
    sha256 = {table: hashlib.sha256(data).hexdigest() for table, data in files.items()}
    if before is not None and sha256 == {"images": before.images.sha256, "instances": before.instances.sha256}:
        return plan.number, replace(before, source=plan.source)
    plain = {table: plain_path(table, plan.number) for table in tables}
    aside = {table: f"{ASIDE}/{table}-{plan.number:05d}-{sha256[table][:16]}.parquet" for table in tables}
    paths = _carry_out(Folder(out), files_of_shard(plain, aside, files, before is not None))
    entries = {
        table: PublishedFile(paths[table], tables[table].num_rows, len(data), sha256[table])
        for table, data in files.items()
    }
    return plan.number, Shard(
        source=plan.source,
        images=entries["images"],
        instances=entries["instances"],
        ok=images.num_rows - counts.total(),
        errors=dict(sorted(counts.items())),
    )


def _carry_out(folder: Folder, writes: Generator[Put[bytes] | Create[bytes], bool, T]) -> T:
    """Do the writes as they come; returns what they return in the end."""
    answer = False
    try:
        write = next(writes)
        while True:
            match write:
                case Create(name, data):
                    answer = folder.create(name, data)
                case Put(name, data):
                    folder.put(name, data)
            write = writes.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def copy_shard(out: str, number: int, shard: Shard) -> int:
    """Put the files of a shard that lie aside under their plain names too; returns its number."""
    for table, file in (("images", shard.images), ("instances", shard.instances)):
        Folder(out).put(plain_path(table, number), Folder(out).read(file.path))
    return number
