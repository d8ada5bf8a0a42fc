"""What raymask sets for Ray before it begins."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest
from ray.data._internal.cluster_autoscaler import default_cluster_autoscaler_v2


@pytest.mark.usefixtures("ray_session")
def test_the_share_of_a_killed_driver_is_soon_free() -> None:
    name = "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S"
    assert os.environ[name] == "30"
    assert name in inspect.getsource(default_cluster_autoscaler_v2)  # read when Ray Data first runs


SCRIPT = """
import time
import ray
from raymask.cluster import ray_session

class Failing:
    def fail(self): raise ValueError("said")
    def live(self): ...

with ray_session():
    actor = ray.remote(Failing).remote()
    actor.fail.remote()
    ray.get(actor.live.remote())  # after the other
    time.sleep(0.5)
"""


def test_what_nobody_waits_for_fails_without_a_word() -> None:
    outcome = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert outcome.stdout + outcome.stderr == ""


SCRIPT_OF_PROCESSES = """
import ray
from raymask.cluster import ray_session

def watched():
    print(monitor.process.poll(), set(begun) - set(node.all_processes))
    shut_down()
    print(node.all_processes)

with ray_session():
    node = ray._private.worker._global_node
    begun = dict(node.all_processes)
    [monitor] = begun["monitor"]
    shut_down, ray.shutdown = ray.shutdown, watched
"""


def test_the_end_does_not_wait_for_the_monitor() -> None:
    """Ray would: a second for a process that has nothing to do on one machine. All others it ends itself."""
    command = [sys.executable, "-c", SCRIPT_OF_PROCESSES]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert outcome.stdout.splitlines() == ["-9 {'monitor'}", "{}"]
