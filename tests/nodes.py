"""Nodes of Ray clusters of a test's own, which end with it; `ray stop` would stop every Ray on the machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

RAY = Path(sys.executable).parent / "ray"


@contextlib.contextmanager
def ray_node(*options: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A node that was told to start; options: of `ray start`."""
    process = subprocess.Popen(
        [str(RAY), "start", "--block", "--disable-usage-stats", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it has nothing to keep, and takes long to end otherwise
        process.wait(timeout=30)


@contextlib.contextmanager
def ray_cluster(*options: str) -> Iterator[dict[str, str]]:
    """The environment in which commands use a cluster of one machine with two cores, and not one of their own each.

    Its workers have the environment of now. options: of `ray start --head`. TEST_RAY_FOLDER has the cluster's logs.
    """
    port, folder = free_port(), tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, as names of sockets must be
    # Who reaches an open port of Ray runs code there, so it asks for a token.
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, **secret, "RAY_num_workers_soft_limit": "16"}
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}", "--num-cpus=2"]
    with ray_node(*head, *options, environment=environment) as process:
        wait_for(lambda: _listens(port), process)
        yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}", "TEST_RAY_FOLDER": folder}
    shutil.rmtree(folder, ignore_errors=True)


def wait_for(what: Callable[[], T], process: subprocess.Popen[Any], seconds: float = 180) -> T:
    """What the function says once it says anything; AssertionError if the process ends before, or it takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        assert process.poll() is None, "it ended early"
        time.sleep(0.1)
    raise AssertionError("waited too long")


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
