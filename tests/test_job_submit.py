"""Jobs as users start them: `ray job submit` to a cluster that runs already."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import RAY, free_port, ray_node

from raymask.demo.drawing import write_data_set
from raymask.model import load_model

pytest.importorskip("opencensus", reason="job submission needs ray[default]: pip install -e '.[dev]'")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which `ray job submit` finds a cluster of this test's own, and may use it."""
    port, jobs_port, agent_port = free_port(), free_port(), free_port()
    # Short, for the names of sockets in it must not be longer than a hundred characters.
    folder = Path("/tmp") / f"ray-{os.getpid()}"
    options = ["--head", f"--port={port}", f"--dashboard-port={jobs_port}", "--num-cpus=2", f"--temp-dir={folder}"]
    options += ["--include-dashboard=true", f"--dashboard-agent-listen-port={agent_port}"]
    # Who reaches an open port of Ray runs code there, so it asks for a token.
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["PATH"] = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"  # where jobs find their `python`
    address = f"http://127.0.0.1:{jobs_port}"
    with ray_node(*options, environment=environment) as process:
        wait_until_up(f"{address}/api/version", process)
        yield {**environment, "RAY_API_SERVER_ADDRESS": address}
    shutil.rmtree(folder, ignore_errors=True)


def wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the cluster did not start"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:  # 401: up, and wants the token that Ray's own client has
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the cluster takes no jobs")


@pytest.mark.timeout(600)
def test_a_submitted_job_trains_a_model(cluster: dict[str, str], tmp_path: Path) -> None:
    write_data_set(tmp_path, 6, 1, seed=4)
    out = tmp_path / "model"
    settings = {
        **{"data": tmp_path / "train.json", "images": tmp_path / "train", "out": out, "epochs": 1, "batch_size": 3},
        **{"model": "maskrcnn_resnet10_fpn", "min_size": 96, "max_size": 128, "proposals": 100},
    }
    command = [str(RAY), "job", "submit", "--working-dir", str(ROOT), "--"]
    command += ["python", "jobs/train.py", "--config", "jobs/train.yaml"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    for _ in range(60):
        outcome = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=400)
        if "No available agent" not in outcome.stderr:  # the part of Ray that starts jobs comes up last
            break
        time.sleep(1)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "6 images seen" in outcome.stdout
    assert load_model(str(out)).spec.training["images_seen"] == 6
