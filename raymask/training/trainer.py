"""The path of a training, from annotations to a model folder:

    read_rows -> find_unreadable -> starting_point -> TorchTrainer (samples -> steps -> checkpoints) -> save_model

`train` reads top to bottom as the run does. OUT/_raymask keeps what a killed run needs to go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
import ray.train
from ray.train.v2.api.config import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.v2.api.result import Result
from ray.train.v2.api.validation_config import ValidationConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from raymask.cluster import ray_session
from raymask.errors import ConfigError, OutputError, RaymaskError
from raymask.evaluation import read_annotations
from raymask.journal import Lease
from raymask.model import ModelSpec, load_model, save_model
from raymask.pools import TrainingRoom, await_machines, plan_training
from raymask.progress import Reporter, Silent, duration_text
from raymask.sandbox import DECODER
from raymask.storage import Folder, absolute, join, used_plainly
from raymask.training.augment import Augmentation
from raymask.training.config import TrainConfig
from raymask.training.dataset import AnnotatedRows, problem_lines, read_rows
from raymask.training.history import History, Record
from raymask.training.loop import LOSSES, Job, run_worker
from raymask.training.network import Start, starting_point
from raymask.training.photos import find_unreadable
from raymask.training.samples import Reading
from raymask.training.storage import RUN_NAME, RUNS_FOLDER, Storage, images_of, name_of
from raymask.training.stream import Stream
from raymask.training.trackers import open_trackers
from raymask.training.validation import SCORE, Validate

RUN_FILE, ROWS_FILE, LAST_FOLDER = "training.json", "training.parquet", "last"
POLL_S = 0.5
BEST_KEPT = 2
READ_AHEAD_BYTES = 256 * 1024 * 1024  # samples that wait for each worker

# Options that a run may be gone on with although they differ: they say how, not what.
FREE_OPTIONS = frozenset(
    {
        "out",
        "workers",
        "gpus_per_worker",
        "precision",
        "checkpoint_images",
        "max_failures",
        "quiet",
        "epochs",
        "trust_images",
        "track",
        "allow_open_cluster",
    }
    | {"val", "val_images", "val_interval", "max_pixels", "max_bytes"}
)


@dataclass(frozen=True)
class TrainSummary:
    """How a training ended. metrics: COCO's numbers of the model given out, `segm_AP` and so on; {} without --val.

    images, objects: trained on; images_seen: over all epochs; last: folder of the last model, if not the best.
    """

    out: str
    images: int
    objects: int
    images_seen: int
    loss: float
    metrics: dict[str, float]
    problems: dict[str, int]
    elapsed_s: float
    last: str | None


def train(config: TrainConfig, report: Reporter | None = None) -> TrainSummary:
    """Train a model to the end, from the last checkpoint in `--out` if there is one; writes the model folder."""
    report = report or Silent()
    started_s = time.monotonic()
    config = with_absolute_paths(config)
    # Workers wait at a checkpoint until Ray Train has taken note of the last one, for which it looks every two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    kept = Folder(config.out).sub(RUNS_FOLDER)
    with ray_session(config.allow_open_cluster), used_plainly(config.out), Lease(kept):
        await_machines(bool(config.gpus_per_worker), {}, report.say)
        check_same(config, kept)
        rows = prepared_rows(config, kept, report)
        check_validation(config, rows)
        start = starting_point(config, rows.categories)
        storage = Storage(config.out)
        report.say(f"model    {start.spec.architecture}, {len(rows.categories)} categories, from {start.said}")
        if seen := storage.images_seen():
            report.say(f"resuming after {seen:,} images")
        with open_trackers(config.track, config.out, kept, dataclasses.asdict(config)) as trackers:
            history = History(Folder(config.out), trackers)
            with live_records(history, report, rows.table.num_rows, config.epochs) as records:
                result = fit(config, rows, start, storage, records)
        history.save_all(rows.table.num_rows)
        summary = give_out(config, rows, start.spec, storage, result)
    return dataclasses.replace(summary, elapsed_s=time.monotonic() - started_s)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Paths as they mean the same in the workers, which Ray Train starts in folders of their own."""
    names = [n for n in ("data", "out", "images", "val", "val_images") if getattr(config, n) is not None]
    places: dict[str, Any] = {name: absolute(getattr(config, name)) for name in names}
    return dataclasses.replace(config, **places)


