"""Workers and tasks on the nodes of a cluster, some of which say that they have GPUs; the model costs nothing."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from nodes import free_port, ray_node, wait_for

ROOT = Path(__file__).parents[1]
STORE_BYTES = 100 * 1024 * 1024  # of each node
SIZE = 800  # of the pictures: 1.9 MB of pixels each
PICTURES = 160  # three times as many bytes as a node's store has


@pytest.fixture
def add_node() -> Iterator[Callable[..., dict[str, str]]]:
    """Begins a node of a cluster of this test's own, the first is the head; returns how to reach the cluster."""
    place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, as names of sockets must be
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, **secret, "RAY_num_workers_soft_limit": "16"}
    port = free_port()
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={place}"]
    with contextlib.ExitStack() as stack:

        def add(*options: str) -> dict[str, str]:
            where = [f"--address=127.0.0.1:{port}"] if "RAY_ADDRESS" in environment else head
            process = stack.enter_context(ray_node(*where, *options, environment=environment))
            if "RAY_ADDRESS" not in environment:
                wait_for(lambda: _answers(port), process)
                environment["RAY_ADDRESS"] = f"127.0.0.1:{port}"
            return environment

        yield add
    shutil.rmtree(place, ignore_errors=True)


def _answers(port: int) -> bool:
    import socket

    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_pools_fit_the_machines_there_are(add_node: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    """Decoding where it may be, memory that is not exceeded, a pool that grows with the cluster, and its end."""
    source, notes = tmp_path / "in", tmp_path / "notes"
    source.mkdir()
    notes.mkdir()
    for number in range(PICTURES):
        PIL.Image.effect_noise((SIZE, SIZE), 9).convert("RGB").save(source / f"{number:04d}.jpg", quality=40)
    PIL.Image.new("RGB", (1, 1)).save(source / "last.png")
    store = f"--object-store-memory={STORE_BYTES}"
    add_node("--num-cpus=0", store)
    add_node("--num-cpus=2", "--labels=raymask=decode", store)
    environment = add_node("--num-cpus=4", "--num-gpus=1", store)
    program = [sys.executable, str(ROOT / "benchmarks" / "watched_model.py"), str(notes), "0.05", "raymask"]
    command = [*program, "segment", str(source), "--out", str(tmp_path / "out"), "--decode-on", "raymask=decode"]
    command += ["--gpus-per-worker", "0.5", "--images-per-part", "4", "--quiet", "--debug"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:

        def noted(what: str) -> list[dict[str, Any]]:
            lines = [
                {**json.loads(line), "process": int(file.name)}
                for file in notes.iterdir()
                for line in file.read_text().splitlines()
            ]
            return [line for line in lines if line["what"] == what]

        wait_for(lambda: len(noted("predict")) > 2, run)
        first = {line["process"] for line in noted("worker")}
        add_node("--num-cpus=4", "--num-gpus=1", store)
        wait_for(lambda: len(noted("worker")) >= 4, run)
        # The rest is done, and one call takes its time: the other workers are let go meanwhile.
        wait_for(lambda: sum(line["images"] for line in noted("predict")) > PICTURES, run)
        wait_for(lambda: sum(Path(f"/proc/{line['process']}").exists() for line in noted("worker")) <= 1, run)
        assert run.poll() is None
        spilled, _ = run.communicate(timeout=60)
        assert run.returncode == 0
    assert len(first) == 2
    with_gpus = {line["node"] for line in noted("worker")}
    assert len(with_gpus) == 2
    decoding = {line["node"] for line in noted("decode")}
    assert len(decoding) == 1
    assert not decoding & with_gpus
    assert set(json.loads(spilled).values()) == {0}
