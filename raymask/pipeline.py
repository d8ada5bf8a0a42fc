"""The path of an image, from its source to the two tables:

    sources -> fetch -> decode -> predict -> encode (RLE) -> tables -> journal -> publish

`segment` reads top to bottom as the run does. Each step is a plain function in a module of its own; only this file
knows that Ray Data carries rows from one to the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raymask
from raymask.cluster import ray_session
from raymask.config import SegmentConfig
from raymask.decode import Image, keep_freed_memory
from raymask.errors import Failure, OutputError, RaymaskError
from raymask.fetch import Fetched, Place, fetch
from raymask.journal import (
    Lease,
    Manifest,
    Run,
    create_run,
    journal_folder,
    read_chunk,
    read_outcomes,
    read_run,
    scan_parts,
    write_part,
)
from raymask.journal.manifest import CHUNK_ROWS
from raymask.journal.run import check_same
from raymask.listing import Found, add_listing, look_at_source
from raymask.meter import Meter, metered
from raymask.pools import TASK_CPUS, Pool, await_machines, plan_pool, room_of, task_room_bytes, using_all_machines
from raymask.progress import Reporter, Silent
from raymask.protocol import Work, work_to_do
from raymask.publishing import publish
from raymask.sandbox import DECODER, borrowed_sandbox
from raymask.stages import Times, bottleneck
from raymask.storage import Folder, join, used_plainly
from raymask.tables import DecodedRow, decoded_table, part_table, pixels_of, timed
from raymask.timing import Idleness, count, each, stage, stopwatch
from raymask.witness import Watched, Witness

if TYPE_CHECKING:
    from raymask.model import Detections, Model
# torch and torchvision take three seconds to import; of all processes of a run only the driver and the model workers
# need them, so `raymask.model` is imported where those two begin.

SHARES_OF_CALL = 16  # how many shares of a small run are made for each call that workers handle at once
TASK_ROWS = 512  # images of one fetch-and-decode task in a run of many; Ray Data takes 0.2 s to follow one by another
BLOCKS_IN_TASK = 2  # whose pixels a task holds outside of the object store: decoded, and as an Arrow table
MAX_TASKS = 4_000  # of one run; Ray Data puts each into its store before the first begins, 4 ms each
DEVICE_FAULT = 70  # exit code of a worker whose device has failed


@dataclass(frozen=True)
class Summary:
    """How a run ended. images, ok, failed, errors and instances are of the whole output, the others of this run."""

    out: str
    run_id: str
    images: int
    ok: int
    failed: int
    errors: Mapping[str, int]
    instances: int
    processed: int
    elapsed_s: float
    segment_s: float
    times: Times

    def facts(self) -> dict[str, Any]:
        """What a log says of it."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("run_id", "times")}
        words = bottleneck(self.times).text
        return {**plain, "phases_s": self.times.phases, "stages_s": self.times.seconds, "bottleneck": words}


@dataclass(frozen=True)
class Plan:
    """What a run would do. source: what would be listed, None where an unfinished listing would be gone on with.

    done, pending: images of the output, without those that the source would add.
    """

    out: str
    source: Found | None
    done: int
    pending: int
    model: str
    model_sha256: str