def prepared_rows(config: TrainConfig, kept: Folder, report: Reporter) -> AnnotatedRows:
    """The rows that can be trained on: those of an earlier run of this output, or found now, checked and kept."""
    data = kept.read_or_none(ROWS_FILE)
    if data is not None:
        rows = AnnotatedRows.from_parquet(data)
    else:
        rows = read_rows(config.data, config.images)
        if not config.trust_images:
            report.say(f"checking {rows.table.num_rows:,} images")
            rows = rows.without(find_unreadable(rows.table, config.max_pixels, config.max_bytes, DECODER))
        if not rows.objects:
            raise ConfigError(
                f"no image of {config.data} with an object can be read:\n" + "\n".join(problem_lines(rows.problems))
            )
        kept.put(ROWS_FILE, rows.to_parquet())
    report.say(f"data     {rows.table.num_rows:,} images with {rows.objects:,} objects to train on")
    for line in problem_lines(rows.problems):
        report.say(line)
    return rows


def check_same(config: TrainConfig, kept: Folder) -> None:
    """Make these options those of the output; OutputError if it was begun with others."""
    fixed = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in FREE_OPTIONS}
    text = json.dumps(fixed, indent=2).encode()
    there = json.loads(kept.put_if_absent(RUN_FILE, text))
    different = [name for name, value in json.loads(text).items() if there.get(name) != value]
    if different:
        begun = ", ".join(f"{name} {there.get(name)}" for name in different)
        now = ", ".join(f"{name} {getattr(config, name)}" for name in different)
        raise OutputError(f"{config.out} was begun with {begun}, this run has {now}; choose another --out")


def check_validation(config: TrainConfig, rows: AnnotatedRows) -> None:
    """ConfigError now, rather than after an epoch, if the model could not be evaluated on --val."""
    if config.val is None:
        return
    truth = read_annotations(config.val)
    names = {c.id: c.name for c in rows.categories}
    wrong = [f"{id} {name!r}" for id, name in truth.categories.items() if names.get(id, name) != name]
    if wrong or not set(truth.categories) & set(names):
        what = f"category {wrong[0]}, which --data calls otherwise" if wrong else "none of the categories of --data"
        raise ConfigError(f"--val {config.val} has {what}; give annotations of the same categories")


def fit(config: TrainConfig, rows: AnnotatedRows, start: Start, storage: Storage, records: Any) -> Result:
    """Run the workers to the end; Ray Train starts them again, from the last checkpoint, when some die."""
    room = plan_training(config.worker_range(), config.val is not None, config.gpus_per_worker != 0)
    total = config.epochs * rows.table.num_rows
    reading = Reading(
        rows=ray.put(rows.table),
        row_count=rows.table.num_rows,
        seed=config.seed,
        augmentation=Augmentation.of(config, start.spec.min_size, start.spec.max_size),
        max_pixels=config.max_pixels,
        max_bytes=config.max_bytes,
        decoder=DECODER,
    )
    job = Job(
        config=config,
        start=ray.put(start),
        rows=rows.table.num_rows,
        total_images=total,
        threads=room.worker_threads,
        validates=config.val is not None,
        records=records,
    )
    # The last step may go beyond the end, for all workers take part in it.
    stop = total + config.batch_size * config.accumulate * room.max_workers
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        scaling_config=scaling_of(room),
        run_config=RunConfig(
            name=RUN_NAME,
            storage_path=Storage(config.out).path().rpartition("/")[0],
            storage_filesystem=storage.filesystem(),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=BEST_KEPT, checkpoint_score_attribute=SCORE if config.val else None
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        datasets={"train": Stream(ray.put(reading), storage, stop).remaining},
        dataset_config=ray.train.DataConfig(execution_options=reading_options(room)),
        validation_config=validation_of(config, room, records),
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
        assert isinstance(result, Result)
        if result.return_value is not None:
            raise result.return_value
        return result
    except ray.train.TrainingFailedError as error:
        causes = [*getattr(error, "worker_failures", {}).values()]
        known = next((e for cause in causes for e in (cause, cause.__cause__) if isinstance(e, RaymaskError)), None)
        raise (known or error) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)  # Ray Train puts its own


def reading_options(room: TrainingRoom) -> ray.data.ExecutionOptions:
    """Samples in their order, and only so many ahead that reading does not take the cores from the training."""
    ahead = ray.data.ExecutionResources.for_limits(object_store_memory=room.max_workers * READ_AHEAD_BYTES)
    return ray.data.ExecutionOptions(preserve_order=True, resource_limits=ahead)


