"""How many model workers of what size are made for the nodes of a cluster, and how much its tasks may fill."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor

from raymask.errors import ConfigError
from raymask.pools import (
    BLOCKS_OF_TASK,
    MAX_ROOM_BYTES,
    MIN_ROOM_BYTES,
    STORE_SHARE,
    TASK_CPUS,
    WORKER_CPU_SHARE,
    Pool,
    await_machines,
    plan_pool,
    task_room_bytes,
    usable,
)

GIB = 1024**3
Node = dict[str, float]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The nodes that Ray will say the cluster has; one that was lost among them."""
    known: list[dict[str, Any]] = [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: known)
    return known


def pool_for(
    nodes: list[dict[str, Any]], of_nodes: list[Node], workers: tuple[int, int] | None = None, gpus: float | None = None
) -> Pool:
    nodes += [{"Alive": True, "Resources": resources} for resources in of_nodes]
    return plan_pool(workers, gpus)


def cpus(*counts: float) -> list[Node]:
    return [{"CPU": float(count)} for count in counts]


@pytest.mark.parametrize(
    ("of_nodes", "workers", "low", "high", "calls", "threads"),
    [
        ([1], None, 1, None, 1, 1),
        ([2], None, 1, None, 2, 1),
        ([6], None, 2, None, 3, 1),
        ([16], None, 4, None, 4, 1),
        ([6, 6], None, 4, None, 3, 1),
        ([2] * 8, None, 8, None, 2, 1),
        ([0, 4], None, 1, None, 4, 1),  # a head without work on it
        ([16], (1, 1), 1, 1, 4, 4),
        ([16], (16, 16), 16, 16, 1, 1),
        ([16], (2, 4), 2, 4, 4, 1),
        ([16], (2, 32), 2, 32, 4, 1),  # those beyond the fourth are for nodes that join
        ([2], (5, 5), 5, 5, 1, 1),
    ],
)
def test_every_core_has_a_call(
    nodes: list[dict[str, Any]],
    of_nodes: list[float],
    workers: tuple[int, int] | None,
    low: int,
    high: int | None,
    calls: int,
    threads: int,
) -> None:
    pool = pool_for(nodes, cpus(*of_nodes), workers)
    assert (pool.min_workers, pool.max_workers) == (low, high)
    assert (pool.concurrent_calls, pool.worker_threads, pool.device) == (calls, threads, "cpu")
    assert pool.calls == (high or low) * calls


@pytest.mark.parametrize("of_nodes", [[1], [2], [3], [5], [6], [16], [16, 2], [6, 6], [4, 8, 64], [2] * 9, [0, 8]])
def test_workers_fit_their_nodes_and_leave_room_to_read(nodes: list[dict[str, Any]], of_nodes: list[float]) -> None:
    pool = pool_for(nodes, cpus(*of_nodes))
    assert sum(int(of_node / pool.worker_cpus) for of_node in of_nodes) >= pool.min_workers
    assert pool.room_on(cpus(*of_nodes)) == pool.min_workers
    assert pool.room_on(cpus(*of_nodes, *of_nodes)) >= 2 * pool.min_workers
    assert pool.min_workers * pool.worker_cpus <= WORKER_CPU_SHARE * sum(of_nodes)


@pytest.mark.parametrize("most", [2, 4])
def test_a_range_has_room_to_grow(nodes: list[dict[str, Any]], most: int) -> None:
    pool = pool_for(nodes, cpus(16), (1, most))
    assert most * pool.worker_cpus <= WORKER_CPU_SHARE * 16