def segment(config: SegmentConfig, report: Reporter | None = None, pool: Pool | None = None) -> Summary:
    """Segment every image of the source that the output does not have yet, then publish the tables.

    pool: the model workers; None for those that `--workers` says, or as many as fit the cluster.
    """
    report = report or Silent()
    started_s = time.monotonic()
    folder = journal_folder(config.out)
    with ThreadPoolExecutor(1) as beside, contextlib.ExitStack() as stack:
        meter = stack.enter_context(metered(report.run_id, config.profile))
        meter.phase("start")
        loading = beside.submit(_load_model, config)  # torch takes as long to import as Ray to start
        stack.enter_context(ray_session(config.allow_open_cluster))
        model = loading.result()
        stack.enter_context(used_plainly(config.out))
        stack.enter_context(Lease(folder))
        run = run_of(config, model)
        there = read_run(config.out)
        if there is not None:
            check_same(config.out, there, run)
        meter.phase("list")
        manifest = add_listing(config, report)
        run = create_run(config.out, run)  # or the one there is, whose files go on as they were cut
        index = scan_parts(folder, manifest.rows)
        again = read_outcomes(folder, index).failed if config.retry_failed else None
        work = work_to_do(index.done, index.attempt, again)
        meter.phase("segment")
        segmenting_s = time.monotonic()
        processed = process(config, model, manifest, work, report, pool, meter)
        segment_s = time.monotonic() - segmenting_s
        meter.phase("publish")
        published = publish(config.out, run, manifest)
        meter.phase("end")
    summary = Summary(
        out=config.out,
        run_id=report.run_id,
        images=published.images,
        ok=published.ok,
        failed=published.failed,
        errors=published.errors,
        instances=published.instances,
        processed=processed,
        elapsed_s=time.monotonic() - started_s,
        segment_s=segment_s,
        times=meter.ends(),
    )
    if config.report:
        report_on(config)
    report.done(summary.facts())
    return summary


def report_on(config: SegmentConfig) -> None:
    """Write the page about the output into it."""
    from raymask.reporting.config import REPORT_FILE, ReportConfig
    from raymask.reporting.document import write_report

    page = join(config.out, REPORT_FILE)
    write_report(ReportConfig(masks=config.out, out=page, allow_http=config.allow_http))


def plan(config: SegmentConfig) -> Plan:
    """What `segment` would do with the same options; nothing is written."""
    model = _load_model(config)
    there = read_run(config.out)
    if there is not None:
        check_same(config.out, there, run_of(config, model))
    manifest = Manifest.read(journal_folder(config.out))
    index = scan_parts(manifest.folder, manifest.rows)
    found = look_at_source(config, manifest, index)
    done = int(index.done.sum())
    retried = int(read_outcomes(manifest.folder, index).failed.sum()) if config.retry_failed else 0
    return Plan(
        out=config.out,
        source=found,
        done=done,
        pending=manifest.rows - done + retried,
        model=model.spec.architecture,
        model_sha256=model.sha256,
    )


def _load_model(config: SegmentConfig) -> Model:
    from raymask.model import load_model

    return load_model(config.weights, config.model)


def run_of(config: SegmentConfig, model: Model) -> Run:
    """What identifies the rows that this model makes under these options."""
    spec = model.spec.with_options(**_model_options(config))
    return Run(
        model=spec.architecture,
        model_sha256=model.sha256,
        categories=tuple((c.id, c.name) for c in spec.categories),
        thresholds={**dataclasses.asdict(spec.thresholds), "min_size": spec.min_size, "max_size": spec.max_size},
        images_per_file=config.images_per_file,
        raymask_version=raymask.__version__,
    )


