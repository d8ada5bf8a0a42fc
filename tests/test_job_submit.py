"""Jobs as users start them: `ray job submit` to a cluster of several nodes that runs already, and asks for a token."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import draw_folder
from nodes import RAY, free_port, ray_node, wait_for
from stores import Store, s3_store

import raymask
from raymask.demo.drawing import write_data_set
from raymask.errors import RaymaskError
from raymask.model import load_model

pytest.importorskip("opencensus", reason="job submission needs ray[default]: pip install -e '.[dev]'")

ROOT = Path(__file__).parents[1]
PICTURES = 150


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with s3_store() as store:
        yield store


@pytest.fixture(scope="module")
def cluster(store: Store) -> Iterator[dict[str, str]]:
    """The environment in which `ray job` finds a cluster of two nodes with a core each, and may use it."""
    port, jobs_port = free_port(), free_port()
    # Short, for the names of sockets in it must not be longer than a hundred characters.
    folder = Path("/tmp") / f"ray-{os.getpid()}"
    # Who reaches an open port of Ray runs code there, so it asks for a token.
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["PATH"] = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"  # where jobs find their `python`
    head = ["--head", f"--port={port}", f"--dashboard-port={jobs_port}", "--include-dashboard=true"]
    address = f"http://127.0.0.1:{jobs_port}"
    with contextlib.ExitStack() as nodes:
        for place in ([*head, f"--temp-dir={folder}"], [f"--address=127.0.0.1:{port}"]):
            options = [*place, "--num-cpus=1", f"--dashboard-agent-listen-port={free_port()}"]
            process = nodes.enter_context(ray_node(*options, environment=environment))
            wait_for(lambda: is_up(f"{address}/api/version"), process)
        yield {**environment, "RAY_API_SERVER_ADDRESS": address}
    shutil.rmtree(folder, ignore_errors=True)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:  # 401: up, and wants the token that Ray's own client has
        return True
    except OSError:
        return False


def ray_job(environment: dict[str, str], *arguments: str) -> str:
    """What a `ray job` command prints; AssertionError if it fails."""
    for _ in range(60):
        command = [str(RAY), "job", *arguments]
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        if "No available agent" not in outcome.stderr:  # the part of Ray that starts jobs comes up last
            break
        time.sleep(1)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def submission(name: str, command: str, settings: dict[str, object], *options: str) -> list[str]:
    """Arguments of `ray job` that submit the script of a command."""
    job = ["python", f"jobs/{command}.py", "--config", f"jobs/{command}.yaml"]
    for key, value in settings.items():
        job += ["--set", f"{key}={value}"]
    return ["submit", "--submission-id", name, *options, "--working-dir", str(ROOT), "--", *job]


def done(out: str) -> int:
    """Images that the output has, at any moment."""
    with contextlib.suppress(RaymaskError):
        status = raymask.status(out)
        return status.ok + status.failed
    return 0


def tables(out: str) -> tuple[pa.Table, pa.Table]:
    opened = raymask.open(out)
    return opened.images.to_arrow().sort_by("uri"), opened.instances.to_arrow().sort_by(
        [("uri", "ascending"), ("instance", "ascending")]
    )


@pytest.mark.timeout(300)
def test_a_stopped_job_goes_on_when_it_is_submitted_again(
    cluster: dict[str, str], store: Store, model_folder: str, tmp_path: Path
) -> None:
    # Large enough inside for the job to take some seconds.
    settings: dict[str, object] = {"source": draw_folder(tmp_path / "in", PICTURES, broken=1), "weights": model_folder}
    settings |= {"min_size": 256, "max_size": 256, "images_per_part": 2, "images_per_file": 64}
    stopped, calm = f"{store.url}/stopped", f"{store.url}/calm"
    ray_job(cluster, *submission("first", "segment", {**settings, "out": stopped}, "--no-wait"))
    deadline = time.monotonic() + 120
    while done(stopped) < 8:
        assert time.monotonic() < deadline, ray_job(cluster, "logs", "first")
        time.sleep(0.2)
    ray_job(cluster, "stop", "first")
    kept = done(stopped)
    assert 8 <= kept < PICTURES
    logs = ray_job(cluster, "logs", "first")
    assert re.search(rf"\b\d+ of {PICTURES + 1} images", logs), logs
    assert "raymask: interrupted" in logs
    again = ray_job(cluster, *submission("second", "segment", {**settings, "out": stopped}))
    assert f"{PICTURES + 1} images: {PICTURES} ok" in again
    [now] = re.findall(r"(\d+) of them now", again)
    assert int(now) <= PICTURES + 1 - kept
    ray_job(cluster, *submission("undisturbed", "segment", {**settings, "out": calm}))
    assert tables(stopped) == tables(calm)


@pytest.mark.timeout(300)
def test_a_submitted_job_trains_a_model(cluster: dict[str, str], tmp_path: Path) -> None:
    write_data_set(tmp_path, 6, 1, seed=4)
    out = tmp_path / "model"
    settings: dict[str, object] = {"data": tmp_path / "train.json", "images": tmp_path / "train", "out": out}
    settings |= {"epochs": 1, "batch_size": 3}
    settings |= {"model": "maskrcnn_resnet10_fpn", "min_size": 96, "max_size": 128, "proposals": 100}
    assert "6 images seen" in ray_job(cluster, *submission("train", "train", settings))
    assert load_model(str(out)).spec.training["images_seen"] == 6
