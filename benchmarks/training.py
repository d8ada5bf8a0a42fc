"""Images a second of `raymask train` on this machine, with one worker and with one a core, against a plain loop.

    python benchmarks/training.py

plain: torchvision's network and optimiser in a loop, every batch in memory beforehand, all cores as threads. raymask
reads the same images from files, decodes them and hands them over through Ray Data, beside the training. The first
steps of each are not counted. waited: the part of its time in which a worker had no batch. The ways take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch
from measure import print_table, save

from raymask.cluster import ray_session
from raymask.demo.drawing import write_data_set
from raymask.model import build
from raymask.training.config import TrainConfig
from raymask.training.dataset import read_rows
from raymask.training.loop import Batch
from raymask.training.network import starting_point
from raymask.training.samples import Reading, batch_of, make_samples

IMAGES, WARM_UP_STEPS = 64, 8
PROPOSALS, SAMPLES = 300, 128
OPTIONS: dict[str, Any] = {
    **{"model": "maskrcnn_mobilenet_v2_fpn", "norm": "frozen_batch_norm", "batch_size": 2},
    **{"proposals": PROPOSALS, "rpn_samples": SAMPLES, "box_samples": SAMPLES},
    **{"flip": 0.0, "photometric": 0.0, "min_scale": 1.0, "max_scale": 1.0, "lr": 1e-4, "fixed_lr": True},
}


def config_of(data: Path, size: int, epochs: int) -> TrainConfig:
    names: dict[str, Any] = {
        "data": str(data / "train.json"),
        "images": str(data / "train"),
        "out": str(data / "plain"),
    }
    return TrainConfig(**OPTIONS, **names, min_size=size, max_size=2 * size, epochs=epochs)


def batches_in_memory(config: TrainConfig) -> list[Batch]:
    rows = read_rows(config.data, config.images)
    with ray_session():
        reading = Reading(ray.put(rows.table), IMAGES, 0, None, config.max_pixels, config.max_bytes)
        samples = pa.concat_tables(make_samples(reading, 0, IMAGES))
    return [batch_of(samples.slice(n, config.batch_size)) for n in range(0, IMAGES, config.batch_size)]


def plain(config: TrainConfig, batches: list[Batch]) -> dict[str, float]:
    """The loop that one would write, all cores as threads."""
    torch.set_num_threads(os.cpu_count() or 1)
    start = starting_point(config, read_rows(config.data, config.images).categories)
    network = build(
        start.spec,
        rpn_pre_nms_top_n_train=PROPOSALS,
        rpn_post_nms_top_n_train=PROPOSALS,
        rpn_batch_size_per_image=SAMPLES,
        box_batch_size_per_image=SAMPLES,
    )
    network.load_state_dict(dict(start.weights))
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True)
    seconds = []
    for step in range(config.epochs * IMAGES // config.batch_size):
        began = time.perf_counter()
        images, targets = batches[step % len(batches)]
        loss = sum(network(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return {"images_per_s": config.batch_size / statistics.mean(seconds[WARM_UP_STEPS:]), "waited": 0.0}


def raymask(config: TrainConfig, workers: int) -> dict[str, float]:
    """The same by the command, from its log."""
    with tempfile.TemporaryDirectory() as out:
        values = {
            **{name: value for name, value in OPTIONS.items() if name != "fixed_lr"},
            **{"data": config.data, "images": config.images, "min_size": config.min_size, "max_size": config.max_size},
            **{"epochs": config.epochs, "workers": workers, "out": out},
            "checkpoint_images": config.epochs * IMAGES,
        }
        flags = [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        command = [sys.executable, "-m", "raymask.cli", "train", *flags, "--fixed-lr", "--trust-images", "--quiet"]
        subprocess.run(command, check=True)
        records = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["kind"] == "step"][WARM_UP_STEPS:]
    elapsed_s = steps[-1]["time"] - steps[0]["time"]
    return {
        "images_per_s": (steps[-1]["images"] - steps[0]["images"]) / elapsed_s,
        "waited": sum(r["waited_s"] for r in steps[1:]) / elapsed_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=320, help="shorter side inside the network; default: %(default)s")
    parser.add_argument("--epochs", type=int, default=2, help=f"of {IMAGES} images; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        write_data_set(Path(folder), IMAGES, 1, seed=0)
        config = config_of(Path(folder), options.size, options.epochs)
        ways = {
            "plain loop": partial(plain, config, batches_in_memory(config)),
            "1 worker": partial(raymask, config, 1),
            f"{cores} workers": partial(raymask, config, cores),
        }
        measured: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, run in ways.items():
                measured[way].append(run())
    rows = [
        {"way": way, "size": options.size, "epoch_images": IMAGES, "images_per_s": rates, "waited": waited}
        for way, runs in measured.items()
        for rates, waited in [([run["images_per_s"] for run in runs], [run["waited"] for run in runs])]
    ]
    save("training", rows)
    base = statistics.median(run["images_per_s"] for run in measured["plain loop"])
    print_table(
        ["", "images/s", "of plain", "waited"],
        [
            [
                row["way"],
                " ".join(f"{rate:.2f}" for rate in row["images_per_s"]),
                f"{statistics.median(row['images_per_s']) / base:.1%}",
                f"{statistics.median(row['waited']):.1%}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