MACHINE = {"CPU": 16.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("of_nodes", "gpus", "workers", "low", "high", "worker_cpus", "threads"),
    [
        ([MACHINE] * 4, None, None, 4, None, 2.0, 8),
        ([{"CPU": 64.0}, MACHINE], None, None, 1, None, 2.0, 8),  # nodes without a GPU change nothing
        ([MACHINE] * 2, 0.5, None, 4, None, 2.0, 4),
        ([{"CPU": 16.0, "GPU": 2.0}], 0.3, None, 6, None, 1.33, 1),  # three fit a GPU
        ([{"CPU": 4.0, "GPU": 1.0}], None, None, 1, None, 2.0, 2),
        ([{"CPU": 8.0, "GPU": 8.0}], None, None, 8, None, 0.5, 1),  # tasks have the other half
        ([MACHINE], None, (1, 8), 1, 8, 2.0, 8),
    ],
)
def test_a_gpu_has_its_workers_and_they_have_cores(
    nodes: list[dict[str, Any]],
    of_nodes: list[Node],
    gpus: float | None,
    workers: tuple[int, int] | None,
    low: int,
    high: int | None,
    worker_cpus: float,
    threads: int,
) -> None:
    pool = pool_for(nodes, of_nodes, workers, gpus)
    assert (pool.min_workers, pool.max_workers, pool.worker_gpus) == (low, high, gpus or 1.0)
    assert (pool.worker_cpus, pool.worker_threads, pool.device) == (worker_cpus, threads, "cuda")
    assert pool.room_on([*of_nodes, *of_nodes, {"CPU": 8.0}]) == 2 * pool.room_on(of_nodes)


def test_gpus_can_be_left_alone(nodes: list[dict[str, Any]]) -> None:
    pool = pool_for(nodes, [MACHINE], gpus=0.0)
    assert (pool.device, pool.worker_gpus, pool.min_workers) == ("cpu", 0.0, 4)


def test_more_workers_than_gpus_are_refused(nodes: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"asks for 5, the cluster has 4 GPUs and 1 fit one; give --workers 4:5"):
        pool_for(nodes, [{"CPU": 16.0, "GPU": 4.0}], (5, 5))
    assert plan_pool((5, 5), 0.5).min_workers == 5


@pytest.mark.parametrize(
    ("of_nodes", "room_bytes"),
    [
        ([{"CPU": 2.0, "object_store_memory": 0.5 * GIB}], 0.5 * 0.5 * GIB / 8 / 3),
        ([{"CPU": 2.0, "object_store_memory": 0.5 * GIB}, {"CPU": 8.0, "object_store_memory": GIB}], GIB / 64 / 3),
        ([{"CPU": 16.0, "object_store_memory": 200.0 * GIB}], MAX_ROOM_BYTES),
        ([{"CPU": 64.0, "object_store_memory": 0.1 * GIB}], MIN_ROOM_BYTES),
    ],
)
def test_what_tasks_make_at_once_fits_the_object_store(
    nodes: list[dict[str, Any]], of_nodes: list[Node], room_bytes: float
) -> None:
    nodes += [{"Alive": True, "Resources": resources} for resources in of_nodes]
    assert task_room_bytes({}) == int(room_bytes)
    for of_node in of_nodes if room_bytes > MIN_ROOM_BYTES else []:
        at_once = of_node["CPU"] / TASK_CPUS * BLOCKS_OF_TASK * task_room_bytes({})
        assert at_once <= STORE_SHARE * of_node["object_store_memory"]


def test_only_the_nodes_that_decode_count(nodes: list[dict[str, Any]]) -> None:
    decoding = {"CPU": 2.0, "object_store_memory": 0.5 * GIB}
    nodes += [
        {"Alive": True, "Resources": decoding, "Labels": {"raymask": "decode"}},
        {"Alive": True, "Resources": {"CPU": 64.0, "object_store_memory": 0.1 * GIB}, "Labels": {}},
    ]
    assert task_room_bytes({"raymask": "decode"}) == int(0.5 * 0.5 * GIB / 8 / 3)
    assert task_room_bytes({}) == MIN_ROOM_BYTES