def process(
    config: SegmentConfig,
    model: Model,
    manifest: Manifest,
    work: Work,
    report: Reporter,
    pool: Pool | None,
    meter: Meter,
) -> int:
    """Bring the wanted images through the model into the journal; returns how many there were.

    Ray Data runs both steps at once, on as many machines as it has: tasks that fetch and decode, and model workers,
    which write what they find. Only counts come back to the driver.
    """
    wanted = work.wanted
    pending = int(wanted.sum())
    total = manifest.rows
    done, failed = total - pending, 0
    report.images(done, failed, total)
    if not pending:
        return 0
    if pool is None:
        await_machines(bool(config.gpus_per_worker), config.decode_labels(), report.say)
        pool = plan_pool(config.worker_range(), config.gpus_per_worker)
    images_per_part = config.images_per_part or share_of(pending, pool)
    images = ImageSource(
        folder=manifest.folder,
        files=[f.name for f in manifest.files],
        chunks=plan_chunks(manifest, wanted, pool.calls, images_per_part),
        wanted=ray.put(np.packbits(wanted)),
        as_listed=work.attempt == 0,
        max_bytes=config.max_bytes,
        max_pixels=config.max_pixels,
        rows_per_block=images_per_part,
        room_bytes=task_room_bytes(config.decode_labels()),
        decoder=DECODER,
    )
    most = len(images.chunks)
    # Ray Data would ask for as much as blocks have had on average, another number for each task, and Ray reuses the
    # process of a task only for one that asks for the same.
    task_memory_bytes = BLOCKS_IN_TASK * images.room_bytes
    meter.begins(pending, room_of(pool, most))
    with using_all_machines(pool, most, config.decode_labels()):
        rows = ray.data.read_datasource(
            images,
            num_cpus=TASK_CPUS,
            memory=task_memory_bytes,
            override_num_blocks=most,
            label_selector=config.decode_labels() or None,
        )
        rows = rows.map_batches(
            Worker,
            fn_constructor_kwargs={
                "model": ray.put(model),
                "config": config,
                "pool": pool,
                "folder": manifest.folder,
                "attempt": work.attempt,
                "witness": _begin_witness(),
            },
            batch_format="pyarrow",
            batch_size=images_per_part,
            compute=ray.data.ActorPoolStrategy(
                min_size=min(pool.min_workers, most),
                max_size=min(pool.max_workers or pool.min_workers, most),
                initial_size=min(pool.min_workers, most),
                max_concurrent_calls_per_actor=pool.concurrent_calls,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.worker_cpus,
            num_gpus=pool.worker_gpus,
        )
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for committed in batch.to_pylist():
            if committed["trace"] is not None:
                raise RuntimeError(f"{committed['trace']}\na model worker failed: {committed['error']}")
            if committed["error"] is not None:
                raise OutputError(committed["error"])
            done += committed["images"]
            failed += committed["failed"]
            meter.committed(committed["images"], committed["failed"], committed["timings"])
        report.images(done, failed, total)
    return pending


def share_of(pending: int, pool: Pool) -> int:
    """Images that a worker is handed at once: as many as the pool says, but so few that there are many shares and no
    core or GPU ends long after the others. A power of two, so that whole shares make up a task.
    """
    return floor_power_of_two(min(pool.images_per_part, pending // (SHARES_OF_CALL * pool.calls)))


def floor_power_of_two(number: int) -> int:
    """The largest power of two up to `number`, and at least 1."""
    return 1 << max(0, number.bit_length() - 1)


CHUNK = np.dtype([("file", np.int32), ("start", np.int64), ("rows", np.int32), ("first_ordinal", np.int64)])


def plan_chunks(manifest: Manifest, wanted: NDArray[np.bool_], calls: int, images_per_part: int) -> NDArray[np.void]:
    """The manifest cut into tasks, those left out that have nothing to do. A record an item, of dtype `CHUNK`.

    Small enough that every worker gets many (so that none ends long after the others), large enough that a task is
    worth its start; each within one row group of the manifest.
    """
    pending = int(wanted.sum())
    rows = min(floor_power_of_two(images_per_part), CHUNK_ROWS)
    while rows < CHUNK_ROWS and (
        (rows < TASK_ROWS and pending > 2 * SHARES_OF_CALL * calls * rows) or pending > MAX_TASKS * rows
    ):
        rows *= 2
    chunks = []
    for number, file in enumerate(manifest.files):
        starts = np.arange(0, file.rows, rows)
        counts = np.add.reduceat(wanted[file.first_ordinal : file.first_ordinal + file.rows].astype(np.int32), starts)
        chosen = starts[counts > 0]
        records = np.zeros(len(chosen), CHUNK)
        records["file"] = number
        records["start"] = chosen
        records["rows"] = np.minimum(rows, file.rows - chosen)
        records["first_ordinal"] = file.first_ordinal + chosen
        chunks.append(records)
    return np.concatenate(chunks)


class ImageSource(Datasource):
    """The wanted images of a manifest, fetched and decoded: a Ray Data source with a read task for each chunk.

    wanted: reference to one bit an image, by ordinal; chunks: of dtype `CHUNK`; as_listed: whether an object must
    still be the one that was listed, as it need not where a failed image is tried again; rows_per_block: how many
    images travel together, room_bytes: unless their pixels are more, see `Sandbox.blocks`; decoder: see `Sandbox`.
    """

    def __init__(
        self,
        *,
        folder: Folder,
        files: list[str],
        chunks: NDArray[np.void],
        wanted: ray.ObjectRef[NDArray[np.uint8]],
        as_listed: bool,
        max_bytes: int,
        max_pixels: int,
        rows_per_block: int,
        room_bytes: int,
        decoder: str,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = folder
        self.files = files
        self.chunks = chunks
        self.wanted = wanted
        self.as_listed = as_listed
        self.max_bytes = max_bytes
        self.max_pixels = max_pixels
        self.rows_per_block = rows_per_block
        self.room_bytes = room_bytes
        self.decoder = decoder

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One task a chunk, whatever parallelism Ray proposes: the chunks were made to fit."""
        return [
            ReadTask(
                partial(
                    read_images,
                    folder=self.folder,
                    file=self.files[int(chunk["file"])],
                    start=int(chunk["start"]),
                    rows=int(chunk["rows"]),
                    first_ordinal=int(chunk["first_ordinal"]),
                    wanted=self.wanted,
                    as_listed=self.as_listed,
                    max_bytes=self.max_bytes,
                    max_pixels=self.max_pixels,
                    rows_per_block=self.rows_per_block,
                    room_bytes=self.room_bytes,
                    decoder=self.decoder,
                ),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
            )
            for chunk in self.chunks
        ]


def read_images(
    *,
    folder: Folder,
    file: str,
    start: int,
    rows: int,
    first_ordinal: int,
    wanted: ray.ObjectRef[NDArray[np.uint8]],
    as_listed: bool,
    max_bytes: int,
    max_pixels: int,
    rows_per_block: int,
    room_bytes: int,
    decoder: str = DECODER,
) -> Iterator[pa.Table]:
    """Fetch and decode the wanted images of one chunk of a manifest file; yields tables in `DECODED`."""
    keep_freed_memory()
    first_bit = first_ordinal % 8
    bits = np.unpackbits(ray.get(wanted)[first_ordinal // 8 : (first_ordinal + rows + 7) // 8])
    flags = bits[first_bit : first_bit + rows].astype(bool)
    with stopwatch("read") as watch:
        with used_plainly(folder.url), stage("fetch"):
            listed = read_chunk(folder, file, start, rows).filter(pa.array(flags)).to_pylist()
        places = [
            Place(r["uri"], r["size"], r["etag"], r["container"], r["container_column"], r["position"])
            if as_listed or r["container"]
            else Place(r["uri"])
            for r in listed
        ]
        sizes = {"max_bytes": max_bytes, "max_pixels": max_pixels, "room_bytes": room_bytes}
        with borrowed_sandbox(**sizes, decoder=decoder) as sandbox:
            fetched = each("fetch", fetch(places, max_bytes=max_bytes))
            files = (_without_data(row, file) for row, file in zip(listed, fetched, strict=True))
            for block in each("decode", sandbox.blocks(files, rows_per_block)):
                with stage("pack"):
                    table = decoded_table(
                        [decoded_row(r["ordinal"], r["uri"], image, size, etag) for (r, size, etag), image in block]
                    )
                count("read", table.num_rows)
                yield timed(table, watch.take().to_json())


def _without_data(
    row: dict[str, Any], fetched: Fetched | Failure
) -> tuple[tuple[dict[str, Any], int | None, str | None], bytes | Failure]:
    """What a row of the tables says of a file, and beside it the file, which need not be held as long."""
    if isinstance(fetched, Failure):
        return (row, None, None), fetched
    count("bytes", len(fetched.data))
    return (row, len(fetched.data), fetched.etag), fetched.data


def decoded_row(ordinal: int, uri: str, image: Image | Failure, size: int | None, etag: str | None) -> DecodedRow:
    """One image decoded, or the reason why not: fetching and decoding fail alike, into the row."""
    if isinstance(image, Failure):
        return DecodedRow(ordinal, uri, image, bytes=size, etag=etag)
    return DecodedRow(ordinal, uri, image.pixels, image.format, size, etag)


COUNTS = pa.schema(
    [
        ("images", pa.int64()),
        ("failed", pa.int64()),
        ("error", pa.string()),
        ("trace", pa.string()),
        ("timings", pa.list_(pa.string())),  # JSON of `Taken`, of this call and of the tasks that read for it
    ]
)


class Worker:
    """A model worker: decoded images in, their rows written as one part of the journal. Ray keeps one a GPU or core."""

    def __init__(
        self, model: Any, config: SegmentConfig, pool: Pool, folder: Folder, attempt: int, witness: Any
    ) -> None:
        from raymask.model import Predictor

        self._predictor = Predictor(
            ray.get(model),
            device=pool.device,
            precision=config.precision,
            batch_size=config.batch_size,
            threads=pool.worker_threads,
            **_model_options(config),
        )
        self._categories = [(c.id, c.name) for c in self._predictor.categories]
        self._out = config.out
        self._folder = folder
        self._attempt = attempt
        self._predict = Watched(self.predict, _RemoteWitness(witness))
        self._idleness = Idleness(pool.concurrent_calls)

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """One row of `COUNTS`, which is all that goes back to the driver; what is raised goes that way too.

        Where an exception left a worker of several threads, the run was seen to stand still.
        """
        images = failed = 0
        error: str | None = None
        trace: str | None = None
        with stopwatch("model") as watch, self._idleness.interrupted():
            try:
                images, failed = self.commit(decoded)
            except RaymaskError as raised:
                error = str(raised)
            except Exception as raised:  # a fault of the program's
                error, trace = repr(raised), traceback.format_exc()
        timings = [*decoded.column("timing").drop_null().to_pylist(), watch.take().to_json()]
        return pa.table([[images], [failed], [error], [trace], [timings]], schema=COUNTS)

    def commit(self, decoded: pa.Table) -> tuple[int, int]:
        """Write the part of these images; returns how many there are and how many of them failed."""
        images = pixels_of(decoded)
        ordinals = decoded.column("ordinal").to_pylist()
        with stage("predict"):
            found = self._predict({ordinals[row]: pixels for row, pixels in images.items()})
        with stage("encode"):
            rows = part_table(decoded, {row: found[ordinals[row]] for row in images}, self._categories)
        if rows.num_rows:
            with used_plainly(self._out), stage("write"):
                write_part(self._folder, rows, self._attempt)
        return rows.num_rows, rows.num_rows - rows.column("error").null_count

    def predict(self, images: list[NDArray[np.uint8]]) -> list[Detections | Failure]:
        """What the model finds in each. An error that the device does not recover from ends this process."""
        try:
            return self._predictor(images)
        except self._predictor.device_faults:
            # The next process is told at what it happened.
            os._exit(DEVICE_FAULT)


def _begin_witness() -> Any:
    """The witness as an actor on the driver's machine: what it knows is lost only where the run ends as well."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Witness).options(**options).remote()


class _RemoteWitness:
    """The witness, which is an actor of Ray's."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, numbers: Sequence[int]) -> dict[int, int]:
        deaths: dict[int, int] = ray.get(self._actor.begin.remote(list(numbers)))
        return deaths

    def begin_alone(self, number: int) -> None:
        ray.get(self._actor.begin_alone.remote(number))

    def end(self, numbers: Sequence[int]) -> None:
        self._actor.end.remote(list(numbers))  # nobody has to wait for that


def _model_options(config: SegmentConfig) -> dict[str, Any]:
    names = ("min_score", "nms", "max_detections", "proposals", "mask_threshold", "min_size", "max_size")
    return {name: getattr(config, name) for name in names}
