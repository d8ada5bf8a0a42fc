"""How many model workers of what size are made for the nodes of a cluster."""

from __future__ import annotations

import inspect
import os
from typing import Any

import pytest
import ray
from ray.data._internal.cluster_autoscaler import default_cluster_autoscaler_v2

from raymask.cluster import WORKER_CPU_SHARE, Pool, plan_pool
from raymask.errors import ConfigError


def pool_for(
    monkeypatch: pytest.MonkeyPatch, cpus: list[int], gpus: int = 0, workers: tuple[int, int] | None = None
) -> Pool:
    nodes = [{"Alive": True, "Resources": {"CPU": float(count)}} for count in cpus]
    nodes.append({"Alive": False, "Resources": {"CPU": 64.0}})
    resources: dict[str, Any] = {"CPU": float(sum(cpus))} | ({"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    return plan_pool(workers)


@pytest.mark.parametrize(
    ("cpus", "workers", "made", "calls", "threads"),
    [
        ([1], None, 1, 1, 1),
        ([2], None, 1, 2, 1),
        ([6], None, 2, 3, 1),
        ([16], None, 4, 4, 1),
        ([6, 6], None, 4, 3, 1),
        ([2] * 8, None, 8, 2, 1),
        ([16], (1, 1), 1, 4, 4),
        ([16], (16, 16), 16, 1, 1),
        ([16], (2, 4), 4, 4, 2),
        ([2], (5, 5), 5, 1, 1),
    ],
)
def test_every_core_has_a_call(
    monkeypatch: pytest.MonkeyPatch,
    cpus: list[int],
    workers: tuple[int, int] | None,
    made: int,
    calls: int,
    threads: int,
) -> None:
    pool = pool_for(monkeypatch, cpus, workers=workers)
    assert (pool.max_workers, pool.concurrent_calls, pool.worker_threads) == (made, calls, threads)
    assert pool.device == "cpu"
    assert pool.calls == made * calls


@pytest.mark.parametrize("cpus", [[1], [2], [3], [5], [6], [16], [16, 2], [6, 6], [4, 8, 64], [2] * 9])
def test_workers_fit_their_nodes_and_leave_room_to_read(monkeypatch: pytest.MonkeyPatch, cpus: list[int]) -> None:
    pool = pool_for(monkeypatch, cpus)
    assert sum(int(of_node / pool.worker_cpus) for of_node in cpus) >= pool.min_workers
    assert pool.min_workers * pool.worker_cpus <= WORKER_CPU_SHARE * sum(cpus)


@pytest.mark.usefixtures("ray_session")
def test_the_share_of_a_killed_driver_is_soon_free() -> None:
    name = "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S"
    assert os.environ[name] == "30"
    assert name in inspect.getsource(default_cluster_autoscaler_v2)  # read when Ray Data first runs


def test_a_gpu_has_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_for(monkeypatch, [16, 16], gpus=4)
    assert (pool.min_workers, pool.max_workers, pool.worker_gpus, pool.device) == (4, 4, 1.0, "cuda")
    with pytest.raises(ConfigError, match="asks for 5, the cluster has 4 GPUs"):
        pool_for(monkeypatch, [16], gpus=4, workers=(5, 5))
