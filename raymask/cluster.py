"""The Ray cluster a command runs on: connect to one or start one, quietly, and only where strangers cannot."""

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
from pathlib import Path
from typing import Any

import grpc
import ray
import ray.data
from ray.exceptions import RayTaskError

from raymask.errors import ConfigError, RaymaskError

STRANGER_PATIENCE_S = 5.0
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


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
    # Ray's control service keeps the last tasks in memory, 100,000 of them otherwise; nobody looks at a local one's.
    os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", "1000")
    # A node's manager often asks for its object store before that listens, and would wait a second to ask again.
    os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "20")
    os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "500")  # as long in all as Ray would try
    # What nobody waits for, such as the statistics of Ray Data, may fail with the process that it is sent to.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
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
            _end_monitor()
            ray.shutdown()


def _end_monitor() -> None:
    """End the autoscaler's monitor of a cluster that was started here, if one was: there is nothing for it to scale.

    It goes on for a while when it is asked to end, and Ray waits a second for it.
    """
    with contextlib.suppress(AttributeError):  # no node of this process, or a Ray that has changed: it waits, then
        node: Any = ray._private.worker._global_node
        node.kill_monitor(check_alive=False)


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
