"""What one training worker does: batches in, steps, records of the losses, checkpoints; the same for one or hundreds.

`training_step` is torch alone; `run_worker` puts Ray Train around it.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raymask.errors import ConfigError
from raymask.model import resolve_precision
from raymask.training.augment import Target
from raymask.training.checkpoints import checkpoint_name, read_state, write_checkpoint
from raymask.training.config import TrainConfig
from raymask.training.network import Start, averaged, build_network, learning_rate, make_optimizer, model_of
from raymask.training.samples import batch_of, seed_of

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


def run_worker(settings: dict[str, Any]) -> None:
    """Ray Train calls this in every worker: from the last checkpoint, or the start, to the end."""
    job: Job = settings["job"]
    config, context = job.config, ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.threads)
    device = ray.train.torch.get_device()
    bf16 = device_precision(config, device) == "bf16"
    start: Start = ray.get(job.start)
    network = build_network(config, start).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(config, network)
    average = averaged(network, config.ema) if config.ema else None
    seen, step = 0, 0
    recent: list[dict[str, Any]] = []  # steps since the last checkpoint
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        state = read_state(checkpoint)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        seen, step, recent = state["images_seen"], state["step"], state["recent"]
    model = ray.train.torch.prepare_model(network, move_to_device=device)
    step_images = config.batch_size * config.accumulate * workers
    every = config.checkpoint_images or job.rows
    tables = _tables(config.batch_size)
    if rank == 0:
        began = {"kind": "start", "images": seen, "workers": workers, "step_images": step_images, "recent": recent}
        job.records.add.remote(began)
        recent = []
    while seen < job.total_images:
        began_s = time.monotonic()
        samples = [next(tables) for _ in range(config.accumulate)]
        waited_s = time.monotonic() - began_s
        first = samples[0].column("sample")[0].as_py()
        assert first == seen + rank, f"worker {rank} of {workers} got sample {first} at {seen}"
        batches = [_to_device(batch_of(table), device) for table in samples]
        rate = learning_rate(config, seen, job.total_images, step_images)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # What torchvision samples at random depends on nothing before this step, so that a resumed run repeats it.
        torch.manual_seed(seed_of(config.seed, seen, rank))
        losses = _mean_of_workers(training_step(model, optimizer, batches, bf16=bf16, clip=config.clip), workers)
        if average is not None:
            average.update_parameters(network)
        before, seen, step = seen, seen + step_images, step + 1
        record = {
            "kind": "step",
            "images": seen,
            "time": time.time(),
            "epoch": seen / job.rows,
            "step": step,
            "lr": rate,
            "loss": sum(losses),
            **dict(zip(LOSSES, losses, strict=True)),
            "images_per_s": step_images / (time.monotonic() - began_s),
            "waited_s": waited_s,
            "replaced": [uri for table in samples for uri in table.column("replaced").to_pylist() if uri is not None],
        }
        if not math.isfinite(record["loss"]):
            raise ConfigError(f"the loss is {record['loss']} after {seen:,} images; give a lower --lr, or --clip 10")
        if rank == 0:
            job.records.add.remote(record)
            recent.append(record)
        ended = seen >= job.total_images
        epoch_ended = ended or before // job.rows != seen // job.rows
        if epoch_ended or before // every != seen // every:
            state = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": None if average is None else average.state_dict(),
                "images_seen": seen,
                "step": step,
                "recent": recent,
            }
            about = {
                "images_seen": seen,
                "step": step,
                "loss": record["loss"],
                "data": config.data,
                "seed": config.seed,
            }
            given_out = network if average is None else average.module
            with tempfile.TemporaryDirectory() as folder:
                made = write_checkpoint(folder, model_of(start, given_out, about), state) if rank == 0 else None
                ray.train.report(
                    {"images": seen, "loss": record["loss"]},
                    checkpoint=made,
                    checkpoint_dir_name=checkpoint_name(seen),
                    validation=bool(job.validates and epoch_ended and made),
                )
            recent = []
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
