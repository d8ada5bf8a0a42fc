"""The path of an image, from its source to the two tables:

    sources -> fetch -> decode -> predict -> encode (RLE) -> tables -> journal -> publish

`segment` reads top to bottom as the run does, and `process` as Ray Data carries images from the tasks that read them
(reading.py: fetch, decode) to the model workers (worker.py: predict, encode, journal). Each step is a plain function in
a module of its own that knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data

import raymask
from raymask.cluster import ray_session
from raymask.config import SegmentConfig
from raymask.errors import OutputError
from raymask.journal import Lease, Manifest, Run, create_run, journal_folder, read_outcomes, read_run, scan_parts
from raymask.journal.run import check_same
from raymask.listing import Found, add_listing, look_at_source
from raymask.meter import Meter, metered
from raymask.pools import TASK_CPUS, Pool, await_machines, plan_pool, room_of, task_room_bytes, using_all_machines
from raymask.progress import Reporter, Silent
from raymask.protocol import Work, work_to_do
from raymask.publishing import publish
from raymask.reading import ImageSource, Reading, plan_chunks, share_of
from raymask.sandbox import DECODER
from raymask.stages import Times, bottleneck
from raymask.storage import join, used_plainly
from raymask.worker import Worker, begin_witness

if TYPE_CHECKING:
    from raymask.model import Model
# torch and torchvision take three seconds to import; of all processes of a run only the driver and the model workers
# need them, so `raymask.model` is imported where those two begin.

BLOCKS_IN_TASK = 2  # whose pixels a task holds outside of the object store: decoded, and as an Arrow table


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
    spec = model.spec.with_options(**config.model_options())
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
    chunks = plan_chunks(manifest, wanted, pool.calls, images_per_part)
    reading = Reading(
        folder=manifest.folder,
        wanted=ray.put(np.packbits(wanted)),
        as_listed=work.attempt == 0,
        max_bytes=config.max_bytes,
        max_pixels=config.max_pixels,
        rows_per_block=images_per_part,
        room_bytes=task_room_bytes(config.decode_labels()),
        decoder=DECODER,
    )
    most = len(chunks)
    # Ray Data would ask for as much as blocks have had on average, another number for each task, and Ray reuses the
    # process of a task only for one that asks for the same.
    task_memory_bytes = BLOCKS_IN_TASK * reading.room_bytes
    meter.begins(pending, room_of(pool, most))
    with using_all_machines(pool, most, config.decode_labels()):
        rows = ray.data.read_datasource(
            ImageSource(reading, [f.name for f in manifest.files], chunks),
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
                "witness": begin_witness(),
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
