"""A machine that joins while a model is trained is worked on too, from the last checkpoint on."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nodes import ray_cluster, ray_node, wait_for

from raymask.demo.drawing import write_data_set

SLOT = '--resources={"slot": 1}'
# Ray Train looks for machines each minute. A worker takes a slot, of which a machine here has one as it would a GPU.
PROGRAM = """
import dataclasses, sys
from raymask.cli import main
from raymask.training import trainer

def scaling(room, given=trainer.scaling_of):
    plain = given(room)
    resources = {**plain.resources_per_worker, "slot": 1}
    return dataclasses.replace(plain, resources_per_worker=resources, elastic_resize_monitor_interval_s=1.0)

trainer.scaling_of = scaling
sys.exit(main(sys.argv[1:]))
"""


def records(out: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return []


@pytest.mark.timeout(400)
def test_a_second_worker_joins(tmp_path: Path) -> None:
    write_data_set(tmp_path, 8, 1, seed=4)
    out = tmp_path / "out"
    options = {
        **{"data": tmp_path / "train.json", "images": tmp_path / "train", "out": out, "workers": "1:2"},
        **{"model": "maskrcnn_resnet10_fpn", "min-size": 64, "max-size": 64, "proposals": 50, "lr": 0.001},
        **{"epochs": 200, "batch-size": 2, "checkpoint-images": 8},
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-c", PROGRAM, "train", *flags, "--fixed-lr"]

    def joined() -> list[dict[str, Any]]:
        """The records, once two workers have made checkpoints."""
        found = records(out)
        starts = [n for n, record in enumerate(found) if record["kind"] == "start" and record["workers"] == 2]
        return found if starts and any(r["kind"] == "checkpoint" for r in found[starts[0] :]) else []

    with ray_cluster(SLOT) as environment:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: [r for r in records(out) if r["kind"] == "checkpoint"], process)
            second = [f"--address={environment['RAY_ADDRESS']}", "--num-cpus=1", SLOT]
            with ray_node(*second, environment=environment):
                found = wait_for(joined, process)
        finally:
            process.kill()
            process.wait(timeout=30)
    assert [r["workers"] for r in found if r["kind"] == "start"] == [1, 2]
    resumed_at = next(r["images"] for r in found if r["kind"] == "start" and r["workers"] == 2)
    assert resumed_at > 0 and resumed_at % 8 == 0
    # One worker takes two images a step, two take four; none is left out or seen twice.
    seen = [r["images"] for r in found if r["kind"] == "step"]
    assert seen == [*range(2, resumed_at + 1, 2), *range(resumed_at + 4, seen[-1] + 1, 4)]
    assert seen[-1] > resumed_at
