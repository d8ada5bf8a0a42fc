"""Workers and drivers that are killed outright, and fewer workers after that: training goes on where it was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import ray_cluster, wait_for

from raymask.demo.drawing import write_data_set
from raymask.training.loop import LOSSES

IMAGES, EPOCHS = 16, 4
CHECKPOINT_IMAGES = 8


def command(data: Path, out: Path, workers: int) -> list[str]:
    options = {
        **{"data": data / "train.json", "images": data / "train", "out": out, "workers": workers},
        **{"model": "maskrcnn_resnet10_fpn", "norm": "frozen_batch_norm", "min-size": 96, "max-size": 128},
        **{"proposals": 100, "epochs": EPOCHS, "batch-size": 2, "lr": 0.01, "checkpoint-images": CHECKPOINT_IMAGES},
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "raymask.cli", "train", *flags, "--fixed-lr"]


def run_to_end(arguments: list[str], environment: dict[str, str]) -> str:
    outcome = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=250)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def checkpoints(out: Path) -> list[int]:
    return sorted(int(f.parent.name.split("-")[1]) for f in out.glob("_raymask/checkpoints/images-*/state.pt"))


def training_workers(token: str) -> list[int]:
    """Process ids: those of the cluster are known by its token, which all its processes have from the first one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if "RayTrainWorker" in (folder / "cmdline").read_text() and token in (folder / "environ").read_text():
                found.append(int(folder.name))
    return sorted(found)


def logged(out: Path, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [r for r in records if r["kind"] == kind]


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    with ray_cluster() as environment:
        yield environment


@pytest.mark.timeout(600)
def test_kill_9_of_a_worker_then_of_the_driver_then_fewer_workers(cluster: dict[str, str], tmp_path: Path) -> None:
    write_data_set(tmp_path / "data", IMAGES, 1, seed=4)
    calm, out = tmp_path / "calm", tmp_path / "killed"
    run_to_end(command(tmp_path / "data", calm, workers=2), cluster)

    arguments, token = command(tmp_path / "data", out, workers=2), cluster["RAY_AUTH_TOKEN"]
    process = subprocess.Popen(arguments, env=cluster, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: checkpoints(out), process)
        victim = wait_for(lambda: training_workers(token), process)[-1]
        os.kill(victim, signal.SIGKILL)
        killed_at = checkpoints(out)[-1]
        # The worker group is started again, and gets further than where it was killed.
        wait_for(lambda: max(checkpoints(out)) > killed_at, process)
        assert victim not in training_workers(token)
    finally:
        process.kill()
        process.wait(timeout=30)
    written = checkpoints(out)

    shown = run_to_end(command(tmp_path / "data", out, workers=1), cluster)
    assert f"{IMAGES * EPOCHS} images seen" in shown

    # From the last checkpoint, or the one before where the driver died before it took note of the last.
    stopped_at = logged(out, "start")[-1]["images"]
    assert stopped_at in written[-2:]
    assert killed_at <= stopped_at < IMAGES * EPOCHS
    undisturbed, resumed = logged(calm, "step"), logged(out, "step")
    assert [r["images"] for r in undisturbed] == list(range(4, IMAGES * EPOCHS + 1, 4))
    # Two workers take four images a step, one takes two; none is seen twice or left out.
    after = [r["images"] for r in resumed if r["images"] > stopped_at]
    assert after == list(range(stopped_at + 2, IMAGES * EPOCHS + 1, 2))
    # Up to there the log is that of the undisturbed run: the same images, losses and rates.
    before = [r for r in resumed if r["images"] <= stopped_at]
    for record, same in zip(before, undisturbed[: stopped_at // 4], strict=True):
        assert (record["images"], record["lr"]) == (same["images"], same["lr"])
        for name in LOSSES:
            assert record[name] == pytest.approx(same[name], abs=1e-4)
    assert all(r["loss"] < 2 * undisturbed[-1]["loss"] + 1 for r in resumed if r["images"] > stopped_at)