def scaling_of(room: TrainingRoom) -> ScalingConfig:
    resources = {"CPU": room.worker_cpus} | ({"GPU": room.worker_gpus} if room.worker_gpus else {})
    same = room.min_workers == room.max_workers
    return ScalingConfig(
        num_workers=room.max_workers if same else (room.min_workers, room.max_workers),
        use_gpu=bool(room.worker_gpus),
        resources_per_worker=resources,
    )


def validation_of(config: TrainConfig, room: TrainingRoom, records: Any) -> ValidationConfig | None:
    if config.val is None:
        return None
    return ValidationConfig(fn=Validate(config, room.validation, records), ray_remote_kwargs={"num_cpus": 0})


def give_out(
    config: TrainConfig, rows: AnnotatedRows, spec: ModelSpec, storage: Storage, result: Result
) -> TrainSummary:
    """Write the best model by mask AP, or without --val the last one, as the model folder; the last one beside it."""
    assert result.checkpoint is not None and result.metrics is not None
    scored = [(c, m) for c, m in result.best_checkpoints or [] if SCORE in m]
    best, metrics = max(scored, key=lambda pair: pair[1][SCORE], default=(result.checkpoint, {}))
    numbers = {name: value for name, value in metrics.items() if name.startswith(("segm_", "bbox_"))}
    last = join(config.out, LAST_FOLDER) if name_of(best) != name_of(result.checkpoint) else None
    for checkpoint, url, measured in ((best, config.out, numbers), (result.checkpoint, last, {})):
        if url is not None:
            model = load_model(join(storage.url, name_of(checkpoint)))
            save_model(url, dataclasses.replace(model.spec, metrics=measured), model.weights)
    return TrainSummary(
        out=config.out,
        images=rows.table.num_rows,
        objects=rows.objects,
        images_seen=images_of(result.checkpoint),
        loss=result.metrics["loss"],
        metrics=numbers,
        problems=dict(rows.problems),
        elapsed_s=0.0,
        last=last,
    )


# ------------------------------------------------------------------------------------------------------------ records


@ray.remote(num_cpus=0)
class Records:
    """Where workers leave what is to be logged, until the driver takes it."""

    def __init__(self) -> None:
        self._records: list[Record] = []

    def add(self, record: Record) -> None:
        self._records.append(record)

    def take(self) -> list[Record]:
        taken, self._records = self._records, []
        return taken


@contextlib.contextmanager
def live_records(history: History, report: Reporter, rows: int, epochs: int) -> Iterator[Any]:
    """An actor for records, which are logged and shown as they come, by a thread; rows: images of an epoch."""
    records = Records.remote()  # type: ignore[attr-defined]
    ended = threading.Event()

    def take() -> None:
        for record in ray.get(records.take.remote()):
            history.add(record)
            if record["kind"] == "validation":
                report.say(validation_text(record, rows))
            if record["kind"] == "start":
                report.say(f"workers  {record['workers']}, {record['step_images']} images a step")
            if record["kind"] == "step":
                for uri in record["replaced"]:
                    report.say(f"cannot be read any more, another image in its place: {uri}")
                report.live(step_text(history, rows, epochs), record["images"], rows * epochs)

    def keep_taking() -> None:
        while not ended.wait(POLL_S):
            take()

    thread = threading.Thread(target=keep_taking, name="records", daemon=True)
    thread.start()
    try:
        yield records
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(ray.exceptions.RayError):
            take()
        history.save()


def step_text(history: History, rows: int, epochs: int) -> str:
    """`epoch 2.3 of 12, step 270, loss 1.23 (classifier 0.40, ...), 12.3 images/s, 11:52 left, AP 0.312`."""
    recent = history.steps()[-20:]
    last = recent[-1]
    rate = len(recent) / sum(1 / r["images_per_s"] for r in recent)
    parts = ", ".join(f"{name.removeprefix('loss_')} {last[name]:.2f}" for name in LOSSES)
    left = duration_text(max(0, rows * epochs - last["images"]) / rate)
    text = f"epoch {last['epoch']:.2f} of {epochs}, step {last['step']:,}, loss {last['loss']:.2f} ({parts})"
    scores = history.validations()
    score = f", AP {scores[-1][SCORE]:.3f}" if scores else ""
    return f"{text}, {rate:,.1f} images/s, {left} left{score}"


def validation_text(record: Record, rows: int) -> str:
    shown = ", ".join(f"{name} {record[key]:.3f}" for name, key in SHOWN_SCORES)
    return f"validation after epoch {record['images'] / rows:.1f}: {shown}"


SHOWN_SCORES = (("mask AP", SCORE), ("AP50", "segm_AP50"), ("box AP", "bbox_AP"), ("AP50", "bbox_AP50"))
