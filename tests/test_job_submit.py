"""Jobs as users start them: `ray job submit` to a cluster that runs already."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymask.demo.drawing import write_data_set
from raymask.model import load_model

pytest.importorskip("opencensus", reason="job submission needs ray[default]: pip install -e '.[dev]'")

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).parent / "ray"


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address for jobs of a cluster of this test's own."""
    port, jobs_port = free_port(), free_port()
    # Short, for the names of sockets in it must not be longer than a hundred characters.
    folder = Path("/tmp") / f"ray-{os.getpid()}"
    command = [str(RAY), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={jobs_port}"]
    command += ["--num-cpus=2", f"--temp-dir={folder}", "--include-dashboard=true", "--disable-usage-stats"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{jobs_port}"
    try:
        wait_until_up(f"{address}/api/version", process)
        yield address
    finally:
        # `ray stop` would stop every Ray on this machine.
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the cluster did not start"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError("the cluster takes no jobs")


@pytest.mark.timeout(600)
def test_a_submitted_job_trains_a_model(cluster: str, tmp_path: Path) -> None:
    write_data_set(tmp_path, 6, 1, seed=4)
    out = tmp_path / "model"
    settings = {
        **{"data": tmp_path / "train.json", "images": tmp_path / "train", "out": out, "epochs": 1, "batch_size": 3},
        **{"model": "maskrcnn_resnet10_fpn", "min_size": 96, "max_size": 128, "proposals": 100},
    }
    command = [str(RAY), "job", "submit", "--address", cluster, "--working-dir", str(ROOT), "--"]
    command += ["python", "jobs/train.py", "--config", "jobs/train.yaml"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "6 images seen" in outcome.stdout
    assert load_model(str(out)).spec.training["images_seen"] == 6
