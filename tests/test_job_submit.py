"""Jobs as users start them: `ray job submit` to a cluster of several nodes that runs already, and asks for a token."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
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
    folders = [Path("/tmp") / f"ray-{os.getpid()}-{number}" for number in range(2)]
    # Who reaches an open port of Ray runs code there, so it asks for a token.
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["PATH"] = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"  # where jobs find their `python`
    head = ["--head", f"--port={port}", f"--dashboard-port={jobs_port}", "--include-dashboard=true"]
    address = f"http://127.0.0.1:{jobs_port}"
    with contextlib.ExitStack() as nodes:
        # A folder each, for of one each would delete the job's files when it needs them no more itself.
        for folder, place in zip(folders, (head, [f"--address=127.0.0.1:{port}"]), strict=True):
            options = [*place, "--num-cpus=1", f"--temp-dir={folder}"]
            options += [f"--dashboard-agent-listen-port={free_port()}"]
            process = nodes.enter_context(ray_node(*options, environment=environment))
            wait_for(lambda: is_up(f"{address}/api/version"), process)
        yield {**environment, "RAY_API_SERVER_ADDRESS": address}
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:  # 401: up, and wants the token that Ray's own client has
        return True
    except OSError:
        return False


def in_readme(begin: str) -> list[str]:
    """The command of README.md that begins so, in words."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    [line] = [line.strip() for line in text.splitlines() if line.strip().startswith(begin)]
    return shlex.split(line)


def run(environment: dict[str, str], *command: str) -> str:
    """What a `ray job` command prints; AssertionError if it fails."""
    for _ in range(60):
        outcome = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
        if "No available agent" not in outcome.stderr:  # the part of Ray that starts jobs comes up last
            break
        time.sleep(1)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def submission(name: str, wait: bool, **settings: object) -> list[str]:
    """The command of README.md that submits a job to segment, for a job of this name and these settings."""
    words = in_readme("ray job submit")
    words[words.index("--submission-id") + 1] = name
    if wait:
        words.remove("--no-wait")
    first = words.index("--set")
    assert [word.partition("=")[0] for word in words[first:]] == ["--set", "source", "--set", "out"]
    return [*words[:first], *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


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
    run(cluster, *submission("masks-1", False, **settings, out=stopped))
    deadline = time.monotonic() + 120
    while not store.count("PUT", "stopped/_raymask/parts/"):
        assert time.monotonic() < deadline, run(cluster, *in_readme("ray job logs"))
        time.sleep(0.5)
    run(cluster, *in_readme("ray job stop"))
    status = raymask.status(stopped)
    kept = status.ok + status.failed
    assert 0 < kept < PICTURES
    logs = run(cluster, *in_readme("ray job logs"))
    assert re.search(rf"\b\d+ of {PICTURES + 1} images", logs), logs
    assert "raymask: interrupted" in logs
    again = run(cluster, *submission("masks-2", True, **settings, out=stopped))
    assert f"{PICTURES + 1} images: {PICTURES} ok" in again
    [now] = re.findall(r"(\d+) of them now", again)
    assert int(now) <= PICTURES + 1 - kept
    run(cluster, *submission("undisturbed", True, **settings, out=calm))
    assert tables(stopped) == tables(calm)


@pytest.mark.timeout(300)
def test_a_submitted_job_trains_a_model(cluster: dict[str, str], tmp_path: Path) -> None:
    write_data_set(tmp_path, 6, 1, seed=4)
    out = tmp_path / "model"
    settings = {
        **{"data": tmp_path / "train.json", "images": tmp_path / "train", "out": out, "epochs": 1, "batch_size": 3},
        **{"model": "maskrcnn_resnet10_fpn", "min_size": 96, "max_size": 128, "proposals": 100},
    }
    command = ["ray", "job", "submit", "--working-dir", ".", "--"]
    command += ["python", "jobs/train.py", "--config", "jobs/train.yaml"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    assert "6 images seen" in run(cluster, *command)
    assert load_model(str(out)).spec.training["images_seen"] == 6
