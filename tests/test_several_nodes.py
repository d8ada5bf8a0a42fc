"""Workers and tasks on the nodes of a cluster, some of which say that they have GPUs; the model costs nothing."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow.parquet as pq
import pytest
from nodes import free_port, ray_node, wait_for
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

ROOT = Path(__file__).parents[1]
STORE_BYTES = 100 * 1024 * 1024  # of each node
SIZE = 250  # of the pictures: 0.19 MB of pixels each
PICTURES = 1600  # three times as many bytes as a node's store has
DECODING = {"raymask": "decode"}
ON_LABEL = ("--decode-on", "raymask=decode")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, as names of sockets must be
    with contextlib.ExitStack() as stack:
        yield Nodes(place, stack)
    shutil.rmtree(place, ignore_errors=True)


class Nodes:
    """A cluster of a test's own. environment: for its drivers."""

    def __init__(self, place: str, stack: contextlib.ExitStack) -> None:
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.port = free_port()
        self.environment = {**os.environ, **secret, "RAY_num_workers_soft_limit": "16"}
        self._place = place
        self._stack = stack
        self._numbers = itertools.count()

    def add(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        """Begin a node, the first is the head; options: of `ray start`."""
        is_head = "RAY_ADDRESS" not in self.environment
        # A folder for each: nodes that begin at once in one may take each other's sockets.
        where = [f"--temp-dir={self._place}/{next(self._numbers)}", f"--object-store-memory={STORE_BYTES}"]
        head = ["--head", f"--port={self.port}", "--include-dashboard=false"]
        where += head if is_head else [f"--address=127.0.0.1:{self.port}"]
        process = self._stack.enter_context(ray_node(*where, *options, environment={**self.environment, **environment}))
        if is_head:
            wait_for(lambda: listens(self.port), process)
            self.environment["RAY_ADDRESS"] = f"127.0.0.1:{self.port}"
        return process


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Run:
    """`raymask segment` with a model that costs nothing, notes where it is used and waits where that is said."""

    def __init__(self, place: Path, pictures: int, size: int, *options: str, seconds: float = 0) -> None:
        self._notes, source = place / "notes", place / "in"
        self._notes.mkdir()
        source.mkdir()
        picture = io.BytesIO()
        PIL.Image.effect_noise((size, size), 9).convert("RGB").save(picture, "jpeg")
        for number in range(pictures):
            (source / f"{number:04d}.jpg").write_bytes(picture.getvalue())
        PIL.Image.new("RGB", (1, 1)).save(source / "last.png")
        script = str(ROOT / "benchmarks" / "watched_model.py")
        self.command = [sys.executable, script, str(self._notes), str(seconds), "raymask", "segment", str(source)]
        self.command += ["--out", str(place / "out"), "--images-per-part", "8", "--debug", *options]

    @contextlib.contextmanager
    def begun(self, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(self.command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
            try:
                yield driver
            finally:
                driver.kill()  # or a test that fails would wait for it

    def hold(self, name: str) -> None:
        (self._notes / name).touch()

    def let_go(self, name: str) -> None:
        (self._notes / name).unlink()

    def noted(self, what: str) -> list[dict[str, Any]]:
        notes = [
            {**json.loads(line), "process": int(file.name)}
            for file in self._notes.glob("[0-9]*")
            for line in file.read_text().splitlines()
        ]
        return [note for note in notes if note["what"] == what]

    def predicted(self) -> int:
        return sum(note["images"] for note in self.noted("predict"))

    def places(self, what: str) -> set[str]:
        return {note["node"] for note in self.noted(what)}


def test_pools_fit_the_machines_there_are(nodes: Nodes, tmp_path: Path) -> None:
    """Where images are decoded, memory that suffices, a pool that grows with the cluster, and its end."""
    nodes.add("--num-cpus=0")
    nodes.add("--num-cpus=2", "--labels=raymask=decode")
    nodes.add("--num-cpus=4", "--num-gpus=1")
    run = Run(tmp_path, PICTURES, SIZE, "--gpus-per-worker", "0.5", *ON_LABEL, "--quiet")
    run.hold("hold")  # so that as much is decoded as may wait
    run.hold("hold-last")
    with run.begun(nodes.environment) as driver:
        wait_for(lambda: len(run.noted("worker")) == 2, driver)  # all that there is room for
        nodes.add("--num-cpus=4", "--num-gpus=1")
        wait_for(lambda: len(run.places("worker")) == 2, driver)
        run.let_go("hold")
        # One call takes its time, the rest is done: the workers that have nothing to do end meanwhile.
        wait_for(lambda: run.predicted() > PICTURES, driver)
        wait_for(lambda: sum(Path(f"/proc/{n['process']}").exists() for n in run.noted("worker")) == 1, driver)
        run.let_go("hold-last")
        spilled, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0
    assert len(run.places("decode")) == 1
    assert not run.places("decode") & run.places("worker")
    assert run.predicted() == PICTURES + 1
    assert set(json.loads(spilled).values()) == {0}


def test_a_machine_that_is_lost_for_good_costs_its_blocks(nodes: Nodes, tmp_path: Path) -> None:
    """Its worker waits for a place, which the other one has; its images are not lost, and the others go on."""
    nodes.add("--num-cpus=0")
    nodes.add("--num-cpus=1")
    second = nodes.add("--num-cpus=1")
    run = Run(tmp_path, 600, 64, "--quiet", seconds=0.02)
    with run.begun(nodes.environment) as driver:
        wait_for(lambda: len(run.places("predict")) == 2 and run.predicted() >= 200, driver)
        os.killpg(second.pid, signal.SIGKILL)
        driver.wait(timeout=180)
    assert driver.returncode == 0
    counts = pq.read_table(tmp_path / "out" / "images", columns=["status"]).column("status").value_counts().to_pylist()
    assert counts == [{"values": "ok", "counts": 601}]
    assert 601 <= run.predicted() < 601 + 100


def growing_cluster(port: int) -> dict[str, Any]:
    """What Ray's autoscaler may begin beside a head that listens at `port`: raylets on this machine, one of a kind."""
    provider = {
        "type": "external",
        "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
        "disable_node_updaters": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": f"127.0.0.1:{port}",
    }
    steps = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    kinds: dict[str, dict[str, Any]] = {
        "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0},
        "decode": {"resources": {"CPU": 2}, "labels": DECODING, "max_workers": 1},
        "gpu": {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 1},
    }
    return {
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "provider": provider,
        "head_node_type": "ray.head.default",
        "available_node_types": {name: {"node_config": {}, **kind} for name, kind in kinds.items()},
        **{f"{step}_commands": [] for step in steps},
    }


def test_a_cluster_grows_from_nothing(nodes: Nodes, tmp_path: Path) -> None:
    """Ray's autoscaler is asked for what `--gpus-per-worker` and `--decode-on` say, of which nothing is there."""
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps(growing_cluster(nodes.port)))
    nodes.add(
        "--num-cpus=0",
        f"--autoscaling-config={file}",
        RAY_FAKE_CLUSTER="1",
        RAY_enable_autoscaler_v2="1",
        RAY_CLOUD_INSTANCE_ID=FAKE_HEAD_NODE_ID,
        RAY_OVERRIDE_NODE_ID_FOR_TESTING=FAKE_HEAD_NODE_ID,
        AUTOSCALER_UPDATE_INTERVAL_S="1",
    )
    run = Run(tmp_path, 8, 64, "--gpus-per-worker", "1", *ON_LABEL, "--workers", "1:2")
    outcome = subprocess.run(run.command, env=nodes.environment, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
    assert "waiting for a machine with CPUs and a machine with a GPU" in outcome.stderr
    assert run.predicted() == 9
    assert len(run.places("worker")) == len(run.places("decode")) == 1
    assert run.places("worker") != run.places("decode")
