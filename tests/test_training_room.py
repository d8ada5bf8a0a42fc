"""How many training workers of what size a cluster is given: they fit it, and Ray Train counts them right."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import ray

from raymask.errors import ConfigError
from raymask.pools import TASK_CPUS, TrainingRoom, plan_training
from raymask.training.trainer import scaling_of


def plan(
    nodes: list[dict[str, float]], workers: tuple[int, int] | None, *, validates: bool = False, on_gpus: bool = True
) -> TrainingRoom:
    """The plan for a cluster of these nodes: resources by name."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
        return plan_training(workers, validates, on_gpus)


def counted(share: float, workers: int) -> float:
    """How many workers Ray Train sees room for, which adds up what is reserved for them and divides by one's share."""
    reserved = 0.0
    for _ in range(workers):
        reserved += share
    return reserved // share


@pytest.mark.parametrize("cpus", [1.0, 2.0, 3.0, 16.0, 96.0])
@pytest.mark.parametrize("high", [1, 2, 3, 5, 7, 8])
def test_on_cpus_all_workers_fit_beside_data_and_validation(cpus: float, high: int) -> None:
    room = plan([{"CPU": cpus}], (1, high), validates=True)
    assert room.max_workers * room.worker_cpus + room.validation.worker_cpus + TASK_CPUS <= cpus
    assert counted(room.worker_cpus, high) == high
    scaling = scaling_of(room)
    assert (scaling.min_workers, scaling.max_workers, scaling.elasticity_enabled) == (1, high, high > 1)
    assert scaling.resources_per_worker == {"CPU": room.worker_cpus}
    assert not scaling.use_gpu


def test_on_gpus_more_workers_than_there_is_room_for_wait_for_machines() -> None:
    machine = {"CPU": 16.0, "GPU": 1.0}
    room = plan([machine], (1, 4))
    assert (room.min_workers, room.max_workers) == (1, 4)
    # What a worker takes does not depend on machines that are not there yet.
    assert dataclasses.replace(room, max_workers=1) == plan([machine], (1, 1))
    scaling = scaling_of(room)
    assert (scaling.num_workers, scaling.use_gpu) == ((1, 4), True)
    assert scaling.resources_per_worker == {"CPU": 8.0, "GPU": 1.0}


def test_gpus_can_be_left_to_others() -> None:
    assert plan([{"CPU": 16.0, "GPU": 4.0}], None, on_gpus=False) == plan([{"CPU": 16.0}], None)


@pytest.mark.parametrize("gpus", [1, 2, 5, 8, 20])
def test_validation_has_room_on_the_gpus_of_the_workers(gpus: int) -> None:
    room = plan([{"CPU": 64.0, "GPU": float(gpus)}], (1, 32), validates=True)
    assert room.worker_gpus + room.validation.worker_gpus <= 1
    assert 2 * room.worker_gpus > 1
    assert counted(room.worker_gpus, gpus) == gpus
    assert plan([{"CPU": 64.0, "GPU": 40.0}], (1, 4), validates=True).worker_gpus == 1.0


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([{"CPU": 8.0}], None, 1),
        ([{"CPU": 8.0, "GPU": 2.0}], None, 2),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}], (3, 3), 3),
    ],
)
def test_a_fixed_number_is_not_elastic(nodes: list[dict[str, Any]], workers: tuple[int, int], expected: int) -> None:
    scaling = scaling_of(plan(nodes, workers))
    assert (scaling.num_workers, scaling.elasticity_enabled) == (expected, False)


def test_a_minimum_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--workers asks for 3, the cluster has 2 GPUs"):
        plan([{"CPU": 8.0, "GPU": 2.0}], (3, 4))
