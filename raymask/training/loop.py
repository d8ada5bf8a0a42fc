"""What one training worker does: batches in, steps, records of the losses, checkpoints; the same for one or hundreds.

`training_step` is torch alone; `run_worker` puts Ray Train around it.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from raymask.errors import ConfigError, OutputError, RaymaskError
from raymask.model import resolve_precision
from raymask.training.augment import Target
from raymask.training.checkpoints import read_state, write_checkpoint
from raymask.training.config import TrainConfig
from raymask.training.network import Start, averaged, build_network, learning_rate, make_optimizer, model_of
from raymask.training.samples import batch_of, seed_of
from raymask.training.storage import checkpoint_name

LOSSES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
PREFETCH_BATCHES = 2

Batch = tuple[list[Tensor], list[Target]]


@dataclass(frozen=True)
class Job:
    """What every worker is told.

    start: reference to a `Start`. rows: images of an epoch. total_images: at which training ends. records: takes what
    is logged.
    """

    config: TrainConfig
    start: ray.ObjectRef[Start]
    rows: int
    total_images: int
    threads: int
    validates: bool
    records: Any


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[Batch], *, bf16: bool, clip: float | None
) -> Tensor:
    """One step on the mean loss of some batches; returns its parts, by `LOSSES`.

    model: torchvision's Mask R-CNN in training mode, perhaps distributed, whose losses are summed as in He et al. 2017.
    """
    optimizer.zero_grad(set_to_none=True)
    parts = []
    for number, (images, targets) in enumerate(batches, 1):
        # Gradients travel once a step, with the last batch.
        waits = isinstance(model, DistributedDataParallel) and number < len(batches)
        with model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(images[0].device.type, torch.bfloat16, enabled=bf16):
                losses = model(images, targets)
            loss = torch.stack([losses[name].float() for name in LOSSES]) / len(batches)
            loss.sum().backward()  # type: ignore[no-untyped-call]
        parts.append(loss.detach())
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return torch.stack(parts).sum(dim=0)


@dataclass
class Progress:
    """What moves during training, and what a checkpoint holds of it. recent: records since the last checkpoint."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    images_seen: int = 0
    step: int = 0
    recent: list[dict[str, Any]] = field(default_factory=list)

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.images_seen, self.step, self.recent = state["images_seen"], state["step"], state["recent"]

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "images_seen": self.images_seen,
            "step": self.step,
            "recent": self.recent,
        }

    @property
    def given_out(self) -> nn.Module:
        """The network that is validated and becomes the model."""
        return self.network if self.average is None else self.average.module


