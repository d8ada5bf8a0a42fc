"""How many workers of what size fit a cluster, and how much memory the tasks before them may fill."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, inf
from typing import Any

import ray
import ray.data
from ray.autoscaler.sdk import request_resources
from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces.execution_options import ExecutionResources

from raymask.errors import ConfigError
from raymask.stages import Room

# Reading, fetching, decoding and writing mostly wait for a store or for room: four such tasks share a core.
TASK_CPUS = 0.25
# What model workers on CPUs leave of a node for those tasks.
WORKER_CPU_SHARE = 0.75

# Images that a worker is handed at once and writes as one part of the journal: enough to group them by shape and to
# keep parts few, few enough to fit in memory if they are large and to lose little with a worker.
CPU_IMAGES_PER_PART = 32
GPU_IMAGES_PER_PART = 64
# Cores that a worker without a GPU uses, each for a call of its own. Its calls share what takes long to start, torch,
# and one copy of the weights; more of them would wait for the interpreter's lock.
CPU_CONCURRENT_CALLS = 4
# Calls that a worker with a GPU is at: the CPU's part of one (pixels in, masks encoded) is hidden by the other's.
GPU_CONCURRENT_CALLS = 2
# Cores that it keeps tasks away from, one a call: a GPU must not wait for a core that decodes.
GPU_WORKER_CPUS = float(GPU_CONCURRENT_CALLS)

# Of a node's object store, what its tasks may fill with blocks that nobody has taken yet. Ray Data begins to hold
# tasks back at half of it, but only once it has seen how large their blocks are.
STORE_SHARE = 0.5
# Blocks of a task that may be there at once: Ray lets two wait and makes another.
BLOCKS_OF_TASK = 3
MIN_ROOM_BYTES, MAX_ROOM_BYTES = 4 * 1024 * 1024, 64 * 1024 * 1024

# What training workers take of the CPUs, and validation beside them; data tasks have the rest.
TRAINING_CPU_SHARE, VALIDATION_CPU_SHARE = 0.5, 0.25
# Validation shares the GPU of a training worker where none is free. Large enough that no two such workers share one.
TRAINING_GPU_SHARE = 0.875

LOOK_EVERY_S, SAY_EVERY_S = 1.0, 60.0

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The model workers of a run, and what each is given.

    max_workers: None for as many as there is room for, also on machines that join. concurrent_calls: how many calls a
    worker handles at once, each in a thread of its own. worker_threads: those that torch uses for one call.
    images_per_part: what a call is given, unless the run says otherwise.
    """

    min_workers: int
    max_workers: int | None
    worker_cpus: float
    worker_gpus: float
    worker_threads: int
    concurrent_calls: int
    images_per_part: int

    @property
    def device(self) -> str:
        return "cuda" if self.worker_gpus else "cpu"

    @property
    def calls(self) -> int:
        """Calls that all workers together handle at once, as far as can be foreseen."""
        return (self.max_workers or self.min_workers) * self.concurrent_calls

    def room_on(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Workers of this size that fit nodes of these resources."""
        if self.worker_gpus:
            return sum(int(of_node.get("GPU", 0)) for of_node in nodes) * _fit_a_gpu(self.worker_gpus)
        return int(WORKER_CPU_SHARE * sum(of_node.get("CPU", 0.0) for of_node in nodes) / self.worker_cpus)

    def sizes_on(self, nodes: Sequence[Mapping[str, float]], most: int) -> tuple[int, int]:
        """How few and how many workers there may be while the cluster has these nodes; most: that have work."""
        room = max(1, self.room_on(nodes))
        return min(self.min_workers, room, most), min(self.max_workers or room, most)


def plan_pool(workers: tuple[int, int] | None, gpus_per_worker: float | None = None) -> Pool:
    """Workers for the connected cluster: `workers` (min, max), or all that it has room for and then more as it grows.

    The minimum begins at once. gpus_per_worker: from 0 to 1; None for 1 where the cluster has a GPU, otherwise 0.
    """
    nodes = _alive()
    gpus = sum(int(of_node.get("GPU", 0)) for of_node in nodes)
    share = float(gpus > 0) if gpus_per_worker is None else gpus_per_worker
    return _gpu_pool(workers, share, nodes) if share else _cpu_pool(workers, nodes)


def _gpu_pool(workers: tuple[int, int] | None, share: float, nodes: Sequence[Mapping[str, float]]) -> Pool:
    on_a_gpu = _fit_a_gpu(share)
    with_gpus = [(of_node.get("CPU", 0.0), int(of_node["GPU"]) * on_a_gpu) for of_node in nodes if of_node.get("GPU")]
    room = sum(fit for _, fit in with_gpus)
    if not room:
        raise ConfigError("--gpus-per-worker asks for GPUs, the cluster has none; give 0, or machines with GPUs")
    low, high = workers or (room, None)
    if low > room:
        raise ConfigError(
            f"--workers asks for {low}, the cluster has {room // on_a_gpu} GPUs and {on_a_gpu} fit one; "
            f"give --workers {room}:{low} where machines with more of them join later"
        )
    # At most half of a node, so that there are tasks too where it is alone.
    cpus_of_worker = min(cpus / fit for cpus, fit in with_gpus) / 2
    return Pool(
        min_workers=low,
        max_workers=high,
        worker_cpus=_rounded_down(min(GPU_WORKER_CPUS, cpus_of_worker)),
        worker_gpus=share,
        worker_threads=max(1, int(cpus_of_worker)),
        concurrent_calls=GPU_CONCURRENT_CALLS,
        images_per_part=GPU_IMAGES_PER_PART,
    )


def _cpu_pool(workers: tuple[int, int] | None, nodes: Sequence[Mapping[str, float]]) -> Pool:
    """On CPUs an image a core is faster than all cores at one image: RoIAlign and NMS use one thread."""
    of_nodes = [of_node.get("CPU", 0.0) for of_node in nodes]
    room = max(1, sum(ceil(cpus / CPU_CONCURRENT_CALLS) for cpus in of_nodes))
    low, high = workers or (room, None)
    cores = min(max(of_nodes), sum(of_nodes) / min(max(low, room), high or inf))
    calls = max(1, min(int(cores), CPU_CONCURRENT_CALLS))
    return Pool(
        min_workers=low,
        max_workers=high,
        worker_cpus=_rounded_down(WORKER_CPU_SHARE * cores),
        worker_gpus=0.0,
        worker_threads=max(1, int(cores) // calls),
        concurrent_calls=calls,
        images_per_part=CPU_IMAGES_PER_PART,
    )


def room_of(pool: Pool, tasks: int) -> Room:
    """What the connected cluster has for a run with these workers, and so many tasks that read."""
    cpus = sum(of_node.get("CPU", 0.0) for of_node in _alive())
    workers = pool.max_workers or pool.min_workers
    return Room(
        cpus=cpus,
        gpus=round(workers * pool.worker_gpus),
        calls=pool.calls,
        readers=max(1.0, min(tasks, (cpus - workers * pool.worker_cpus) / TASK_CPUS)),
        threads=pool.worker_threads,
    )


def task_room_bytes(decode_on: Mapping[str, str]) -> int:
    """Bytes of pixels that may travel together, so that what all tasks of a node make at once fits its object store.

    decode_on: labels of the nodes that they are on, {} for any.
    """
    of_tasks = [
        node.get("object_store_memory", inf) / (node["CPU"] / TASK_CPUS)
        for node in _alive(decode_on)
        if node.get("CPU")
    ]
    return int(max(MIN_ROOM_BYTES, min(MAX_ROOM_BYTES, STORE_SHARE * min(of_tasks, default=inf) / BLOCKS_OF_TASK)))


# ----------------------------------------------------------------------------------------------- clusters that change


@dataclass(frozen=True)
class _Need:
    """What some machine of the cluster has to have. resource: CPU or GPU; labels: which of its labels mean what."""

    said: str
    resource: str
    labels: Mapping[str, str]

    def is_met(self) -> bool:
        return any(of_node.get(self.resource) for of_node in _alive(self.labels))


def await_machines(gpus: bool, decode_on: Mapping[str, str], say: Say) -> None:
    """Wait until the cluster has a machine for each kind of work: one that grows from nothing has none at first.

    gpus: whether a GPU is asked for; decode_on: labels of the machines that fetch and decode, {} for any.
    """
    needs = [_Need("a machine with CPUs", "CPU", {})]
    if gpus:
        needs.append(_Need("a machine with a GPU", "GPU", {}))
    if decode_on:
        labels = ", ".join(f"{key}={value}" for key, value in decode_on.items())
        needs.append(_Need(f"a machine with the label {labels}", "CPU", decode_on))
    asked, said_s = False, -inf
    try:
        while missing := [need for need in needs if not need.is_met()]:
            if not asked:
                asked = True
                request_resources(
                    bundles=[{need.resource: 1} for need in missing],
                    bundle_label_selectors=[dict(need.labels) for need in missing],
                )
            if time.monotonic() - said_s >= SAY_EVERY_S:
                said_s = time.monotonic()
                say(f"waiting for {' and '.join(need.said for need in missing)} to join the cluster")
            time.sleep(LOOK_EVERY_S)
    finally:
        if asked:
            request_resources(bundles=[])  # from here on Ray Data asks


def usable(reserved: Mapping[str, Mapping[str, float]], decoding: Collection[str]) -> ExecutionResources:
    """What of the cluster a data set may use. reserved: for it by Ray Data, by node; decoding: nodes that tasks are on.

    The CPUs of a node are rounded up to whole ones: Ray Data rounds down what is left on a node beside the tasks that
    it asks for, so that of two CPUs of which it asks for 1.75 it would never use the last quarter, and nobody else
    would. Of object stores only those of nodes that decode count, and as if none had more for a CPU than the smallest
    has: blocks lie where they were made, which Ray Data does not look at, and the others cannot take them.
    """
    total = ExecutionResources.zero()
    for of_node in reserved.values():
        total = total.add(ExecutionResources.from_resource_dict({**of_node, "CPU": ceil(of_node.get("CPU", 0))}))
    makers = [of_node for node, of_node in reserved.items() if node in decoding and of_node.get("CPU")]
    of_a_cpu = min((of_node.get("object_store_memory", 0.0) / of_node["CPU"] for of_node in makers), default=0.0)
    return total.copy(object_store_memory=of_a_cpu * sum(of_node["CPU"] for of_node in makers))


class _UsingAllMachines(ExecutionCallback):
    """Has Ray Data use machines as `usable` says, and those that join within seconds, not every twenty as by itself.

    A pool without a maximum of its own grows by what fits them. An infinite maximum from the beginning would do that
    too, but Ray Data keeps cores free for workers that may come, and those are missing where images are decoded. A
    minimum that no longer fits, as a machine is gone, would keep a worker waiting for a place, and its images, while
    there is no core left to decode more.
    """

    def __init__(self, pool: Pool, most: int, decode_on: Mapping[str, str]) -> None:
        self._pool = pool
        self._most = most
        self._decode_on = decode_on
        self._nodes: frozenset[str] = frozenset()
        self._decoding: frozenset[str] = frozenset()
        self._looked_s = -inf

    def before_execution_starts(self, executor: Any) -> None:
        autoscaler = executor._cluster_autoscaler
        coordinator = autoscaler._autoscaling_coordinator
        autoscaler.get_total_resources = lambda: usable(coordinator.get_reserved_resources(), self._decoding)
        self._decoding = frozenset(node["NodeID"] for node in _nodes(self._decode_on))

    def on_execution_step(self, executor: Any) -> None:
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = time.monotonic()
        nodes = frozenset(node["NodeID"] for node in _nodes())
        if nodes == self._nodes:
            return
        self._nodes = nodes
        self._decoding = frozenset(node["NodeID"] for node in _nodes(self._decode_on))
        coordinator: Any = get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]
        coordinator.get_reserved_resources.remote("raymask", recompute=True)
        low, high = self._pool.sizes_on(_alive(), self._most)
        for step in executor._topology:
            for workers in step.get_autoscaling_actor_pools():
                workers._config = replace(workers._config, min_size=low, initial_size=low, max_size=high)


@contextlib.contextmanager
def using_all_machines(pool: Pool, most: int, decode_on: Mapping[str, str]) -> Iterator[None]:
    """A data set that is begun here uses machines whole, also those that join later; most: workers that have work.

    decode_on: labels of the nodes that its tasks are on, {} for any.
    """
    context = ray.data.DataContext.get_current().copy()
    begun = partial(_UsingAllMachines, pool, most, decode_on)
    context.custom_execution_callback_classes = [begun]  # type: ignore[list-item]
    with ray.data.DataContext.current(context):
        yield


def _alive(labels: Mapping[str, str] | None = None) -> list[Mapping[str, float]]:
    """Resources of every node of the connected cluster, or of those that have all of these labels."""
    return [node["Resources"] for node in _nodes(labels)]


def _nodes(labels: Mapping[str, str] | None = None) -> list[Mapping[str, Any]]:
    """What Ray says of each of these nodes."""
    return [
        node
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and (labels or {}).items() <= (node.get("Labels") or {}).items()
    ]


def _fit_a_gpu(share: float) -> int:
    """Workers on one GPU: a worker's share is of one, never of two."""
    return int(1 / share + 1e-9)


def _rounded_down(cpus: float) -> float:
    """Ray counts hundredths and more finely; a share rounded up might not fit any more."""
    return max(int(cpus * 100) / 100, 0.01)


# ----------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True, kw_only=True)
class TrainingRoom:
    """The training workers of a run and what each is given; validation: the pool that segments beside them."""

    min_workers: int
    max_workers: int
    worker_cpus: float
    worker_gpus: float
    worker_threads: int
    validation: Pool


def plan_training(workers: tuple[int, int] | None, validates: bool, on_gpus: bool = True) -> TrainingRoom:
    """Training workers for the connected cluster: `workers` (min, max), or one a GPU, or one without GPUs.

    The minimum fits the cluster as it is; up to the maximum there may be room later, when machines join. on_gpus:
    whether GPUs are used where there are any.
    """
    nodes = _alive()
    gpus = sum(int(of_node.get("GPU", 0)) for of_node in nodes) if on_gpus else 0
    cpus = sum(of_node.get("CPU", 0.0) for of_node in nodes)
    low, high = workers or (max(1, gpus),) * 2
    if gpus:
        if low > gpus:
            raise ConfigError(f"--workers asks for {low}, the cluster has {gpus} GPUs; one worker takes one GPU")
        gpu_share = TRAINING_GPU_SHARE if validates and high >= gpus else 1.0
        validation_gpus = 1.0 if gpu_share == 1.0 else 1 - gpu_share
    else:
        gpu_share = validation_gpus = 0.0
    node_cpus = max(of_node.get("CPU", 0.0) for of_node in nodes)
    cores = min(node_cpus, cpus / (min(high, gpus) or high))
    # Rounded down: a share rounded up might not fit any more. Ray Train adds shares up and divides again to count how
    # many workers there is room for, in floats, in which only parts by powers of two come out even.
    worker_cpus = int(TRAINING_CPU_SHARE * cores * 16) / 16
    validation = Pool(
        min_workers=1,
        max_workers=1,
        worker_cpus=max(int(VALIDATION_CPU_SHARE * node_cpus * 100) / 100, 0.01),
        worker_gpus=validation_gpus,
        worker_threads=max(1, int(VALIDATION_CPU_SHARE * node_cpus)),
        concurrent_calls=1,
        images_per_part=GPU_IMAGES_PER_PART if gpus else CPU_IMAGES_PER_PART,
    )
    return TrainingRoom(
        min_workers=low,
        max_workers=high,
        worker_cpus=max(worker_cpus, 0.01),
        worker_gpus=gpu_share,
        worker_threads=max(1, int(cores)),
        validation=validation,
    )
