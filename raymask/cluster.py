"""The Ray cluster a command runs on: connect or start one quietly, and how many workers of what size fit it."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import grpc
import ray
import ray.data
from ray.exceptions import RayTaskError

from raymask.errors import ConfigError, RaymaskError
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
GPU_WORKER_CPUS = 1.0
# Calls that a worker with a GPU is at: the CPU's part of one (pixels in, masks encoded) is hidden by the other's.
GPU_CONCURRENT_CALLS = 2

# What training workers take of the CPUs, and validation beside them; data tasks have the rest.
TRAINING_CPU_SHARE, VALIDATION_CPU_SHARE = 0.5, 0.25
# Validation shares the GPU of a training worker where none is free. Large enough that no two such workers share one.
TRAINING_GPU_SHARE = 0.875

STRANGER_PATIENCE_S = 5.0
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The model workers of a run, and what each is given.

    concurrent_calls: how many calls a worker handles at once, each in a thread of its own. worker_threads: those
    that torch uses for one call. images_per_part: what a call is given, unless the run says otherwise.
    """

    min_workers: int
    max_workers: int
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
        """Calls that all workers together handle at once, at the most."""
        return self.max_workers * self.concurrent_calls


def plan_pool(workers: tuple[int, int] | None) -> Pool:
    """Workers that fit the connected cluster: `workers` (min, max), or one a GPU, or without GPUs one a few cores.

    On CPUs an image a core is faster than all cores at one image: RoIAlign and NMS use one thread.
    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    of_nodes = [node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]]
    node_cpus = max(of_nodes)
    if gpus:
        low, high = workers or (gpus, gpus)
        if low > gpus:
            raise ConfigError(f"--workers asks for {low}, the cluster has {gpus} GPUs; one worker takes one GPU")
        return Pool(
            min_workers=low,
            max_workers=min(high, gpus),
            worker_cpus=min(GPU_WORKER_CPUS, node_cpus / 2),
            worker_gpus=1.0,
            worker_threads=max(1, int(cpus / gpus / 2)),
            concurrent_calls=GPU_CONCURRENT_CALLS,
            images_per_part=GPU_IMAGES_PER_PART,
        )
    low, high = workers or (max(1, sum(ceil(of_node / CPU_CONCURRENT_CALLS) for of_node in of_nodes)),) * 2
    cores = min(node_cpus, cpus / low)
    calls = max(1, min(int(cores), CPU_CONCURRENT_CALLS))
    # Ray counts hundredths and more finely; a share rounded up might not fit any more.
    share = int(WORKER_CPU_SHARE * cores * 100) / 100
    return Pool(
        min_workers=low,
        max_workers=max(low, min(high, int(cpus))),
        worker_cpus=max(share, 0.01),
        worker_gpus=0.0,
        worker_threads=max(1, int(cores) // calls),
        concurrent_calls=calls,
        images_per_part=CPU_IMAGES_PER_PART,
    )


def room_of(pool: Pool, tasks: int) -> Room:
    """What the connected cluster has for a run with these workers, and so many tasks that read."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = resources.get("CPU", 1.0)
    return Room(
        cpus=cpus,
        gpus=round(pool.max_workers * pool.worker_gpus),
        calls=pool.calls,
        readers=max(1.0, min(tasks, (cpus - pool.max_workers * pool.worker_cpus) / TASK_CPUS)),
        threads=pool.worker_threads,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingRoom:
    """The training workers of a run and what each is given; validation: the pool that segments beside them."""

    min_workers: int
    max_workers: int
    worker_cpus: float
    worker_gpus: float
    worker_threads: int
    validation: Pool


def plan_training(workers: tuple[int, int] | None, validates: bool) -> TrainingRoom:
    """Training workers for the connected cluster: `workers` (min, max), or one a GPU, or one without GPUs.

    The minimum fits the cluster as it is; up to the maximum there may be room later, when machines join.
    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
    low, high = workers or (max(1, gpus),) * 2
    if gpus:
        if low > gpus:
            raise ConfigError(f"--workers asks for {low}, the cluster has {gpus} GPUs; one worker takes one GPU")
        gpu_share = TRAINING_GPU_SHARE if validates and high >= gpus else 1.0
        validation_gpus = 1.0 if gpu_share == 1.0 else 1 - gpu_share
    else:
        gpu_share = validation_gpus = 0.0
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    node_cpus = max(node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"])
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


@contextlib.contextmanager
def ray_session(allow_open: bool = False) -> Iterator[None]:
    """Ray connected: the caller's session, the cluster at RAY_ADDRESS or on this machine, or a local one made here.

    A session begun here ends here. Ray's own log lines and progress bars are turned off meanwhile; raymask says what
    a person needs to know. What tasks raise of raymask's own is raised here without Ray's traces around it.

    ConfigError for a cluster that other machines can reach and that works for whoever asks, unless `allow_open`.
    """
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data", "ray.train")]
    levels = [logger.level for logger in loggers]
    begun = not ray.is_initialized()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Tasks take turns in worker processes, which take over a second to start; Ray ends all but one a core that idle.
    processes = str(8 * (os.cpu_count() or 1))
    os.environ.setdefault("RAY_num_workers_soft_limit", processes)
    # Above four times this many Ray warns, and a training on a machine of two cores has a dozen.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", processes)
    # So long a driver that was killed keeps its share of the cluster, and the next one goes on with less. Ray: 180.
    os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", "30")
    # Ray's C++ side writes to this process's stderr, past the levels below; and first that its level was set.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if begun:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        with _stderr_kept_back():
            keep_token_private()
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own, which exits without a word
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    try:
        if not allow_open:
            check_not_open()
        with ray.data.DataContext.current(context):
            yield
    except RayTaskError as error:
        if not isinstance(error.cause, RaymaskError):
            raise
        # Ray Data appends lines of its own.
        raise type(error.cause)(str(error.cause).partition("\n")[0]) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if begun:
            ray.shutdown()


def check_not_open() -> None:
    """ConfigError if the connected cluster can be reached from elsewhere and answers whoever has no token."""
    address = ray.get_runtime_context().gcs_address
    host, _, _ = address.rpartition(":")
    if is_loopback(host) or not _answers_without_token(address):
        return
    raise ConfigError(
        f"the Ray cluster at {address} can be reached from other machines and asks for no token, so anyone there can "
        f"run code as you; start it with RAY_AUTH_MODE=token, or give --allow-open-cluster"
    )


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def _answers_without_token(address: str) -> bool:
    """Whether Ray's control service at HOST:PORT says its id to a stranger. It does so before it does anything else."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=STRANGER_PATIENCE_S)
        except grpc.RpcError:
            return False
    return True


def keep_token_private() -> None:
    """Make the file with the token that a local Ray will want, for this user's eyes alone; Ray would let all read it.

    One that is there, of this user, is closed to others.
    """
    if any(name in os.environ for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    with contextlib.suppress(OSError, RuntimeError):  # a home that cannot be written to, of which Ray will say more
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), os.fdopen(os.open(path, _NEW_FILE, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


@contextlib.contextmanager
def _stderr_kept_back() -> Iterator[None]:
    """What native code writes to standard error meanwhile is shown only if an exception passes."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept, open(os.dup(2), "wb") as stderr:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            stderr.write(kept.read())
            raise
        finally:
            stderr.flush()
            os.dup2(stderr.fileno(), 2)