def run_worker(settings: dict[str, Any]) -> RaymaskError | None:
    """Ray Train calls this in every worker: from the last checkpoint, or the start, to the end.

    Returns why it cannot go on, the same in every worker: what is raised, Ray Train would try again.
    """
    job: Job = settings["job"]
    config, context = job.config, ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.threads)
    device = ray.train.torch.get_device()
    bf16 = device_precision(config, device) == "bf16"
    start: Start = ray.get(job.start)
    network = build_network(config, start).to(device, memory_format=torch.channels_last)
    progress = Progress(network, make_optimizer(config, network), averaged(network, config.ema) if config.ema else None)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        try:
            progress.restore(read_state(checkpoint))
        except OutputError as error:
            return error
    model = ray.train.torch.prepare_model(network, move_to_device=device)
    step_images = config.batch_size * config.accumulate * workers
    if rank == 0:
        job.records.add.remote(start_record(progress, workers, step_images))
    progress.recent = []
    tables = _tables(config.batch_size)
    while progress.images_seen < job.total_images:
        seen, began_s = progress.images_seen, time.monotonic()
        samples = [next(tables) for _ in range(config.accumulate)]
        waited_s = time.monotonic() - began_s
        first = samples[0].column("sample")[0].as_py()
        assert first == seen + rank, f"worker {rank} of {workers} got sample {first} at {seen}"
        batches = [_to_device(batch_of(table), device) for table in samples]
        rate = learning_rate(config, seen, job.total_images, step_images)
        for group in progress.optimizer.param_groups:
            group["lr"] = rate
        # What torchvision samples at random depends on nothing before this step, so that a resumed run repeats it.
        torch.manual_seed(seed_of(config.seed, seen, rank))
        parts = training_step(model, progress.optimizer, batches, bf16=bf16, clip=config.clip)
        losses = dict(zip(LOSSES, _mean_of_workers(parts, workers), strict=True))
        loss = sum(losses.values())
        if not math.isfinite(loss):
            return ConfigError(
                f"the loss is {loss} after {seen:,} images; give another --out with a lower --lr, or with --clip 10"
            )
        if progress.average is not None:
            progress.average.update_parameters(network)
        progress.images_seen += step_images
        progress.step += 1
        record = {
            "kind": "step",
            "images": progress.images_seen,
            "time": time.time(),
            "epoch": progress.images_seen / job.rows,
            "step": progress.step,
            "lr": rate,
            "loss": loss,
            **losses,
            "images_per_s": step_images / (time.monotonic() - began_s),
            "waited_s": waited_s,
            "replaced": [uri for table in samples for uri in table.column("replaced").to_pylist() if uri is not None],
        }
        progress.recent.append(record)
        if rank == 0:
            job.records.add.remote(record)
        ended = progress.images_seen >= job.total_images
        epoch_ended = ended or passed(job.rows, seen, progress.images_seen)
        if epoch_ended or passed(config.checkpoint_images or job.rows, seen, progress.images_seen):
            due = ended or passed(job.rows * config.val_interval, seen, progress.images_seen)
            report_checkpoint(job, start, progress, rank, loss, validate=job.validates and due)
    return None


def start_record(progress: Progress, workers: int, step_images: int) -> dict[str, Any]:
    """Says where a group of workers begins, with the steps that a killed driver may not have logged."""
    about = {"images": progress.images_seen, "workers": workers, "step_images": step_images}
    return {"kind": "start", **about, "recent": progress.recent}


def passed(interval: int, before: int, after: int) -> bool:
    """Whether a multiple of `interval` lies in before < x <= after."""
    return before // interval != after // interval


def report_checkpoint(job: Job, start: Start, progress: Progress, rank: int, loss: float, *, validate: bool) -> None:
    """Hand a checkpoint to Ray Train; every worker must call this, the first one brings it."""
    config, seen = job.config, progress.images_seen
    about = {"images_seen": seen, "step": progress.step, "loss": loss, "data": config.data, "seed": config.seed}
    with tempfile.TemporaryDirectory() as folder:
        made = None
        if rank == 0:
            made = write_checkpoint(folder, model_of(start, progress.given_out, about), progress.state())
        ray.train.report(
            {"images": seen, "loss": loss},
            checkpoint=made,
            checkpoint_dir_name=checkpoint_name(seen),
            validation=validate and made is not None,
        )
    progress.recent = []
    if rank == 0:
        job.records.add.remote({"kind": "checkpoint", "images": seen})


def device_precision(config: TrainConfig, device: torch.device) -> str:
    """On CPUs bf16 only where it is asked for: what it saves there depends on the CPU."""
    if config.precision == "auto" and device.type == "cpu":
        return "fp32"
    return resolve_precision(config.precision, device)


def _tables(batch_size: int) -> Iterator[pa.Table]:
    """The samples of this worker, a batch at a time."""
    shard = ray.train.get_dataset_shard("train")
    yield from shard.iter_batches(
        batch_size=batch_size, batch_format="pyarrow", prefetch_batches=PREFETCH_BATCHES, drop_last=True
    )


def _to_device(batch: Batch, device: torch.device) -> Batch:
    images, targets = batch
    if device.type == "cpu":
        return batch
    return (
        [image.to(device, non_blocking=True) for image in images],
        [{name: values.to(device, non_blocking=True) for name, values in target.items()} for target in targets],
    )


def _mean_of_workers(losses: Tensor, workers: int) -> list[float]:
    if workers > 1:
        torch.distributed.all_reduce(losses)
        losses /= workers
    values: list[float] = losses.tolist()
    return values