def test_a_cluster_that_grows_from_nothing_is_asked_and_waited_for(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    joining = [
        {"Alive": True, "Resources": {"CPU": 2.0}, "Labels": {"raymask": "other"}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}, "Labels": None},
        {"Alive": True, "Resources": {"CPU": 2.0}, "Labels": {"raymask": "decode", "zone": "b"}},
    ]
    asked: list[Any] = []
    said: list[str] = []
    monkeypatch.setattr("raymask.pools.request_resources", lambda **what: asked.append(what))
    monkeypatch.setattr("raymask.pools.time.sleep", lambda _: nodes.append(joining.pop(0)))
    await_machines(True, {"raymask": "decode"}, said.append)
    assert asked == [
        {
            "bundles": [{"CPU": 1}, {"GPU": 1}, {"CPU": 1}],
            "bundle_label_selectors": [{}, {}, {"raymask": "decode"}],
        },
        {"bundles": []},
    ]
    assert said == [
        "waiting for a machine with CPUs and a machine with a GPU and a machine with the label raymask=decode to join "
        "the cluster"
    ]
    assert not joining
    await_machines(True, {"raymask": "decode"}, said.append)
    assert (len(asked), len(said)) == (2, 1)


def test_a_pool_has_the_size_that_fits_the_machines_of_now(nodes: list[dict[str, Any]]) -> None:
    """Also fewer than its minimum, of which one would wait for a place for ever."""
    whole, fixed = pool_for(nodes, cpus(4, 4, 4)), plan_pool((3, 3))
    assert whole.sizes_on(cpus(4, 4, 4), most=9) == fixed.sizes_on(cpus(4, 4, 4), most=9) == (3, 3)
    assert whole.sizes_on(cpus(4, 4), most=9) == (2, 2)
    assert fixed.sizes_on(cpus(4, 4), most=9) == (2, 3)
    assert whole.sizes_on(cpus(4, 4, 4, 4), most=9) == (3, 4)
    assert fixed.sizes_on(cpus(4, 4, 4, 4), most=9) == (3, 3)
    assert whole.sizes_on(cpus(4, 4, 4, 4), most=2) == (2, 2)
    assert whole.sizes_on([], most=9) == (1, 1)


def test_the_rest_of_a_core_is_used_as_well() -> None:
    """What Ray Data leaves unused of a node is found with the code that reserves it."""
    nodes = [
        {"NodeID": name, "Alive": True, "Resources": {"CPU": cpus, "memory": 8.0 * GIB}}
        for name, cpus in (("small", 2.0), ("large", 16.0))
    ]
    coordinator = _AutoscalingCoordinatorActor(get_cluster_nodes=lambda: nodes, send_resources_request=lambda *_: None)
    # A worker and a task, as they are asked for on two cores.
    tasks = [{"CPU": WORKER_CPU_SHARE * 2}, {"CPU": TASK_CPUS}]
    coordinator.request_resources("data", tasks, expire_after_s=60, request_remaining=["CPU", "GPU", "memory"])
    reserved = coordinator.get_reserved_resources("data")
    assert sum(of_node["CPU"] for of_node in reserved.values()) < 18  # or `usable` need not round any more
    assert usable(reserved, ()).cpu == 18
    assert usable(reserved, ()).memory == 16 * GIB
    assert usable({}, ()).cpu == 0


def test_blocks_have_the_stores_of_machines_that_decode() -> None:
    """Each of which has as many of them as it has cores, so that the smallest store is full first."""
    cluster = {
        "head": {"object_store_memory": 64.0 * GIB},
        "one": {"CPU": 4.0, "object_store_memory": 8.0 * GIB},
        "other": {"CPU": 8.0, "object_store_memory": 32.0 * GIB},
        "gpu": {"CPU": 16.0, "GPU": 8.0, "object_store_memory": 128.0 * GIB},
    }
    assert usable(cluster, {"one"}).object_store_memory == 8 * GIB
    assert usable(cluster, {"one", "other"}).object_store_memory == 24 * GIB
    assert usable(cluster, cluster).object_store_memory == 56 * GIB
    assert usable(cluster, {"head"}).object_store_memory == 0
    assert usable(cluster, {"one"}).cpu == 28
